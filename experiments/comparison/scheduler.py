"""Runs of `train_agent.py` side by side: one process per run, with one thread each."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

from astra_gym.experiments.config.commands import launcher
from astra_gym.experiments.console import Interrupt
from astra_gym.ssl_core.safety.disk import is_full_at
from astra_gym.ssl_core.safety.writers import FolderLock, Locked, is_running, lock
from astra_gym.ssl_core.utils.paths import open_to_append
from astra_gym.ssl_core.utils.provenance import CHECKOUT
from astra_gym.ssl_core.utils.stopping import block

PRELOADED = (
    "astra_gym.experiments.train_agent",
    "astra_gym.experiments.evaluation.end_of_run",
    "astra_gym.experiments.comparison.scheduler",
)
"""Imported once, before the workers are forked, since the imports of a run take as long as a small run's training."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
POLL = 0.5
"""Seconds between two looks at the workers, and between two drawings of the display."""
PATIENCE = 20.0
"""Seconds for workers of a killed comparison to end."""
LOST = 255
"""The exit status, in `multiprocessing`, of a process whose fork server was killed: the true one is unknown."""


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Args:
        name: name of the cell.
        argv: arguments of `train_agent.py`.
        log: file to which its output is appended.
    """

    name: str
    argv: tuple[str, ...]
    log: Path


@dataclass(frozen=True)
class Ended:
    """A run that ended: its exit status, negative for a signal's number or `LOST`, and its wall time in seconds."""

    job: Job
    status: int
    seconds: float

    @property
    def reason(self) -> str:
        """The reason why the run failed, in one line."""
        if self.status == LOST:
            why = "ended unseen, since the fork server was killed"
        elif self.status >= 0:
            why = f"ended with status {self.status}"
        else:
            number = -self.status
            names = {int(known): known.name for known in signal.Signals}
            why = f"killed by {names.get(number, f'signal {number}')}"
            if names.get(number) == "SIGKILL":
                why += " (the system kills processes so when memory runs out)"
        if self.status == 1 and is_full_at(self.job.log.parent):
            # the log may then lack its reason
            why += f", no space left in {self.job.log.parent}"
        last = last_lines(self.job.log, 1)
        return f"{why}: {last[0]}" if last else why


def last_lines(log: Path, count: int = 5) -> list[str]:
    """Return the last lines of a log that are not blank, stripped; none if there is no log."""
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()][-count:]


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        path = folder / ".workers.lock"
        deadline = time.monotonic() + PATIENCE
        with open_to_append(path) as theirs:
            while lock(theirs.fileno()) is False:
                if time.monotonic() > deadline:
                    raise Locked(f"{folder}: workers of an earlier process are still running")
                time.sleep(0.1)
        yield GridLock(mine, path)


def run_cell(argv: Sequence[str], log: str, directory: str, workers: str) -> None:
    """Run `train_agent.main` as a worker, with its output in the log; end the process with its exit status."""
    # away from the terminal, so that Ctrl-C reaches only the scheduler, which asks the workers once
    os.setsid()
    os.chdir(directory)
    _watch()
    held = open(workers)  # noqa: SIM115 - until the process ends
    lock(held.fileno(), shared=True)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(output, number)
        stream.reconfigure(encoding="utf-8", line_buffering=True)  # type: ignore[union-attr]
    os.close(output)
    import torch

    torch.set_num_threads(1)
    train_agent = importlib.import_module("astra_gym.experiments.train_agent")
    # as a person would type it, for command.txt
    if not launcher():
        sys.argv[0] = _shortest(Path(train_agent.__file__ or ""))
    sys.exit(train_agent.main(list(argv)))


def _shortest(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _watch() -> None:
    """End this process when its parent is gone, since its run would not be counted and another would begin it anew."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _circumstances() -> Iterator[None]:
    """Set what a new Python process inherits, above all the fork server: one thread, and this checkout before others.

    Signals are also held back: a signal that stops this process, such as a batch system's to all processes of a job,
    must not end the fork server. A worker lets them through when it can save its run.
    """
    paths = os.pathsep.join(filter(None, [str(CHECKOUT or ""), os.environ.get("PYTHONPATH")]))
    wanted = ONE_THREAD | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    masked = block()
    os.environ.update(wanted)
    try:
        # the tracker's start lets signals through again
        resource_tracker.ensure_running()
        block()
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _context() -> Any:
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        # the fork server finds its imports by PYTHONPATH: if that is not read, a worker imports everything itself
        reads = not sys.flags.ignore_environment and os.pathsep not in str(CHECKOUT or "")
        context.set_forkserver_preload(list(PRELOADED) if reads else [])
    return context


class Worker:
    """A run's process, from its start to its end."""

    def __init__(self, context: Any, job: Job, workers: Path) -> None:
        self.job = job
        self.began = time.monotonic()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        arguments = (job.argv, str(job.log), os.getcwd(), str(workers.resolve()))
        self.process = context.Process(target=run_cell, args=arguments, name=job.name, daemon=True)
        # a killed fork server is started again
        with _circumstances():
            try:
                self.process.start()
            except (EOFError, ConnectionError):
                # the fork server was killed just now
                self.process.start()

    @property
    def seconds(self) -> float:
        """Seconds since the start of the process."""
        return time.monotonic() - self.began

    @property
    def orphaned(self) -> bool:
        """Whether the process runs although the fork server was killed, which alone learns how the process ends."""
        return self.process.exitcode == LOST and is_running(self.process.pid)

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process.is_alive() or self.orphaned

    def ask_to_stop(self) -> None:
        """Ask the process to stop, as Ctrl-C does: training is saved at the next start of a rollout."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process immediately."""
        self._send(signal.SIGKILL)
        self.process.join()

    def _send(self, number: int) -> None:
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def ended(self) -> Ended:
        """Return how the process ended; call this only after its end."""
        self.process.join()
        return Ended(self.job, self.process.exitcode, self.seconds)


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    workers: Path,
    interrupt: Interrupt,
    *,
    started: Callable[[Job], None],
    ended: Callable[[Ended], None],
    looked: Callable[[Sequence[Worker]], None],
) -> None:
    """Run the jobs in this order, `at_once` side by side.

    Args:
        jobs: jobs in the order of their start.
        at_once: number of processes side by side.
        workers: the workers' lock file, see `locked`.
        interrupt: an `Interrupt` that is entered; once it is asked to stop, no job begins and running jobs are asked to
            stop.
        started: called before a job begins.
        ended: called for each job that ended, failed or not.
        looked: called twice a second with the running jobs.

    Raises:
        KeyboardInterrupt: if interrupted a second time; the processes are killed.
    """
    if not jobs:
        return
    context = _context()
    waiting, running, told = list(jobs), list[Worker](), False
    try:
        while running or (waiting and not interrupt.asked):
            while waiting and len(running) < at_once and not interrupt.asked:
                job = waiting.pop(0)
                started(job)
                running.append(Worker(context, job, workers))
            if interrupt.asked and not told:
                told = True
                for worker in running:
                    worker.ask_to_stop()
            looked(running)
            # an ended fork server would make every wait return immediately
            connection.wait([worker.process.sentinel for worker in running if not worker.orphaned], POLL)
            over = [worker for worker in running if not worker.is_alive]
            running = [worker for worker in running if worker not in over]
            for worker in over:
                ended(worker.ended())
    finally:
        for worker in running:
            worker.kill()
