"""The section of the settings on the attack."""

from dataclasses import dataclass
from typing import Annotated

from astra_gym.ssl_core.attacks.pgd import STARTS, Start, find_start
from astra_gym.ssl_core.settings.records import Notes, check_choices
from astra_gym.ssl_core.utils.training_plan import reached

STOPS = {"retrieval": "a view stops when its partner is no longer its nearest"}
FURTHER = (50 / 120, 90 / 120)
"""Shares of the run from which an attack that has succeeded takes one further step, and two (FAT's epochs of 120)."""


@dataclass(frozen=True, kw_only=True)
class AttackSection:
    """The attack, beside its budgets, which an agent chooses.

    Args:
        attack_start: where the attack begins: uniform (in the view's own ball), zero (the clean view), or the dotted
            path of a custom function, my_module:my_start (`Start`); null: as the method's authors do.
        attack_stop: when the attack on a view ends before its steps are spent: retrieval (its partner is no longer its
            nearest; in the course of the run 0, 1 and 2 further steps follow); null: never. The agent friendly sets it.

    Raises:
        ValueError: if the name is unknown.
    """

    attack_start: Annotated[str | None, Notes(choices=STARTS, what="attack start", custom=True)] = None
    attack_stop: Annotated[str | None, Notes(choices=STOPS, what="end of the attack")] = None

    def __post_init__(self) -> None:
        check_choices(self)

    def find(self) -> Start | None:
        """Find the start, None for the method's own.

        Raises:
            ValueError: if there is no function at a dotted path.
        """
        return None if self.attack_start is None else find_start(self.attack_start)

    def further_steps(self, progress: float) -> int:
        """Return the steps that an attack takes after it has succeeded, at a share of the run in [0, 1]."""
        return sum(reached(progress, share) for share in FURTHER)
