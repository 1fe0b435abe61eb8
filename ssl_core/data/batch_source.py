"""Where training batches come from: gathered on the device, or by a thread ahead of the training; the same batches."""

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
from astra_gym.ssl_core.utils.memory import available
from astra_gym.ssl_core.utils.registry import pick

KEEP_DATA: Mapping[str, str] = {
    "auto": "on the device where the images are in memory and small beside what is free there, else with the host",
    "device": "all on the device, gathered there",
    "host": "in the host's memory or on disk; a thread gathers the next batch",
}
"""Where the training images stay during training."""
SHARE = 4
"""With `auto`, images may take this part of the device's free memory; the rest is for the network."""


class BatchSource:
    """Batches of a training set as uint8 on the device, in the order of a sampler.

    Where the images stay with the host, a thread gathers the next batch while the last one is trained on. It is told
    what the sampler will give (`BatchSampler.peek`) and never makes it draw: the sampler stands where the run does, and
    its batches are the same wherever the images are. The first batch of an epoch is gathered when it is asked for.

    Args:
        data: the training set.
        device: where the batches go.
        keep: a name of `KEEP_DATA`.

    Attributes:
        keep: `device` or `host`, what `auto` was resolved to.

    Raises:
        ValueError: an unknown name; `device` where the images do not fit there.
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
        """Goes on with this sampler; what was gathered ahead for another one is forgotten, and its thread ends.

        Raises:
            ValueError: the sampler is of another number of images.
        """
        if sampler.n != len(self._images):
            raise ValueError(f"the sampler is of {sampler.n} images, and there are {len(self._images)}")
        self.close()
        self._sampler = sampler

    def next(self) -> Tensor:
        """(k, 3, H, W) uint8 on the device: the images of the rows (k,) that the sampler gives next.

        Raises:
            ValueError: if `start` was not called before.
            Exception: whatever the thread met.
        """
        if self._sampler is None:
            raise ValueError("there is no sampler yet: call start() first")
        rows = self._sampler.next()
        if self.keep == "device":
            return self._images.index_select(0, rows.to(self.device, non_blocking=True))
        ahead, self._ahead = self._ahead, None
        # The rows differ where somebody else has moved the sampler.
        if ahead is not None and torch.equal(ahead[0], rows):
            batch = ahead[1].result()
        else:
            batch = _gather(self._images, self._file, rows, self._buffer(rows))
        self._look_ahead()
        # The copy of pinned memory is in the stream's order, and torch keeps the buffer until it is done.
        return batch.to(self.device, non_blocking=True)

    def close(self) -> None:
        """Ends the thread; `next` starts another."""
        self._ahead = None
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None

    def __getstate__(self) -> dict[str, Any]:
        # neither a thread nor what it is at can be copied, and nothing is lost with them
        return self.__dict__ | {"_thread": None, "_ahead": None}

    def _look_ahead(self) -> None:
        rows = None if self._sampler is None else self._sampler.peek()
        if rows is None:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        # The buffer is made here, so that the thread has no business with the GPU; nor does it hold the source, which
        # can be collected at any time: the executor's thread ends with it.
        self._ahead = rows, self._thread.submit(_gather, self._images, self._file, rows, self._buffer(rows))

    def _buffer(self, rows: Tensor) -> Tensor:
        shape = (len(rows), *self._images.shape[1:])
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")


def _gather(images: Tensor, file: Path | None, rows: Tensor, out: Tensor) -> Tensor:
    """images[rows] in `out`, without the interpreter's lock and without torch's threads, which training needs."""
    if file is not None and hasattr(os, "posix_fadvise"):
        # Told beforehand, the system reads a batch at once; else it reads page by page, as they are touched: 5 times
        # slower. It is a hint: a file that was deleted meanwhile is still mapped.
        with suppress(OSError):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                length = images[0].nbytes
                for row in rows.tolist():
                    os.posix_fadvise(descriptor, row * length, length, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
    # In the mode `raise` NumPy would gather into a buffer of its own first.
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
    """The images on the device; mapped ones in memory, where that is the device."""
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
    """How fast a source is by itself, with nothing trained in between.

    Training cannot be faster than this, and is not slowed down while it needs clearly less. Pages of a mapped file that
    were read before are in memory: only the first measurement after a start tells what the disk gives.

    Args:
        source: after `start`; its sampler moves on.
        batches: to be timed, at least 1; one more is made before them.
    """
    if batches < 1:
        raise ValueError(f"batches is {batches}, expected 1 or more")
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
