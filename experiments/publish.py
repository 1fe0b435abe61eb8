"""Keep what finished runs found: their figures as JSON under results/, and the README's tables made from those.

python experiments/publish.py runs/NAME ...      # keep these runs' results, then renew the README's tables
python experiments/publish.py --group fp32 ...   # keep them under results/fp32 instead of the preset's name
python experiments/publish.py comparisons/NAME   # keep a comparison and its report under results/comparisons/NAME
python experiments/publish.py runs/NAME/evaluation --group X     # keep an evaluation under results/evaluations/X
python experiments/publish.py                    # renew the README's tables from what is kept
python experiments/publish.py --check            # say whether the README's tables are those of the kept results
"""

import argparse
import json
import re
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:
    # run as a script: this checkout comes first, and what lies beside this file hides nobody's module
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from astra_gym.experiments import report
from astra_gym.experiments.benchmarks.compare import read
from astra_gym.experiments.benchmarks.tables import cells
from astra_gym.experiments.comparison.arms import PATHS
from astra_gym.experiments.comparison.cell_results import ComparisonResult, read_comparison, write_comparison
from astra_gym.experiments.config.argparser import OneLineParser
from astra_gym.experiments.evaluation.request import make_parser
from astra_gym.experiments.evaluation.store import EVALUATION, EvaluationStore
from astra_gym.experiments.plotting.run_plots import reward_comparison
from astra_gym.experiments.reports import evaluation_tables
from astra_gym.experiments.reports.comparison_tables import accuracy_table as compared_accuracies
from astra_gym.experiments.reports.comparison_tables import compute_table, improvement_table, primary_table
from astra_gym.experiments.reports.evaluation_tables import remarks
from astra_gym.experiments.reports.markup import Table, escaped_markdown, to_markdown
from astra_gym.experiments.reports.method_tables import methods_table, strategies_table
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.stats import FEWEST_SEEDS, mean_interval
from astra_gym.ssl_core.evaluation.results import Row, read_results
from astra_gym.ssl_core.utils.files import replacing
from astra_gym.ssl_core.utils.provenance import ROOT

POLICIES = ("reinforce", "uniform random", "method's own budget")
KEPT = ("environment.json", "results/slf.json", "results/policy.json", "results/training.json")
PLACES = {flag: "DIR" if flag.endswith("_dir") else "FILE" for flag in PATHS} | {"--out": "DIR", "--teacher": "RUN"}
"""What stands for a path of one machine in a kept command."""
PICTURES = ("action_shares.png", "losses_and_reward.png", "attack_gallery.png", "accuracy_against_epsilon.png")


def keep(run: Path, results: Path, pictures: bool, group: str | None = None) -> Path:
    """Copies a finished run's figures to results/GROUP/METHOD-AGENT-seedN/; the group is by default the preset.

    Raises:
        ValueError: if it is no run folder, or has not been evaluated.
    """
    folder = RunFolder.open(run)
    settings = folder.settings()
    if not (folder.results / "slf.json").is_file():
        raise ValueError(f"{run} has no results/slf.json: finish it by --resume {run}")
    group = group or settings.preset
    target = results / group / f"{settings.method}-{settings.agent}-seed{settings.seed}"
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, target / Path(name).name)
    # where the data lay on one machine says nothing on another
    placeless = replace(settings, data_dir=None, run_dir=None)
    (target / "config.yaml").write_text(placeless.to_yaml(), encoding="utf-8")
    for name in PICTURES if pictures else ():
        if (folder.figures / name).is_file():
            shutil.copyfile(folder.figures / name, target / name)
    if pictures and len(seeds := policy_rewards(results, group)) >= FEWEST_SEEDS:
        rewards = {name: [seed[name] for seed in seeds] for name in POLICIES}
        reward_comparison(rewards, results / group / "reward_comparison.png")
    return target


def keep_comparison(folder: Path, results: Path) -> Path:
    """Copies a comparison to results/comparisons/NAME/, with a report made anew.

    Raises:
        ValueError: if it is damaged, or not a run of it is finished.
    """
    comparison = read_comparison(folder / report.COMPARISON)
    target = results / "comparisons" / folder.resolve().name
    # where things lay on one machine says nothing on another
    unfinished = {name: _without_folders(reason) for name, reason in comparison.unfinished.items()}
    command = shlex.join(_without_places(shlex.split(comparison.command)))
    comparison = replace(comparison, command=command, unfinished=unfinished)
    report.write(comparison, target)
    write_comparison(target / report.COMPARISON, comparison)
    return target


