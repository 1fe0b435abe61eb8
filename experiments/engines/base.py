"""What a comparison asks of an engine: to start a cell, to tell when it has ended, to stop it."""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Protocol

from astra_gym.experiments.config.flag_values import as_text
from astra_gym.experiments.engines.beginnings import is_resumable
from astra_gym.ssl_core.safety.disk import is_full_at
from astra_gym.ssl_core.settings.records import Notes, check_choices
from astra_gym.ssl_core.utils.messages import brief

POLL = 0.5
"""Seconds between two looks at the cells, and between two drawings of the display."""
LOCAL = "local"
"""The engine of this machine, the default."""
ENGINES = (LOCAL, "ray", "slurm")
"""Names of the engines, which `astra_gym.experiments.engines.choice.MADE_BY` makes."""
LOST = 255
"""The status of a cell whose end nobody saw; in `multiprocessing`, that of a process whose fork server was killed."""
LIBRARIES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
INSTALL = "pip install '.[{extra}]' in the checkout"
MOST_CPUS, MOST_ATTEMPTS = 4096, 1000


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """Where the cells run, and what each of them gets.

    Args:
        engine: what runs the cells; local: this machine; ray: the machines of a Ray cluster, or a Ray started here;
            slurm: jobs of SLURM. On a cluster all machines share the folder of the comparison and this installation.
        cell_cpus: cores of a cell, which are its threads.
        cell_gpus: GPUs of a cell, for ray also a part of one, such as 0.25; without it a cell sees none on a cluster.
        cell_attempts: attempts on a cluster at a cell whose machine or job dies; each resumes from the last checkpoint.
        ray_address: address of a running Ray cluster, or auto for the one of this machine; by default a Ray is started
            here.
        slurm: parameters of the SLURM jobs as submitit names them, such as partition, account, timeout_min, mem_gb and
            signal_delay_s.

    Raises:
        ValueError: if the engine is unknown, a number is out of its range, or a flag is of another engine.
    """

    engine: Annotated[str, Notes(choices=ENGINES, what="engine")] = LOCAL
    cell_cpus: Annotated[int, Notes(unit="CORES")] = 1
    cell_gpus: Annotated[float | None, Notes(unit="GPUS")] = None
    cell_attempts: int = 5
    ray_address: Annotated[str | None, Notes(unit="HOST:PORT")] = None
    slurm: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        for name, most in (("cell_cpus", MOST_CPUS), ("cell_attempts", MOST_ATTEMPTS)):
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise ValueError(f"--{name}: expected 1 to {most:,}, got {value}")
        if self.cell_gpus is not None and not 0 <= self.cell_gpus <= 64:
            raise ValueError(f"--cell_gpus: expected 0 to 64, got {self.cell_gpus:g}")
        if self.cell_gpus is not None and self.engine == LOCAL:
            raise ValueError("--cell_gpus: the engine local shares one GPU by its memory, see --jobs: leave it out")
        if self.cell_attempts != EngineFlags.cell_attempts and self.engine == LOCAL:
            raise ValueError("--cell_attempts: the engine local makes one, and --resume the next: leave it out")
        for name, own in (("ray_address", "ray"), ("slurm", "slurm")):
            if getattr(self, name) is not None and self.engine != own:
                raise ValueError(f"--{name} is for --engine {own}, and this is --engine {self.engine}: leave it out")

    @property
    def gpus(self) -> float:
        """GPUs of a cell on a cluster."""
        return self.cell_gpus or 0

    @property
    def words(self) -> list[str]:
        """The flags that are not the defaults, for the command line."""
        made = []
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Mapping):
                made += [word for name, one in value.items() for word in (f"--{item.name}.{name}", as_text(one))]
            elif value != item.default:
                made += [f"--{item.name}", as_text(value)]
        return made


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Args:
        name: name of the cell.
        fresh: arguments of `train_agent.py` that begin the run.
        again: arguments that resume it.
        run: folder of the run.
        log: file to which its output is appended.
    """

    name: str
    fresh: tuple[str, ...]
    again: tuple[str, ...]
    run: Path
    log: Path

    @property
    def argv(self) -> tuple[str, ...]:
        """The arguments that begin or resume the run, whichever it needs now."""
        return self.again if is_resumable(self.run) else self.fresh


@dataclass(frozen=True)
class Ended:
    """A run that ended: its exit status, negative for a signal's number or `LOST`, and its wall time in seconds.

    `unseen` says why nobody saw the end of a lost one.
    """

    job: Job
    status: int
    seconds: float
    unseen: str = ""

    @property
    def reason(self) -> str:
        """The reason why the run failed, in one line."""
        if self.status == LOST:
            why = f"ended unseen, since {self.unseen}"
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


class RunningCell(Protocol):
    """A cell that an engine was given, from its start to its end."""

    job: Job

    @property
    def has_begun(self) -> bool:
        """Whether it runs, or ran, and does not wait for a machine any more."""

    @property
    def seconds(self) -> float:
        """Seconds since it began."""

    @property
    def is_alive(self) -> bool:
        """Whether it waits or runs."""

    def ask_to_stop(self) -> None:
        """Ask it to stop, as Ctrl-C does: training is saved at the next start of a rollout."""

    def kill(self) -> None:
        """End it immediately."""

    def ended(self) -> Ended:
        """Return how it ended; call this only after its end."""


class Engine(Protocol):
    """What runs cells. An engine is a file in this package and a line in
    `astra_gym.experiments.engines.choice.MADE_BY`, and its name is in `ENGINES`.

    A cell is an ordinary run, in a folder that all machines of the engine share. Its constructor takes `EngineFlags`
    and raises a ValueError if it cannot be used here.
    """

    attempts: int
    """Attempts at a cell whose end nobody saw."""
    batch: int
    """Cells that it takes at once while none runs; more than one: it holds those back that are too many."""

    def open(self, folder: Path) -> None:
        """Prepare to run cells of the comparison in a folder.

        Raises:
            ValueError: if the machines of the engine cannot be reached.
        """

    def start(self, jobs: Sequence[Job], at_once: int) -> Sequence[RunningCell]:
        """Start cells, and return them in this order.

        Args:
            jobs: the cells, `batch` at most.
            at_once: number of cells side by side.
        """

    def wait(self, cells: Sequence[Any]) -> None:
        """Wait for `POLL` seconds, or until one of its living cells ends."""

    def close(self) -> None:
        """Release what `open` has taken."""


def last_lines(log: Path, count: int = 5) -> list[str]:
    """Return the last lines of a log that are not blank, stripped; none if there is no log."""
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()][-count:]


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(count: int) -> dict[str, str]:
    """Return the variables of the environment that give the libraries of a cell so many threads."""
    return dict.fromkeys(LIBRARIES, str(count))


def missing(extra: str, package: str, error: ImportError) -> ValueError:
    """Return the error for an engine whose package is not installed, or cannot be imported."""
    if isinstance(error, ModuleNotFoundError):
        return ValueError(f"--engine {extra}: {package} is not installed: {INSTALL.format(extra=extra)}")
    return ValueError(f"--engine {extra}: {package} cannot be imported here: {brief(str(error), 100)}")
