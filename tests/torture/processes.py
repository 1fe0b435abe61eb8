"""Commands as real processes, which can be interrupted, killed and cut off from their output."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_gym.experiments.config.commands import COMMANDS
from astra_gym.ssl_core.utils.provenance import ROOT

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PATIENCE = 240.0
"""Seconds after which a process hangs."""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status as `subprocess` gives it, and what it printed."""

    status: int
    out: str
    err: str
    seconds: float
    hung: bool = False

    @property
    def text(self) -> str:
        """All that it said."""
        return self.out + self.err


def words_of(name: str, words: Sequence[str]) -> list[str]:
    """The command line of a script of this checkout."""
    return [sys.executable, str(ROOT / "experiments" / f"{COMMANDS[name]}.py"), *words]


class Process:
    """A command in a process group of its own.

    Args:
        name: of `COMMANDS`.
        words: its command line.
        folder: where it is started.
        outputs: the folder of the files that take what it prints; by default the same.
        pipe: whether its standard output is a pipe, whose end this object holds.
    """

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        folder: Path,
        *,
        outputs: Path | None = None,
        pipe: bool = False,
    ) -> None:
        outputs = outputs or folder
        for path in (folder, outputs):
            path.mkdir(parents=True, exist_ok=True)
        self._out, self._err = outputs / "out.txt", outputs / "err.txt"
        self.began = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                words_of(name, words),
                cwd=folder,
                env={**os.environ, **ONE_THREAD},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipe else out,
                stderr=err,
                start_new_session=True,
            )

    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def processor_seconds(self) -> float:
        """Time that it has computed: little tells that Python itself is still starting."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return time.monotonic() - self.began
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_until(self, reached: Callable[[], bool], limit: float = PATIENCE) -> bool:
        """Waits for something, or for the end; whether it came while the process was alive."""
        deadline = time.monotonic() + limit
        while self.alive() and time.monotonic() < deadline:
            if reached():
                return True
            time.sleep(0.003)
        return False

    def send(self, number: signal.Signals, group: bool = False) -> None:
        """Sends a signal, to the whole group as a terminal does if asked."""
        try:
            if group:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
        except ProcessLookupError:
            pass

    def read_lines(self, count: int) -> None:
        """Reads so many lines from the pipe, then goes away: what is printed from now on has no reader."""
        pipe: Any = self.process.stdout
        for _ in range(count):
            if not pipe.readline():
                break
        pipe.close()

    def end(self, limit: float = PATIENCE) -> Ended:
        """Waits for the end; a process that takes too long is killed."""
        hung = False
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            # also what it has started and left behind
            self.send(signal.SIGKILL, group=True)
            self.process.wait()
        out, err = (path.read_text("utf-8", errors="replace") for path in (self._out, self._err))
        return Ended(self.process.returncode, out, err, time.monotonic() - self.began, hung)


def run(name: str, words: Sequence[str], folder: Path, **more: Any) -> Ended:
    """A command from its start to its end."""
    process = Process(name, words, folder, **more)
    return process.end()
