"""The record of a world's step, for agents, logs and tests."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from astra_gym.envs.api.action_sets import UNIT
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.models.target_network import Encoded

FRACTIONS = ("epsilon", "step_size", "strength")
"""Parts of an attack that are fractions of the pixel range in `info`, and in 1/255 in metrics and curves."""


def in_255(part: str) -> str:
    """Return the name of a part of an attack where the unit is 1/255: `epsilon_255` for `epsilon`, `steps` as it is."""
    return f"{part}_255" if part in FRACTIONS else part


@dataclass(frozen=True)
class StepRecord:
    """The effects of one `play`, without gradient; n is the number of attacked views. All tensors but the views are on
    the host.

    Args:
        step: number of target updates made, this one included.
        epoch: `step` in passes over the data.
        reward: (n,).
        terms: named reward terms, (n,) each, before their weights.
        budget: budget that was played, None for a method without an attack; its steps are those really taken.
        strength: (n,) largest absolute change of a pixel in each view, in the images' unit.
        losses: mean of each named loss term, and "total".
        lr: learning rate of the update.
        views: (n, 3, h, w) clean views, those that were attacked, on the device.
        adversarial: (n, 3, h, w) attacked views, on the device, None without an attack.
        end_of_epoch: whether this was the last step of an epoch.
        other_steps: gradient steps, times views, of all attacks except the budget's: attacks tried out since the last
            play, and those of the look-ahead reward; 0 without them. The first play measures the look-ahead twice.
        reports: values (n,) by name that an agent asked for, see `astra_gym.envs.api.protocol.ReportingEnv`.
    """

    step: int
    epoch: float
    reward: Tensor
    terms: dict[str, Tensor]
    budget: Budget | None
    strength: Tensor
    losses: dict[str, float]
    lr: float
    views: Tensor
    adversarial: Tensor | None
    end_of_epoch: bool
    other_steps: int = 0
    reports: dict[str, Tensor] = field(default_factory=dict)

    def of_views(self, *, scaled: bool = False) -> dict[str, Tensor]:
        """Return values (n,) of single views by name: `reward/NAME` of each term, `budget/steps`, and
        `budget/epsilon`, `budget/step_size` and `budget/strength` as fractions.

        Args:
            scaled: whether these three are in 1/255 instead, as their names then say: `budget/epsilon_255`.
        """
        found = {f"reward/{name}": values for name, values in self.terms.items()}
        if self.budget is None:
            return found
        played = {"epsilon": self.budget.epsilon, "steps": self.budget.steps, "step_size": self.budget.step_size}
        for part, values in (played | {"strength": self.strength}).items():
            if scaled and part in FRACTIONS:
                found[f"budget/{in_255(part)}"] = values * UNIT
            else:
                found[f"budget/{part}"] = values
        return found

    def of_batch(self) -> dict[str, Any]:
        """Return the numbers of the whole batch by name: `step`, `epoch`, `lr`, `loss/NAME` of each term of the loss,
        and `attack/other_steps` if it is not 0."""
        found: dict[str, Any] = {"step": self.step, "epoch": self.epoch, "lr": self.lr}
        found |= {f"loss/{name}": value for name, value in self.losses.items()}
        return found | ({"attack/other_steps": self.other_steps} if self.other_steps else {})


class Assessment(NamedTuple):
    """Reward (n,), its named terms and the attacked views (n, 3, h, w) of an attack; the budget, with the steps really
    taken; and what was asked to be reported, (n,) by name."""

    reward: Tensor
    terms: dict[str, Tensor]
    adversarial: Tensor
    budget: Budget
    reports: dict[str, Tensor]


class CleanPass(NamedTuple):
    """What a world computes of a batch before its attack.

    Args:
        observation: (n, observation_dim), standardized.
        encoded: the network's output for the clean views that are attacked.
    """

    observation: Tensor
    encoded: Encoded

    def state(self) -> dict[str, Any]:
        """Return both as plain values."""
        return {"observation": self.observation, "look": tuple(self.encoded)}

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device) -> Self:
        """Return what `state` gave, on a device."""
        return cls(state["observation"].to(device), Encoded(*(value.to(device) for value in state["look"])))


def describe_budget(budget: Budget | None) -> str:
    """Return a budget's ranges in words."""
    if budget is None:
        return "no attack"
    spans = {"epsilon": budget.epsilon * UNIT, "step size": budget.step_size * UNIT, "steps": budget.steps}
    parts = [f"{name} {value.min().item():g} to {value.max().item():g}" for name, value in spans.items()]
    return "budget (pixels in 1/255): " + ", ".join(parts)
