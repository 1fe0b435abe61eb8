"""Verdicts from finished comparisons, on a kept one."""

from dataclasses import replace
from pathlib import Path

import pytest

from astra_gym.experiments.comparison.cell_results import ComparisonResult, read_comparison
from astra_gym.experiments.headroom.compared import compared_verdicts

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
