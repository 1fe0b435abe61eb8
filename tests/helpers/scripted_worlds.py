"""Worlds whose reports are written down, for agents that follow rules."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from astra_gym.agents import Agent, StepResult

LISTED = [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
"""Three actions that a rule goes through."""


class Scripted:
    """A world whose reports are written down: a row for each play."""

    def __init__(self, known: Any, reports: Sequence[dict[str, Any]], places: Sequence[list[int]] = ()) -> None:
        self.known, self.reports, self.all_places = known, reports, places
        self.num_envs, self.device = known.num_envs, known.device
        self.observation_space, self.action_space = known.observation_space, known.action_space
        self.asked: set[str] = set()

    def observe(self) -> Tensor:
        return self.known.observe()

    def request(self, *names: str) -> None:
        self.asked |= set(names)

    def places(self) -> Tensor:
        return torch.tensor(self.all_places[self.known.plays])

    def play(self, actions: Tensor) -> StepResult:
        row = self.reports[self.known.plays]
        return self.known.play(actions)._replace(
            info={name: torch.tensor(value) if isinstance(value, list) else value for name, value in row.items()}
        )


def played(agent: Agent, plays: int) -> list[list[int]]:
    """The index in the list of each sub-environment's action, in further plays."""
    sent: list[list[int]] = []

    def keep(local: dict[str, Any], _: Any) -> bool:
        sent.append(local["actions"][:, 0].tolist())
        return True

    agent.learn(plays * agent.n_envs, callback=keep, reset_num_timesteps=False)
    return sent
