"""Tables of kept measurements of headroom, `results/headroom/WORLD.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from astra_gym.experiments.comparison.cell_results import COMPARISON, read_comparison
from astra_gym.experiments.headroom.compared import compared_verdicts, over_instances
from astra_gym.experiments.headroom.foresight import correlations
from astra_gym.experiments.headroom.stops import NAMES
from astra_gym.experiments.headroom.verdicts import Verdict
from astra_gym.experiments.reports.document import MISSING, Block, Table, entries
from astra_gym.ssl_core.safety.sealing import read_json

RULE = "Headroom: the whole interval is above 0, however small the gain. None: it ends below the bar."
"""What verdicts mean, below their tables."""


def _kinds(results: Path, world: str) -> Mapping[str, Any]:
    kinds: Mapping[str, Any] = read_json(results / "headroom" / f"{world}.json")["kinds"]
    return kinds


def verdicts_table(results: Path, world: str) -> list[Block]:
    """Return the verdicts of a world."""
    verdicts = [Verdict(**each) for found in _kinds(results, world).values() for each in found["verdicts"]]
    return [_verdicts(verdicts, f"The first verdict of each kind decides. {RULE}")]


def compared_table(results: Path, name: str) -> list[Block]:
    """Return the verdicts of the pairs that a kept comparison tests."""
    result = read_comparison(results / "comparisons" / name / COMPARISON)
    note = f"Accuracy where the world is judged; values are differences within a seed. {RULE}"
    return [_verdicts(compared_verdicts(result), note)]


def instances_table(results: Path, prefix: str) -> list[Block]:
    """Return the verdicts over the instances whose comparisons are kept as PREFIX-INSTANCE, and each instance's own."""
    found = {
        folder.name.removeprefix(f"{prefix}-"): read_comparison(folder / COMPARISON)
        for folder in sorted((results / "comparisons").glob(f"{prefix}-*"))
    }
    note = (
        "Accuracy where each instance is judged. A value is a difference within a seed, in the first row its mean over "
        f"the instances. {RULE}"
    )
    return [_verdicts(over_instances(found), note)]


def _verdicts(verdicts: Sequence[Verdict], note: str) -> Table:
    rows = [
        entries(
            each.kind,
            each.verdict,
            f"{each.mean:+.2g}",
            MISSING if each.low is None else f"{each.low:+.2g} to {each.high:+.2g}",
            f"{each.bar:.2g}",
            each.unit,
            f"{each.n}",
        )
        for each in verdicts
    ]
    columns = ["choice", "verdict", "gain", "95 % interval", "bar", "unit", "values"]
    return Table("", note, columns, rows, words=("choice", "verdict", "unit"))


def credit_table(results: Path, world: str) -> list[Block]:
    """Return the credit of a view's budget in one update, and how often each budget was preferred and chosen."""
    numbers = _kinds(results, world)["view"]["numbers"]
    rows = [
        entries(
            f"{each['epsilon']:g}/255" + (" (the constant)" if each["constant"] else ""),
            f"{each['steps']}",
            *(interval(each[name], 1e6) for name in ("credit_a", "credit_b")),
            *(f"{100 * each[name]:.0f}" for name in ("preferred", "chosen")),
        )
        for each in numbers["budgets"]
    ]
    note = (
        f"Millionths of the loss; {numbers['views']} views, two judges of {numbers['judge_images']} images. Preferred: "
        "views to which judge A gives most credit with it, %. Chosen: views that had it in the long test, %."
    )
    columns = ["radius", "steps", "credit by A", "credit by B", "preferred", "chosen"]
    return [Table("", note, columns, rows)]


def stops_table(results: Path, world: str) -> list[Block]:
    """Return what PPO attains by stopping each view's attack, and what fixed divisions of as many steps attain."""
    numbers = _kinds(results, world)["stops"]["numbers"]
    rows = [
        entries(words, interval(numbers["losses"][name], 1.0, ".3f"), f"{1000 * numbers['seconds'][name]:.0f}")
        for name, words in NAMES.items()
    ]
    note = (
        f"Loss of attacked views of held-out images (clean: {numbers['clean']:.3f}) after {numbers['steps']:.2f} steps "
        "a view on average, with 95 % intervals over repeats. Time: milliseconds of one core a batch. PPO has learned "
        f"for {numbers['learning_seconds']:.0f} seconds."
    )
    return [Table("", note, ["division of the steps", "attained loss", "time"], rows)]


def numbers_table(results: Path, world: str) -> list[Block]:
    """Return what is behind the verdicts: shares of variance, rank correlations, falls and losses."""
    kinds = _kinds(results, world)
    rows = []
    if "view" in kinds:
        numbers = kinds["view"]["numbers"]
        rows += [
            (f"variance of the credit: {name.replace('_', ' ')}", f"{100 * share:.1f} %")
            for name, share in numbers["variance"].items()
        ]
        rows += [(f"rank correlation: {name}", f"{found:.2f}") for name, found in numbers["rank_correlations"].items()]
        rows += [
            (f"fall of judge B in the long test: {name}", interval(found, 1.0, ".3f"))
            for name, found in numbers["falls"].items()
        ]
        rows.append(("mean steps of the chosen budgets", f"{numbers['chosen_steps']:.2f}"))
    if "attack" in kinds:
        numbers = kinds["attack"]["numbers"]
        rows += [(f"loss within an attack: {name}", f"{found:.3f}") for name, found in numbers["losses"].items()]
    if "foresight" in kinds:
        rows += [(name, interval(found, 1.0, ".2f")) for name, found in correlations(kinds["foresight"]["numbers"])]
    return [Table("", "", ["value", "found"], [entries(*row) for row in rows])]


def interval(found: Sequence[float | None], scale: float, form: str = ".0f") -> str:
    """Return a mean and its interval, of which any may be missing, times `scale`: "12 (-3 to 27)"."""
    mean, low, high = found
    if mean is None:
        return MISSING
    if low is None or high is None:
        return f"{scale * mean:{form}}"
    return f"{scale * mean:{form}} ({scale * low:{form}} to {scale * high:{form}})"
