"""Sources of training batches, gathered on the device or in advance by a thread; the batches are the same."""

import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.sampler import BatchSampler
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.memory import available
from astra_gym.ssl_core.utils.registry import pick

KEEP_DATA: Mapping[str, str] = {
    "auto": "on the device where the images are in memory and small beside what is free there, else with the host",
    "device": "all on the device, gathered there",
    "host": "in the host's memory or on disk; a thread gathers the next batch",
}
"""Places to keep the training images during training."""
SHARE = 4
"""With `auto`, images may take 1/SHARE of the device's free memory; the rest is for the network."""


class BatchSource:
    """Batches of a training set as uint8 on the device, in the order of a sampler.

    If the images stay on the host, a thread gathers the next batch during training on the last one. It is given the
    sampler's next rows (`BatchSampler.peek`) and never makes the sampler draw: the sampler stays at the run's position,
    and its batches do not depend on where the images are. The first batch of an epoch is gathered on request.

    Args:
        data: the training set.
        device: device of the batches.
        keep: a name of `KEEP_DATA`.

    Attributes:
        keep: `device` or `host`; `auto` is resolved to one of them.

    Raises:
        ValueError: if the name is unknown, or with `device` if the images do not fit there.
    """

    def __init__(self, data: ImageSet, device: torch.device | str, keep: str = "auto") -> None:
        pick(keep, KEEP_DATA, "place to keep the data")
        self.device = torch.device(device)
        self.keep = _place(data, self.device) if keep == "auto" else keep
        self._images = _moved(data, self.device) if self.keep == "device" else data.images
        self._file = data.file
        self._sampler: BatchSampler | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: tuple[Tensor, Future[Tensor]] | None = None

    def start(self, sampler: BatchSampler) -> None:
        """Continue with this sampler; drop a batch gathered in advance for an earlier sampler, and end the thread.

        Raises:
            ValueError: if the sampler is for another number of images.
        """
        if sampler.n != len(self._images):
            raise ValueError(f"the sampler is of {sampler.n} images, and there are {len(self._images)}")
        self.close()
        self._sampler = sampler

    def next(self) -> Tensor:
        """Return the images of the sampler's next rows (k,): (k, 3, H, W) uint8 on the device.

        Raises:
            ValueError: if `start` was not called.
            Exception: any error in the thread.
        """
        if self._sampler is None:
            raise ValueError("there is no sampler yet: call start() first")
        rows = self._sampler.next()
        if self.keep == "device":
            return self._images.index_select(0, rows.to(self.device, non_blocking=True))
        ahead, self._ahead = self._ahead, None
        # The rows differ if other code has moved the sampler.
        if ahead is not None and torch.equal(ahead[0], rows):
            batch = ahead[1].result()
        else:
            batch = _gather(self._images, self._file, rows, self._buffer(rows))
        self._look_ahead()
        # The copy of pinned memory follows the stream's order, and torch keeps the buffer until it is done.
        return batch.to(self.device, non_blocking=True)

    def close(self) -> None:
        """End the thread; `next` starts another."""
        self._ahead = None
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None

    def __getstate__(self) -> dict[str, Any]:
        # a thread and its work cannot be copied, and nothing is lost without them
        return self.__dict__ | {"_thread": None, "_ahead": None}

    def _look_ahead(self) -> None:
        rows = None if self._sampler is None else self._sampler.peek()
        if rows is None:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        # The buffer is made here, so that the thread does not use the GPU. Nor does the thread hold the source, so the
        # source can be garbage-collected at any time; that ends the thread.
        self._ahead = rows, self._thread.submit(_gather, self._images, self._file, rows, self._buffer(rows))

    def _buffer(self, rows: Tensor) -> Tensor:
        shape = (len(rows), *self._images.shape[1:])
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")


def _gather(images: Tensor, file: Path | None, rows: Tensor, out: Tensor) -> Tensor:
    """Write images[rows] to `out`, without the interpreter's lock and torch's threads, which training needs."""
    if file is not None and hasattr(os, "posix_fadvise"):
        # With this hint the system reads a whole batch; without it, page by page on access, 5 times slower. Errors are
        # ignored: a file that was deleted meanwhile is still mapped.
        with suppress(OSError):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                length = images[0].nbytes
                for row in rows.tolist():
                    os.posix_fadvise(descriptor, row * length, length, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
    # In the mode `raise` NumPy would gather into a temporary buffer first.
    np.take(images.numpy(), rows.numpy(), axis=0, out=out.numpy(), mode="clip")
    return out


def _place(data: ImageSet, device: torch.device) -> str:
    if data.file is not None:
        return "host"
    if device.type == "cpu":
        return "device"
    free = available(device)
    return "device" if free is not None and data.images.nbytes <= free / SHARE else "host"


def _moved(data: ImageSet, device: torch.device) -> Tensor:
    """Return the images on the device; on the CPU, mapped images are copied to memory."""
    if device.type == "cpu" and data.file is None:
        return data.images
    needed, free = data.images.nbytes, available(device)
    if free is not None and needed > free:
        raise ValueError(
            f"{data.name}: {len(data)} images take {needed / 1e9:.1f} GB, and {device} has {free / 1e9:.1f} GB of "
            "memory left: take --keep_data host, or auto"
        )
    return data.images.to(device, copy=True)


def images_per_second(source: BatchSource, batches: int) -> float:
    """Measure the speed of a source alone, in images per second, without training in between.

    Training cannot be faster than this; if it is clearly slower, loading does not limit it. Pages of a mapped file
    that were read before are in memory: only a measurement on unread pages shows the speed of the disk.

    Args:
        source: a source after `start`; its sampler advances.
        batches: number of batches to time, at least 1; one more is made before them.
    """
    check_number("batches", batches, 1, whole=True)
    images = len(source.next())
    _finish(source.device)
    begin = time.perf_counter()
    for _ in range(batches):
        source.next()
    _finish(source.device)
    return batches * images / (time.perf_counter() - begin)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
