"""The interface of an environment that agents use."""

from typing import Protocol, runtime_checkable

import gymnasium
import torch
from torch import Tensor

from astra_gym.envs.api.step_result import StepResult


class TorchVectorEnv(Protocol):
    """A vector environment of tensors, which stay on its device; sub-environments reset by themselves.

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
        """Return the current observation `(num_envs, *shape)`; repeated calls give the same one."""
        ...

    def play(self, actions: Tensor) -> StepResult:
        """Play actions `(num_envs, *shape)`; afterwards `observe` gives the next observation."""
        ...


@runtime_checkable
class AssessingEnv(Protocol):
    """A `TorchVectorEnv` that can report the reward of actions without taking the step."""

    @property
    def device(self) -> torch.device: ...

    def assess(self, actions: Tensor) -> Tensor | None:
        """Return the reward (num_envs,) of actions `(num_envs, *shape)` in the present state, which does not change.

        None if a reward is known only after the step.
        """
        ...
