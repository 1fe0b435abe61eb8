"""Verdicts on headroom from a finished comparison: of the pairs of arms that its plan tests."""

import statistics
from collections.abc import Mapping

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
    return [decide(" - ".join(pair), list(_gains(result, pair).values()), "points") for pair in result.tests]


def over_instances(results: Mapping[str, ComparisonResult]) -> list[Verdict]:
    """Return for each pair that all comparisons test whether its first arm could gain over its second.

    A value is the mean over instances of the differences within one seed, in points where each instance is judged; the
    seeds are those that all have. So the interval is over trainings of these instances: it says nothing of others. The
    pair's mean over all instances comes first, then each instance's own.

    Args:
        results: a comparison of each instance, by name.

    Raises:
        ValueError: if there is no comparison, they have no tested pair or no seed in common, or nothing decides in one.
    """
    if not results:
        raise ValueError("no comparison to judge over instances")
    pairs = [pair for pair in next(iter(results.values())).tests if all(pair in one.tests for one in results.values())]
    if not pairs:
        raise ValueError(f"no pair of arms is tested in all of {', '.join(results)}")
    verdicts = []
    for pair in pairs:
        gains = {name: _gains(result, pair) for name, result in results.items()}
        seeds = sorted(set.intersection(*(set(each) for each in gains.values())))
        means = [statistics.fmean(each[seed] for each in gains.values()) for seed in seeds]
        kind = " - ".join(pair)
        verdicts.append(decide(f"{kind}, mean over instances", means, "points"))
        verdicts += [decide(f"{kind}, {name}", list(each.values()), "points") for name, each in gains.items()]
    return verdicts


def _gains(result: ComparisonResult, pair: tuple[str, str]) -> dict[int, float]:
    """Differences of a pair in points at the deciding place, by seed."""
    place = deciding_place(result)
    if place is None:
        raise ValueError("no radius of the comparison decides: give its world a judge, --judge_epsilon")
    first, second = ([cell for cell in result.cells if cell.arm == arm] for arm in pair)
    return differences(first, second, place)
