"""The cells of a grid side by side, on an engine: so many at once, and again where a machine or a job died."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from astra_gym.experiments.console import Interrupt
from astra_gym.experiments.engines.base import LOST, Ended, Engine, Job, RunningCell
from astra_gym.experiments.engines.local import WORKERS
from astra_gym.ssl_core.safety.writers import FolderLock, Locked, lock
from astra_gym.ssl_core.utils.paths import open_to_append

PATIENCE = 20.0
"""Seconds for workers of a killed comparison to end."""


class GridLock(NamedTuple):
    """The locks of a process that runs a grid: the folder, and the file that its workers lock."""

    folder: FolderLock
    workers: Path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[GridLock]:
    """Hold a folder for this process, which runs a grid there, until it ends in any way.

    Workers hold a second lock: while those of a killed process are still ending, no other grid begins.

    Raises:
        Locked: if another process holds it, or its workers do not end.
        ValueError: if a lock's file is not a regular file.
    """
    with FolderLock(folder, "run") as mine:
        path = folder / WORKERS
        deadline = time.monotonic() + PATIENCE
        with open_to_append(path) as theirs:
            while lock(theirs.fileno()) is False:
                if time.monotonic() > deadline:
                    raise Locked(f"{folder}: workers of an earlier process are still running")
                time.sleep(0.1)
        yield GridLock(mine, path)


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    engine: Engine,
    interrupt: Interrupt,
    *,
    started: Callable[[Job], None],
    ended: Callable[[Ended], None],
    looked: Callable[[Sequence[Any]], None],
    lost: Callable[[Ended, int], None] = lambda end, attempt: None,
) -> None:
    """Run the jobs in this order, `at_once` side by side.

    Args:
        jobs: jobs in the order of their start.
        at_once: number of cells side by side.
        engine: an engine that is entered.
        interrupt: an `Interrupt` that is entered; once it is asked to stop, no job begins and running jobs are asked to
            stop.
        started: called before a job begins.
        ended: called for each job that ended, failed or not.
        looked: called twice a second with the running jobs, each a `RunningCell`.
        lost: called for a job whose end nobody saw, and that begins again, with the number of the next attempt.

    Raises:
        KeyboardInterrupt: if interrupted a second time; the cells are killed.
    """
    if not jobs:
        return
    waiting, cells, attempts, told = list(jobs), list[RunningCell](), Counter[str](), False
    try:
        while cells or (waiting and not interrupt.asked):
            while not interrupt.asked and (taken := _taken(waiting, len(cells), at_once, engine.batch)):
                del waiting[: len(taken)]
                for job in taken:
                    started(job)
                    attempts[job.name] += 1
                cells += engine.start(taken, at_once)
            if interrupt.asked and not told:
                told = True
                for cell in cells:
                    cell.ask_to_stop()
            looked([cell for cell in cells if cell.has_begun])
            engine.wait(cells)
            over = [cell for cell in cells if not cell.is_alive]
            cells = [cell for cell in cells if cell not in over]
            for end in (cell.ended() for cell in over):
                if end.status == LOST and attempts[end.job.name] < engine.attempts and not interrupt.asked:
                    lost(end, attempts[end.job.name] + 1)
                    waiting.append(end.job)
                else:
                    ended(end)
    finally:
        for cell in cells:
            cell.kill()


def _taken(waiting: Sequence[Job], running: int, at_once: int, batch: int) -> Sequence[Job]:
    """Return the jobs to start now: a batch, then one wherever one has ended.

    All of a batch count as running, so that a job that begins again waits until it is not one too many.
    """
    return waiting[:batch] if not running else waiting[: int(running < at_once)]
