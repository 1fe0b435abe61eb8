"""Escalation: a cheap attack while it works, and one of more steps as soon as it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from astra_gym.agents.entries import BudgetRequest
from astra_gym.agents.rules.base import RuleAgent
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.utils.finite import check_number

WIDE_STEP = ConstantBudget(epsilon=24 / 255, step_size=32 / 255, steps=1)
"""The attack with which a run begins where the world has it: the one constant for all instances in
results/tuning/global-fixed.json."""


@dataclass(frozen=True)
class EscalationSettings:
    """Settings of `EscalatingAgent`.

    Args:
        fall: share of the usual gain, in (0, 1), below which the present gain calls for the next attack.
        present: plays over which the present gain is averaged, 1 or more.
        memory: plays over which the usual gain is averaged, more than `present`.

    Raises:
        ValueError: if a value is out of range.
    """

    fall: float = 0.5
    present: int = 10
    memory: int = 100

    def __post_init__(self) -> None:
        check_number("fall", self.fall, 0, 1, "a share in (0, 1)", above=True, below=True)
        check_number("present", self.present, 1, whole=True)
        more = f"more than present ({self.present})"
        check_number("memory", self.memory, self.present + 1, expected=more, whole=True)


class EscalatingAgent(RuleAgent):
    """The first action at first; the next one whenever what attacks gain has collapsed.

    A network that is trained against one wide step may learn to mask its gradient: then the step gains nothing, and
    more steps would gain all (catastrophic overfitting, Wong et al. 2020, arXiv 2001.03994). The collapse shows in the
    gain itself, the mean over a play's views of attacked minus clean loss, which needs no pass of its own, no held-out
    image and no label. With the averages of the gain over `present` and over `memory` plays,

        if present < fall * usual: the next action follows, and both averages begin anew.

    Averages are exponential, and plain means of what there is at first; nothing follows before `present` plays. Li et
    al. (2020, arXiv 2006.03089) see the collapse by labeled accuracy under more steps, on held-out images, and go back
    to one step after some batches.

    Args:
        env: as `RuleAgent`.
        actions: elements of the action space, from few steps to many.
        settings: see `EscalationSettings`.
        common: seed, device and tensorboard_log, as in `Agent`.

    Attributes:
        chosen: the index of the present action.

    Raises:
        ValueError: as `RuleAgent`.
    """

    kind: ClassVar[str] = "escalating"
    needs: ClassVar[tuple[str, ...]] = ("attack/gain",)
    settings_class = EscalationSettings

    def __init__(self, env: Any, actions: Sequence[Any], settings: Any = None, **common: Any) -> None:
        super().__init__(env, actions, settings, **common)
        self.chosen = 0
        self._plays = 0
        """Plays of the present action."""
        self._present = self._usual = 0.0

    @staticmethod
    def budgets(ask: BudgetRequest) -> list[ConstantBudget]:
        """Return one wide step, as near to `WIDE_STEP` as the world has it, or what is given; then attacks of two and
        more times as many steps, which go as far in all."""
        sets = ask.sets
        ends = {"epsilon": sets.epsilons, "step_size": sets.step_sizes, "steps": [one for one in sets.steps if one]}
        wide = {
            name: min(max(getattr(WIDE_STEP, name), values[0]), values[-1]) for name, values in ends.items() if values
        }
        first = replace(WIDE_STEP, **wide | {**ask.given})
        found = [first]
        for steps in sets.steps:
            if steps >= 2 * found[-1].steps > 0:
                size = max(first.step_size * first.steps / steps, min(sets.step_sizes))
                found.append(replace(first, steps=steps, step_size=size))
        return found

    def _act(self, observation: Tensor) -> Tensor:
        return self._listed(self.chosen, len(observation))

    def _heed(self, info: Mapping[str, Any]) -> None:
        gain = float(info["attack/gain"].double().mean())
        self._plays += 1
        self._present += (gain - self._present) / min(self.settings.present, self._plays)
        self._usual += (gain - self._usual) / min(self.settings.memory, self._plays)
        self.logger.record("train/listed", self.chosen)
        self.logger.record("train/gain", self._present)
        fallen = self._present < self.settings.fall * self._usual
        if fallen and self._plays > self.settings.present and self.chosen < len(self.actions) - 1:
            self.chosen, self._plays = self.chosen + 1, 0

    def _learner_state(self) -> dict[str, Any]:
        names = ("chosen", "_plays", "_present", "_usual")
        return {name.removeprefix("_"): getattr(self, name) for name in names}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        self.chosen, self._plays = state["chosen"], state["plays"]
        self._present, self._usual = state["present"], state["usual"]
