"""A verdict on headroom: whether a kind of choice could gain anything over what it is compared with."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from astra_gym.experiments.stats import FEWEST_SEEDS, estimate

POINT = 1.0
"""The bar of accuracies: one point."""
SHARE = 0.05
"""The bar of other values, as a share of their spread."""


class Verdict(NamedTuple):
    """Whether there is headroom in one kind of choice.

    Args:
        kind: what is chosen, and what it is compared with.
        verdict: "headroom", "none" or "undecided", see `decide`.
        mean: mean gain; where the verdict is "headroom", its size.
        low, high: the mean's 95 % interval; None with less than three values, or equal ones.
        unit: unit of mean, low, high and bar.
        n: number of values.
        bar: least gain that matters; a verdict is none if the interval is not above 0, and ends below it.
    """

    kind: str
    verdict: str
    mean: float
    low: float | None
    high: float | None
    unit: str
    n: int
    bar: float

    @property
    def record(self) -> dict[str, Any]:
        """The verdict as JSON holds it; `Verdict(**record)` is the verdict again."""
        return self._asdict()


def mean_and_ends(values: Sequence[float]) -> list[float | None]:
    """Return the mean and the ends of its 95 % interval (`astra_gym.experiments.stats.estimate`), None for no end."""
    found = estimate(values)
    return [None if math.isnan(end) else end for end in (found.mean, found.low, found.high)]


def decide(kind: str, gains: Sequence[float], unit: str, spread: float | None = None) -> Verdict:
    """Decide by the mean's interval (`astra_gym.experiments.stats.estimate`).

    The verdict is "headroom" if the interval's lower end is above 0; else "none" if its upper end is below the bar, so
    that no gain worth having is left, or all of three gains or more are 0, as those of equal choices are; else
    "undecided".

    Args:
        kind: what is chosen, and what it is compared with.
        gains: values of the choice minus those of what it is compared with.
        unit: unit of the gains; "points" for accuracies in percent.
        spread: standard deviation that says how large a gain matters: the bar is `SHARE` of it; None for accuracies,
            whose bar is one point.

    Raises:
        ValueError: if there is no gain, or a gain or the spread is not finite.
    """
    if spread is not None and not (math.isfinite(spread) and spread >= 0):
        raise ValueError(f"{kind}: the spread is {spread}: expected a finite number of 0 or more")
    found, bar = estimate(gains), POINT if spread is None else SHARE * spread
    nothing = len(gains) >= FEWEST_SEEDS and not any(gains)
    verdict = "headroom" if found.low > 0 else "none" if found.high < bar or nothing else "undecided"
    low, high = (None if math.isnan(end) else end for end in (found.low, found.high))
    return Verdict(kind, verdict, found.mean, low, high, unit, found.seeds, bar)
