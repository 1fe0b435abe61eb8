"""Agents that learn nothing: controls for every comparison."""

import copy
import os
from collections.abc import Sequence
from typing import Any, ClassVar, TypedDict, Unpack

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from astra_gym.agents.base import Agent
from astra_gym.agents.policies import choices
from astra_gym.ssl_core.utils.messages import shown


class Common(TypedDict, total=False):
    """The arguments that the constructors of all our agents take, as in `Agent`."""

    seed: int
    device: torch.device | str
    tensorboard_log: str | os.PathLike[str] | None


class OnePlayAgent(Agent):
    """An agent whose rollouts are single plays.

    Args:
        env: anything that `astra_gym.agents.base.as_torch_env` takes.
        common: seed, device and tensorboard_log, as in `Agent`.

    Raises:
        ValueError: if the environment or its spaces are not supported.
    """

    def __init__(self, env: Any, **common: Unpack[Common]) -> None:
        # all arguments are passed on, so that an unknown one is a TypeError
        given: dict[str, Any] = {**common}
        log = given.pop("tensorboard_log", None)
        super().__init__(env, tensorboard_log=None if log is None else os.fspath(log), **given)

    def _check_bounded(self, what: str) -> None:
        """Raise a ValueError if the action space is an unbounded Box, of which `what` makes no sense."""
        if isinstance(self.action_space, spaces.Box) and not self.action_space.is_bounded():
            raise ValueError(f"the action space is {self.action_space}: {what} needs a bounded Box")

    def take_over(self, state: dict[str, Any]) -> None:
        """Begin with what another agent had learned by its `state_dict`, in a run of its own.

        Raises:
            RuntimeError, KeyError: if it has other shapes.
        """
        self._load_learner_state(copy.deepcopy(state["learner"]))

    def _joined(self, columns: list[Tensor]) -> Tensor:
        """Join the heads' choices, (n,) each, to actions: (n, heads) for MultiDiscrete, (n,) for Discrete."""
        return columns[0] if isinstance(self.action_space, spaces.Discrete) else torch.stack(columns, 1)


class RandomAgent(OnePlayAgent):
    """Agent that draws uniformly from the action space, from its own stream.

    Uniformly random attacks beat a fixed one in ASTrA's own slides, so no comparison may skip this control.

    Args:
        env: anything that `astra_gym.agents.base.as_torch_env` takes; a Box action space must be bounded.
        common: seed, device and tensorboard_log, as in `Agent`.

    Raises:
        ValueError: if the action space is not supported, or is an unbounded Box.
    """

    kind: ClassVar[str] = "random"

    def __init__(self, env: Any, **common: Unpack[Common]) -> None:
        super().__init__(env, **common)
        self._check_bounded("a uniform draw")

    def _act(self, observation: Tensor) -> Tensor:
        return self._uniform(len(observation), self._streams["agent/actions"])

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        # `deterministic` is ignored, since no action is most probable
        return self._uniform(len(observation), self._streams["agent/predict"])

    def _uniform(self, n: int, generator: torch.Generator) -> Tensor:
        space = self.action_space
        if isinstance(space, spaces.Box):
            low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
            actions = low + (high - low) * torch.rand((n, *space.shape), generator=generator)
        else:
            actions = self._joined([torch.randint(each, (n,), generator=generator) for each in choices(space)])
        return actions.to(self.device, non_blocking=True)


def encoded(action: Any, space: gymnasium.Space, what: str) -> Tensor:
    """Return the action as agents send it: int64, or float32 for a Box.

    Args:
        action: one action, as numbers.
        space: Discrete, MultiDiscrete or Box.
        what: name of the action, for the error.

    Raises:
        ValueError: if the action is not an element of the space.
    """
    try:
        values = np.asarray(action)
    except ValueError:
        # lists of unequal lengths make no array
        values = np.asarray(None)
    if isinstance(space, spaces.Box) and np.issubdtype(values.dtype, np.number):
        values = values.astype(np.float32)
    elif np.issubdtype(values.dtype, np.integer):
        values = values.astype(np.int64)
    else:
        numbers = "numbers" if isinstance(space, spaces.Box) else "integers"
        raise ValueError(f"{what} is {shown(action)}: expected {numbers}, an element of {space}")
    if not space.contains(values[()] if values.ndim == 0 else values):
        raise ValueError(f"{what} is {shown(action)}: expected an element of {space}")
    return torch.as_tensor(values)


def encoded_list(actions: Sequence[Any], space: gymnasium.Space, what: str) -> Tensor:
    """Return actions (a, ...) as `encoded` does each.

    Args:
        actions: at least one action, as numbers.
        space: Discrete, MultiDiscrete or Box.
        what: name of the list, for the error.

    Raises:
        ValueError: if there is no action, or one is not an element of the space.
    """
    if len(actions) == 0:
        raise ValueError(f"{what} has no actions: expected at least one")
    return torch.stack([encoded(action, space, f"action {i} of {what}") for i, action in enumerate(actions)])


class FixedAgent(OnePlayAgent):
    """Agent that always takes the same action; in comparisons ACL's: epsilon 8/255, 5 steps of 2/255.

    Args:
        env: anything that `astra_gym.agents.base.as_torch_env` takes.
        action: an element of the action space, encoded by the caller, since an agent does not know units.
        common: seed, device and tensorboard_log, as in `Agent`.

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


class ScheduleAgent(OnePlayAgent):
    """Agent with a sequence of fixed actions, each for an equal part of the planned plays, like ASTrA's schedules.

    ASTrA's slides report 38.40 % AutoAttack accuracy for ACL with epsilon 7, 9, 11, 13 /255 in turn, 37.02 for
    8, 7, 8, 9 and 33.72 for 11, 9, 7, 5, against 37.62 for a fixed 8 and 38.21 for a random one: the order matters.

    Play p of P has the action p * A // P of A (both counted from 0): if A does not divide P, the parts differ by one
    play at most. Plays after the planned ones have the last action. `learn` that counts from 0 restarts the schedule,
    and `predict` gives the action of the coming play.

    Args:
        env: anything that `astra_gym.agents.base.as_torch_env` takes.
        actions: elements of the action space, encoded by the caller, since an agent does not know units.
        planned_plays: plays of the whole run, at least one for each action.
        common: seed, device and tensorboard_log, as in `Agent`.

    Raises:
        ValueError: if there is no action, one is not an element of the action space, or there are fewer plays than
            actions.
    """

    kind: ClassVar[str] = "schedule"

    def __init__(self, env: Any, actions: Sequence[Any], *, planned_plays: int, **common: Unpack[Common]) -> None:
        super().__init__(env, **common)
        self.actions = encoded_list(actions, self.action_space, "the schedule").to(self.device)
        if planned_plays < len(actions):
            raise ValueError(
                f"planned_plays is {planned_plays}: expected at least the schedule's {len(actions)} actions; plan more "
                "plays or give fewer actions"
            )
        self.planned_plays = planned_plays

    def part(self, play: int) -> int:
        """Return the index of the action of `play` (counted from 0)."""
        return min(play * len(self.actions) // self.planned_plays, len(self.actions) - 1)

    def _act(self, observation: Tensor) -> Tensor:
        action = self.actions[self.part(self.num_timesteps // self.n_envs)]
        return action.expand(len(observation), *action.shape)

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        return self._act(observation)

    def _update(self, rollout: list[Any]) -> None:
        self.logger.record("train/part", self.part(self.num_timesteps // self.n_envs - 1))

    def _arguments(self) -> dict[str, Any]:
        arguments = {"actions": self.actions.tolist(), "planned_plays": self.planned_plays}
        return arguments | super()._arguments()
