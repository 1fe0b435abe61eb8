"""A custom agent: attack views with a high clean loss hardest.

A function of the observations learns nothing; a learning agent is a subclass of Stable-Baselines3's `BaseAlgorithm`.

python examples/custom_agent.py runs/custom_agent
"""

import sys
from pathlib import Path

import numpy as np

from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.train_agent import main

TINY = "--limit 256 --batch_size 64 --epochs 2 --width 4 --actions continuous --evaluate false --device cpu"
LOSS = -2
"""Index of the clean loss, in standard deviations, in a view's features; the last feature is the progress."""


def harder(observations: np.ndarray) -> np.ndarray:
    """Actions (n, 3) for `--actions continuous`: epsilon, steps and step size, each in [-1, 1], small to large."""
    level = np.clip(observations[:, LOSS] / 2, -1, 1)
    return np.stack([level, level, np.full_like(level, -0.5)], axis=1)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/custom_agent")
    if status := main([*TINY.split(), "--agent", "custom_agent:harder", "--run_dir", str(folder)]):
        sys.exit(status)
    fifths = read_metrics(folder / "metrics.jsonl")[-1]["by_clean_loss/epsilon_255"]
    print(f"epsilon (/255) by clean loss, lowest fifth first: {', '.join(f'{value:.1f}' for value in fifths)}")
