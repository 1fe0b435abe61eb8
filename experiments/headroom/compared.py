"""Verdicts on headroom from a finished comparison: of the pairs of arms that its plan tests."""

from astra_gym.experiments.comparison.cell_results import ComparisonResult
from astra_gym.experiments.headroom.verdicts import Verdict, decide
from astra_gym.experiments.stats import deciding_place, differences


def compared_verdicts(result: ComparisonResult) -> list[Verdict]:
    """Return for each tested pair whether its first arm could gain over its second, in points at the deciding place.

    For example *over time*: the best schedule that was found, and the best constant. Values are differences within a
    seed.

    Raises:
        ValueError: if no place decides, or a pair has no seed in common.
    """
    place = deciding_place(result)
    if place is None:
        raise ValueError("no radius of the comparison decides: give its world a judge, --judge_epsilon")
    verdicts = []
    for pair in result.tests:
        first, second = ([cell for cell in result.cells if cell.arm == arm] for arm in pair)
        verdicts.append(decide(" - ".join(pair), list(differences(first, second, place).values()), "points"))
    return verdicts
