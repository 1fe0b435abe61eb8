"""A custom observation: the agent sees the colors of the views instead of the target network's features.

python examples/custom_observation.py runs/custom_observation
"""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from astra_gym.envs.observations import Observation
from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.train_agent import main

TINY = "--limit 256 --batch_size 64 --epochs 2 --width 4 --evaluate false --device cpu"


class Colors(Observation):
    """Mean and standard deviation of each channel, of a view or of all views of the batch."""

    @property
    def view_space(self) -> gym.Space:
        return gym.spaces.Box(0, 1, (6,), np.float32)

    def of_views(self, views: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.world.method.attacked(views), dim=(2, 3))
        return torch.cat([mean, deviation], dim=1)

    @property
    def batch_space(self) -> gym.Space:
        return self.view_space

    def of_batch(self, views: Tensor) -> Tensor:
        return self.of_views(views).mean(dim=0, keepdim=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/custom_observation")
    for env in ("view", "batch"):
        run = folder / env
        flags = ["--observation", "custom_observation:Colors", "--env", env, "--run_dir", str(run)]
        if status := main([*TINY.split(), *flags]):
            sys.exit(status)
        reward = read_metrics(run / "metrics.jsonl")[-1]["reward/mean"]
        print(f"--env {env}: an agent that saw 6 numbers, mean reward {reward:.3f} in the last update")
