"""What a step of a vector environment in torch gives."""

from typing import Any, NamedTuple

from torch import Tensor


class StepResult(NamedTuple):
    """Reward (num_envs,) float32, whether an episode ended (num_envs,) bool, and named values for `info`; all on the
    host or on the environment's device."""

    reward: Tensor
    done: Tensor
    info: dict[str, Any]
