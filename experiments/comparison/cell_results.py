"""One finished run reduced to what a comparison needs, and a comparison as a file: everything a report is made from."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.plotting.run_plots import ACTION_SETS, action_counts
from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.stats import COMPUTE
from astra_gym.ssl_core.methods import METHODS
from astra_gym.ssl_core.utils.files import replacing
from astra_gym.ssl_core.utils.overrides import fits, in_words

SCHEMA = 1
COMPARISON = "comparison.json"
"""The file of a comparison's results in its folder."""
WINDOWS = 20
"""Into so many parts a training is cut for curves and shares."""
PLACES = ("run_dir", "data_dir", "cache_dir", "teacher", "progress")
"""Settings that say where something lay on one machine, and how it was shown there."""


@dataclass(frozen=True)
class Cell:
    """A finished run of a comparison.

    Args:
        arm: what is compared, told apart by its label within a method and preset: an agent, or an agent with settings
            of its own.
        agent, method, preset: names, as in the settings.
        seed: of the run.
        settings: all settings but `PLACES`.
        updates: target updates made.
        views: views attacked in an update, 0 for a method without an attack.
        attack_steps: attack gradient steps spent, over all updates and views, with those that a reward's look-ahead
            took.
        seconds: wall time of training. A process that was killed leaves none: then that of the other updates, scaled
            to all; 0.0 if there are none.
        world_seconds, agent_seconds: its parts that went into the world and into the agent.
        correct: which test images were classified right, a string of 0 and 1 by epsilon as a fraction (0.0: clean).
        reward_first, reward_last: mean reward in the first and the last tenth of the updates; None without a reward.
        held_out: mean reward of the trained policy and of the controls on held-out views, by policy.
        curve: means over `WINDOWS` parts of the training: `step` (the last of the part), `reward`, `epsilon`, `steps`
            and `step_size` (epsilon and step size in 1/255).
        shares: by `epsilon`, `steps` and `step_size`: `edges`, `values` and `share` as of `run_plots.action_counts`.
        by_clean_loss: by the same: the mean in each fifth of a step's views, from the smallest clean loss to the
            largest, over the second half of the training.
        commits: of the project, every one that the run ran on.
        versions: of Python and the libraries.
        device, threads: of the run.
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

    @property
    def mean_steps(self) -> float:
        """Attack gradient steps a view and update."""
        return self.attack_steps / max(1, self.updates * self.views)

    @property
    def agent_share(self) -> float:
        """Share of the training time that the agent took, in [0, 1]."""
        return self.agent_seconds / self.seconds if self.seconds > 0 else 0.0

    @cached_property
    def outcomes(self) -> dict[float, np.ndarray]:
        """Which test images were classified right: bool (n,) by epsilon."""
        return {epsilon: np.array(list(marks)) == "1" for epsilon, marks in self.correct.items()}

    def accuracy(self, epsilon: float) -> float:
        """Accuracy in percent at an epsilon (a fraction; 0.0: SA)."""
        return 100.0 * float(self.outcomes[epsilon].mean())


def summarise(run: Path, arm: str | None = None) -> Cell:
    """The cell of a finished run.

    Args:
        run: its folder.
        arm: its label, by default its agent.

    Raises:
        ValueError: if it is no run folder, is damaged, or has not been evaluated.
    """
    folder = RunFolder.open(run)
    try:
        return _summarise(folder, arm)
    except (LookupError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{run} is damaged: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _summarise(folder: RunFolder, arm: str | None) -> Cell:
    settings = folder.settings()
    outcomes = _read(folder.results / "outcomes.json")
    rows = read_metrics(folder.path / "metrics.jsonl")
    timing = folder.results / "training.json"
    training = _read(timing)["stretches"] if timing.exists() else []
    policy = _read(folder.results / "policy.json")["rewards"] if settings.agent != "none" else {}
    if [row["step"] for row in rows] != list(range(1, int(outcomes["checkpoint"].removeprefix("step-")) + 1)):
        raise ValueError(f"{folder.path / 'metrics.jsonl'} is damaged: it lacks updates of {outcomes['checkpoint']}")
    rewards = [row["reward/mean"] for row in rows if row.get("reward/mean") is not None]
    tenth = max(1, len(rewards) // 10)
    spent, views = 0, 0
    # free adversarial training has the gradients of its updates anyway; a method of one's own is not looked into here
    free = settings.method in METHODS and METHODS[settings.method].free
    for row in rows:
        if counts := row.get("actions/steps"):
            views = sum(counts.values())
            spent += 0 if free else round(row["budget/steps"] * views)
        spent += row.get("attack/other_steps", 0)
    starts = folder.environments()
    timed = sum(part["last"] - part["first"] for part in training)
    # a killed process leaves no entry of the updates that it made
    scale = max(1.0, len(rows) / timed) if timed else 1.0
    return Cell(
        arm=arm or settings.agent,
        agent=settings.agent,
        method=settings.method,
        preset=settings.preset,
        seed=settings.seed,
        settings=plain(settings, PLACES),
        updates=len(rows),
        views=views,
        attack_steps=spent,
        seconds=scale * sum(part["seconds"] for part in training),
        world_seconds=scale * sum(part.get("world_seconds", 0.0) for part in training),
        agent_seconds=scale * sum(part.get("agent_seconds", 0.0) for part in training),
        correct={float(epsilon): marks for epsilon, marks in outcomes["correct"].items()},
        reward_first=float(np.mean(rewards[:tenth])) if rewards else None,
        reward_last=float(np.mean(rewards[-tenth:])) if rewards else None,
        held_out={name: float(np.mean(values)) for name, values in policy.items()},
        curve=_curve(rows),
        shares=_shares(rows) if views else {},
        by_clean_loss=_by_clean_loss(rows),
        commits=sorted({start["commit"] for start in starts}),
        versions=starts[-1]["versions"],
        device=starts[-1]["device"],
        threads=starts[-1]["threads"],
    )


def plain(settings: Settings, without: Sequence[str]) -> dict[str, Any]:
    """Settings as JSON and YAML give them back: lists for tuples."""
    return _listed({name: value for name, value in asdict(settings).items() if name not in without})


def completed(cell: Cell) -> Cell:
    """The cell with the settings that did not exist when it was made, at their defaults, which change nothing."""
    younger = {field.name: field.default for field in fields(Settings) if field.name not in (*PLACES, *cell.settings)}
    return replace(cell, settings={**cell.settings, **_listed(younger)})


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the run is not finished; go on with it by --resume") from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error


def _curve(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    keys = {"reward": "reward/mean", "epsilon": "budget/epsilon", "steps": "budget/steps"}
    keys["step_size"] = "budget/step_size"
    parts = [
        part for part in np.array_split(np.array(rows, dtype=object), min(WINDOWS, max(1, len(rows)))) if len(part)
    ]
    curve: dict[str, list[float]] = {"step": [part[-1]["step"] for part in parts]}
    for name, key in keys.items():
        values = [[row[key] for row in part if row.get(key) is not None] for part in parts]
        if all(values):
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
        found = [row[f"by_clean_loss/{kind}"] for row in rows[len(rows) // 2 :] if f"by_clean_loss/{kind}" in row]
        if found:
            means[kind] = [round(float(value), 4) for value in np.mean(found, axis=0)]
    return means


@dataclass(frozen=True)
class ComparisonResult:
    """Finished runs to be compared, and what is known of how they were made.

    Args:
        name: of the comparison, a title.
        command: that makes it anew.
        cells: the finished runs.
        unfinished: cells that failed or are missing, with the reason.
        wall_seconds: from its first start to its end, without pauses; None where that is not known.
        jobs: processes at once.
    """

    name: str
    command: str
    cells: Sequence[Cell]
    unfinished: Mapping[str, str]
    wall_seconds: float | None = None
    jobs: int | None = None

    @property
    def arms(self) -> list[str]:
        """The labels of the arms, in the order in which they first appear."""
        return list(dict.fromkeys(cell.arm for cell in self.cells))

    @property
    def base(self) -> "ComparisonResult":
        """Without the arms that trained longer (`COMPUTE`): they compete at equal compute only."""
        return replace(self, cells=[cell for cell in self.cells if not cell.arm.endswith(COMPUTE)])

    def of(self, arm: str) -> list[Cell]:
        """The cells of an arm by rising seed."""
        return sorted((cell for cell in self.cells if cell.arm == arm), key=lambda cell: cell.seed)


def write_comparison(path: Path | str, comparison: ComparisonResult) -> None:
    """Writes a comparison as JSON, a cell a line, atomically."""
    head = {"schema": SCHEMA} | {
        field.name: getattr(comparison, field.name) for field in fields(comparison) if field.name != "cells"
    }
    lines = [json.dumps(asdict(cell) | {"correct": _keyed(cell.correct)}, allow_nan=False) for cell in comparison.cells]
    text = json.dumps(head, indent=1, allow_nan=False)[:-2] + ',\n "cells": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _keyed(correct: Mapping[float, str]) -> dict[str, str]:
    return {repr(epsilon): marks for epsilon, marks in correct.items()}


def read_comparison(path: Path | str) -> ComparisonResult:
    """Reads what `write_comparison` wrote.

    Raises:
        ValueError: if the file is missing, is not JSON, has another schema, or a cell lacks a field or has an unknown
            one.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable comparison: {error}") from error
    if (
        not isinstance(document, dict)
        or document.get("schema") != SCHEMA
        or not isinstance(document.get("cells"), list)
    ):
        raise ValueError(f"{path} is not a comparison of schema {SCHEMA}")
    known = {field.name for field in fields(Cell)}
    cells = []
    for index, entry in enumerate(document["cells"]):
        if not isinstance(entry, dict) or entry.keys() != known:
            wrong = sorted(known ^ entry.keys()) if isinstance(entry, dict) else "no object"
            raise ValueError(f"{path}, cell {index}: missing or unknown fields: {wrong}")
        try:
            correct = {float(epsilon): marks for epsilon, marks in entry["correct"].items()}
            good = all(math.isfinite(epsilon) and set(marks) <= {"0", "1"} for epsilon, marks in correct.items())
        except (AttributeError, TypeError, ValueError):
            good = False
        if not good:
            raise ValueError(f"{path}, cell {index}: outcomes are not strings of 0 and 1 by epsilon")
        for name, hint in get_type_hints(Cell).items():
            if name != "correct" and not _holds(entry[name], hint):
                raise ValueError(f"{path}, cell {index}: {name} is {entry[name]!r:.60}: expected {in_words(hint)}")
        cells.append(Cell(**{**entry, "correct": correct}))
    head = {field.name: document[field.name] for field in fields(ComparisonResult) if field.name in document}
    if missing := {field.name for field in fields(ComparisonResult) if field.default is MISSING} - {*head, "cells"}:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    for name, hint in get_type_hints(ComparisonResult).items():
        if name in head and name != "cells" and not _holds(head[name], hint):
            raise ValueError(f"{path}: {name} is {head[name]!r:.60}: expected {in_words(hint)}")
    return ComparisonResult(**{**head, "cells": cells})


def _holds(value: Any, kind: Any) -> bool:
    """Whether a value from a file is of an annotated type, with all that lies in it."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Mapping:
        pairs = [zip(pair, parts, strict=True) for pair in value.items()] if isinstance(value, dict) else []
        return isinstance(value, dict) and all(_holds(one, part) for pair in pairs for one, part in pair)
    if origin is Sequence:
        return isinstance(value, list) and all(_holds(one, parts[0]) for one in value)
    return fits(value, kind)
