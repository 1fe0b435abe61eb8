"""A finished run reduced to the values for a comparison, and a comparison as a file, the source of every report."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from astra_gym.envs.records import in_255
from astra_gym.envs.rewards.judge_settings import JUDGES
from astra_gym.experiments.comparison.checked_fields import check_fields
from astra_gym.experiments.comparison.searches import SearchCost, read_searched
from astra_gym.experiments.config.commands import typed
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.config.superseded import as_written
from astra_gym.experiments.plotting.run_plots import ACTION_SETS, action_counts
from astra_gym.experiments.runs.logs import kept_aside, whole_parts
from astra_gym.experiments.runs.metrics import lost_updates, read_metrics
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.stats import COMPUTE, PRIMARY, Pairs, Place, epsilons_of
from astra_gym.ssl_core.methods import METHODS
from astra_gym.ssl_core.safety.sealing import read_json, sealed_json
from astra_gym.ssl_core.settings.records import leaves
from astra_gym.ssl_core.utils.files import write_file
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.registry import pick

SCHEMA = 1
COMPARISON = "comparison.json"
"""The file of a comparison's results in its folder."""
WINDOWS = 20
"""Number of parts of a training, for curves and shares."""
PLACES = (
    *("run_dir", "data_dir", "classes", "cache_dir", "teacher", "init_from", "agent_from"),
    *("progress", "probe_every"),
)
"""Settings of paths on one machine, and of the display during the run."""


@dataclass(frozen=True)
class Cell:
    """A finished run of a comparison.

    Args:
        arm: label of the arm, unique within a method and preset: an agent, or an agent with custom settings.
        agent, method, preset: names, as in the settings.
        seed: seed of the run.
        settings: all settings but `PLACES`.
        updates: target updates made.
        views: mean number of views attacked in an update, 0 for a method without an attack.
        attack_steps: attack gradient steps spent, over all updates and views, including those of a reward's look-ahead.
        seconds: wall time of training. A killed process leaves no time for its updates; the time of the other updates
            is then scaled to all, and is 0.0 if there are none.
        world_seconds, agent_seconds: the parts of `seconds` spent on the world and on the agent.
        correct: which test images were classified correctly, a string of 0 and 1 by epsilon as a fraction (0.0: clean);
            without the attacked ones if they are void.
        reward_first, reward_last: mean reward in the first and the last tenth of the updates; None without a reward.
        held_out: mean reward of the trained policy and of the controls on held-out views, by policy.
        curve: means over `WINDOWS` parts of the training: `step` (the last of the part), `reward`, `epsilon`, `steps`
            and `step_size` (epsilon and step size in 1/255).
        shares: by `epsilon`, `steps` and `step_size`: `edges`, `values` and `share` as in `run_plots.action_counts`.
        by_clean_loss: by the same: the mean in each fifth of a step's views, from the smallest clean loss to the
            largest, over the second half of the training.
        commits: every commit of the project that the run ran on.
        versions: versions of Python and the libraries.
        device, threads: device and threads of the run.
        damage: a sentence for each of the run's logs that is damaged. Values are then computed from the entries that
            are left: `attack_steps` scaled to all updates, `views` 0 if no update is left.
        void: why the attack on the encoder says nothing about its robustness; "" if it does.
    """

    arm: str
    agent: str
    method: str
    preset: str
    seed: int
    settings: Mapping[str, Any]
    updates: int
    views: int
    attack_steps: int
    seconds: float
    world_seconds: float
    agent_seconds: float
    correct: Mapping[float, str]
    reward_first: float | None
    reward_last: float | None
    held_out: Mapping[str, float]
    curve: Mapping[str, Sequence[float]]
    shares: Mapping[str, Mapping[str, Any]]
    by_clean_loss: Mapping[str, Sequence[float]]
    commits: Sequence[str]
    versions: Mapping[str, str]
    device: str
    threads: int
    damage: Sequence[str] = ()
    void: str = ""

    @property
    def mean_steps(self) -> float:
        """Attack gradient steps per view and update."""
        return self.attack_steps / max(1, self.updates * self.views)

    @property
    def agent_share(self) -> float:
        """Share of the training time spent on the agent, in [0, 1]."""
        return self.agent_seconds / self.seconds if self.seconds > 0 else 0.0

    @cached_property
    def outcomes(self) -> dict[float, np.ndarray]:
        """Which test images were classified correctly: bool (n,) by epsilon."""
        return {epsilon: np.array(list(marks)) == "1" for epsilon, marks in self.correct.items()}

    def accuracy(self, place: Place) -> float:
        """Return the accuracy in percent at an epsilon (a fraction; 0.0: SA), or averaged over several."""
        return 100.0 * float(np.mean([self.outcomes[epsilon].mean() for epsilon in epsilons_of(place)]))


