"""A trained encoder for other work: train one, load it, and find the nearest neighbors of test images.

python examples/load_encoder.py runs/load_encoder
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.models.checkpoint import load_network
from astra_gym.ssl_core.transforms.views import as_float

TINY = "--limit 256 --image_size 8 --batch_size 64 --epochs 3 --width 4 --evaluate false --device cpu"

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/load_encoder")
    if status := main([*TINY.split(), "--agent", "fixed", "--run_dir", str(folder)]):
        sys.exit(status)
    # a network in eval mode, and the batch norm that its evaluation uses; images are float32 in [0, 1]
    network, route = load_network(folder)
    split = load_dataset("digits", image_size=8, limit=256, test_limit=100)
    with torch.no_grad():
        train, test = (
            F.normalize(network.features(as_float(part.images), route)) for part in (split.train, split.test)
        )
    nearest = (test @ train.T).argmax(dim=1)
    right = (split.train.labels[nearest] == split.test.labels).double().mean()
    share = 100 * right.item()
    print(f"{train.shape[1]} features; the nearest training image has the right digit for {share:.0f} % of the tests")
