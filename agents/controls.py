"""Agents that learn nothing: what every learnt strategy must be compared with."""

import os
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents.base import Agent


class RandomAgent(Agent):
    """Uniform over the action space, from its own stream.

    Uniform random beats a fixed attack in ASTrA's own slides, so it is a control that no comparison may skip.

    Args:
        env: anything that `agents.base.as_torch_env` takes; a Box action space must be bounded.
        seed, device, tensorboard_log: as of `Agent`.

    Raises:
        ValueError: if the action space is of another kind or an unbounded Box.
    """

    kind: ClassVar[str] = "random"

    def __init__(
        self,
        env: Any,
        *,
        seed: int = 0,
        device: torch.device | str = "auto",
        tensorboard_log: str | os.PathLike[str] | None = None,
    ) -> None:
        log = None if tensorboard_log is None else os.fspath(tensorboard_log)
        super().__init__(env, seed=seed, device=device, tensorboard_log=log)
        if isinstance(self.action_space, spaces.Box) and not self.action_space.is_bounded():
            raise ValueError(f"the action space is {self.action_space}: a uniform draw needs a bounded Box")

    def _act(self, observation: Tensor) -> Tensor:
        return self._uniform(len(observation), self._streams["agent/actions"])

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        # there is no most probable action: a deterministic answer would be another agent
        return self._uniform(len(observation), self._streams["agent/predict"])

    def _uniform(self, n: int, generator: torch.Generator) -> Tensor:
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            actions = torch.randint(int(space.n), (n,), generator=generator)
        elif isinstance(space, spaces.MultiDiscrete):
            heads = [torch.randint(int(choices), (n,), generator=generator) for choices in space.nvec]
            actions = torch.stack(heads, 1)
        elif isinstance(space, spaces.Box):
            low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
            actions = low + (high - low) * torch.rand((n, *space.shape), generator=generator)
        else:
            raise TypeError(f"the action space is {space}: expected Discrete, MultiDiscrete or Box")
        return actions.to(self.device)


class FixedAgent(Agent):
    """Always the same action, ACL's 8/255, 5 steps of 2/255 in the comparison.

    Args:
        env: anything that `agents.base.as_torch_env` takes.
        action: an element of the action space, encoded by the caller: an agent does not know units.
        seed, device, tensorboard_log: as of `Agent`.

    Raises:
        ValueError: if the action is not an element of the action space.
    """

    kind: ClassVar[str] = "fixed"

    def __init__(
        self,
        env: Any,
        action: Any,
        *,
        seed: int = 0,
        device: torch.device | str = "auto",
        tensorboard_log: str | os.PathLike[str] | None = None,
    ) -> None:
        log = None if tensorboard_log is None else os.fspath(tensorboard_log)
        super().__init__(env, seed=seed, device=device, tensorboard_log=log)
        values = np.asarray(action)
        whole = np.issubdtype(values.dtype, np.integer)
        if isinstance(self.action_space, spaces.Box):
            encoded = values.astype(np.float32)
        elif whole:
            encoded = values.astype(np.int64)
        else:
            raise ValueError(f"the fixed action is {action!r}: expected integers, an element of {self.action_space}")
        if not self.action_space.contains(encoded[()] if encoded.ndim == 0 else encoded):
            raise ValueError(f"the fixed action is {action!r}: expected an element of {self.action_space}")
        self.action = torch.as_tensor(encoded, device=self.device)

    def _act(self, observation: Tensor) -> Tensor:
        return self.action.expand(len(observation), *self.action.shape)

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        return self._act(observation)

    def _arguments(self) -> dict[str, Any]:
        return {"action": self.action.tolist()}
