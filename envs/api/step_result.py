"""The result of a step of a vector environment in torch."""

from typing import Any, NamedTuple

from torch import Tensor


class StepResult(NamedTuple):
    """Reward (num_envs,) float32, the flags of ended episodes (num_envs,) bool, and named values for `info`; all on the
    host or on the environment's device."""

    reward: Tensor
    done: Tensor
    info: dict[str, Any]
