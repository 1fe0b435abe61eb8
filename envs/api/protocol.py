"""What an agent needs of an environment."""

from typing import Protocol, runtime_checkable

import gymnasium
import torch
from torch import Tensor

from astra_gym.envs.api.step_result import StepResult


class TorchVectorEnv(Protocol):
    """A vector environment that speaks tensors and stays on its device; sub-environments start anew by themselves.

    `observation_space` and `action_space` are those of *one* sub-environment.
    """

    @property
    def num_envs(self) -> int: ...

    @property
    def observation_space(self) -> gymnasium.Space: ...

    @property
    def action_space(self) -> gymnasium.Space: ...

    @property
    def device(self) -> torch.device: ...

    def observe(self) -> Tensor:
        """The current observation `(num_envs, *shape)`; asked twice, it is the same."""
        ...

    def play(self, actions: Tensor) -> StepResult:
        """Plays actions `(num_envs, *shape)`; afterwards `observe` gives the next observation."""
        ...


@runtime_checkable
class AssessingEnv(Protocol):
    """A `TorchVectorEnv` that can say what actions would be rewarded with, without taking the step."""

    @property
    def device(self) -> torch.device: ...

    def assess(self, actions: Tensor) -> Tensor | None:
        """The reward (num_envs,) of actions `(num_envs, *shape)` in the present state, which stays as it is.

        None where a reward is known only after the step.
        """
        ...
