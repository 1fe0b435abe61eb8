"""The part of the benchmark that measures whether the data keep up with the network."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_gym.experiments.benchmarks.measure import DeviceClock, Figure, Result, interleaved
from astra_gym.experiments.benchmarks.workloads import BenchmarkError, Options
from astra_gym.ssl_core.data.batch_source import BatchSource, images_per_second
from astra_gym.ssl_core.data.decoding import map_images
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.sampler import BatchSampler
from astra_gym.ssl_core.transforms.views import as_float, two_views
from astra_gym.ssl_core.utils.rng import Streams

COUNT, SIZE = 100_000, 96
"""Images and their side in pixels; 2.8 GB in a temporary folder."""
QUICK = (96, 32)
"""Not smaller, since the gradient of a bfloat16 convolution with stride 2 of a single pixel is garbage on some CPUs."""
BATCH = {"cpu": 32, "cuda": 256}
"""Images per batch, by the kind of device, since a CPU needs seconds for the batch of a GPU."""
QUICK_BATCH = 8
STEPS = {"cpu": 3, "cuda": 20}
"""Steps that are timed together."""
QUICK_STEPS = 2
ALONE = 16
"""Batches for the measurement of the source's own speed; `quick`: 2."""
NETWORK = {"arch": "resnet18", "width": 64, "stem": "imagenet", "projector_hidden": 512, "projector_dim": 512}


def measure_data(options: Options, rounds: int, say: Callable[[str], None]) -> Result:
    """Measure SimCLR steps on batches that a thread reads from a mapped file, against steps on a batch on the device.

    The share of augmenting in such a step is measured too. The images are 96 x 96. Before every round the file is on
    the disk and, where the system can drop it from its cache, not in memory. A step augments a batch and updates a
    ResNet-18 with the ImageNet stem; without an attack, it is the cheapest step, and leaves the data the least time.
    The first step is made but not timed, so that the thread has a batch ready, as in the middle of a run.

    Raises:
        BenchmarkError: if the temporary folder has too little space.
    """
    kind = options.device.type
    count, size = QUICK if options.quick else (COUNT, SIZE)
    batch, steps = (QUICK_BATCH, QUICK_STEPS) if options.quick else (BATCH[kind], STEPS[kind])
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "images.u8"
        write_noise(file, count, size)
        data = ImageSet(map_images(file, (count, 3, size, size)), None, (), "noise", file)
        source = BatchSource(data, options.device, "host")
        source.start(BatchSampler(count, batch, Streams(0)["data"]))
        seconds, details = _timed(source, file, steps, options, rounds, say)
        source.close()
        # some systems cannot remove a mapped file
        del source, data
    images = {"count": count, "size": size, "batch": batch}
    return share_figures(seconds), {"images": images, "steps": steps, "seconds": seconds} | details


def _timed(
    source: BatchSource, file: Path, steps: int, options: Options, rounds: int, say: Callable[[str], None]
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the seconds in each round of steps with reading, steps without, and augmenting alone; and details."""
    clock = DeviceClock(options.device)
    small = {"width": 4, "projector_hidden": 8, "projector_dim": 8} if options.quick else {}
    learner = options.learner(**NETWORK | {"method": "simclr", "agent": "none", "precision": "auto"} | small)
    settings = options.settings().views.make()
    fixed = source.next().clone()
    alone: list[float] = []
    seconds: dict[str, list[float]] = {"augmenting": [], "without": [], "with": []}

    def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
        return two_views(as_float(images), settings, generator).contiguous(memory_format=torch.channels_last)

    def timed(step: Callable[[], object]) -> float:
        step()
        began = clock()
        for _ in range(steps):
            step()
        return clock() - began

    def augmenting(number: int) -> float:
        generator = Streams(number)["views"]
        return timed(lambda: augmented(fixed, generator))

    def training(images: Callable[[], Tensor], number: int) -> float:
        # the same augmentations on both sides
        generator = Streams(number)["views"]
        return timed(lambda: learner.update(augmented(images(), generator), None))

    def prepare(number: int) -> int:
        say(f"data: round {number} of {rounds}")
        forget(file)
        speed = images_per_second(source, 2 if options.quick else ALONE)
        alone.extend([speed] if number else [])
        return number

    def check(number: int, work: int, found: dict[str, float]) -> None:
        for name, took in found.items():
            seconds[name] += [took] if number else []

    tasks: dict[str, Callable[[int], float]] = {
        "augmenting": augmenting,
        "without": partial(training, lambda: fixed),
        "with": partial(training, source.next),
    }
    interleaved(tasks, prepare, rounds, clock, check)
    return seconds, {"gathered_a_second": alone, "precision": learner.network.precision}


def share_figures(seconds: Mapping[str, Sequence[float]]) -> list[Figure]:
    """Return the shares of reading and augmenting in a step, round by round.

    Args:
        seconds: seconds of equally many steps `with` and `without` reading, and of their `augmenting` alone.
    """
    reading = (max(0.0, 1 - ours / whole) for ours, whole in zip(seconds["without"], seconds["with"], strict=True))
    made = (part / whole for part, whole in zip(seconds["augmenting"], seconds["without"], strict=True))
    return [
        Figure("data", "reading from disk, in a SimCLR step", "overhead", tuple(reading)),
        Figure("data", "augmenting, in a SimCLR step", "share", tuple(made)),
    ]


def write_noise(file: Path, count: int, size: int) -> None:
    """Write `count` images of random bytes (3, size, size) and wait until they are on the disk.

    Raises:
        BenchmarkError: if the folder has too little space.
    """
    needed, free = count * 3 * size**2, shutil.disk_usage(file.parent).free
    if needed > 0.9 * free:
        raise BenchmarkError(
            f"the part `data` writes {needed / 1e9:.1f} GB, and {file.parent} has {free / 1e9:.1f} GB left: "
            "set TMPDIR to another folder, or leave the part out"
        )
    generator = torch.Generator().manual_seed(0)
    with file.open("wb") as content:
        for start in range(0, count, 1000):
            shape = (min(1000, count - start), 3 * size**2)
            content.write(torch.randint(256, shape, dtype=torch.uint8, generator=generator).numpy().data)
        content.flush()
        os.fsync(content.fileno())


def forget(file: Path) -> None:
    """Ask the system to drop the file from its cache; where it cannot, the file stays in memory."""
    if not hasattr(os, "posix_fadvise"):
        return
    with file.open("rb") as content:
        os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    time.sleep(0.1)  # the system does it a little later
