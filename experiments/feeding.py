"""The part of the benchmark that measures whether the data can keep up with the network."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from experiments.measuring import Clock, Figure, Result
from experiments.workloads import BenchmarkError, Options, views_for
from ssl_core.decoding import map_images
from ssl_core.images import ImageSet
from ssl_core.loading import BatchSource, images_per_second
from ssl_core.rng import Streams
from ssl_core.sampler import BatchSampler

COUNT, SIZE, BATCH = 100_000, 96, 256
"""Images, their side in pixels, and images a batch; 2.8 GB in a temporary folder."""
QUICK = (96, 16, 8)
BATCHES = 16
NETWORK = {"arch": "resnet18", "width": 64, "stem": "imagenet", "projector_hidden": 512, "projector_dim": 512}
TRAINED = 32
"""Images in the batch that is trained on: a processor needs seconds for as many as are gathered."""


def measure_data(options: Options, rounds: int, say: Callable[[str], None]) -> Result:
    """Gathering batches from a mapped file of images of 96 x 96, beside the cheapest training step that there is.

    The file lies on the disk before every round, and not in the system's memory, where the system allows to say so. The
    step is SimCLR's, without an attack, by a ResNet-18 with the ImageNet stem: any other one takes longer.

    Raises:
        BenchmarkError: if the temporary folder has too little space.
    """
    count, size, batch = QUICK if options.quick else (COUNT, SIZE, BATCH)
    streams, clock = Streams(0, options.device), Clock(options.device)
    small = {"width": 4, "projector_hidden": 8, "projector_dim": 8} if options.quick else {}
    world = NETWORK | {"method": "simclr", "agent": "none", "precision": "auto"} | small
    learner = options.learner(**world)
    views = views_for(learner, 2 * (batch if options.quick else TRAINED), size, streams)
    shares, gathered, trained = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "images.u8"
        write_noise(file, count, size)
        data = ImageSet(map_images(file, (count, 3, size, size)), None, (), "noise", file)
        source = BatchSource(data, options.device, "host")
        source.start(BatchSampler(count, batch, streams["data"]))
        for number in range(rounds + 1):
            say(f"data: round {number} of {rounds}")
            forget(file)
            speed = images_per_second(source, 2 if options.quick else BATCHES)
            began = clock()
            learner.update(views, None)
            eaten = len(views) / 2 / (clock() - began)
            if number:
                gathered.append(speed)
                trained.append(eaten)
                shares.append(eaten / speed)
        source.close()
        del source, data
    figure = Figure("data", "gathering images from disk, beside a SimCLR step on them", "overhead", tuple(shares))
    images = {"count": count, "size": size, "gathered_a_second": gathered, "trained_a_second": trained}
    return [figure], {"images": images, "precision": learner.network.precision}


def write_noise(file: Path, count: int, size: int) -> None:
    """Writes `count` images of random bytes (3, size, size) and sees to it that they are on the disk.

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
    """Asks the system not to keep the file in memory; where it can't be asked, figures are those of a warm file."""
    if not hasattr(os, "posix_fadvise"):
        return
    with file.open("rb") as content:
        os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    time.sleep(0.1)  # the system does it a little later
