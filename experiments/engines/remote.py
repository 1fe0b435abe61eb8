"""A cell on another machine: what attends to its process there, and what the comparison sees of it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from astra_gym.experiments.engines.attempts import ATTEMPTS, WATCH, Attempt
from astra_gym.experiments.engines.base import LOST, Ended, EngineFlags, Job, threads
from astra_gym.experiments.engines.beginnings import clear
from astra_gym.experiments.engines.cell import found_here
from astra_gym.ssl_core.safety.writers import FolderLock, Locked, is_running
from astra_gym.ssl_core.utils.stopping import blocked

PATIENCE = 20.0
"""Seconds to wait for the lock of a run whose former process is ending."""
PROCESS = "astra_gym.experiments.engines.cell"


@dataclass(frozen=True)
class Task:
    """What a machine must know to attempt a cell, in plain values; paths are from the root.

    Args:
        name: name of the cell.
        token: name of the attempt.
        attempts: folder of the orders and reports.
        fresh, again, run, log: see `Job`.
        directory: the working folder.
        program: the comparison's program, as it was called.
        cpus: number of threads.
        gpus: whether the run may see GPUs.
        variables: variables of the environment by which Python imports this copy of the project.
    """

    name: str
    token: str
    attempts: str
    fresh: tuple[str, ...]
    again: tuple[str, ...]
    run: str
    log: str
    directory: str
    program: str
    cpus: int
    gpus: bool
    variables: dict[str, str]

    @classmethod
    def of(cls, job: Job, flags: EngineFlags, attempts: Path, token: str) -> Self:
        """Return the task of a job."""
        run, log = str(job.run.absolute()), str(job.log.absolute())
        places = (os.getcwd(), sys.argv[0])
        return cls(
            *(job.name, token, str(attempts), job.fresh, job.again, run, log, *places),
            *(flags.cell_cpus, flags.gpus > 0, found_here()),
        )


class Attendant:
    """What attends to the process of a cell on a machine: it begins or resumes the run.

    If the attempt is called off, it ends the run. A callable that can be pickled before it is called.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, task: Task) -> int | None:
        """Attempt the cell; return the exit status of the run, or None if the attempt is called off.

        Raises:
            FileNotFoundError: if this machine does not see the comparison's folder.
        """
        if not Path(task.attempts).is_dir():
            raise FileNotFoundError(f"{task.attempts} is not seen on {socket.gethostname()}: put it where all see it")
        os.environ |= task.variables
        attempt = Attempt(Path(task.attempts), task.name, task.token)
        if not attempt.take():
            return None
        status = None
        try:
            job = Job(task.name, task.fresh, task.again, Path(task.run), Path(task.log))
            _wait_for(job.run)
            clear(job.run)
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with self._started(task, job) as process:
                status = self._watched(process, attempt)
        finally:
            attempt.leave(status)
        return status

    @contextlib.contextmanager
    def _started(self, task: Task, job: Job) -> Iterator["subprocess.Popen[bytes]"]:
        """Start the run as a process that ends with this one."""
        variables = os.environ | threads(task.cpus) | ({} if task.gpus else {"CUDA_VISIBLE_DEVICES": ""})
        words = {"argv": job.argv, "log": task.log, "directory": task.directory, "cpus": task.cpus}
        command = [sys.executable, "-m", PROCESS, json.dumps(words | {"program": task.program})]
        # signals to stop are held back until the run can be saved; those of a batch system to its jobs, which it sends
        # to all their processes, are for this one
        with blocked():
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
            self.process = subprocess.Popen(command, env=variables, cwd=task.directory, stdin=subprocess.PIPE)
        try:
            yield self.process
        finally:
            if is_running(self.process.pid):
                self.process.kill()
            self.process.communicate()

    def _watched(self, process: "subprocess.Popen[bytes]", attempt: Attempt) -> int | None:
        """Wait for the end of the run, as long as it is wanted."""
        asked, looked = False, time.monotonic()
        while process.poll() is None:
            time.sleep(0.1)
            if time.monotonic() < looked + WATCH:
                continue
            looked = time.monotonic()
            if not attempt.is_mine:
                return None
            if attempt.is_asked_to_stop and not asked:
                asked = True
                process.terminate()
        return process.returncode

    def save(self) -> None:
        """Let the run save itself and end, from a signal's handler, whatever it has interrupted."""
        process = self.process
        if process is not None and is_running(process.pid):
            os.kill(process.pid, signal.SIGTERM)
            # not by `wait`, whose lock the interrupted code may hold
            while is_running(process.pid):
                time.sleep(0.05)


def _wait_for(run: Path) -> None:
    """Wait until nobody holds a run's folder; after `PATIENCE` seconds the run itself says who does."""
    deadline = time.monotonic() + PATIENCE
    while run.is_dir() and time.monotonic() < deadline:
        with contextlib.suppress(Locked), FolderLock(run):
            return
        time.sleep(0.2)


class RemoteCell:
    """A cell on another machine, as the comparison sees it.

    Args:
        job: the cell.
        attempt: the attempt at it, which is ordered.
    """

    def __init__(self, job: Job, attempt: Attempt) -> None:
        self.job, self.attempt = job, attempt
        self._began: float | None = None
        self._stopped = False
        self._why = ""

    @property
    def has_begun(self) -> bool:
        """Whether it runs, or ran, and does not wait for a machine."""
        begun = self.attempt.has_begun
        if begun and self._began is None:
            self._began = time.monotonic()
        return begun

    @property
    def seconds(self) -> float:
        """Seconds since it was first seen to run."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    @property
    def is_alive(self) -> bool:
        """Whether it waits or runs."""
        if not self._why and self.attempt.status is None:
            self._why = self.why_over()
        return not self._why and self.attempt.status is None

    def ask_to_stop(self) -> None:
        """Ask it to stop, as Ctrl-C does; one that still waits for a machine does not begin."""
        self._stopped = True
        if self.has_begun:
            self.attempt.order(stop=True)
        else:
            self.cancel()

    def kill(self) -> None:
        """End it immediately; its machine may take a moment."""
        self.attempt.call_off()
        self.cancel()

    def ended(self) -> Ended:
        """Return how it ended; call this only after its end."""
        status, seconds = self.attempt.status, self.seconds
        self.attempt.forget()
        if status is None and self._stopped:
            status = 128 + signal.SIGTERM
        return Ended(self.job, LOST if status is None else status, seconds, self._why)

    def why_over(self) -> str:
        """Return why the machine or the job that runs it is over, in words; empty while it is not."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Take it from the engine; do not wait."""
        raise NotImplementedError


def ordered(job: Job, flags: EngineFlags, folder: Path) -> tuple[Attempt, Task]:
    """Order a new attempt at a cell, in a comparison's folder."""
    attempts = folder.resolve() / ATTEMPTS
    attempt = Attempt(attempts, job.name)
    attempt.order()
    return attempt, Task.of(job, flags, attempts, attempt.token)
