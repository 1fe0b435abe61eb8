"""The report of a comparison: content and order. `astra_gym.experiments.reports.rendering` writes it."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from astra_gym.experiments.comparison.cell_results import COMPARISON, Cell, ComparisonResult, read_comparison, summarize
from astra_gym.experiments.comparison.primary import Primary, primary_comparisons
from astra_gym.experiments.reports.comparison_plots import (
    accuracy_against_compute,
    choice_by_clean_loss,
    choice_over_training,
    compute_points,
    learning_curves,
    shares_of_arms,
    without_attack,
)
from astra_gym.experiments.reports.comparison_tables import (
    accuracy_table,
    at,
    best_arm,
    compute_table,
    improvement_table,
    p_text,
    parts,
    points_text,
    primary_table,
)
from astra_gym.experiments.reports.document import Block, Code, Items, Page, Picture, Section, Table, Text, entries
from astra_gym.experiments.reports.method_tables import methods_table, strategies_table
from astra_gym.experiments.reports.rendering import check_report, write_page
from astra_gym.experiments.reports.settings_tables import reward_table, settings_table
from astra_gym.experiments.runs.logs import damaged_events
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.stats import Place, arms_of, deciding_place
from astra_gym.ssl_core.utils.messages import amount
from astra_gym.ssl_core.utils.paths import check_folder, path_component


def report(comparison: ComparisonResult, figures: Path) -> Page:
    """Draw the figures and make the report's page.

    Args:
        comparison: finished runs.
        figures: folder for the PNGs, inside that of the report.

    Raises:
        ValueError: if no run is finished, an arm has a seed twice, a name cannot be a file's, or a file would be
            replaced that no report has written.
    """
    if not comparison.cells:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in comparison.unfinished.items()) or "it has no cells"
        raise ValueError(f"the comparison {comparison.name} has no finished run to report ({reasons})")
    runs = Counter((cell.arm, cell.method, cell.preset, cell.seed) for cell in comparison.cells)
    if twice := [run for run, number in runs.items() if number > 1]:
        arm, method, preset, seed = twice[0]
        raise ValueError(f"the arm {arm} ({method}, {preset}) has seed {seed} twice: expected a run a seed")
    several = len({(arm, method, preset) for arm, method, preset, _ in runs}) > 1
    # before the figures, since runs that cannot be compared are refused
    opening = Text(" ".join(answer(comparison)), "answer")
    primary, others = primary_table(comparison), improvement_table(comparison)
    drawn = _drawn(comparison, figures)
    compute = [compute_table(comparison)] if several else []
    judges = [part.judge for part in parts(comparison)]
    sections = [
        Section("How to read it", [Items(how_to_read(judges, comparison.planned) if several else HOW_TO_READ)]),
        Section("Methods", _method_tables(comparison)),
        Section("Accuracy", accuracy_table(comparison)),
        Section("Comparisons fixed beforehand", [primary] if primary else []),
        Section("Other comparisons", [others] if others else []),
        Section("Learning curves", drawn["learning_curves"]),
        Section("Accuracy against attack compute", [*drawn["accuracy_against_compute"], *compute]),
        Section("What the arms chose", drawn["shares_of_arms"]),
        Section("What the choice depends on", drawn["choice_by_clean_loss"] + drawn["choice_over_training"]),
        Section("Reward", [reward_table(comparison)]),
        Section("Settings and machine", [settings_table(comparison), machine_table(comparison)]),
        Section("Repeat it", [Code(comparison.command)] if comparison.command else []),
        Section("Unfinished runs", _unfinished(comparison)),
        Section(DAMAGED, _damaged(comparison)),
        Section(VOID, _void(comparison)),
    ]
    kind = "Comparison of agents" if several else "Run"
    return Page(f"{kind}: {comparison.name}", [opening], [section for section in sections if section.blocks])


HOW_TO_READ = (
    ("Arm", "what is compared: an agent, or an agent with settings of its own, trained with several seeds."),
    ("SA, RA", "accuracy in % on the clean test images, and under PGD-20 of the given radius."),
    (
        "Seeds, not images",
        "every interval and test is over seeds: the test images of a run share one trained network. Below three seeds "
        "there is no interval. All runs share the test images: tests and verdicts are about these.",
    ),
    ("Reward", "the agent's own aim, not the comparison's: a higher reward need not give a higher accuracy."),
)
DECIDING = (
    "Deciding epsilon",
    "arms are compared where the RA, averaged over the arms of the primary comparisons (over all arms where one of "
    "those is missing), is nearest to 55 %, and from 30 to 80 %: near 0 and 100 % all arms look alike. The rule "
    "does not see who wins.",
)
SHOWN = (
    "Shown",
    "a primary comparison is shown if p after Holm is at most 0.05; there is no verdict before all planned runs of "
    "its arms are finished. What is not shown may still be so: it then needs more seeds. All other comparisons "
    "have intervals only, without a test.",
)


def how_to_read(judges: Sequence[Place | None], planned: bool = True) -> tuple[tuple[str, str], ...]:
    """Return the entries of a page that compares arms, with the judges of its methods and presets, and with what a test
    shows if there is a plan."""
    places = dict.fromkeys(at(judge) for judge in judges if judge is not None)
    named = f"arms are compared by {' or '.join(places)}, which their world names and which was fixed before the runs."
    how = [*([("Judge", named)] if places else []), *([DECIDING] if None in judges else [])]
    return (*HOW_TO_READ, *how, *([SHOWN] if planned else []))


def _method_tables(comparison: ComparisonResult) -> list[Table]:
    """Return the tables that compare methods, if there are several of one preset."""
    several = len({cell.method for cell in comparison.cells}) > 1
    if not several or len({cell.preset for cell in comparison.cells}) > 1:
        return []
    tables = [methods_table(comparison), strategies_table(comparison)]
    return [table for table in tables if table.rows]


def answer(comparison: ComparisonResult) -> list[str]:
    """Return what the values show, in sentences; every number in them is computed."""
    sentences, last = [], []
    for part in parts(comparison):
        place, cell = deciding_place(part), part.cells[0]
        base = part.base if part.base.cells else part
        apart = " (arms at equal compute apart)" if base.arms != part.arms else ""
        seeds = sorted({len(part.of(arm)) for arm in part.arms})
        each = " to ".join(map(str, {seeds[0]: 0, seeds[-1]: 0}))
        many = f"{amount(len(part.arms), 'arm')}, {amount(len(part.cells), 'run')} (seeds per arm: {each})"
        sentences.append(f"{many}, method {cell.method}, preset {cell.preset}.")
        if len(base.arms) == 1:
            shared = sorted(set.intersection(*(set(other.outcomes) for other in base.cells)))
            means = [f"{at(one)} {np.mean([run.accuracy(one) for run in base.cells]):.1f} %" for one in shared]
            last.append(f"One arm alone shows nothing about agents; {base.arms[0]}: {', '.join(means)}.")
        elif place is None:
            last.append("No epsilon decides: at none is the mean RA of the arms from 30 to 80 %.")
        else:
            best = best_arm(part, place)
            text = f"{best} is above every other arm" if best else "no arm is above every other"
            text = f"{text}{apart} by the intervals of the differences"
            if part.unfinished or any(cell.void for cell in base.cells):
                text = f"no arm is called the best{apart}, since runs are {'unfinished' if part.unfinished else 'void'}"
            decided = "By the world's judge" if part.judge is not None else "At the deciding epsilon"
            last.append(f"{decided}, {at(place)}, {text}.")
    if len({(cell.arm, cell.method, cell.preset) for cell in comparison.cells}) > 1:
        sentences += _primary_sentences(comparison)
    sentences += last
    if comparison.unfinished:
        total = len(comparison.cells) + len(comparison.unfinished)
        sentences.append(f"{len(comparison.unfinished)} of {total} runs are unfinished: the figures may change.")
    if damaged := sum(bool(cell.damage) for cell in comparison.cells):
        sentences.append(f"The logs of {amount(damaged, 'run')} are damaged, see {DAMAGED}.")
    if void := sum(bool(cell.void) for cell in comparison.cells):
        sentences.append(f"The robust accuracy of {amount(void, 'run')} is void and left out, see {VOID}.")
    return sentences


def _primary_sentences(comparison: ComparisonResult) -> list[str]:
    if not comparison.planned:
        return [
            "No test and no verdict: these runs are of no plan, and who adds runs until a test suits finds too much."
        ]
    decided = [one for part in parts(comparison) for one in primary_comparisons(part) if one.standing != "secondary"]
    if not decided:
        pairs = ", ".join(f"{one} against {other}" for one, other in comparison.tests)
        return [f"None of the comparisons that were fixed beforehand ({pairs}) can be made here."]
    shown = sum(one.standing in ("better", "worse") for one in decided)
    several = len(parts(comparison)) > 1
    lacking = [arm for arm in arms_of(comparison.tests) if arm not in comparison.arms]
    missing = [f"The tests lack {amount(len(lacking), 'arm')}: {', '.join(lacking)}."] if lacking else []
    return [
        f"Of the {amount(len(decided), 'primary comparison')}, {shown or 'none'} {_is(shown)} shown.",
        *(_primary_sentence(one, f", {one.part}" if several else "") for one in decided),
        *missing,
    ]


def _primary_sentence(one: Primary, part: str) -> str:
    measured = f"{points_text(one.found)} points, {at(one.place)}{part}"
    facts = f"{measured}, {amount(one.found.seeds, 'seed')}"
    match one.standing:
        case "better" | "worse":
            return f"{one.first} is {one.verdict} than {one.second} ({facts}, p {p_text(one.p)} after Holm)."
        case "unfinished":
            return f"No verdict yet on {one.first} against {one.second}: {one.verdict} ({measured})."
        case "not shown":
            return f"Not shown, either way: {one.first} against {one.second} ({facts})."
        case _:
            return f"{one.first} against {one.second} {one.verdict} ({measured})."


def _is(number: int) -> str:
    return "is" if number <= 1 else "are"


def _drawn(comparison: ComparisonResult, folder: Path) -> dict[str, list[Block]]:
    """Draw the figures for which there are data, by subject; a set for every method and preset."""
    again = check_report(folder.parent)
    check_folder(folder)
    cut = parts(comparison)
    drawings = []
    for part in cut:
        cell = part.cells[0]
        prefix = f"{cell.method}-{cell.preset}-" if len(cut) > 1 else ""
        where = f" {cell.method}, {cell.preset}." if len(cut) > 1 else ""
        for kind, (draw, alt, caption) in _figures(part).items():
            name = path_component(f"{prefix}{kind}.png", "a figure")
            if not again and os.path.lexists(folder / name):
                raise ValueError(f"{folder / name} would be replaced, and is of no report here: move it away")
            drawings.append((kind, draw, Picture(name, alt, caption + where)))
    found: dict[str, list[Block]] = {}
    try:
        for kind, draw, picture in drawings:
            found.setdefault(kind, []).extend([picture] if draw(folder / picture.name) else [])
    except BaseException:
        if not again:
            # without a report these figures could not be recognized as ours
            for _, _, picture in drawings:
                (folder / picture.name).unlink(missing_ok=True)
        raise
    return found


def _figures(part: ComparisonResult) -> dict[str, tuple[Callable[[Path], bool], str, str]]:
    """Return by name: the function that draws a figure, its content in words, and its caption."""
    arms = ", ".join(part.arms)
    deciding = deciding_place(part)
    place = deciding
    if place is None:
        shared = set.intersection(*(set(cell.outcomes) for cell in part.cells))
        place = max(shared, default=0.0)
    points = compute_points(part, place)
    told = "; ".join(f"{arm} {point.steps / 1e3:.0f} thousand, {point.mean:.1f} %" for arm, point in points.items())
    left_out = f" Left out, without an attack: {', '.join(names)}." if (names := without_attack(part)) else ""
    decides = "" if deciding is not None else " No epsilon decides; this is the largest."
    chosen = place
    return {
        "learning_curves": (
            lambda path: learning_curves(part, path),
            f"Mean reward against target updates, one panel per arm: {arms}.",
            "Mean reward over training, averaged over seeds, with its 95 % t interval from three seeds on. Grey: the "
            "other arms. A reward has the terms that its arm's settings weigh; the attacked views' loss minus the "
            "clean ones' also falls as the target network becomes robust.",
        ),
        "accuracy_against_compute": (
            lambda path: accuracy_against_compute(part, chosen, path),
            f"{at(place)} against attack gradient steps per run. {told}.",
            f"{at(place)} against the attack gradient steps of a run, means over seeds with 95 % intervals from "
            f"three seeds on. Filled and joined: the Pareto front of the means, above which no arm lies for as few "
            f"steps."
            f"{decides}{left_out}",
        ),
        "shares_of_arms": (
            lambda path: shares_of_arms(part, path),
            f"Stacked shares of the chosen epsilon, steps and step size over training, one row per arm: {arms}.",
            "Shares of the chosen values over training, averaged over seeds; each panel spans 0 to 100 %, small values "
            "at the bottom. At the right of a panel: values with a large share at the end.",
        ),
        "choice_by_clean_loss": (
            lambda path: choice_by_clean_loss(part, path),
            "Mean choice against the view's clean loss, for learning arms, as a difference from all views.",
            "Mean choice for each fifth of a step's views by clean loss, over the second half of training and all "
            "seeds, minus the mean over all views (in brackets). A flat line: a choice that does not depend on the "
            "loss. At most eight learning arms are named, those that move the most; grey: the other learning arms; "
            "dotted: arms that do not learn, whose scatter is chance. Arms that treat all views alike are left out.",
        ),
        "choice_over_training": (
            lambda path: choice_over_training(part, path),
            "Mean epsilon, steps and step size over training, one line per arm.",
            "Mean choice over training, averaged over seeds. At most eight learning arms are named, those that move "
            "the most; grey: the other learning arms; dotted: arms that do not learn.",
        ),
    }


def machine_table(comparison: ComparisonResult) -> Table:
    """Return versions, commits, device, threads and time of all runs."""
    cells = comparison.cells
    names = dict.fromkeys(name for cell in cells for name in cell.versions)

    def told(values: Iterable[object]) -> str:
        return ", ".join(map(str, dict.fromkeys(values)))

    rows = [
        entries("device", told(cell.device for cell in cells)),
        entries("threads of a run", told(cell.threads for cell in cells)),
        entries("runs at once", "not known" if comparison.jobs is None else str(comparison.jobs)),
        entries("wall time", duration(comparison.wall_seconds)),
        entries("training time, all runs", duration(sum(cell.seconds for cell in cells))),
        entries("commits", told(commit for cell in cells for commit in cell.commits)),
        *(entries(name, told(cell.versions.get(name, "none") for cell in cells)) for name in names),
    ]
    note = "Wall time: from the first start to the end, without pauses. Training time: without evaluation."
    return Table("Machine and versions", note, ["of the runs", "value"], rows, words=("value",))


def duration(seconds: float | None) -> str:
    """Return a time in words; `not known` for None."""
    if seconds is None:
        return "not known"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _unfinished(comparison: ComparisonResult) -> list[Block]:
    rows = [entries(name, reason) for name, reason in comparison.unfinished.items()]
    return [Table("Failed or missing", "", ["run", "reason"], rows, words=("reason",))] if rows else []


DAMAGED, VOID = "Damaged logs", "Void accuracies"


def _damaged(comparison: ComparisonResult) -> list[Block]:
    rows = [entries(f"{cell.arm}, seed {cell.seed}", said) for cell in comparison.cells for said in cell.damage]
    note = "Accuracies are as measured. Rewards, choices, attack steps and times are those of what is left of the logs."
    return [Table("Runs whose logs are damaged", note, ["run", "damage"], rows, words=("damage",))] if rows else []


def _void(comparison: ComparisonResult) -> list[Block]:
    rows = [entries(f"{cell.arm}, seed {cell.seed}", cell.void) for cell in comparison.cells if cell.void]
    note = (
        "The attack fails on them, so their robust accuracy would be too high. It is left out everywhere, and there is "
        "no verdict, since the other runs of an arm may be its better ones."
    )
    title, columns = "Runs whose robust accuracy is void", ["run", "reason"]
    return [Table(title, note, columns, rows, words=("reason",))] if rows else []


def read_runs(paths: Sequence[Path]) -> ComparisonResult:
    """Read the runs to be reported.

    Args:
        paths: one comparison, as a folder or its `comparison.json`, or run folders.

    Raises:
        ValueError: if a path is neither, a comparison is not the only path, or its content is damaged or unfinished.
    """
    files = [path / COMPARISON if (path / COMPARISON).is_file() else path for path in paths]
    comparisons = [file for file in files if not file.is_dir()]
    if comparisons and len(files) > 1:
        raise ValueError(f"{comparisons[0]} is not a run folder: give one comparison alone, or run folders")
    if comparisons:
        return read_comparison(files[0])
    for path in paths:
        if not (path / "config.yaml").is_file():
            raise ValueError(f"{path} is neither a comparison (no {COMPARISON}) nor a run folder (no config.yaml)")
    commands, cells = list[str](), list[Cell]()
    for path in paths:
        damage: list[str] = []
        commands += RunFolder.open(path).commands(damage)
        cell = summarize(path)
        cells.append(replace(cell, damage=[*cell.damage, *damage, *damaged_events(path)]))
    name = paths[0].resolve().name if len(paths) == 1 else f"{len(paths)} runs"
    return ComparisonResult(name, "\n".join(commands), labeled(cells), {}, planned=False)


def labeled(cells: Sequence[Cell]) -> list[Cell]:
    """Label cells of single runs by their agents, and by the settings in which runs of one agent differ."""
    arms = []
    for cell in cells:
        same = [other for other in cells if (other.agent, other.method, other.preset) == key(cell)]
        names = [
            name
            for name in cell.settings
            if name not in ("seed", "progress")
            and any(other.settings.get(name) != cell.settings[name] for other in same)
        ]
        values = ",".join(f"{name}={cell.settings[name]}" for name in names)
        arms.append(f"{cell.agent}@{values}" if values else cell.agent)
    return [replace(cell, arm=arm) for cell, arm in zip(cells, arms, strict=True)]


def key(cell: Cell) -> tuple[str, str, str]:
    """Return what all runs that are compared under one agent's name have in common."""
    return cell.agent, cell.method, cell.preset


def write_report(comparison: ComparisonResult, folder: Path) -> Path:
    """Write the report and its figures into a folder; return the HTML's path.

    Raises:
        ValueError: as `report`.
    """
    return write_page(report(comparison, folder / "figures"), folder)
