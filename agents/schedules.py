"""Schedules: attacks that change with the progress of a run and with nothing else."""

from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from agents.controls import Common, OnePlayAgent, encoded


class ScheduleAgent(OnePlayAgent):
    """A sequence of fixed actions, each for an equal part of the planned plays: the epoch-wise schedules of ASTrA.

    ASTrA's slides report 38.40 % AutoAttack accuracy for ACL with epsilon 7, 9, 11, 13 /255 in turn, 37.02 for
    8, 7, 8, 9 and 33.72 for 11, 9, 7, 5, against 37.62 for a fixed 8 and 38.21 for a random one: the order matters.

    Play p (from 0) of P has the action p * A // P of A: where A does not divide P, the parts differ by one play at
    most. Plays after the planned ones have the last action. `learn` that counts from 0 starts the schedule again, and
    `predict` gives the action of the coming play.

    Args:
        env: anything that `agents.base.as_torch_env` takes.
        actions: elements of the action space, encoded by the caller: an agent does not know units.
        planned_plays: plays of the whole run, at least one for each action.
        common: seed, device and tensorboard_log, as of `Agent`.

    Raises:
        ValueError: if there is no action, one is not an element of the action space, or there are fewer plays than
            actions.
    """

    kind: ClassVar[str] = "schedule"

    def __init__(self, env: Any, actions: Sequence[Any], *, planned_plays: int, **common: Unpack[Common]) -> None:
        super().__init__(env, **common)
        if len(actions) == 0:
            raise ValueError("the schedule has no actions: expected at least one")
        if planned_plays < len(actions):
            raise ValueError(
                f"planned_plays is {planned_plays}: expected at least the schedule's {len(actions)} actions; plan more "
                "plays or give fewer actions"
            )
        rows = [encoded(each, self.action_space, f"action {i} of the schedule") for i, each in enumerate(actions)]
        self.actions = torch.stack(rows).to(self.device)
        self.planned_plays = planned_plays

    def part(self, play: int) -> int:
        """The index of the action that `play` (counted from 0) has."""
        return min(play * len(self.actions) // self.planned_plays, len(self.actions) - 1)

    def _act(self, observation: Tensor) -> Tensor:
        action = self.actions[self.part(self.num_timesteps // self.n_envs)]
        return action.expand(len(observation), *action.shape)

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        return self._act(observation)

    def _update(self, rollout: list[Any]) -> None:
        self.logger.record("train/part", self.part(self.num_timesteps // self.n_envs - 1))

    def _arguments(self) -> dict[str, Any]:
        return {"actions": self.actions.tolist(), "planned_plays": self.planned_plays}
