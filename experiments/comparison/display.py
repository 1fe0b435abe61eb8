"""The display of a running comparison: a table of its arms, or a line for each cell that ended."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from astra_gym.envs.api.action_sets import UNIT
from astra_gym.experiments.comparison.arms import Arm
from astra_gym.experiments.comparison.cell_results import Cell
from astra_gym.ssl_core.utils.training_plan import UPDATE_PASSES

TAIL = 1 << 16
"""Bytes at the end of `metrics.jsonl` that surely hold its last update."""


@dataclass
class GridProgress:
    """The progress of a comparison.

    Args:
        arms: planned arms.
        jobs: number of processes side by side.
        finished: finished cells by name.
        failed: reasons of failed cells, by name.
        running: by name, the finished share of the training in [0, 1] and the seconds since the start.
        took: seconds of the cells that ended well in this process, by name.
    """

    arms: Sequence[Arm]
    jobs: int
    finished: dict[str, Cell] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    running: dict[str, tuple[float, float]] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)

    @property
    def planned(self) -> int:
        """Cells in all."""
        return sum(arm.seeds for arm in self.arms)

    def seconds_left(self) -> float | None:
        """Estimate the seconds left from cells of the same arm, else from all arms' mean; None if neither is known."""
        known = {arm.name: seconds for arm in self.arms if (seconds := self._seconds(arm)) is not None}
        if not known:
            return None
        usual = sum(known.values()) / len(known)
        work, longest = 0.0, 0.0
        for arm in self.arms:
            for name in (arm.named(seed) for seed in range(arm.seeds)):
                if name in self.finished or name in self.failed:
                    continue
                seconds = known.get(arm.name, usual)
                if name in self.running:
                    done, since = self.running[name]
                    seconds = min(seconds * (1 - done), max(0.0, seconds - since)) if done < 1 else 0.0
                work, longest = work + seconds, max(longest, seconds)
        return max(longest, work / self.jobs)

    def _seconds(self, arm: Arm) -> float | None:
        """Return the seconds that a cell of the arm takes."""
        names = [arm.named(seed) for seed in range(arm.seeds)]
        measured = [self.took[name] for name in names if name in self.took]
        # for a cell of an earlier process only the training's time is known, which is most of its time
        measured = measured or [self.finished[name].seconds for name in names if name in self.finished]
        # the first hundredth is no basis for an estimate
        begun = [self.running[name] for name in names if name in self.running and self.running[name][0] > 0.01]
        measured = measured or [since / done for done, since in begun]
        return sum(measured) / len(measured) if measured else None


def share_done(run: Path, epochs: int, passes: float | None = None) -> float:
    """Return the finished share of a run's training, in [0, 1], from the end of its `metrics.jsonl`.

    Args:
        run: folder of the run.
        epochs: epochs of the run.
        passes: passes by which it ends in their place; the share is then estimated, as if all updates had as many
            attack steps as the last.
    """
    path = run / "metrics.jsonl"
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0.0
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        # an agent's rows have no epoch
        if isinstance(row, dict) and "epoch" in row:
            if passes is None:
                return min(1.0, row["epoch"] / epochs)
            return min(1.0, row["step"] * (UPDATE_PASSES + row.get("budget/steps", 0.0)) / passes)
    return 0.0