def keep_evaluation(folder: Path, results: Path, name: str | None) -> Path:
    """Copies an evaluation's rows, facts and figures to results/evaluations/NAME/, by default its encoder's name.

    Raises:
        ValueError: if it is unfinished or damaged.
    """
    store = EvaluationStore(folder)
    rows, facts = read_results(store.file), store.facts()
    name = name or facts["name"] + folder.resolve().name.removeprefix("evaluation")
    target = EvaluationStore(results / "evaluations" / name)
    if target.file.is_file() and _origins(read_results(target.file)) != _origins(rows):
        raise ValueError(f"{target.path} holds the evaluation of another encoder or data set: give --group NAME")
    target.begin()
    words = shlex.split(facts["command"])
    encoder = make_parser("").parse_args(words[2:]).encoder
    words = [_placeless(encoder, facts["name"]) if encoder and Path(word) == encoder else word for word in words]
    command = shlex.join(_without_places(words))
    target.conclude(rows, facts | {"command": command})
    for picture in sorted(store.figures.glob("*.png")):
        target.figures.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, target.figures / picture.name)
    return target.path


def _origins(rows: Sequence[Row]) -> set[tuple[str, str]]:
    return {(row.checkpoint_hash, row.dataset) for row in rows}


def _placeless(encoder: Path, run: str) -> str:
    """An encoder's path without what is one machine's: `runs/NAME`, a checkpoint in it, or a file's name."""
    if not encoder.suffix:
        return f"runs/{run}"
    return f"runs/{run}/checkpoints/{encoder.name}" if encoder.parent.name == "checkpoints" else encoder.name


def _without_places(words: Sequence[str]) -> list[str]:
    made, before = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if before in PLACES:
            made.append(PLACES[before])
        elif name in PLACES and equals:
            made.append(f"{name}={PLACES[name]}")
        elif before == "--arm" or (name == "--arm" and equals):
            # the flags of an arm of one's own: LABEL=FLAGS
            head, _, flags = (value if name == "--arm" else word).partition("=")
            arm = f"{head}={shlex.join(_without_places(shlex.split(flags)))}"
            made.append(f"--arm={arm}" if name == "--arm" else arm)
        else:
            made.append(word)
        before = word
    return made


def _without_folders(reason: str) -> str:
    """A text with the names only of what absolute paths lead to; in quotes, a path may have blanks."""
    reason = re.sub(r"""(['"])/(?:[^'"]*/)?([^'"/]*)\1""", r"\1\2\1", reason)
    return re.sub(r"(?<![\w.~/])~?/(?:[^\s/'\",;:]+/)*([^\s/'\",;:]*)", r"\1", reason)


def compared(table: Callable[[ComparisonResult], list[Table] | Table | None]) -> Callable[[Path, str], str]:
    """A table of a kept comparison as Markdown."""

    def made(results: Path, name: str) -> str:
        found = table(read_comparison(results / "comparisons" / name / report.COMPARISON))
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
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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
}


def with_tables(text: str, results: Path) -> str:
    """The README with every table between `<!-- table KIND PRESET -->` and `<!-- end -->` made anew."""

    def renewed(match: re.Match[str]) -> str:
        kind, preset = match[2], match[3]
        if kind not in TABLES:
            raise ValueError(f"the README asks for a table {kind!r}: expected one of {', '.join(TABLES)}")
        return f"{match[1]}\n{TABLES[kind](results, preset)}\n{match[4]}"

    return re.sub(r"(<!-- table (\S+) (\S+) -->)\n.*?(<!-- end -->)", renewed, text, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 the README is stale (`--check`), 2 bad input."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(prog="publish.py", description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs or comparisons to be kept")
    parser.add_argument("--group", help="the folder of results/ that they are kept in, by default their preset's name")
    parser.add_argument("--pictures", action="store_true", help="keep these runs' pictures too")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="where results are kept")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the file with the tables")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if the tables are stale")
    options = parser.parse_args(argv)
    try:
        for run in options.runs:
            if (run / report.COMPARISON).is_file():
                if options.group or options.pictures:
                    raise ValueError(f"{run} is a comparison: --group and --pictures are for runs, leave them out")
                print(f"kept {keep_comparison(run, options.results)}")
            elif (run / EVALUATION).is_file():
                print(f"kept {keep_evaluation(run, options.results, options.group)}")
            else:
                print(f"kept {keep(run, options.results, options.pictures, options.group)}")
        text = options.readme.read_text(encoding="utf-8")
        renewed = with_tables(text, options.results)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if options.check:
        print("the README's tables are those of the results" if text == renewed else "the README's tables are stale")
        return int(text != renewed)
    with replacing(options.readme) as temporary:
        temporary.write_text(renewed, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
