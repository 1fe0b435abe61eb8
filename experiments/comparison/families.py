"""Families of tests over several comparisons of the same arms, fixed in a file before their first run."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from astra_gym.experiments.comparison.cell_results import ComparisonResult
from astra_gym.experiments.stats import (
    LEVEL,
    Estimate,
    deciding_place,
    differences,
    estimate,
    fewest_seeds,
    holm,
    sign_flips,
)
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown


class Claim(NamedTuple):
    """What a test is to show: that `arm` is better than `against`, or with a margin in points, that it is not worse by
    so much."""

    arm: str
    against: str
    margin: float = 0.0


class Family(NamedTuple):
    """A family of tests.

    Args:
        comparisons: names of the comparisons, one of each instance.
        seeds: planned seeds of every arm, from 0; others do not count.
        claims: what is tested.
    """

    comparisons: tuple[str, ...]
    seeds: int
    claims: tuple[Claim, ...]


class Tested(NamedTuple):
    """A claim, tested.

    Args:
        claim: the claim.
        found: the difference in points, over seeds; None if no seed is finished in all comparisons that are there.
        p: two-sided p-value of the difference plus the margin.
        adjusted: the same after Holm.
        verdict: in words.
    """

    claim: Claim
    found: Estimate | None
    p: float
    adjusted: float
    verdict: str


def read_family(path: Path) -> Family:
    """Read a family's file: `{"comparisons": [...], "seeds": N, "claims": [{"arm": .., "against": .., "margin": ..}]}`.

    Raises:
        ValueError: if it is no such file.
    """
    document = read_json(path, "give the file of a family of tests")
    try:
        claims = tuple(Claim(**each) for each in document["claims"])
        family = Family(tuple(document["comparisons"]), document["seeds"], claims)
        for claim in claims:
            check_number("margin", claim.margin, 0)
        check_number("seeds", family.seeds, fewest_seeds(len(claims), LEVEL), whole=True)
        if not family.comparisons or len(set(claims)) < max(1, len(claims)):
            raise ValueError("expected one or more comparisons, and different claims")
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is no family of tests: {shown(reason)}") from error
    return family


def examined(family: Family, results: Mapping[str, ComparisonResult]) -> list[Tested]:
    """Test a family's claims. A value is the mean over instances of the differences within one seed, in points where
    each instance is judged, so the tests are over trainings of these instances and say nothing of others.

    The p-values are of sign flips over seeds, after Holm. There is no verdict before all planned runs are finished.

    Args:
        family: the family.
        results: the comparisons that are there, by name.

    Raises:
        ValueError: if no place decides in a comparison.
    """
    values = [_values(family, claim, results) for claim in family.claims]
    moved = [[value + claim.margin for value in each] for claim, each in zip(family.claims, values, strict=True)]
    ps = [sign_flips(each) if each else math.nan for each in moved]
    whole = len(results) == len(family.comparisons) and all(len(each) >= family.seeds for each in values)
    made = []
    for claim, each, p, adjusted in zip(family.claims, values, ps, holm(ps), strict=True):
        found = estimate(each) if each else None
        verdict = f"{len(each)} of {family.seeds} seeds, {len(results)} of {len(family.comparisons)} instances so far"
        if whole and found:
            verdict = "not shown"
            if adjusted <= LEVEL and found.mean + claim.margin > 0:
                verdict = f"not worse by {claim.margin:g}" if claim.margin else "better"
            elif adjusted <= LEVEL:
                verdict = "worse"
        made.append(Tested(claim, found, p, adjusted, verdict))
    return made


def _values(family: Family, claim: Claim, results: Mapping[str, ComparisonResult]) -> Sequence[float]:
    gains = []
    for name, result in results.items():
        if (place := deciding_place(result)) is None:
            raise ValueError(f"no radius of the comparison {name} decides: give its world a judge, --judge_epsilon")
        first, second = ([cell for cell in result.cells if cell.arm == arm] for arm in (claim.arm, claim.against))
        gains.append(differences(first, second, place))
    # seeds that were added later would be looked at until they suit
    planned = set(range(family.seeds))
    seeds = sorted(planned.intersection(*gains)) if gains else []
    return [statistics.fmean(each[seed] for each in gains) for seed in seeds]