def summarize(run: Path, arm: str | None = None) -> Cell:
    """Summarize a finished run as a cell.

    Args:
        run: folder of the run.
        arm: label of the arm, by default its agent.

    Raises:
        ValueError: if it is not a run folder, its settings or results are damaged, or it has not been evaluated.
    """
    folder = RunFolder.open(run)
    try:
        return _summarize(folder, arm)
    except OSError as error:
        raise ValueError(f"{run} cannot be read: {error}") from error
    except (LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise ValueError(f"{run} is damaged, a file of it does not hold what it should ({reason})") from error


def _summarize(folder: RunFolder, arm: str | None) -> Cell:
    settings = folder.settings()
    if not settings.probe.evaluate and not (folder.results / "outcomes.json").exists():
        here = typed("evaluate", str(folder.path))
        raise ValueError(f"{folder.path} was trained with --evaluate false: evaluate it by `{here}`, and report that")
    outcomes = _read(folder.results / "outcomes.json")
    correct, void = _outcomes(outcomes["correct"]), str(outcomes.get("void", ""))
    if void:
        # no table, picture or test can take them for valid ones
        correct = {epsilon: marks for epsilon, marks in correct.items() if not epsilon}
    updates = int(outcomes["checkpoint"].removeprefix("step-"))
    damage = kept_aside(folder.path)
    metrics = folder.path / "metrics.jsonl"
    rows = [row for row in read_metrics(metrics, damage) if 1 <= row["step"] <= updates]
    if metrics.exists() and (lost := lost_updates(rows, updates)):
        damage.append(lost)
    timing = folder.results / "training.json"
    training = whole_parts(timing, "stretches", damage) if timing.exists() else []
    policy = _read(folder.results / "policy.json")["rewards"] if settings.agent.agent != "none" else {}
    rewards = [row["reward/mean"] for row in rows if row.get("reward/mean") is not None]
    tenth = max(1, len(rewards) // 10)
    spent, views = 0, 0
    # free adversarial training has the gradients of its updates anyway; a custom method is not imported here
    free = settings.method.method in METHODS and METHODS[settings.method.method].attack.free
    for row in rows:
        if counts := row.get("actions/steps"):
            attacked = sum(counts.values())
            views += attacked
            spent += 0 if free else round(row["budget/steps"] * attacked)
        spent += row.get("attack/other_steps", 0)
    # an epoch's last batch may be smaller
    views = round(views / max(1, len(rows)))
    spent = round(spent * updates / len(rows)) if 0 < len(rows) < updates else spent
    starts = folder.environments(damage)
    timed = sum(part["last"] - part["first"] for part in training)
    # a killed process leaves no entry for the updates that it made
    scale = max(1.0, updates / timed) if timed else 1.0
    return Cell(
        arm=arm or settings.agent.agent,
        agent=settings.agent.agent,
        method=settings.method.method,
        preset=settings.run.preset,
        seed=settings.run.seed,
        settings=plain(settings, PLACES),
        updates=updates,
        views=views,
        attack_steps=spent,
        seconds=scale * sum(part["seconds"] for part in training),
        world_seconds=scale * sum(part.get("world_seconds", 0.0) for part in training),
        agent_seconds=scale * sum(part.get("agent_seconds", 0.0) for part in training),
        correct=correct,
        reward_first=float(np.mean(rewards[:tenth])) if rewards else None,
        reward_last=float(np.mean(rewards[-tenth:])) if rewards else None,
        held_out={name: float(np.mean(values)) for name, values in policy.items()},
        curve=_curve(rows),
        shares=_shares(rows) if views else {},
        by_clean_loss=_by_clean_loss(rows),
        commits=sorted({start["commit"] for start in starts}),
        versions=starts[-1]["versions"] if starts else {},
        device=starts[-1]["device"] if starts else "unknown",
        threads=starts[-1]["threads"] if starts else 0,
        damage=tuple(damage),
        void=void,
    )


def _outcomes(entry: Any) -> dict[float, str]:
    """Return the outcomes by epsilon from JSON; raise a TypeError if they have another form."""
    try:
        correct = {float(epsilon): marks for epsilon, marks in entry.items()}
        good = all(math.isfinite(epsilon) and set(marks) <= {"0", "1"} for epsilon, marks in correct.items())
    except (AttributeError, TypeError, ValueError):
        good = False
    if not good or not correct or len({len(marks) for marks in correct.values()}) > 1 or not max(correct.values()):
        raise TypeError("outcomes are not strings of 0 and 1 by epsilon")
    return correct


def plain(settings: Settings, without: Sequence[str]) -> dict[str, Any]:
    """Return settings as JSON and YAML read them: lists for tuples."""
    return _listed({name: value for name, value in settings.flat().items() if name not in without})


def completed(cell: Cell) -> Cell:
    """Return the cell with the settings that are newer than it, at the values that change nothing."""
    known = as_written(cell.settings)
    younger = {leaf.name: leaf.default for leaf in leaves(Settings) if leaf.name not in (*PLACES, *known)}
    return replace(cell, settings={**known, **_listed(younger)})


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, "delete it, and resume the run to evaluate it again")
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing: the run is not finished (go on with it by --resume), or its images have no labels"
        ) from None


