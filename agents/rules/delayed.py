"""No attack at first, then always the same."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

from astra_gym.agents.controls import Common, ScheduleAgent
from astra_gym.agents.entries import BudgetRequest
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown


@dataclass(frozen=True)
class DelaySettings:
    """Settings of `DelayedAgent`.

    Args:
        share: share in [0, 1] of the planned plays without an attack.

    Raises:
        ValueError: if a value is out of range.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        check_number("share", self.share, 0, 1)


class DelayedAgent(ScheduleAgent):
    """No attack for a share of the run, then always the same (Gupta et al. 2020, arXiv 2002.04237).

    The source attacks a labeled loss, here it is the world's objective. How the source finds the epoch of the switch is
    not known to us; here it is a setting.

    Args:
        env: anything that `astra_gym.agents.base.as_torch_env` takes.
        actions: two elements of the action space: one that leaves views clean, and the attack.
        settings: see `DelaySettings`.
        planned_plays: plays of the whole run, at least two.
        common: seed, device and tensorboard_log, as in `Agent`.

    Raises:
        ValueError: as `ScheduleAgent`, or if there are not two actions.
    """

    kind: ClassVar[str] = "delayed"
    settings_class = DelaySettings

    def __init__(
        self,
        env: Any,
        actions: Sequence[Any],
        settings: DelaySettings | None = None,
        *,
        planned_plays: int,
        **common: Unpack[Common],
    ) -> None:
        self.settings = settings or DelaySettings()
        super().__init__(env, actions, planned_plays=planned_plays, **common)
        if len(self.actions) != 2:
            raise ValueError(f"the agent delayed got {len(self.actions)} actions: expected no attack, and the attack")

    @staticmethod
    def budgets(ask: BudgetRequest) -> list[ConstantBudget]:
        """Return an attack of no step, or else of no radius, and the attack.

        Raises:
            ValueError: if the world's sets have neither.
        """
        if ask.sets.steps[0] == 0:
            return [replace(ask.budget, steps=0), ask.budget]
        if ask.sets.epsilons[0] == 0:
            return [replace(ask.budget, epsilon=0.0), ask.budget]
        raise ValueError(
            f"the agent delayed begins with clean views, but actions begin at {ask.sets.steps[0]} steps and a radius "
            f"of {shown(ask.sets.epsilons[0])}: put 0 into --action_steps or --action_epsilons"
        )

    def part(self, play: int) -> int:
        """Return 0 before the switch, 1 from it on, for a play counted from 0."""
        # the summand makes up for rounding: 0.1 * 30 is a little above 3
        return int(play >= self.settings.share * self.planned_plays - 1e-9)
