"""Cells on an engine, without a comparison around them."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from astra_gym.experiments.comparison.scheduler import locked, run_jobs
from astra_gym.experiments.console import Interrupt
from astra_gym.experiments.engines.attempts import ATTEMPTS, REPORT
from astra_gym.experiments.engines.base import Ended, Engine, Job
from tests.helpers.tiny_training import TINY


def job(folder: Path, name: str, *flags: str) -> Job:
    """A tiny run in a folder."""
    run, log = folder / name, folder / "logs" / f"{name}.log"
    return Job(name, (*TINY, f"--run_dir={run}", *flags), ("--resume", str(run)), run, log)


def run_on(
    engine: Engine,
    folder: Path,
    jobs: list[Job],
    at_once: int = 1,
    looked: Callable[[Any], None] = lambda cells: None,
    lost: Callable[[Ended, int], None] = lambda end, attempt: None,
) -> dict[str, Ended]:
    """Runs jobs to their end, and returns how each ended."""
    ends: list[Ended] = []
    begun: list[str] = []

    def started(one: Job) -> None:
        begun.append(one.name)

    engine.open(folder)
    with locked(folder), contextlib.closing(engine), Interrupt() as interrupt:
        run_jobs(jobs, at_once, engine, interrupt, started=started, ended=ends.append, looked=looked, lost=lost)
    assert list(dict.fromkeys(begun)) == [one.name for one in jobs[: len(set(begun))]]
    return {end.job.name: end for end in ends}


def updates(run: Path) -> int:
    """Updates of a run so far."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"loss/total") if path.exists() else 0


def attendant(folder: Path, name: str) -> int:
    """The number of the process that attends to a cell."""
    return int(json.loads((folder / ATTEMPTS / f"{name}{REPORT}").read_text())["pid"])


def without_times(path: Path) -> dict[str, Any]:
    """What a `comparison.json` says, but for how long it took."""
    document = json.loads(path.read_text())
    del document["wall_seconds"], document["sha256"]
    for cell in document["cells"]:
        # nor which commit it was: somebody may commit while the tests run
        for name in ("seconds", "world_seconds", "agent_seconds", "commits"):
            del cell[name]
    return document
