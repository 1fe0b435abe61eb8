"""The costs of the searches from which the arms of a comparison came, as its files hold them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from astra_gym.experiments.comparison.checked_fields import check_fields
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown


@dataclass(frozen=True)
class SearchCost:
    """What it cost to find an arm's constants by `tune.py`.

    Args:
        arm: label of the arm.
        file: name of the search's file, without its folder.
        tune: what was tuned.
        candidates: number of candidates.
        trials: trainings that were made.
        passes: forward-backward passes over a batch's views, of all trials.
        seconds: time of training and scores, summed over the processes.
        worlds: number of worlds in which every trial trained.

    Raises:
        ValueError: if a number is out of its range.
    """

    arm: str
    file: str
    tune: Sequence[str]
    candidates: int
    trials: int
    passes: float
    seconds: float
    worlds: int = 1

    def __post_init__(self) -> None:
        for name in ("candidates", "trials", "worlds"):
            check_number(name, getattr(self, name), 1, whole=True)
        check_number("passes", self.passes, 0, above=True)
        check_number("seconds", self.seconds)


def read_searched(values: Any) -> tuple[SearchCost, ...]:
    """Return the costs of searches from JSON or YAML.

    Raises:
        ValueError: if they are not a list of `SearchCost`, or one stands there twice.
    """
    if not isinstance(values, list):
        raise ValueError(f"searched is {shown(values)}: expected a list of searches")
    found = []
    for entry in values:
        try:
            check_fields(entry, SearchCost)
            found.append(SearchCost(**entry))
        except ValueError as error:
            raise ValueError(f"searched: {error}") from error
    if len({(one.arm, one.file) for one in found}) < len(found):
        raise ValueError(f"searched is {shown(values)}: expected each file of an arm once")
    return tuple(found)
