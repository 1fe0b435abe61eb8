"""Verdicts from finished comparisons, on a kept one."""

from dataclasses import replace
from pathlib import Path

import pytest

from astra_gym.experiments.comparison.cell_results import ComparisonResult, read_comparison
from astra_gym.experiments.headroom.compared import compared_verdicts, over_instances

KEPT = Path(__file__).resolve().parents[3] / "results" / "comparisons" / "digits-wide" / "comparison.json"


@pytest.fixture(scope="module")
def result() -> ComparisonResult:
    return read_comparison(KEPT)


def test_pairs_of_a_comparison_are_judged_where_its_world_is(result: ComparisonResult) -> None:
    found = {one.kind: one for one in compared_verdicts(result)}
    tuned = found["fixed-tuned - fixed"]
    assert (tuned.verdict, tuned.unit, tuned.n, tuned.bar) == ("headroom", "points", 10, 1.0)
    # as the report has it
    assert (round(tuned.mean, 1), round(tuned.low or 0, 1), round(tuned.high or 0, 1)) == (15.5, 13.8, 17.1)
    [turned] = compared_verdicts(replace(result, tests=(("fixed", "fixed-tuned"),)))
    assert turned.verdict == "none" and turned.mean == -tuned.mean


def test_a_comparison_that_nothing_decides_has_no_verdict(result: ComparisonResult) -> None:
    cells = [cell for cell in result.cells if cell.arm in ("fixed", "random")]
    lost = [
        replace(cell, settings={**cell.settings, "judge_epsilon": None}, correct={0.0: "1" * 360}) for cell in cells
    ]
    with pytest.raises(ValueError, match="give its world a judge, --judge_epsilon"):
        compared_verdicts(replace(result, cells=lost))


def test_over_instances_a_seed_counts_once(result: ComparisonResult) -> None:
    few = replace(result, cells=[cell for cell in result.cells if cell.seed < 4])
    turned = replace(few, tests=(("hardest", "fixed"), ("random", "fixed")))
    other = replace(result, tests=(("random", "fixed"), ("random", "hardest")))
    mean, first, second = over_instances({"few": turned, "all": other})
    assert [each.kind for each in (mean, first, second)] == [
        "random - fixed, mean over instances",
        "random - fixed, few",
        "random - fixed, all",
    ]
    # on the shared seeds both instances are the same, so their mean is the first of them
    assert (mean.n, first.n, second.n) == (4, 4, 10)
    assert mean.mean == pytest.approx(first.mean) and mean.low == pytest.approx(first.low)


def test_over_instances_needs_a_pair_that_all_test(result: ComparisonResult) -> None:
    with pytest.raises(ValueError, match="no comparison to judge"):
        over_instances({})
    with pytest.raises(ValueError, match="no pair of arms is tested in all of a, b"):
        over_instances({"a": result, "b": replace(result, tests=(("random", "fixed"),))})
