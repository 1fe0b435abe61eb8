"""A custom attack start: a random corner of each view's ball, instead of any point in it.

python examples/custom_start.py runs/custom_start
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.attacks.pgd import Budget

TINY = "--agent fixed --method acl --limit 256 --batch_size 64 --epochs 2 --width 4 --evaluate false --device cpu"


def corners(images: Tensor, budget: Budget, generator: torch.Generator | None) -> Tensor:
    """Return perturbations (n, 3, h, w): each value is plus or minus its view's epsilon, in the unit of the images."""
    signs = torch.randint(2, images.shape, generator=generator, device=images.device) * 2 - 1
    return signs * budget.epsilon.to(images).view(-1, 1, 1, 1)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/custom_start")
    for start in ("zero", "uniform", "custom_start:corners"):
        run = folder / start.rpartition(":")[2]
        if status := main([*TINY.split(), "--attack_start", start, "--run_dir", str(run)]):
            sys.exit(status)
        rows = read_metrics(run / "metrics.jsonl")
        loss = sum(row["reward/adversarial"] for row in rows) / len(rows)
        print(f"{start}: mean attacked loss {loss:.3f}")
