"""The folder of a comparison: its plan, its started cells, and its finished cells."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from astra_gym.experiments.comparison.arms import (
    MOST_SEEDS,
    SET_BY_CELL,
    Arm,
    check_flags,
    comparable,
    differences,
    make_arm,
    ordered,
)
from astra_gym.experiments.comparison.cell_results import (
    PLACES,
    Cell,
    ComparisonResult,
    completed,
    read_comparison,
    read_pairs,
    summarize,
    write_comparison,
)
from astra_gym.experiments.comparison.searches import SearchCost, read_searched
from astra_gym.experiments.config.cli import read_mapping
from astra_gym.experiments.config.commands import typed
from astra_gym.experiments.config.flag_values import as_text
from astra_gym.experiments.config.superseded import as_written, left_out
from astra_gym.experiments.config.trust import named_by
from astra_gym.experiments.engines.beginnings import clear, is_resumable
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.stats import PRIMARY, Pairs
from astra_gym.ssl_core.safety.sealing import check_yaml, read_json, sealed_yaml
from astra_gym.ssl_core.safety.writers import sweep
from astra_gym.ssl_core.safety.yaml_files import dump_yaml
from astra_gym.ssl_core.utils.files import write_file, write_json
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.paths import check_folder, check_place, path_component

SCHEMA = 1
"""Schema of `comparison.yaml` and `state.json`."""
TEXTS = (
    *("name", "command", "equal_compute", "tests", "arms.label", "arms.suffix", "arms.flags"),
    *("searched.arm", "searched.file"),
)
"""Fields of a plan that are read as text, so that a label 1e3 is not a number."""
MOST_JOBS = 10_000


@dataclass(frozen=True)
class ComparisonPlan:
    """The plan of a comparison.

    Args:
        name: title of the comparison.
        command: command that repeats it.
        jobs: number of processes side by side, by default.
        seeds: seeds of an arm that `equal_compute` adds.
        equal_compute: labels of arms, each of which gets a copy that spends as many attack steps as the most expensive.
        arms: arms of the grid, and those that `equal_compute` has added so far.
        tests: pairs of labels to be tested, fixed before the first run.
        searched: costs of the searches from which arms came.
    """

    name: str
    command: str
    jobs: int
    seeds: int
    equal_compute: tuple[str, ...]
    arms: tuple[Arm, ...]
    tests: Pairs = PRIMARY
    searched: tuple[SearchCost, ...] = ()

    @property
    def cells(self) -> list[tuple[Arm, int]]:
        """Arm and seed of each cell, in the order of their runs."""
        return list(ordered(self.arms))

    @property
    def trusting(self) -> list[str]:
        """Flags that the resuming command needs besides the folder: `--trust` if a module is imported."""
        return ["--trust"] if any(named_by(arm.settings) for arm in self.arms) else []


class ComparisonFolder:
    """A comparison's folder: `comparison.yaml` (the plan), `cells/ARM-seedN` (run folders), `logs/ARM-seedN.log`,
    `comparison.json` (`astra_gym.experiments.comparison.cell_results.ComparisonResult`) and `state.json` (the started
    cells, and the time so far).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "comparison.yaml"
        self.results = path / "comparison.json"
        self.cells = path / "cells"
        self.logs = path / "logs"
        self._state = path / "state.json"
        self.wall_seconds = 0.0
        self.started: set[str] = set()
        self.adopted: set[str] = set()
        self.damage: list[str] = []
        """Damage that `open` found in the cells, in words."""

    def check_new(self) -> None:
        """Raise a ValueError unless the folder is absent, empty, or has no plan but runs to be adopted: run folders in
        `cells`, or a `comparison.json`.
        """
        if self.config.exists():
            raise ValueError(
                f"{self.path} has a comparison: go on with it by {shlex.join(['--resume', str(self.path)])}"
            )
        check_place(self.path, "--dir")
        adoptable = self.cells.is_dir() or self.results.is_file()
        if self.path.is_dir() and not adoptable and any(self._visible()):
            raise ValueError(
                f"--dir: {self.path} is not empty and has no cells/ or {self.results.name} to adopt: choose another"
            )

    def _visible(self) -> Iterable[Path]:
        return (path for path in self.path.iterdir() if not path.name.startswith("."))

    def sweep(self) -> None:
        """Remove the temporary files that killed writers have left; runs clean their own folders."""
        ours = {self.config.name, self.results.name, self._state.name}
        sweep(self.path, lambda name: name in ours or (self.path / name).exists())

    def write_plan(self, plan: ComparisonPlan) -> None:
        """Write `comparison.yaml`, atomically."""
        arms = [
            {"label": arm.label, "suffix": arm.suffix, "seeds": arm.seeds}
            | {"flags": shlex.join(arm.flags), "settings": dict(arm.settings)}
            for arm in plan.arms
        ]
        head = {"schema": SCHEMA, "name": plan.name, "command": plan.command, "jobs": plan.jobs, "seeds": plan.seeds}
        tests = [list(pair) for pair in plan.tests]
        document = head | {"equal_compute": list(plan.equal_compute), "tests": tests, "arms": arms}
        if plan.searched:
            document["searched"] = [asdict(search) for search in plan.searched]
        write_file(self.config, sealed_yaml(dump_yaml(document)))

    def read_plan(self, trust: bool = False) -> ComparisonPlan:
        """Read `comparison.yaml`.

        Args:
            trust: whether the modules that it names may be imported.

        Raises:
            ValueError: if the folder is not a comparison's, the file is damaged or names a module without `trust`, or a
                flag or a default of the project has changed its meaning since it was written.
        """
        if not self.config.is_file():
            raise ValueError(f"{self.path} is no comparison's folder: it has no comparison.yaml")
        advice = "restore it, or delete it and start anew with the same --dir, which keeps the finished cells"
        check_yaml(self.config, advice)
        document = read_mapping(self.config, TEXTS)
        if document.get("schema") != SCHEMA:
            raise ValueError(f"{self.config} has schema {shown(document.get('schema'))}: expected {SCHEMA}")
        again = typed("compare", "--resume", str(self.path), "--trust")
        try:
            plan = self._plan(document, trust, again)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.config} is damaged: {type(error).__name__}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{self.config}: {error}") from error
        if repeated := sorted({arm.name for arm in plan.arms if [one.name for one in plan.arms].count(arm.name) > 1}):
            raise ValueError(f"{self.config}: two arms are called {repeated[0]}: expected different labels")
        return plan

    def _plan(self, document: Mapping[str, Any], trust: bool, again: str) -> ComparisonPlan:
        _check_types(document, {"name": str, "command": str, "equal_compute": list, "arms": list}, "the plan")
        check_number("jobs", document["jobs"], 1, MOST_JOBS, whole=True)
        check_number("seeds", document["seeds"], 1, MOST_SEEDS, whole=True)
        if not document["arms"]:
            raise ValueError("it has no arms: expected one or more")
        arms = []
        for entry in document["arms"]:
            # the first plans have no suffixes
            entry = {"suffix": ""} | entry
            _check_types(entry, {"label": str, "suffix": str, "flags": str, "settings": dict}, "an arm")
            flags = shlex.split(entry["flags"])
            check_flags(flags, SET_BY_CELL)
            # settings that are newer than the plan keep the behavior of that time, in the cells too
            flags += [f"--{name}={as_text(value)}" for name, value in left_out(entry["settings"]).items()]
            rest = entry["seeds"], entry["suffix"], trust, again
            try:
                arm = make_arm(entry["label"], flags, *rest)
            except ValueError:
                # settings that change nothing were not refused when the first plans were written
                arm = make_arm(entry["label"], [*flags, "--accept_idle"], *rest)
            planned = as_written(entry["settings"])
            if changed := differences({name: arm.settings.get(name) for name in planned}, planned):
                raise ValueError(f"the arm {shown(arm.name)} would not be the same: {changed[0]}")
            arms.append(arm)
        if not all(isinstance(label, str) for label in document["equal_compute"]):
            raise ValueError(f"equal_compute is {shown(document['equal_compute'])}: expected labels of arms")
        return ComparisonPlan(
            document["name"],
            document["command"],
            document["jobs"],
            document["seeds"],
            tuple(document["equal_compute"]),
            tuple(arms),
            # the first plans name no tests
            read_pairs(document.get("tests", PRIMARY)),
            read_searched(document.get("searched", [])),
        )

    def open(self, plan: ComparisonPlan) -> dict[str, Cell]:
        """Find the existing cells: run folders, and in `comparison.json` finished cells with folders elsewhere.

        Returns:
            The finished cells by name.

        Raises:
            ValueError: if a run's settings are not the planned ones, or a file is damaged.
        """
        for part in (self.cells, self.logs):
            check_folder(part)
        if self._state.is_file():
            try:
                state = read_json(self._state, "remove it")
                self.wall_seconds = float(state["wall_seconds"])
                self.started, self.adopted = set(state["started"]), set(state["adopted"])
                if not 0 <= self.wall_seconds < math.inf:
                    raise ValueError(f"{self._state} is damaged (wall_seconds is {self.wall_seconds}): remove it")
                for name in (*self.started, *self.adopted):
                    path_component(name, "a cell")
            except (ValueError, LookupError, TypeError) as error:
                said = str(error)
                if not said.startswith(str(self._state)):
                    said = f"{self._state} is damaged ({said}): remove it"
                raise ValueError(f"{said}, the time so far is lost") from error
        found, known = {}, self._known()
        for arm, seed in plan.cells:
            name = arm.named(seed)
            cell = known.get((arm.label, arm.settings["method"], arm.settings["preset"], seed))
            if cell is not None and not (self.cells / name).exists():
                self.check_known(arm, cell)
                self.adopted.add(name)
                found[name] = cell
            elif is_resumable(self.cells / name):
                if name not in self.started:
                    self.adopted.add(name)
                self.check(arm, seed)
                try:
                    found[name] = summarize(self.cells / name, arm.label)
                    self.damage += [
                        f"{self.cells / name}/{sentence}; a report marks this" for sentence in found[name].damage
                    ]
                except ValueError as error:
                    # training or evaluation is unfinished, or its results are damaged, so it is repeated
                    if (self.cells / name / "results" / "outcomes.json").exists():
                        self.damage.append(f"{error}; the run is evaluated again")
        return found

    def _known(self) -> dict[tuple[str, str, str, int], Cell]:
        """Return the cells in `comparison.json`, `completed`, by label, method, preset and seed."""
        cells = read_comparison(self.results).cells if self.results.is_file() else ()
        return {(cell.arm, cell.method, cell.preset, cell.seed): completed(cell) for cell in cells}

    def check_known(self, arm: Arm, cell: Cell) -> None:
        """Raise a ValueError if the settings of a cell in `comparison.json` are not the planned ones."""
        planned = {name: value for name, value in arm.settings.items() if name not in PLACES} | {"seed": cell.seed}
        name = f"{self.results}: {arm.named(cell.seed)}"
        _check_same(cell.settings, planned, name, "take its command, or another folder")

    def check(self, arm: Arm, seed: int) -> None:
        """Raise a ValueError if the settings of an existing cell are not the planned ones."""
        path = self.cells / arm.named(seed)
        settings = RunFolder.open(path).settings()
        found = comparable(settings) | {"seed": settings.run.seed}
        _check_same(found, {**arm.settings, "seed": seed}, str(path), "move it away")

    def clear(self, name: str) -> None:
        """Remove the remains of a run that was killed before it could be resumed, see
        `astra_gym.experiments.engines.beginnings.clear`.
        """
        clear(self.cells / name)

    def note_state(self, wall_seconds: float) -> None:
        """Save the time that the grid has run, and which cells it has started."""
        self.wall_seconds = wall_seconds
        state = {
            "wall_seconds": round(wall_seconds, 1),
            "started": sorted(self.started),
            "adopted": sorted(self.adopted),
        }
        write_json(self._state, {"schema": SCHEMA} | state)

    def write(self, plan: ComparisonPlan, jobs: int, finished: Mapping[str, Cell], failed: Mapping[str, str]) -> None:
        """Write `comparison.json`, the cells by arm and seed."""
        names = [arm.named(seed) for arm in plan.arms for seed in range(arm.seeds)]
        comparison = ComparisonResult(
            name=plan.name,
            command=plan.command,
            cells=[finished[name] for name in names if name in finished],
            unfinished={name: failed.get(name, "not run yet") for name in names if name not in finished},
            # the time of cells made elsewhere is not known
            wall_seconds=None if self.adopted else round(self.wall_seconds, 1),
            jobs=jobs,
            tests=plan.tests,
            searched=plan.searched,
        )
        write_comparison(self.results, comparison)


def _check_types(found: Mapping[str, Any], kinds: Mapping[str, type], what: str) -> None:
    for name, kind in kinds.items():
        if not isinstance(found[name], kind):
            raise ValueError(f"{name} of {what} is {shown(found[name])}: expected a {kind.__name__}")


def with_searches(plan: ComparisonPlan, texts: Sequence[str], searches: Sequence[SearchCost]) -> ComparisonPlan:
    """Return the plan with the costs of searches, given as ARM=FILE on its command line."""
    said = shlex.split(plan.command)
    words = [word for text in texts if text not in said for word in ("--searched", text)]
    costs = {(one.arm, one.file): one for one in (*plan.searched, *searches)}
    return replace(plan, command=shlex.join([*said, *words]), searched=tuple(costs.values()))


def _check_same(found: Mapping[str, Any], planned: Mapping[str, Any], what: str, advice: str) -> None:
    """Raise a ValueError if settings are not the planned ones."""
    if wrong := differences(found, planned):
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"{what} was made with other settings: {wrong[0]}{more}; {advice}")
