"""Marks in closed form, and earlier results that cannot be compared with."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from astra_gym.experiments.benchmarks.compare import MARKS, compare, comparison_table, count, differences, mark, read
from astra_gym.experiments.benchmarks.measure import Figure


def figure(median: float, half: float = 0.0, unit: str = "times faster", name: str = "a") -> dict[str, Any]:
    return Figure("attack", name, unit, (median - 2 * half, median, median + 2 * half)).record()


def document(*figures: dict[str, Any], **changes: Any) -> dict[str, Any]:
    base = {"schema": 2, "quick": False, "processor": "p", "threads": 2, "device": "cpu"}
    return base | {"figures": list(figures)} | changes


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        (figure(2.0), figure(1.8), "worse"),
        (figure(2.0), figure(2.2), "better"),
        (figure(2.0), figure(2.0), "same"),
        # 4 %
        (figure(2.0), figure(1.92), "same"),
        # values 0.2 and 0.02 apart
        (figure(2.0, 0.1), figure(1.8, 0.1), "same"),
        (figure(2.0, 0.01), figure(1.8, 0.01), "worse"),
        (figure(2.0), figure(1.8, 0.01), "worse"),
        (figure(2.0, unit="seconds"), figure(2.2, unit="seconds"), "worse"),
        (figure(0.1, unit="overhead"), figure(0.05, unit="overhead"), "better"),
        (figure(0.1, unit="of the peak"), figure(0.05, unit="of the peak"), "worse"),
        (figure(0.1, unit="share"), figure(0.05, unit="share"), "moved"),
        (figure(0.0, unit="share"), figure(0.0, unit="share"), "same"),
    ],
)
def test_a_figure_changes_by_more_than_noise_and_five_percent_or_not_at_all(
    then: dict[str, Any], now: dict[str, Any], expected: str
) -> None:
    assert mark(then, now) == expected


def test_what_was_not_reached_is_read_and_not_tested(tmp_path: Path) -> None:
    def of(*values: float | None) -> dict[str, Any]:
        return Figure("attack", "a", "seconds", values).record()

    path = tmp_path / "old.json"
    path.write_text(json.dumps(document(of(None, 1.0, 1.1, 1.2))))
    [kept] = read(path, quick=False)["figures"]
    assert kept["values"] == [None, 1.0, 1.1, 1.2]
    assert mark(kept, of(2.0, 2.01, 2.02)) == "worse"
    assert mark(of(None, None, None, 1.0, 1.1, 1.2), of(2.0, 2.01, 2.02)) == "too few"


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        # Welch's t is the shift over sqrt(2 / 3), on 4 degrees of freedom, where p < 0.01 from 4.604 on: 3.76
        ((-1.0, 0.0, 1.0), (2.7, 3.7, 4.7), "same"),
        ((-1.0, 0.0, 1.0), (2.8, 3.8, 4.8), "better"),
        # the same of logarithms
        tuple((*(tuple(math.exp(x) for x in side) for side in ((-1, 0, 1), (2.7, 3.7, 4.7))), "same")),
        tuple((*(tuple(math.exp(x) for x in side) for side in ((-1, 0, 1), (2.8, 3.8, 4.8))), "better")),
        ((2.0, 2.0), (1.0, 1.0, 1.0), "too few"),
        ((2.0, 2.0, 2.0), (1.0,), "too few"),
        ((2.0,), (2.0,), "too few"),
    ],
)
def test_noise_is_told_by_the_values(then: tuple[float, ...], now: tuple[float, ...], expected: str) -> None:
    sides = [Figure("attack", "a", "times faster", values).record() for values in (then, now)]
    assert mark(*sides) == expected


def test_figures_are_compared_by_part_and_name() -> None:
    elsewhere = Figure("step", "a", "times faster", (1.0,)).record()
    old = document(figure(2.0), figure(2.0, name="b"), figure(2.0, name="gone"), figure(2.0, name="unit"), elsewhere)
    new = document(
        figure(1.0), figure(3.0, name="b"), figure(2.0, name="new"), figure(1.0, unit="seconds", name="unit")
    )
    lines = compare(old, new)
    assert [(line.name, line.mark, line.then, line.now) for line in lines] == [
        ("a", "worse", 2.0, 1.0),
        ("b", "better", 2.0, 3.0),
        ("new", "new", None, 2.0),
        ("unit", "new", None, 1.0),
        ("gone", "gone", 2.0, None),
    ]
    assert {line.mark for line in lines} <= set(MARKS)
    assert count(lines) == "1 worse, 1 better, 0 same, 2 new, 1 gone"
    assert comparison_table(lines).row_count == 5


def test_other_circumstances_are_told() -> None:
    assert differences(document(), document()) == []
    old, new = {"versions": {"torch": "2.4", "numpy": "1"}}, {"versions": {"torch": "2.5", "numpy": "2"}}
    assert differences(document(**old), document(processor="q", threads=1, **new)) == [
        "processor was p, now q",
        "threads was 2, now 1",
        "torch was 2.4, now 2.5",
    ]


def test_an_earlier_result_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(document(figure(2.0))))
    assert compare(read(path, quick=False), document(figure(2.0)))[0].mark == "same"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as a benchmark's result: .*No such file"),
        ("{", "is not readable JSON .*measure it again"),
        ("[]", "is no benchmark's result: expected an object with a schema"),
        (json.dumps({"schema": 1, "figures": []}), "has schema 1: expected 2, measure it anew"),
        (json.dumps({"schema": 2, "quick": False}), "is damaged: KeyError 'figures'"),
        (json.dumps(document({"part": "a"})), "is damaged: KeyError 'quartiles'"),
        (json.dumps(document(figure(1.0) | {"median": "1"})), "is damaged: TypeError"),
        (json.dumps(document(figure(1.0) | {"values": ["1"]})), "is damaged: TypeError"),
        (json.dumps(document(figure(1.0) | {"unit": "miles"})), "is damaged: ValueError unknown unit 'miles'"),
        (json.dumps(document(quick=True)), "is a --quick result, and this is not one: the two measure different"),
    ],
)
def test_what_cannot_be_compared_with_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read(path, quick=False)
    assert str(error.value).startswith(f"{path} ")


def test_a_real_result_is_no_match_for_a_quick_one(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(document()))
    with pytest.raises(ValueError, match="is not a --quick result, and this is one"):
        read(path, quick=True)
