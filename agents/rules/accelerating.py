"""More steps once the attacks' gradients have grown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

from torch import Tensor

from astra_gym.agents.controls import Common
from astra_gym.agents.entries import BudgetRequest
from astra_gym.agents.rules.base import RuleAgent
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown

FIRST_STEPS, MOST_STEPS = 2, 8
"""Steps with which a run begins, and its usual cap (arXiv 2103.03076)."""


@dataclass(frozen=True)
class AccelerationSettings:
    """Settings of `AcceleratingAgent`.

    Args:
        growth: factor, positive, by which the attacks' gradients have to exceed the remembered ones (the source's
            gamma: 1.0 in its runs of 10 epochs, 1.01 in those of 50).
        period: epochs, positive, over which gradients are summed; below 1 for short runs.

    Raises:
        ValueError: if a value is out of range.
    """

    growth: float = 1.0
    period: float = 1.0

    def __post_init__(self) -> None:
        check_number("growth", self.growth, above=True)
        check_number("period", self.period, above=True)


class AcceleratingAgent(RuleAgent):
    """The first action at first; the next one whenever the attacks' gradients have grown (arXiv 2103.03076, "M+").

    G of a period is the mean over its views of the absolute gradient of the attack's objective, summed over pixels, at
    the view's own last step. The first period only passes. After the second, `growth * G` is remembered. After each
    later one whose G exceeds what is remembered, the next action follows, and `growth * G` is remembered. A run's list
    holds the numbers of steps in the world's set from 2 on, or from the next larger one if 2 is not in it.

    The source has the gradient of the labeled loss; here it is of the objective, which needs no label. It sums over an
    epoch's batches, which decides as the mean does where epochs are equally long. Its periods are epochs, and its two
    steps begin after the first.

    Args:
        env: as `RuleAgent`; its `info` holds `epoch` too.
        actions: elements of the action space, from few steps to many.
        settings: see `AccelerationSettings`.
        common: seed, device and tensorboard_log, as in `Agent`.

    Raises:
        ValueError: as `RuleAgent`.
    """

    kind: ClassVar[str] = "accelerating"
    needs: ClassVar[tuple[str, ...]] = ("attack/slope",)
    settings_class = AccelerationSettings

    def __init__(self, env: Any, actions: Sequence[Any], settings: Any = None, **common: Unpack[Common]) -> None:
        super().__init__(env, actions, settings, **common)
        self.chosen = 0
        self.threshold: float | None = None
        self._periods = self._views = 0
        self._sum = 0.0

    @staticmethod
    def budgets(ask: BudgetRequest) -> list[ConstantBudget]:
        """Return an attack for each number of steps in the world's set, from 2 to 8 or the given number."""
        most = ask.given.get("steps", MOST_STEPS)
        found = [steps for steps in ask.sets.steps if FIRST_STEPS <= steps <= most]
        if not found:
            raise ValueError(
                f"the agent accelerating takes {FIRST_STEPS} to {most} steps, and actions have "
                f"{shown(list(ask.sets.steps))}: raise --steps, its cap, or change --action_steps"
            )
        return [replace(ask.budget, steps=steps) for steps in found]

    def _act(self, observation: Tensor) -> Tensor:
        return self._listed(self.chosen, len(observation))

    def _heed(self, info: Mapping[str, Any]) -> None:
        slopes = info["attack/slope"].double()
        self._sum += float(slopes.sum())
        self._views += len(slopes)
        self.logger.record("train/listed", self.chosen)
        # the summand makes up for rounding: 3 * 0.1 is a little above 0.3
        ended = int(info["epoch"] / self.settings.period + 1e-9)
        if ended > self._periods:
            self._end_period(self._sum / self._views)
            self._periods, self._views, self._sum = ended, 0, 0.0

    def _end_period(self, slope: float) -> None:
        self.logger.record("train/slope", slope)
        if self._periods == 0:
            return
        if self.threshold is not None:
            if slope <= self.threshold or self.chosen == len(self.actions) - 1:
                return
            self.chosen += 1
        self.threshold = self.settings.growth * slope

    def _learner_state(self) -> dict[str, Any]:
        names = ("chosen", "threshold", "_periods", "_views", "_sum")
        return {name.removeprefix("_"): getattr(self, name) for name in names}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        self.chosen, self.threshold = state["chosen"], state["threshold"]
        self._periods, self._views, self._sum = state["periods"], state["views"], state["sum"]
