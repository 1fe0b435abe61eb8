"""The tables of documents that are made from kept results, between `<!-- table KIND NAME -->` and `<!-- end -->`."""

import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from astra_gym.experiments.benchmarks.compare import read
from astra_gym.experiments.benchmarks.tables import cells
from astra_gym.experiments.comparison.cell_results import COMPARISON, ComparisonResult, read_comparison
from astra_gym.experiments.evaluation.store import EvaluationStore
from astra_gym.experiments.reports import evaluation_tables, headroom_tables, tuning_tables
from astra_gym.experiments.reports.comparison_tables import accuracy_table as compared_accuracies
from astra_gym.experiments.reports.comparison_tables import compute_table, improvement_table, primary_table
from astra_gym.experiments.reports.document import MISSING, Block, Items, Table, entries
from astra_gym.experiments.reports.evaluation_tables import remarks
from astra_gym.experiments.reports.family_tables import ends_table, family_table
from astra_gym.experiments.reports.family_tables import instances_table as family_instances_table
from astra_gym.experiments.reports.method_tables import coresets_table, methods_table, strategies_table
from astra_gym.experiments.reports.rendering import block_in_markdown
from astra_gym.experiments.stats import mean_interval
from astra_gym.ssl_core.evaluation.results import Row, read_results
from astra_gym.ssl_core.safety.sealing import read_json

POLICIES = ("reinforce", "uniform random", "method's own budget")


Made = Callable[[Path, str], Sequence[Block]]
"""A function that makes the tables of a kind from the folder of results and a name in it."""


def compared(table: Callable[[ComparisonResult], Sequence[Table] | Table | None]) -> Made:
    """Make the tables of a kept comparison."""

    def made(results: Path, name: str) -> Sequence[Block]:
        found = table(read_comparison(results / "comparisons" / name / COMPARISON))
        return [found] if isinstance(found, Table) else found or []

    return made


def evaluated(table: Callable[[Sequence[Row]], Table]) -> Made:
    """Make a table of a kept evaluation."""
    return lambda results, name: [table(read_results(EvaluationStore(results / "evaluations" / name).file))]


def evaluated_arms_table(results: Path, name: str) -> list[Block]:
    """Return the accuracies of one encoder of each arm of a comparison, from the evaluations kept as NAME-ARM.

    Raises:
        ValueError: if there is none.
    """
    tables = {
        folder.name.removeprefix(f"{name}-"): evaluation_tables.accuracy_table(
            read_results(EvaluationStore(folder).file)
        )
        for folder in sorted((results / "evaluations").glob(f"{name}-*"))
    }
    if not tables:
        raise ValueError(f"no evaluation is kept as {name}-ARM: keep one of each arm by --group {name}-ARM")
    first = next(iter(tables.values()))
    rows = [[*entries(arm), *line[1:]] for arm, table in tables.items() for line in table.rows]
    return [first._replace(title="", columns=["arm", *first.columns[1:]], rows=rows)]


def evaluation_remarks(results: Path, name: str) -> list[Block]:
    """Return why values of a kept evaluation are not standard, and what its checks found, as a list."""
    store = EvaluationStore(results / "evaluations" / name)
    return [Items(remarks(read_results(store.file), store.facts()["notes"]))]


def accuracy_table(results: Path, preset: str) -> list[Block]:
    """Return SA and RA of every kept run of a preset: mean over seeds, and the smallest and the largest."""
    # by seed, since every run repeats the trivial encoders, which are the same for all runs of a seed
    runs: dict[str, dict[float, dict[int, float]]] = {}
    encoders: dict[str, dict[float, dict[int, float]]] = {}
    for path in sorted((results / preset).glob("*/slf.json")):
        for row in read_results(path):
            if row.void:
                continue
            if row.checkpoint.startswith("step-"):
                values = runs.setdefault(path.parent.name.rpartition("-seed")[0], {})
            else:
                values = encoders.setdefault(row.checkpoint.replace("-", " "), {})
            values.setdefault(row.epsilon, {})[row.seed] = row.value
    lines = [*sorted(runs.items()), *sorted(encoders.items())]
    epsilons = sorted({epsilon for _, values in lines for epsilon in values})
    rows = [
        entries(
            label,
            str(max(map(len, values.values()))),
            *(_range([*values.get(epsilon, {}).values()]) for epsilon in epsilons),
        )
        for label, values in lines
    ]
    heads = ("SA" if not epsilon else f"RA {255 * epsilon:g}/255" for epsilon in epsilons)
    return [Table("", "", ["run", "seeds", *heads], rows)]


