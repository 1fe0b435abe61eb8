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


REPORTS = {
    "attack/slope": "sum over the pixels of the attack's absolute gradient at the view's last step, 0 without a step",
    "attack/gain": "the attacked view's loss minus the clean view's, on the weights that the attack saw",
    "attack/retrieved": "whether the view's partner is the nearest of the attacked views, after the attack",
    "attack/stopped": "whether the attack ended before its steps were spent",
}
"""What an environment reports of each attacked view on request, by its name in `info`."""


@runtime_checkable
class ReportingEnv(Protocol):
    """A `TorchVectorEnv` that reports on request how the attack of each view went."""

    def request(self, *names: str) -> None:
        """Have the `info` of every later play hold these values of `REPORTS`, (n,) for n attacked views.

        Raises:
            ValueError: if a name is unknown, or the world has no such value.
        """
        ...


@runtime_checkable
class ViewsEnv(ReportingEnv, Protocol):
    """A `ReportingEnv` whose sub-environments are the attacked views, of which it knows the images."""

    def places(self) -> Tensor:
        """Return (num_envs,) int64, on the host: a number for the image and the place among its attacked views of each
        coming view; equal numbers in two steps are the same image and place, drawn anew."""
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
