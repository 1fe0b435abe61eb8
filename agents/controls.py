"""Agents that learn nothing: what every learnt strategy must be compared with."""

import os
from typing import Any, ClassVar, TypedDict, Unpack

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents.base import Agent
from agents.policies import choices


class Common(TypedDict, total=False):
    """The arguments that the constructors of all our agents take: as of `Agent`."""

    seed: int
    device: torch.device | str
    tensorboard_log: str | os.PathLike[str] | None


class OnePlayAgent(Agent):
    """An agent whose rollouts are single plays.

    Args:
        env: anything that `agents.base.as_torch_env` takes.
        common: seed, device and tensorboard_log, as of `Agent`.

    Raises:
        ValueError: if the environment or its spaces are of another kind.
    """

    def __init__(self, env: Any, **common: Unpack[Common]) -> None:
        # all of them, so that an unknown one is a TypeError
        given: dict[str, Any] = {**common}
        log = given.pop("tensorboard_log", None)
        super().__init__(env, tensorboard_log=None if log is None else os.fspath(log), **given)

    def _joined(self, columns: list[Tensor]) -> Tensor:
        """The heads' choices, (n,) each, as actions: (n, heads) for MultiDiscrete, (n,) for Discrete."""
        return columns[0] if isinstance(self.action_space, spaces.Discrete) else torch.stack(columns, 1)


class RandomAgent(OnePlayAgent):
    """Uniform over the action space, from its own stream.

    Uniform random beats a fixed attack in ASTrA's own slides, so it is a control that no comparison may skip.

    Args:
        env: anything that `agents.base.as_torch_env` takes; a Box action space must be bounded.
        common: seed, device and tensorboard_log, as of `Agent`.

    Raises:
        ValueError: if the action space is of another kind or an unbounded Box.
    """

    kind: ClassVar[str] = "random"

    def __init__(self, env: Any, **common: Unpack[Common]) -> None:
        super().__init__(env, **common)
        if isinstance(self.action_space, spaces.Box) and not self.action_space.is_bounded():
            raise ValueError(f"the action space is {self.action_space}: a uniform draw needs a bounded Box")

    def _act(self, observation: Tensor) -> Tensor:
        return self._uniform(len(observation), self._streams["agent/actions"])

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        # there is no most probable action: a deterministic answer would be another agent
        return self._uniform(len(observation), self._streams["agent/predict"])

    def _uniform(self, n: int, generator: torch.Generator) -> Tensor:
        space = self.action_space
        if isinstance(space, spaces.Box):
            low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
            actions = low + (high - low) * torch.rand((n, *space.shape), generator=generator)
        else:
            actions = self._joined([torch.randint(each, (n,), generator=generator) for each in choices(space)])
        return actions.to(self.device)


def encoded(action: Any, space: gymnasium.Space, what: str) -> Tensor:
    """The action as agents send it: int64, or float32 for a Box.

    Args:
        action: one action, as numbers.
        space: Discrete, MultiDiscrete or Box.
        what: what the action is, for the error.

    Raises:
        ValueError: if the action is not an element of the space.
    """
    try:
        values = np.asarray(action)
    except ValueError:
        # lists of unequal lengths
        values = np.asarray(None)
    if isinstance(space, spaces.Box) and np.issubdtype(values.dtype, np.number):
        values = values.astype(np.float32)
    elif np.issubdtype(values.dtype, np.integer):
        values = values.astype(np.int64)
    else:
        numbers = "numbers" if isinstance(space, spaces.Box) else "integers"
        raise ValueError(f"{what} is {action!r}: expected {numbers}, an element of {space}")
    if not space.contains(values[()] if values.ndim == 0 else values):
        raise ValueError(f"{what} is {action!r}: expected an element of {space}")
    return torch.as_tensor(values)


class FixedAgent(OnePlayAgent):
    """Always the same action, ACL's 8/255, 5 steps of 2/255 in the comparison.

    Args:
        env: anything that `agents.base.as_torch_env` takes.
        action: an element of the action space, encoded by the caller: an agent does not know units.
        common: seed, device and tensorboard_log, as of `Agent`.

    Raises:
        ValueError: if the action is not an element of the action space.
    """

    kind: ClassVar[str] = "fixed"

    def __init__(self, env: Any, action: Any, **common: Unpack[Common]) -> None:
        super().__init__(env, **common)
        self.action = encoded(action, self.action_space, "the fixed action").to(self.device)

    def _act(self, observation: Tensor) -> Tensor:
        return self.action.expand(len(observation), *self.action.shape)

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        return self._act(observation)

    def _arguments(self) -> dict[str, Any]:
        return {"action": self.action.tolist()}