def _curve(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    keys = {"reward": "reward/mean"} | {kind: f"budget/{in_255(kind)}" for kind in ACTION_SETS}
    parts = [
        part for part in np.array_split(np.array(rows, dtype=object), min(WINDOWS, max(1, len(rows)))) if len(part)
    ]
    curve: dict[str, list[float]] = {"step": [part[-1]["step"] for part in parts]}
    for name, key in keys.items():
        values = [[row[key] for row in part if row.get(key) is not None] for part in parts]
        if values and all(values):
            curve[name] = [round(float(np.mean(found)), 5) for found in values]
    return curve


def _shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    shares = {}
    for kind in ACTION_SETS:
        found = action_counts(rows, kind, WINDOWS)
        rounded = [[round(float(value), 4) for value in line] for line in found.share]
        shares[kind] = {"edges": found.edges.tolist(), "values": list(found.values), "share": rounded}
    return shares


def _by_clean_loss(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    means = {}
    for kind in ACTION_SETS:
        name = f"by_clean_loss/{in_255(kind)}"
        found = [row[name] for row in rows[len(rows) // 2 :] if name in row]
        if found:
            means[kind] = [round(float(value), 4) for value in np.mean(found, axis=0)]
    return means


@dataclass(frozen=True)
class ComparisonResult:
    """Finished runs to be compared, and the circumstances of their making.

    Args:
        name: title of the comparison.
        command: command that repeats it.
        cells: the finished runs.
        unfinished: cells that failed or are missing, with the reason.
        wall_seconds: seconds from the comparison's first start to its end, without pauses; None if unknown.
        jobs: number of processes side by side.
        tests: pairs of arms that are tested, fixed before the first run.
        searched: costs of the searches from which arms came.
        planned: whether the runs are those of a plan, as in every file; else `tests` names references only.
    """

    name: str
    command: str
    cells: Sequence[Cell]
    unfinished: Mapping[str, str]
    wall_seconds: float | None = None
    jobs: int | None = None
    tests: Pairs = PRIMARY
    searched: tuple[SearchCost, ...] = ()
    planned: bool = True

    @property
    def judge(self) -> Place | None:
        """The place at which runs are judged, by the world of the first cell: all of a method and preset share it."""
        settings = self.cells[0].settings if self.cells else {}
        epsilon = settings.get("judge_epsilon")
        return (0.0, epsilon) if epsilon is not None and settings.get("judge_score") == "mean" else epsilon

    @property
    def arms(self) -> list[str]:
        """The labels of the arms, in the order in which they first appear."""
        return list(dict.fromkeys(cell.arm for cell in self.cells))

    @property
    def base(self) -> "ComparisonResult":
        """The comparison without the arms that trained longer (`COMPUTE`), which compete at equal compute only."""
        return replace(self, cells=[cell for cell in self.cells if not cell.arm.endswith(COMPUTE)])

    def of(self, arm: str) -> list[Cell]:
        """Return the cells of an arm by rising seed."""
        return sorted((cell for cell in self.cells if cell.arm == arm), key=lambda cell: cell.seed)


def write_comparison(path: Path | str, comparison: ComparisonResult) -> None:
    """Write a comparison as JSON, one cell per line, atomically."""
    head = {"schema": SCHEMA} | {
        field.name: getattr(comparison, field.name)
        for field in fields(comparison)
        if field.name not in ("cells", "searched", "planned")
    }
    if comparison.searched:
        head["searched"] = [asdict(search) for search in comparison.searched]
    lines = [json.dumps(_entry(cell), allow_nan=False) for cell in comparison.cells]
    text = json.dumps(head, indent=1, allow_nan=False)[:-2] + ',\n "cells": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    write_file(path, sealed_json(text))


def _entry(cell: Cell) -> dict[str, Any]:
    """Return a cell as JSON holds it."""
    entry = asdict(cell) | {"correct": {repr(epsilon): marks for epsilon, marks in cell.correct.items()}}
    return {name: value for name, value in entry.items() if value or name not in ("damage", "void")}


def read_comparison(path: Path | str) -> ComparisonResult:
    """Read what `write_comparison` wrote.

    Raises:
        ValueError: if the file is missing, is not JSON or has another schema, or a cell lacks a field or has an unknown
            one.
    """
    try:
        document = read_json(path, "restore it from a copy, or delete it: --resume makes it again from finished cells")
    except OSError as error:
        raise ValueError(f"{path} is not a readable comparison: {error.strerror}") from error
    if (
        not isinstance(document, dict)
        or document.get("schema") != SCHEMA
        or not isinstance(document.get("cells"), list)
    ):
        raise ValueError(f"{path} is not a comparison of schema {SCHEMA}")
    cells = []
    for index, entry in enumerate(document["cells"]):
        try:
            check_fields(entry, Cell, ("correct",))
            read = {"correct": _outcomes(entry["correct"]), "damage": tuple(entry.get("damage", ()))}
            _check_judge(entry["settings"])
            cells.append(Cell(**{**entry, **read}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, cell {index}: {error}") from error
    head = {field.name: document[field.name] for field in fields(ComparisonResult) if field.name in document}
    try:
        check_fields(head | {"cells": []}, ComparisonResult, ("tests", "searched"))
        tests, searched = read_pairs(head.get("tests", PRIMARY)), read_searched(head.get("searched", []))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return ComparisonResult(**{**head, "cells": cells, "tests": tests, "searched": searched})


def _check_judge(settings: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the judge in a cell's settings is one."""
    if (epsilon := settings.get("judge_epsilon")) is not None:
        check_number("judge_epsilon", epsilon, 0, 1, above=True)
    pick(settings.get("judge_score", "robust"), JUDGES, "judge's score")


def read_pairs(values: Any) -> Pairs:
    """Return the pairs of arms from JSON or YAML.

    Raises:
        ValueError: if they are not a list of pairs of different names, each pair once.
    """
    pairs = (
        [tuple(pair) for pair in values if isinstance(pair, list | tuple)] if isinstance(values, list | tuple) else []
    )
    named = all(len(pair) == 2 and pair[0] != pair[1] and all(isinstance(arm, str) for arm in pair) for pair in pairs)
    if not pairs or not named or len(pairs) != len(values) or len(set(map(frozenset, pairs))) < len(pairs):
        raise ValueError(f"tests are {shown(values)}: expected pairs of different arms, each pair once")
    return tuple((str(first), str(second)) for first, second in pairs)
