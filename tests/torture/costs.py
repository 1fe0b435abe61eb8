"""What safety costs: the share of a training's time that goes into seals and digests, and the time to digest many
images."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import torch

from astra_gym.experiments import train_agent
from astra_gym.experiments.benchmarks.measure import Stopwatch
from astra_gym.ssl_core.data import image_digests
from astra_gym.ssl_core.data.image_digests import RunImages
from astra_gym.ssl_core.data.image_set import ImageSet, Split
from astra_gym.ssl_core.safety import sealing

TRAINING = ("--preset=digits", "--epochs=5", "--evaluate=false", "--progress=off")
"""The training that is measured, its last checkpoint included."""
IMAGES = 100_000
SEALS, DIGESTS, WHOLE = "seals", "digests", "training"
WATCHED = {
    **dict.fromkeys(("sealed_json", "sealed_yaml", "sealed_line", "seal_zip", "read_json"), (sealing, SEALS)),
    **dict.fromkeys(("check_yaml", "check_zip", "opened_line"), (sealing, SEALS)),
    **dict.fromkeys(("digest_images", "_sealed"), (image_digests, DIGESTS)),
}
"""The functions that make and compare them: where each lies, and what it is counted for."""


def costs(room: Path, training: tuple[str, ...] = TRAINING, images: int = IMAGES) -> dict[str, Any]:
    """Measure both, in this process.

    Args:
        room: an empty folder.
        training: flags of the training.
        images: of 32 x 32 pixels.

    Returns:
        Seconds of the training, of its seals and of its digests, the share of both in [0, 1], and the seconds that the
        images took.
    """
    watch, seconds = Stopwatch(), dict.fromkeys((SEALS, DIGESTS, WHOLE), 0.0)
    with contextlib.ExitStack() as stack:
        for attribute, (home, name) in WATCHED.items():
            function = getattr(home, attribute)
            # every module that has imported it
            for module in [module for key, module in sys.modules.items() if key.startswith("astra_gym.")]:
                if vars(module).get(attribute) is function:
                    stack.enter_context(watch.watching(module, attribute, name))
        with watch.part(WHOLE):
            status = train_agent.main([*training, f"--run_dir={room / 'run'}"])
    if status != 0:
        raise RuntimeError(f"the training ended with status {status}")
    for path, value in watch.take().items():
        seconds[path[-1]] += value
    whole = sum(seconds.values())
    pixels = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ImageSet(pixels, None, (), "many")
    began = time.perf_counter()
    RunImages.of(Split(data, data.take(1))).write(room / "images.digests")
    return {
        "training_seconds": round(whole, 2),
        "seals_seconds": round(seconds[SEALS], 4),
        "digests_seconds": round(seconds[DIGESTS], 4),
        "share": round((seconds[SEALS] + seconds[DIGESTS]) / whole, 6),
        "images": images,
        "images_seconds": round(time.perf_counter() - began, 4),
    }
