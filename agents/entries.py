"""What an agent is made from, and what a run needs to know of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from astra_gym.agents.base import Agent
from astra_gym.agents.controls import Common
from astra_gym.agents.sb3.agent import Sb3Agent
from astra_gym.envs.api.action_sets import ActionSets
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.overrides import Settings, replaced


@dataclass(frozen=True, kw_only=True)
class AgentRequest:
    """The arguments of `make_agent`, from which a factory makes an agent."""

    name: str
    env: Any
    seed: int
    gamma: float
    planned_plays: int
    device: torch.device | str = "auto"
    fixed_action: Any = None
    schedule_actions: Sequence[Any] | None = None
    updates_warmup: int = 0
    precision: str = "fp32"
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, defaults: Settings) -> Settings:
        """Return the agent's own settings: the defaults with the overrides.

        Raises:
            ValueError: if one is unknown, of another type, or out of its range.
        """
        return replaced(defaults, self.overrides, f"the agent {shown(self.name)}")

    @property
    def common(self) -> Common:
        """Return the arguments of every control; raise a ValueError for overrides, since a control has no settings."""
        if self.overrides:
            raise ValueError(f"agent {shown(self.name)} has no settings: got {', '.join(self.overrides)}")
        return self.shared

    @property
    def shared(self) -> Common:
        """Return the arguments of every agent of ours."""
        return {"seed": self.seed, "device": self.device}

    @property
    def listed(self) -> Sequence[Any]:
        """Return the actions of an agent that goes through a list; raise a ValueError if there are none."""
        if self.schedule_actions is None:
            raise ValueError(f"schedule_actions is None: agent {shown(self.name)} needs elements of the action space")
        return self.schedule_actions


@dataclass(frozen=True, kw_only=True)
class BudgetRequest:
    """What a run's settings say about the attacks of an agent that learns nothing.

    Args:
        own: the method's own budget.
        given: the parts of a budget that are given, by name: epsilon, step_size, steps.
        schedule: given radii, one for each part of the training.
        sets: what the world's actions choose among.
    """

    own: ConstantBudget
    given: Mapping[str, Any]
    schedule: Sequence[float]
    sets: ActionSets

    @property
    def budget(self) -> ConstantBudget:
        """The given parts, and the method's own for the others."""
        return replace(self.own, **self.given)


BUDGET = ("epsilon", "step_size", "steps")
"""The settings of a run that make up a budget."""


@dataclass(frozen=True)
class AgentEntry:
    """The factory of an agent, and what a run needs to know before it makes one.

    Args:
        summary: description in one line.
        make: the factory.
        learns: whether it has anything to learn.
        vec_env: whether it needs a Stable-Baselines3 `VecEnv` (or a single `gymnasium.Env`); the others take any
            environment, and a `TorchVectorEnv` without leaving its device.
        observation: the observation it is meant for, "features" or "image".
        actions: the kind of actions it is meant for, "factored", "flat" or "continuous".
        reward_scope: the reward it is meant for, "view" (one for each view) or "batch" (one for all).
        reports: what it asks a world to report, names of `astra_gym.envs.api.protocol.REPORTS`.
        takes: settings of a run about attacks that it takes: names of `BUDGET`, and `schedule`.
        budget: function to the attack of an agent that always plays the same; None: it has none.
        budgets: function to the attacks that the agent goes through, in its order; None: it has none. Both raise a
            ValueError if the world's sets have no such attack.
        envs: the environments that it can play, "view" (an action for each view) and "batch" (one for all).
        usual: settings of a run that are given for it where the user gives none.
        fixes: those of `observation`, `actions` and `reward_scope` that nobody may change for it.
        paper: source of the algorithm; empty for our own controls.
    """

    summary: str
    make: Callable[[AgentRequest], Agent | Sb3Agent]
    learns: bool = True
    vec_env: bool = False
    observation: str = "features"
    actions: str = "factored"
    reward_scope: str = "view"
    reports: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    budget: Callable[[BudgetRequest], ConstantBudget] | None = None
    budgets: Callable[[BudgetRequest], list[ConstantBudget]] | None = None
    envs: tuple[str, ...] = ("view", "batch")
    usual: Mapping[str, Any] = field(default_factory=dict)
    fixes: tuple[str, ...] = ()
    paper: str = ""