def _range(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def policy_rewards(results: Path, preset: str) -> list[dict[str, float]]:
    """Return the mean held-out reward of each policy, one dict for each kept seed of REINFORCE."""
    seeds = []
    for path in sorted((results / preset).glob("astra-reinforce-seed*/policy.json")):
        document: dict[str, Any] = read_json(path)
        seeds.append({name: statistics.mean(values) for name, values in document["rewards"].items()})
    return seeds


def policy_table(results: Path, preset: str) -> list[Block]:
    """Return the held-out reward of the trained policy and of the controls on the same checkpoints.

    A row has the mean and the 95 % t-interval. A seed is one value, the mean over its batches; the difference is taken
    within a seed.
    """
    seeds = policy_rewards(results, preset)
    values = {name: ("", [seed[name] for seed in seeds]) for name in POLICIES}
    for name in POLICIES[1:]:
        differences = [seed["reinforce"] - seed[name] for seed in seeds]
        values[f"reinforce minus {name}, within a seed"] = "+", differences
    rows = []
    for label, (sign, rewards) in values.items():
        mean, low, high = mean_interval(rewards)
        rows.append(entries(label, f"{mean:{sign}.4f}", f"{low:{sign}.4f} to {high:{sign}.4f}"))
    columns = [f"policy, on {len(seeds)} trained checkpoints", "mean reward", "95 % interval"]
    return [Table("", "", columns, rows)]


def benchmark_table(results: Path, which: str) -> list[Block]:
    """Return the benchmark's values of one part, or those of every part that have a target (`targets`).

    They are read from `results/benchmark.json` and any `benchmark-NAME.json` beside it, such as one of --against.
    """
    document = read(results / "benchmark.json", quick=False)
    others = [read(path, quick=False) for path in sorted(results.glob("benchmark-*.json"))]
    rows = [
        entries(*cells(figure))
        for figure in (figure for each in (document, *others) for figure in each["figures"])
        if (figure["target"] is not None if which == "targets" else figure["part"] == which)
    ]
    where = document["processor"] if document["device"] == "cpu" else document["device"]
    note = f"{where}, {document['threads']} threads, torch {document['versions']['torch']}."
    return [Table("", note, ["part", "figure", "median", "quartiles", "target"], rows, words=("figure", "target"))]


def reliability_table(results: Path, part: str) -> list[Block]:
    """Return what `make torture` tried and what failed, from `results/reliability.json`: of one part, or of `all`."""
    document = read_json(results / "reliability.json")
    rows = [
        entries(name, f"{found['cases']}", f"{found['failures']}", f"{found['seconds'] / 60:.1f}")
        for name, found in document["parts"].items()
        if part in ("all", name)
    ]
    failed = [f"{one['kind']}: {one['cases']}" for found in document["parts"].values() for one in found["failed"]]
    note = f"Seed {document['seed']}, commit {document['commit'][:7]}, {document['system']}, {document['machine']}."
    note += f" Failed: {'; '.join(failed)}." if failed else ""
    return [Table("", note, ["part", "cases", "failures", "minutes"], rows)]


TABLES: dict[str, Made] = {
    "accuracy": accuracy_table,
    "policy": policy_table,
    "benchmark": benchmark_table,
    "evaluated-accuracy": evaluated(evaluation_tables.accuracy_table),
    "evaluated-arms": evaluated_arms_table,
    "evaluated-stages": evaluated(evaluation_tables.stages_table),
    "evaluated-shifts": evaluated(evaluation_tables.shifts_table),
    "evaluated-health": evaluated(evaluation_tables.health_table),
    "evaluated-remarks": evaluation_remarks,
    "compared-accuracy": compared(compared_accuracies),
    "compared-primary": compared(primary_table),
    "compared-others": compared(improvement_table),
    "compared-compute": compared(compute_table),
    "compared-methods": compared(methods_table),
    "compared-strategies": compared(strategies_table),
    "compared-coresets": compared(coresets_table),
    "family": family_table,
    "family-ends": ends_table,
    "family-instances": family_instances_table,
    "reliability": reliability_table,
    "tuned": tuning_tables.tuned_table,
    "curve": tuning_tables.curve_table,
    "arms": tuning_tables.arms_table,
    "constants": tuning_tables.constants_table,
    "score": tuning_tables.score_table,
    "headroom": headroom_tables.verdicts_table,
    "headroom-compared": headroom_tables.compared_table,
    "headroom-credit": headroom_tables.credit_table,
    "headroom-instances": headroom_tables.instances_table,
    "headroom-numbers": headroom_tables.numbers_table,
    "headroom-stops": headroom_tables.stops_table,
}


def with_tables(text: str, results: Path) -> str:
    """Return a document's text with new tables between `<!-- table KIND NAME -->` and `<!-- end -->`."""

    def renewed(match: re.Match[str]) -> str:
        kind, preset = match[2], match[3]
        if kind not in TABLES:
            raise ValueError(f"a page asks for a table {kind!r}: expected one of {', '.join(TABLES)}")
        made = "\n".join(map(block_in_markdown, TABLES[kind](results, preset)))
        return f"{match[1]}\n{made}{match[4]}"

    return re.sub(r"(<!-- table (\S+) (\S+) -->)\n.*?(<!-- end -->)", renewed, text, flags=re.DOTALL)
