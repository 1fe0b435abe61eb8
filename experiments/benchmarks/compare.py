"""The comparison of a result of the benchmark with an earlier one, value by value."""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from scipy.stats import ttest_ind

from astra_gym.experiments.benchmarks.measure import UNITS
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.registry import pick

SCHEMA = 2
"""Schema of the results file."""
LEAST = 0.05
"""Least change of a median, as a part of it, that counts as a change."""
FEWEST = 3
"""Least number of values on each side for which noise can be estimated."""
SIGNIFICANCE = 0.01
"""Level of the test. A result has some hundred values, so at the usual 5 % several would be marked by chance."""
MARKS = {
    "worse": "the median is worse by more than 5 %, and Welch's t-test finds p < 0.01",
    "better": "the same the other way",
    "moved": "the same of a share, which is neither good nor bad",
    "same": "within 5 %, or not significant",
    "too few": "fewer than 3 values on one side",
    "new": "not in the earlier result",
    "gone": "in the earlier result alone",
}
CIRCUMSTANCES = ("processor", "threads", "device")
Document = Mapping[str, Any]


@dataclass(frozen=True)
class BenchmarkComparison:
    """A value then and now, None if missing, and its mark, a name of `MARKS`."""

    part: str
    name: str
    unit: str
    then: float | None
    now: float | None
    mark: str


def read(path: Path, quick: bool) -> dict[str, Any]:
    """Read an earlier result.

    Args:
        path: a file that the benchmark wrote.
        quick: whether the present run is a quick one: quick and full results are not compared.

    Raises:
        ValueError: if the file is missing, is not such a result, is of another schema or of the other kind.
    """
    try:
        document = read_json(path, "restore it from a copy, or measure it again")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a benchmark's result: {error.strerror}") from error
    if not isinstance(document, dict) or "schema" not in document:
        raise ValueError(f"{path} is no benchmark's result: expected an object with a schema")
    if document["schema"] != SCHEMA:
        raise ValueError(f"{path} has schema {shown(document['schema'])}: expected {SCHEMA}, measure it anew")
    try:
        for figure in document["figures"]:
            low, high = figure["quartiles"]
            _ = figure["part"] + figure["name"], pick(figure["unit"], UNITS, "unit")
            _ = sum(value for value in (figure["median"], low, high, *figure["values"]) if value is not None)
        was_quick = document["quick"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from error
    if was_quick is not quick:
        kinds = "a --quick result, and this is not" if was_quick else "not a --quick result, and this is"
        raise ValueError(f"{path} is {kinds} one: the two measure different things")
    return document


def mark(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the mark of a value, a name of `MARKS`: did its median move by more than 5 %, and significantly?

    The test is Welch's t-test, on the values' logarithms if all are positive: ratios and times scatter by factors.
    """
    # what was not reached is no value, so it cannot be tested
    sides = [[value for value in figure["values"] if value is not None] for figure in (then, now)]
    if min(map(len, sides)) < FEWEST or None in (then["median"], now["median"]):
        return "too few"
    change = now["median"] - then["median"]
    if abs(change) <= LEAST * abs(then["median"]) or _probability(*sides) >= SIGNIFICANCE:
        return "same"
    better = UNITS[now["unit"]].better
    if not better:
        return "moved"
    return "better" if change * better > 0 else "worse"


def _probability(then: list[float], now: list[float]) -> float:
    """Return the probability of so large a difference by chance; the medians differ."""
    if min(then + now) > 0:
        then, now = ([math.log(value) for value in side] for side in (then, now))
    with warnings.catch_warnings():
        # scipy warns of equal values, which have no spread
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(ttest_ind(then, now, equal_var=False).pvalue)


def compare(old: Document, new: Document) -> list[BenchmarkComparison]:
    """Compare every value of both results, those of the new one first; parts that the new one lacks are left out."""
    then = {(figure["part"], figure["name"]): figure for figure in old["figures"]}
    now = {(figure["part"], figure["name"]): figure for figure in new["figures"]}
    measured = {part for part, _ in now}
    lines = []
    for key, figure in now.items():
        before = then.get(key)
        if before is None or before["unit"] != figure["unit"]:
            lines.append(BenchmarkComparison(*key, figure["unit"], None, figure["median"], "new"))
        else:
            lines.append(
                BenchmarkComparison(*key, figure["unit"], before["median"], figure["median"], mark(before, figure))
            )
    for key, figure in then.items():
        if key[0] in measured and key not in now:
            lines.append(BenchmarkComparison(*key, figure["unit"], figure["median"], None, "gone"))
    return lines


def differences(old: Document, new: Document) -> list[str]:
    """Return the differences in circumstances, one line each: values may have moved because of these alone."""
    pairs = {name: (old.get(name), new.get(name)) for name in CIRCUMSTANCES}
    pairs["torch"] = tuple(document.get("versions", {}).get("torch") for document in (old, new))
    return [f"{name} was {then}, now {now}" for name, (then, now) in pairs.items() if then != now]


def count(lines: Sequence[BenchmarkComparison]) -> str:
    """Return the number of values with each mark, in words."""
    counted = Counter(line.mark for line in lines)
    always = ("worse", "better", "same")
    return ", ".join(f"{counted[name]} {name}" for name in MARKS if counted[name] or name in always)


def comparison_table(lines: Sequence[BenchmarkComparison]) -> Table:
    """Return the comparison as a table for the terminal."""
    drawn = Table("part", "figure", "then", "now", "mark", title="Against the earlier result")
    for line in lines:
        form = UNITS[line.unit].form
        then, now = ("-" if value is None else form.format(value) for value in (line.then, line.now))
        drawn.add_row(line.part, line.name, then, now, line.mark)
    return drawn
