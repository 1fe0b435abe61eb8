"""The tests of a comparison that were fixed beforehand, and their verdicts."""

import math
import re
from typing import Literal, NamedTuple

from astra_gym.experiments.comparison.cell_results import ComparisonResult
from astra_gym.experiments.stats import LEVEL, Paired, Place, arms_of, deciding_place, fewest_seeds, holm, paired
from astra_gym.ssl_core.utils.messages import amount

Standing = Literal["secondary", "unfinished", "undecidable", "not shown", "better", "worse"]


class Primary(NamedTuple):
    """A test of the plan in a method and preset (`part`), at the deciding place or, secondary, at SA.

    `p` is after Holm; `planned` counts the planned seeds of both arms, `needed` those with which a verdict is possible.
    """

    part: str
    first: str
    second: str
    place: Place
    found: Paired
    p: float
    planned: int
    standing: Standing
    needed: int

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        seeds = self.found.seeds
        return {
            "secondary": "secondary, no verdict",
            "unfinished": f"{seeds} of {self.planned} seeds so far",
            "undecidable": f"cannot be decided with {amount(seeds, 'seed')}, needs {self.needed}",
        }.get(self.standing, self.standing)


def primary_comparisons(part: ComparisonResult) -> list[Primary]:
    """Return the tests of the plan with both arms, tested at the deciding place and reported at SA.

    The verdict is at 5 % after Holm over the family fixed beforehand, one for each method and preset; a missing member
    counts, with p = 1. There is no verdict before all planned runs of the family's arms are finished, because looking
    while they come in, and stopping when it suits, would find too much: of three true null hypotheses, one in 12 % of
    all cases by looks at 7 to 14 seeds. For the same reason there are no tests of runs without a plan.

    Args:
        part: cells of one method and preset.
    """
    if not part.planned:
        return []
    cell, deciding, missing = part.cells[0], deciding_place(part), _missing_seeds(part)
    made, places = list[Primary](), list[Place]([0.0] if deciding is None else [deciding, 0.0])
    for place in places:
        family = {pair: paired(part.of(pair[0]), part.of(pair[1]), place) for pair in part.tests}
        adjusted = holm([found.p for found in family.values()])
        reachable = holm([found.smallest_p if found.seeds else math.nan for found in family.values()])
        for (pair, found), p, smallest in zip(family.items(), adjusted, reachable, strict=True):
            if set(pair) <= set(part.arms):
                first, second = ({cell.seed for cell in part.of(arm)} | missing[arm] for arm in pair)
                standing: Standing = "better" if found.difference > 0 else "worse"
                if not place:
                    standing = "secondary"
                elif any(missing.values()):
                    standing = "unfinished"
                elif not smallest <= LEVEL:
                    standing = "undecidable"
                elif p > LEVEL:
                    standing = "not shown"
                name = f"{cell.method}, {cell.preset}"
                needed = fewest_seeds(len(family), LEVEL)
                made.append(Primary(name, *pair, place, found, p, len(first & second), standing, needed))
    return made


def _missing_seeds(part: ComparisonResult) -> dict[str, set[int]]:
    """Return the planned seeds of the tests' arms that are not finished, or void, by arm."""
    cell = part.cells[0]
    place = f"(?:-{re.escape(cell.method)})?(?:-{re.escape(cell.preset)})?"
    return {
        arm: {
            int(found[1])
            for name in part.unfinished
            if (found := re.fullmatch(rf"{re.escape(arm)}{place}-seed(\d+)", name))
        }
        | {cell.seed for cell in part.of(arm) if cell.void}
        for arm in arms_of(part.tests)
    }
