"""A custom data set: digits in negative, classified as even or odd.

python examples/custom_dataset.py runs/custom_dataset
"""

import sys
from dataclasses import replace
from pathlib import Path

from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.data.datasets import DataRequest, DatasetSpec, load_dataset
from astra_gym.ssl_core.data.image_set import ImageSet, Split
from astra_gym.ssl_core.evaluation.results import read_results

TINY = "--limit 256 --test_limit 60 --batch_size 64 --epochs 2 --width 4 --probe_epochs 5 --device cpu"


def negative(images: ImageSet) -> ImageSet:
    """Return the images (n, 3, h, w) uint8 in negative, each with its class, int64."""
    labels = None if images.labels is None else images.labels % 2
    return replace(images, images=255 - images.images, labels=labels, classes=("even", "odd"))


def load(request: DataRequest) -> Split:
    """Return the training and the test images, `request.image_size` pixels wide; limits are applied afterwards."""
    digits = load_dataset("digits", image_size=request.image_size)
    return Split(negative(digits.train), negative(digits.test), ("digits in negative",))


PARITY = DatasetSpec(load=load, summary="digits in negative, even or odd", preset="digits")

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/custom_dataset")
    if status := main([*TINY.split(), "--dataset", "custom_dataset:PARITY", "--run_dir", str(folder)]):
        sys.exit(status)
    clean, *_ = read_results(folder / "results" / "slf.json")
    print(f"even or odd, by a linear probe: {clean.value:.1f} % of {clean.n} test images right")
