"""Batches are those of the sampler, wherever the images are and whatever was gathered ahead."""

import copy
import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.data import batch_source
from astra_gym.ssl_core.data.batch_source import KEEP_DATA, BatchSource, images_per_second
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.sampler import BatchSampler

DEVICES = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)]


def image_set(file: Path | None = None, n: int = 23) -> ImageSet:
    images = torch.randint(0, 256, (n, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if file is not None:
        file.write_bytes(images.numpy().tobytes() + b"trailer")
        mapped = np.memmap(file, dtype=np.uint8, mode="c", shape=tuple(images.shape))
        images = torch.from_numpy(mapped)
    return ImageSet(images, None, (), "toy", file)


def sampler(n: int = 23, seed: int = 3) -> BatchSampler:
    return BatchSampler(n, 5, torch.Generator().manual_seed(seed))


def started(data: ImageSet, keep: str = "host", device: torch.device | str = "cpu") -> BatchSource:
    source = BatchSource(data, device, keep)
    source.start(sampler())
    return source


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> None:
    yield
    for patience in (0.05, 5):
        deadline = time.monotonic() + patience
        while threads() and time.monotonic() < deadline:
            time.sleep(0.005)
        if threads():
            # half a second in a process that has much
            gc.collect()
    assert threads() == []


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keep", KEEP_DATA)
@pytest.mark.parametrize("mapped", [False, True])
def test_every_way_gives_the_samplers_batches(
    tmp_path: Path, keep: str, mapped: bool, device: str, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue("gpu") if device == "gpu" else torch.device("cpu")
    data, twin = image_set(tmp_path / "images.u8" if mapped else None), sampler()
    source = started(data, keep, place)
    for _ in range(11):
        batch = source.next()
        assert batch.dtype == torch.uint8 and batch.device == place and batch.is_contiguous()
        assert torch.equal(batch.cpu(), data.images[twin.next()])


def test_auto_keeps_mapped_and_large_images_with_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, mapped = image_set(), image_set(tmp_path / "images.u8")
    assert BatchSource(data, "cpu").keep == "device"
    assert BatchSource(mapped, "cpu").keep == "host"
    # a GPU that is not there, since only its memory is asked for
    for free, keep in ((4 * data.images.nbytes, "device"), (4 * data.images.nbytes - 1, "host"), (None, "host")):
        monkeypatch.setattr(batch_source, "available", lambda device, free=free: free)
        assert batch_source._place(data, torch.device("cuda")) == keep
        assert batch_source._place(mapped, torch.device("cuda")) == "host"


def test_on_the_device_mapped_images_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = image_set(tmp_path / "images.u8")
    source, twin = started(data, "device"), sampler()
    expected = data.images.clone()
    data.images.zero_()
    assert torch.equal(source.next(), expected[twin.next()])
    monkeypatch.setattr(batch_source, "available", lambda device: data.images.nbytes - 1)
    with pytest.raises(
        ValueError, match=r"toy: 23 images take 0\.0 GB, and cpu has .*: take --keep_data host, or auto"
    ):
        BatchSource(data, "cpu", "device")


def test_the_next_batch_is_gathered_ahead_within_the_epoch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[tuple[str, list[int]]] = []

    def watched(images: Tensor, file: Path | None, rows: Tensor, out: Tensor) -> Tensor:
        gathered.append((threading.current_thread().name[:7], rows.tolist()))
        return gather(images, file, rows, out)

    gather = batch_source._gather
    monkeypatch.setattr(batch_source, "_gather", watched)
    source, twin = started(image_set()), sampler()
    for _ in range(8):
        source.next()
    source.close()
    # the first batch of an epoch when it is asked for, the others ahead, each once
    expected = [("MainThr" if k % 4 == 0 else "batches", twin.next().tolist()) for k in range(8)]
    assert gathered == expected


def test_the_samplers_state_is_that_of_the_run_at_every_batch() -> None:
    data, twin = image_set(), sampler()
    source = BatchSource(data, "cpu", "host")
    own = sampler()
    source.start(own)
    for _ in range(9):
        source.next()
        twin.next()
        state, expected = own.state_dict(), twin.state_dict()
        assert all(torch.equal(torch.as_tensor(state[name]), torch.as_tensor(expected[name])) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("taken", [0, 1, 3, 4, 6])
def test_it_goes_on_from_a_state(taken: int) -> None:
    data, own = image_set(), sampler()
    source = BatchSource(data, "cpu", "host")
    source.start(own)
    for _ in range(taken):
        source.next()
    state = own.state_dict()
    expected = [source.next() for _ in range(9)]
    # both in another source and in the same one, whose sampler moves below it
    other = sampler(seed=99)
    other.load_state_dict(state)
    source.start(other)
    assert all(torch.equal(source.next(), batch) for batch in expected)
    other.load_state_dict(state)
    assert all(torch.equal(source.next(), batch) for batch in expected)


def test_batches_do_not_change_afterwards() -> None:
    source = started(image_set())
    batches = [source.next() for _ in range(4)]
    copies = [batch.clone() for batch in batches]
    for _ in range(8):
        source.next()
    assert all(torch.equal(batch, kept) for batch, kept in zip(batches, copies, strict=True))


def test_what_the_thread_meets_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    source = started(image_set())

    def broken(*_: object) -> Tensor:
        raise OSError("the disk is gone")

    source.next()
    source.next()
    monkeypatch.setattr(batch_source, "_gather", broken)
    source.next()  # gathered before
    with pytest.raises(OSError, match="the disk is gone"):
        source.next()


def test_one_thread_which_ends_with_its_sampler_and_its_source() -> None:
    source = started(image_set())
    assert threads() == []
    for _ in range(6):
        source.next()
        assert len(threads()) == 1
    source.start(sampler())
    assert threads() == []
    source.next()
    assert len(threads()) == 1
    source.close()
    assert threads() == []
    source.next()
    # what is left ends by itself, see no_thread_is_left
    del source


def test_a_copy_goes_on_by_itself() -> None:
    source = started(image_set())
    source.next()
    source.next()
    other = copy.deepcopy(source)
    first = [source.next() for _ in range(6)]
    assert all(torch.equal(other.next(), batch) for batch in first)


def test_a_map_outlives_its_file(tmp_path: Path) -> None:
    data, twin = image_set(tmp_path / "images.u8"), sampler()
    source = started(data)
    (tmp_path / "images.u8").unlink()
    for _ in range(5):
        assert torch.equal(source.next(), data.images[twin.next()])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown place to keep the data 'gpu'"):
        BatchSource(image_set(), "cpu", "gpu")
    source = BatchSource(image_set(), "cpu")
    with pytest.raises(ValueError, match=r"call start\(\) first"):
        source.next()
    with pytest.raises(ValueError, match="the sampler is of 22 images, and there are 23"):
        source.start(sampler(22))
    source.start(sampler())
    with pytest.raises(ValueError, match="batches is 0"):
        images_per_second(source, 0)


@pytest.mark.parametrize("keep", ["device", "host"])
def test_the_rate_is_that_of_the_batches_asked_for(keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    source = started(image_set(), keep)
    assert images_per_second(source, 6) == 6 * 5 / 2
