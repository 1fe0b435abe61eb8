"""Families of tests over comparisons: their file, values by hand, margins, and what is unfinished."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from astra_gym.experiments.comparison.cell_results import ComparisonResult, read_comparison
from astra_gym.experiments.comparison.families import Claim, Family, examined, read_family
from astra_gym.experiments.stats import differences, holm

KEPT = Path(__file__).resolve().parents[3] / "results" / "comparisons" / "digits-wide" / "comparison.json"
CLAIMS = (Claim("fixed-tuned", "random"), Claim("fixed-tuned", "fixed-tuned", 1.0), Claim("fixed", "fixed-tuned", 1.0))


@pytest.fixture(scope="module")
def result() -> ComparisonResult:
    return read_comparison(KEPT)


def test_claims_are_tested_on_means_over_instances(result: ComparisonResult) -> None:
    # the second instance has the seeds in another order, so that a mean over both is not one of either
    turned = replace(result, cells=[replace(cell, seed=9 - cell.seed) for cell in result.cells])
    found = examined(Family(("a", "b"), 10, CLAIMS), {"a": result, "b": turned})
    arms = [[cell for cell in result.cells if cell.arm == arm] for arm in ("fixed-tuned", "random")]
    each = list(differences(*arms, (0.0, 24 / 255)).values())
    means = (np.array(each) + np.array(each[::-1])) / 2
    assert found[0].found.mean == pytest.approx(means.mean()) and found[0].found.seeds == 10
    # all ten differences have one sign: two of 2^10 flips are as far out
    assert [one.p for one in found] == [2 / 1024] * 3
    assert [one.adjusted for one in found] == holm([2 / 1024] * 3)
    assert [one.verdict for one in found] == ["better", "not worse by 1", "worse"]
    assert found[1].found.mean == 0


def test_there_is_no_verdict_before_the_last_run(result: ComparisonResult) -> None:
    family = Family(("a", "b"), 10, CLAIMS)
    assert {one.verdict for one in examined(family, {"a": result})} == {"10 of 10 seeds, 1 of 2 instances so far"}
    later = replace(result, cells=[replace(cell, seed=cell.seed + 2) for cell in result.cells])
    assert examined(family, {"a": later, "b": later})[0].verdict == "8 of 10 seeds, 2 of 2 instances so far"
    few = replace(result, cells=[cell for cell in result.cells if cell.seed < 8])
    assert {one.verdict for one in examined(family, {"a": few, "b": few})} == {"8 of 10 seeds, 2 of 2 instances so far"}
    for there in ({}, {"a": result}):
        [none] = examined(Family(("a",), 10, (Claim("gp", "random"),)), there)
        assert none.found is None and none.verdict == f"0 of 10 seeds, {len(there)} of 1 instances so far"


def test_a_small_difference_is_not_shown(result: ComparisonResult) -> None:
    cells = [replace(cell, arm="twin", seed=(cell.seed + 5) % 10) for cell in result.cells if cell.arm == "random"]
    [one] = examined(
        Family(("a",), 10, (Claim("random", "twin"),)), {"a": replace(result, cells=[*result.cells, *cells])}
    )
    assert one.verdict == "not shown" and one.p > 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 4}, "expected an integer of 7 or more"),
        ({"claims": [{"arm": "a"}]}, "against"),
        ({"claims": [{"arm": "a", "against": "b", "margin": -1}]}, "margin is -1"),
        ({"comparisons": []}, "expected one or more comparisons"),
    ],
)
def test_a_file_of_a_family_is_checked(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "f.json"
    whole = {"comparisons": ["a"], "seeds": 10, "claims": [claim._asdict() for claim in CLAIMS]}
    file.write_text(json.dumps(whole))
    assert read_family(file) == Family(("a",), 10, CLAIMS)
    file.write_text(json.dumps(whole | change))
    with pytest.raises(ValueError, match=message):
        read_family(file)
