"""The section of the settings on the attack."""

from dataclasses import dataclass
from typing import Annotated

from astra_gym.ssl_core.attacks.pgd import STARTS, Start, find_start
from astra_gym.ssl_core.settings.records import Notes, check_choices


@dataclass(frozen=True, kw_only=True)
class AttackSection:
    """The attack, beside its budgets, which an agent chooses.

    Args:
        attack_start: where the attack begins: uniform (in the view's own ball), zero (the clean view), or the dotted
            path of a custom function, my_module:my_start (`Start`); null: as the method's authors do.

    Raises:
        ValueError: if the name is unknown.
    """

    attack_start: Annotated[str | None, Notes(choices=STARTS, what="attack start", custom=True)] = None

    def __post_init__(self) -> None:
        check_choices(self)

    def find(self) -> Start | None:
        """Find the start, None for the method's own.

        Raises:
            ValueError: if there is no function at a dotted path.
        """
        return None if self.attack_start is None else find_start(self.attack_start)