def shown_epsilon(epsilons: Sequence[float], judged: float | None = None) -> float | None:
    """Return the radius of the accuracy in the table: the judge's if the world has one, else the middle one."""
    if judged in epsilons:
        return judged
    return sorted(epsilons)[(len(epsilons) - 1) // 2] if epsilons else None


class Display:
    """The display of a comparison: live in a terminal, else a line for each cell that ended. A context manager.

    Args:
        progress: progress to be shown.
        console: where to print, by default the standard output.
    """

    def __init__(self, progress: GridProgress, console: Console | None = None) -> None:
        self.progress = progress
        self.console = console or Console()
        # not in a terminal that cannot redraw a display (TERM=dumb)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_interactive else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, spent: float) -> None:
        """Redraw the table, if it is live; `spent` seconds so far."""
        if self._live:
            self._live.update(self.panel(spent), refresh=True)

    def note(self, text: str) -> None:
        """Print a line, above the table where it is live."""
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def finished(self, name: str, cell: Cell, spent: float) -> None:
        """Print a line on a cell, if there is no table."""
        if self._live:
            return
        facts = [f"SA {cell.accuracy(0.0):.1f} %"]
        epsilon = shown_epsilon([epsilon for epsilon in cell.correct if epsilon], cell.settings.get("judge_epsilon"))
        if epsilon is not None:
            facts.append(f"RA {cell.accuracy(epsilon):.1f} % at {UNIT * epsilon:g}/255")
        elif cell.void:
            facts.append("RA is void")
        facts.append(f"{_count(cell.attack_steps)} attack steps")
        facts.append(f"{self.progress.took.get(name, cell.seconds) / 60:.1f} min")
        done = f"[{len(self.progress.finished)}/{self.progress.planned}]"
        self.note(f"{done} {name}: {', '.join(facts)} | {self.times(spent)}")

    def times(self, spent: float) -> str:
        """Return time spent and left, in words."""
        left = self.progress.seconds_left()
        return f"{_time(spent)} spent, " + ("- left" if left is None else f"about {_time(left)} left")

    def panel(self, spent: float) -> RenderableType:
        """Return the table and the times below it."""
        progress = self.progress
        failed = f", {len(progress.failed)} failed" if progress.failed else ""
        line = f"{len(progress.finished)} of {progress.planned} cells{failed}, {len(progress.running)} running"
        return Group(self.table(), Text(f"{line}; {self.times(spent)}", overflow="fold"))

    def table(self) -> Table:
        """Return the table, one line per arm: means over its finished cells; `steps` are a training's attack steps."""
        epsilons = {_radius_of(arm) for arm in self.progress.arms}
        at = f" {UNIT * radius:g}/255" if len(epsilons) == 1 and (radius := next(iter(epsilons))) else ""
        table = Table(padding=(0, 1), pad_edge=False, box=None, header_style="bold")
        # the only column that may be cut off in a narrow terminal
        table.add_column("arm", overflow="ellipsis")
        for name in ("cells", *(["failed"] if self.progress.failed else [])):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("running", no_wrap=True)
        for name in ("SA %", f"RA %{at}", "steps", "min"):
            table.add_column(name, justify="right", no_wrap=True)
        for arm in self.progress.arms:
            table.add_row(*self._row(arm))
        return table

    def _row(self, arm: Arm) -> list[Text]:
        names = [arm.named(seed) for seed in range(arm.seeds)]
        cells = [self.progress.finished[name] for name in names if name in self.progress.finished]
        failed = sum(name in self.progress.failed for name in names)
        epsilon = _radius_of(arm)
        # a void robust accuracy is left out
        robust = [cell.accuracy(epsilon) for cell in cells if epsilon in cell.outcomes] if epsilon is not None else []
        facts = [
            f"{len(cells)}/{arm.seeds}",
            *([str(failed or "")] if self.progress.failed else []),
            _running({seed: self.progress.running.get(name) for seed, name in enumerate(names)}),
            _mean([cell.accuracy(0.0) for cell in cells]),
            _mean(robust),
            _count(sum(cell.attack_steps for cell in cells) / len(cells)) if cells else "",
            _mean([self.progress.took.get(arm.named(cell.seed), cell.seconds) / 60 for cell in cells]),
        ]
        return [Text(text) for text in (arm.name, *facts)]


def _radius_of(arm: Arm) -> float | None:
    return shown_epsilon(arm.settings["eval_epsilons"], arm.settings.get("judge_epsilon"))


def _running(found: Mapping[int, tuple[float, float] | None]) -> str:
    shares = {seed: entry[0] for seed, entry in found.items() if entry is not None}
    if not shares:
        return ""
    if len(shares) > 1:
        return f"{len(shares)} cells, {math.floor(100 * min(shares.values()))} % up"
    [(seed, share)] = shares.items()
    return f"seed {seed}, " + ("eval" if share >= 1 else f"{math.floor(100 * share)} %")


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else ""


def _count(number: float) -> str:
    """Return a number with three digits: 1.23 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
