"""Episodes of `TrainingRun` that take part of a second."""

from typing import Any

import numpy as np

from astra_gym.envs.training_run.environment import DECISIONS, TrainingRunEnv
from astra_gym.envs.training_run.instances import Instance

WORLD = {
    "dataset": "digits",
    "image_size": 8,
    "width": 2,
    "projector_hidden": 8,
    "projector_dim": 8,
    "batch_size": 8,
    "epochs": 2,
    "passes": 60.0,
    "judge_epsilon": 8 / 255,
    "judge_score": "mean",
    "action_epsilons": (0, 8 / 255, 16 / 255),
    "action_steps": (0, 1, 4),
}
TINY = {
    "small": Instance("train", 40, WORLD),
    "robust": Instance("train", 40, WORLD | {"method": "acl", "judge_score": "robust", "width": 4}),
    "clean": Instance("test", 40, WORLD | {"method": "simclr"}),
}


def make(**arguments: Any) -> TrainingRunEnv:
    return TrainingRunEnv(**{"instances": TINY, **arguments})


def actions(env: TrainingRunEnv, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(env.action_space.nvec) for _ in range(DECISIONS)]


def played(env: TrainingRunEnv, chosen: list[np.ndarray], seed: int | None, name: str) -> list[tuple[Any, ...]]:
    observation, _ = env.reset(seed=seed, options={"instance": name})
    return [(observation.tolist(),)] + [
        (observation.tolist(), reward, over, cut, info)
        for observation, reward, over, cut, info in map(env.step, chosen)
    ]
