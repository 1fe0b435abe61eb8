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
from astra_gym.experiments.reports import evaluation_tables
from astra_gym.experiments.reports.comparison_tables import accuracy_table as compared_accuracies
from astra_gym.experiments.reports.comparison_tables import compute_table, improvement_table, primary_table
from astra_gym.experiments.reports.evaluation_tables import remarks
from astra_gym.experiments.reports.markup import Table, escaped_markdown, to_markdown
from astra_gym.experiments.reports.method_tables import coresets_table, methods_table, strategies_table
from astra_gym.experiments.stats import mean_interval
from astra_gym.ssl_core.evaluation.results import Row, read_results
from astra_gym.ssl_core.safety.sealing import read_json

POLICIES = ("reinforce", "uniform random", "method's own budget")


def compared(table: Callable[[ComparisonResult], list[Table] | Table | None]) -> Callable[[Path, str], str]:
    """A table of a kept comparison as Markdown."""

    def made(results: Path, name: str) -> str:
        found = table(read_comparison(results / "comparisons" / name / COMPARISON))
        tables = found if isinstance(found, list) else [found] if found else []
        return "\n\n".join(map(to_markdown, tables))

    return made


def evaluated(table: Callable[[Sequence[Row]], Table]) -> Callable[[Path, str], str]:
    """A table of a kept evaluation as Markdown."""

    def made(results: Path, name: str) -> str:
        return to_markdown(table(read_results(EvaluationStore(results / "evaluations" / name).file)))

    return made


def evaluation_remarks(results: Path, name: str) -> str:
    """Why figures of a kept evaluation are not standard, and what its checks found, as a list."""
    store = EvaluationStore(results / "evaluations" / name)
    said = remarks(read_results(store.file), store.facts()["notes"])
    return "\n".join(f"- {escaped_markdown(text)}" for text in said)


def accuracy_table(results: Path, preset: str) -> str:
    """SA and RA of every kept run of a preset as Markdown: mean over seeds, and the smallest and the largest."""
    columns: dict[float, None] = {}
    lines: dict[str, dict[float, list[float]]] = {}
    for path in sorted((results / preset).glob("*/slf.json")):
        name = path.parent.name.rpartition("-seed")[0]
        for row in read_results(path):
            label = f"`{name}`" if row.checkpoint.startswith("step-") else row.checkpoint.replace("-", " ")
            columns[row.epsilon] = None
            values = lines.setdefault(label, {}).setdefault(row.epsilon, [])
            # every run of a preset repeats the trivial encoders: those of one seed are told once
            if row.checkpoint.startswith("step-") or row.value not in values:
                values.append(row.value)
    epsilons = sorted(columns)
    head = ["run", "seeds", *("SA" if not epsilon else f"RA {255 * epsilon:g}/255" for epsilon in epsilons)]
    table = [head, ["---"] * len(head)]
    for label, values_at in sorted(lines.items(), key=lambda item: ("`" not in item[0], item[0])):
        seeds = max(len(values) for values in values_at.values())
        table.append([label, str(seeds), *(_cell(values_at.get(epsilon, [])) for epsilon in epsilons)])
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def policy_rewards(results: Path, preset: str) -> list[dict[str, float]]:
    """Mean held-out reward of each policy, one dict for each kept seed of REINFORCE."""
    seeds = []
    for path in sorted((results / preset).glob("astra-reinforce-seed*/policy.json")):
        document: dict[str, Any] = read_json(path)
        seeds.append({name: statistics.mean(values) for name, values in document["rewards"].items()})
    return seeds


def policy_table(results: Path, preset: str) -> str:
    """Held-out reward of the trained policy and of the controls on the same checkpoints: mean and 95 % t-interval.

    A seed is one figure, the mean over its batches; the difference is taken within a seed.
    """
    seeds = policy_rewards(results, preset)
    lines = [f"| policy, on {len(seeds)} trained checkpoints | mean reward | 95 % interval |", "| --- | --- | --- |"]
    for name in POLICIES:
        mean, low, high = mean_interval([seed[name] for seed in seeds])
        lines.append(f"| {name} | {mean:.4f} | {low:.4f} to {high:.4f} |")
    for name in POLICIES[1:]:
        mean, low, high = mean_interval([seed["reinforce"] - seed[name] for seed in seeds])
        lines.append(f"| reinforce minus {name}, within a seed | {mean:+.4f} | {low:+.4f} to {high:+.4f} |")
    return "\n".join(lines)


def benchmark_table(results: Path, which: str) -> str:
    """The benchmark's figures of one part, or of every part those that have a target (`targets`).

    They are those of `results/benchmark.json` and of any `benchmark-NAME.json` beside it, such as one of --against.
    """
    document = read(results / "benchmark.json", quick=False)
    others = [read(path, quick=False) for path in sorted(results.glob("benchmark-*.json"))]
    wanted = [
        figure
        for figure in (figure for each in (document, *others) for figure in each["figures"])
        if (figure["target"] is not None if which == "targets" else figure["part"] == which)
    ]
    lines = ["| part | figure | median | quartiles | target |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(cells(figure))} |" for figure in wanted]
    where = document["processor"] if document["device"] == "cpu" else document["device"]
    lines += ["", f"{where}, {document['threads']} threads, torch {document['versions']['torch']}."]
    return "\n".join(lines)


TABLES = {
    "accuracy": accuracy_table,
    "policy": policy_table,
    "benchmark": benchmark_table,
    "evaluated-accuracy": evaluated(evaluation_tables.accuracy_table),
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
}


def with_tables(text: str, results: Path) -> str:
    """The text of a document with every table between `<!-- table KIND NAME -->` and `<!-- end -->` made anew."""

    def renewed(match: re.Match[str]) -> str:
        kind, preset = match[2], match[3]
        if kind not in TABLES:
            raise ValueError(f"the README asks for a table {kind!r}: expected one of {', '.join(TABLES)}")
        return f"{match[1]}\n{TABLES[kind](results, preset)}\n{match[4]}"

    return re.sub(r"(<!-- table (\S+) (\S+) -->)\n.*?(<!-- end -->)", renewed, text, flags=re.DOTALL)
