"""The engine `local`: the cells are processes of this machine, forked from one that has imported what they need."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any

from astra_gym.experiments.engines.base import LOST, POLL, Ended, EngineFlags, Job, threads
from astra_gym.experiments.engines.cell import changed, found_here, parent_gone, run_cell
from astra_gym.ssl_core.safety.writers import is_running, lock
from astra_gym.ssl_core.utils.provenance import CHECKOUT
from astra_gym.ssl_core.utils.stopping import block, blocked

PRELOADED = (
    "astra_gym.experiments.train_agent",
    "astra_gym.experiments.evaluation.end_of_run",
    "astra_gym.experiments.engines.local",
)
"""Imported once, before the workers are forked, since the imports of a run take as long as a small run's training."""
WORKERS = ".workers.lock"
"""Name of the file in a comparison's folder that its workers lock."""


class LocalEngine:
    """The engine.

    Args:
        flags: what each cell gets.
    """

    attempts = 1
    batch = 1

    def __init__(self, flags: EngineFlags) -> None:
        self.cpus = flags.cell_cpus
        self._context: Any = None
        self._workers = Path()

    def open(self, folder: Path) -> None:
        """Prepare to fork workers that lock the folder's file `WORKERS`."""
        self._context, self._workers = _context(), (folder / WORKERS).resolve()

    def close(self) -> None:
        """Do nothing: the fork server ends with this process."""

    def start(self, jobs: Sequence[Job], at_once: int) -> list["Worker"]:
        """Start a process for each job."""
        return [Worker(self._context, job, self._workers, self.cpus) for job in jobs]

    def wait(self, cells: Sequence["Worker"]) -> None:
        """Wait for `POLL` seconds, or until one of the processes ends."""
        # an ended fork server would make every wait return immediately
        connection.wait([worker.process.sentinel for worker in cells if not worker.orphaned], POLL)


class Worker:
    """A run's process, from its start to its end."""

    has_begun = True

    def __init__(self, context: Any, job: Job, workers: Path, cpus: int) -> None:
        self.job = job
        self.began = time.monotonic()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        arguments = (job.argv, str(job.log), os.getcwd(), cpus, str(workers))
        self.process = context.Process(target=_run, args=arguments, name=job.name, daemon=True)
        # a killed fork server is started again
        with _circumstances(cpus):
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
        return Ended(self.job, self.process.exitcode, self.seconds, "the fork server was killed")


def _run(argv: Sequence[str], log: str, directory: str, cpus: int, workers: str) -> None:
    held = open(workers)  # noqa: SIM115 - until the process ends
    lock(held.fileno(), shared=True)
    run_cell(argv, log, directory, cpus, parent_gone)


@contextlib.contextmanager
def _circumstances(cpus: int) -> Iterator[None]:
    """Set what a new Python process inherits, above all the fork server: its threads, and this checkout before others.

    Signals are also held back: a signal that stops this process, such as a batch system's to all processes of a job,
    must not end the fork server. A worker lets them through when it can save its run.
    """
    with blocked(), changed(threads(cpus) | found_here()):
        # the tracker's start lets signals through again
        resource_tracker.ensure_running()
        block()
        yield


def _context() -> Any:
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        # the fork server finds its imports by PYTHONPATH: if that is not read, a worker imports everything itself
        reads = not sys.flags.ignore_environment and os.pathsep not in str(CHECKOUT or "")
        context.set_forkserver_preload(list(PRELOADED) if reads else [])
    return context
