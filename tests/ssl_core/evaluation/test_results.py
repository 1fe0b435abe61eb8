import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from astra_gym.experiments.runs.run_log import accuracy_name
from astra_gym.ssl_core.evaluation.results import (
    Origin,
    check_radii,
    radius_text,
    read_results,
    wilson_interval,
    write_results,
)
from astra_gym.ssl_core.safety.sealing import read_json

ORIGIN = Origin(protocol="slf", route="pgd", seed=0, checkpoint="last", commit="unknown", versions={"python": "3.12.1"})
CLEAN = ORIGIN.accuracy("SA", 353, 360)
ROBUST = ORIGIN.accuracy("RA", 120, 360, attack="pgd20", epsilon=8 / 255, deviations=("half the images",))
FIRST_SCHEMA = {
    **{"protocol": "slf", "metric": "RA", "attack": "pgd20", "epsilon": 8 / 255, "value": 100 / 3, "n": 360},
    **{"route": "pgd", "seed": 0, "checkpoint": "last", "commit": "unknown", "versions": {"python": "3.12.1"}},
}


def test_rows_come_back_exactly_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "results" / "slf.json"
    write_results(path, [CLEAN, ROBUST])
    assert read_results(path) == [CLEAN, ROBUST]
    document = json.loads(path.read_text())
    assert document["schema"] == 3
    assert document["rows"][1] == FIRST_SCHEMA | {
        **{"norm": "Linf", "restarts": 1, "condition": "", "label_fraction": 1.0, "dataset": "unknown"},
        **{"interval": list(wilson_interval(120, 360)), "interval_method": "wilson", "seconds": None},
        **{"checkpoint_hash": "unknown", "deviations": ["half the images"], "standard": False},
    }
    assert document["rows"][0]["standard"] is True
    assert [entry.name for entry in path.parent.iterdir()] == ["slf.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "slff"}, "protocol is 'slff': expected one of slf"),
        ({"metric": "AA"}, "metric is 'AA'"),
        ({"attack": "pgd7"}, "attack is 'pgd7'"),
        ({"attack": "none"}, "an attack for RA and none for other metrics"),
        ({"metric": "SA"}, "an attack for RA and none for other metrics"),
        ({"metric": "SA", "attack": "none"}, "expected 0 without an attack"),
        ({"epsilon": 8}, "a radius in"),
        ({"epsilon": -1, "norm": "L2"}, "a radius in"),
        ({"norm": "L3"}, "norm is 'L3': expected one of Linf"),
        ({"metric": "uniformity", "attack": "none", "epsilon": 0.0}, r"in \[-8, 0\]"),
        ({"restarts": 0}, "at least 1"),
        ({"label_fraction": 0.0}, "a share"),
        ({"interval": None}, "interval_method"),
        ({"interval": (1.0, math.inf)}, "two finite numbers"),
        ({"deviations": ["short"]}, "a tuple of strings"),
        ({"seconds": math.nan}, "a finite number, or None"),
        ({"epsilon": math.nan}, "a finite number"),
        ({"value": 100.1}, "percent"),
        ({"value": "93"}, "a finite number"),
        ({"n": 0}, "at least one image"),
        ({"n": True}, "an integer"),
        ({"seed": 1.0}, "an integer"),
        ({"checkpoint": ""}, "a string that is not empty"),
        ({"route": None}, "a string that is not empty"),
        ({"versions": {"torch": 2}}, "a mapping"),
    ],
)
def test_a_row_refuses_fields_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ROBUST, **change)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = read_json(path)
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(schema=4), "schema 4; this version reads schemas 1 to 3"),
        (lambda document: document.update(schema="2"), "schema '2'; this version reads"),
        (lambda document: document.pop("schema"), "not a results file"),
        (lambda document: document.update(rows={}), "not a results file"),
        (lambda document: document["rows"].append(3), "row 2: expected an object, not 3"),
        (lambda document: document["rows"][1].pop("seed"), "row 1: lacks seed"),
        (lambda document: document["rows"][1].update(mood="good"), "row 1: has unknown fields: mood"),
        (lambda document: document["rows"][0].update(value=-1), "row 0: a result's value is -1"),
    ],
)
def test_a_file_with_another_schema_or_a_bad_row_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = tmp_path / "slf.json"
    write_results(path, [CLEAN, ROBUST])
    edit(path, change)
    with pytest.raises(ValueError, match=message) as caught:
        read_results(path)
    assert str(path) in str(caught.value)


def test_rows_of_the_first_schema_are_read_and_are_not_standard(tmp_path: Path) -> None:
    path = tmp_path / "slf.json"
    path.write_text(json.dumps({"schema": 1, "rows": [FIRST_SCHEMA]}))
    [row] = read_results(path)
    assert not row.standard and "schema 1" in row.deviations[0]
    assert replace(row, deviations=ROBUST.deviations) == ROBUST


def test_full_fine_tuning_of_the_second_schema_was_of_start_noise(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    rows = [replace(CLEAN, protocol=protocol) for protocol in ("slf", "aff", "lp-aff", "knn")]
    rows.append(replace(ROBUST, protocol="aff"))
    write_results(path, rows)
    edit(path, lambda document: document.update(schema=2))
    found = read_results(path)
    noise = "start_noise 0.001, not 0"
    assert [row.deviations for row in found] == [(), (noise,), (noise,), (), ("half the images", noise)]
    assert [row.standard for row in found] == [True, False, False, True, False]
    # said once: written anew they are of the present schema
    write_results(path, found)
    assert read_results(path) == found


def test_a_row_that_claims_to_be_standard_must_be(tmp_path: Path) -> None:
    path = tmp_path / "slf.json"
    write_results(path, [ROBUST])
    edit(path, lambda document: document["rows"][0].update(standard=True))
    with pytest.raises(ValueError, match=r"standard is True, but the deviations are \['half the images'\]"):
        read_results(path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slf.json"
    write_results(path, [CLEAN])
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match="restore it from a copy, or measure it again"):
        read_results(path)


def test_two_radii_never_have_one_name() -> None:
    check_radii("epsilons", [0.0, 1e-6, 2e-6, 0.03, 0.031, 8 / 255, 8.01 / 255, 1.0])
    check_radii("epsilons", [0.5, 0.50001, 12.0], "L2")
    draws = torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near = (1 + 2e-3 * draws[200:]) * draws[:200]
    refused = 0
    for one, other in zip(draws[:200].tolist(), near.tolist(), strict=True):
        try:
            check_radii("epsilons", [one, other])
        except ValueError:
            refused += 1
        else:
            names = [{radius_text("Linf", each), accuracy_name(each)} for each in (one, other)]
            assert not names[0] & names[1]
    assert 10 < refused < 190
    message = r"--epsilons has 0.0313\d+ and 0.03137, which results both call 7.999/255: expected"
    with pytest.raises(ValueError, match=message):
        check_radii("--epsilons", [7.9991 / 255, 0.03137])


def test_wilson_interval_against_a_published_table() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3 (score without continuity correction).
    for correct, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson_interval(correct, n) == pytest.approx((100 * low, 100 * high), abs=0.006)
    assert wilson_interval(29, 29) == pytest.approx((88.30, 100), abs=0.006)
    assert ORIGIN.accuracy("SA", 81, 263).interval == wilson_interval(81, 263)


@pytest.mark.parametrize(("correct", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_interval_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= correct <= n"):
        wilson_interval(correct, n)
