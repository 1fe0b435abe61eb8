"""The engine `ray`: the cells are tasks of a Ray cluster, each of which attends to the process of a run."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astra_gym.experiments.engines.attempts import ATTEMPTS, Attempt, remove_empty
from astra_gym.experiments.engines.base import POLL, EngineFlags, Job, missing, usable_cores
from astra_gym.experiments.engines.cell import found_here
from astra_gym.experiments.engines.remote import Attendant, RemoteCell, Task, ordered
from astra_gym.ssl_core.utils.messages import brief

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # else Ray hides the GPUs from a task without any, and warns that it will not for long; a cell hides them itself
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # else the tasks of a Ray that is started here have the lowest priority
    "RAY_worker_niceness": "0",
    # else a machine that dies writes its log into the table of the comparison
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}
"""Variables of the environment for Ray; nothing is reported to anybody."""
ANSWER = 10.0
"""Seconds for a cluster to answer."""
STORE = 80 << 20
"""Bytes of the object store of a Ray that is started here; the cells exchange files only."""


def attend(task: Task) -> int | None:
    """Attempt a cell; the task of Ray."""
    return Attendant()(task)


class RayEngine:
    """The engine: it joins a running cluster, or starts one on this machine, which ends with it.

    Args:
        flags: the address, and what each cell gets.

    Raises:
        ValueError: if Ray is not installed.
    """

    batch = 1

    def __init__(self, flags: EngineFlags) -> None:
        self.flags, self.attempts = flags, flags.cell_attempts
        self._folder, self._ours = Path(), ""
        os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
        try:
            import ray
        except ImportError as error:
            raise missing("ray", "Ray", error) from error
        self.ray: Any = ray

    def open(self, folder: Path) -> None:
        """Join or start the cluster, and look whether it has room for a cell.

        Raises:
            ValueError: if no cluster answers, or a cell needs more than a machine that is started here has.
        """
        self._folder = folder
        # Ray replaces the handler of SIGTERM
        handler = signal.getsignal(signal.SIGTERM)
        try:
            self._join()
        except (OSError, RuntimeError, ValueError) as error:
            self.close()
            where = f"--ray_address {self.flags.ray_address}" if self.flags.ray_address else "a Ray on this machine"
            raise ValueError(f"--engine ray: cannot reach {where}: {brief(str(error), 150)}") from error
        finally:
            signal.signal(signal.SIGTERM, handler)
        needed = {"CPU": self.flags.cell_cpus, "GPU": self.flags.gpus}
        has = self.ray.cluster_resources()
        short = [name for name, count in needed.items() if count > has.get(name, 0)]
        if self._ours and short:
            self.close()
            raise ValueError(
                f"a cell needs {needed[short[0]]:g} {short[0]}, and this machine has {has.get(short[0], 0):g}: join a "
                "cluster by --ray_address, or ask for less"
            )

    def _join(self) -> None:
        address = self.flags.ray_address
        more: dict[str, Any] = {"address": address}
        if address is not None and address != "auto":
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit():
                raise ValueError("expected HOST:PORT or auto")
            # Ray would wait for minutes
            socket.create_connection((host, int(port)), ANSWER).close()
        if address is None:
            self._ours = tempfile.mkdtemp(prefix="ray-")
            more = {"address": "local", "num_cpus": usable_cores(), "include_dashboard": False}
            more |= {"object_store_memory": STORE, "_temp_dir": self._ours}
        variables = {"env_vars": found_here()}
        self.ray.init(runtime_env=variables, log_to_driver=False, configure_logging=False, **more)

    def start(self, jobs: Sequence[Job], at_once: int) -> Sequence[RemoteCell]:
        """Start a task for each job; Ray places it where there is room."""
        # Ray would begin a task anew on its own, which nobody would count
        needs = {"num_cpus": self.flags.cell_cpus, "num_gpus": self.flags.gpus, "max_retries": 0}
        remote = self.ray.remote(**needs)(attend)
        cells = []
        for job in jobs:
            attempt, task = ordered(job, self.flags, self._folder)
            cells.append(RayCell(job, attempt, self.ray, remote.options(name=job.name).remote(task)))
        return cells

    def wait(self, cells: Sequence["RayCell"]) -> None:
        """Wait for `POLL` seconds, or until one of the tasks ends."""
        self.ray.wait([cell.result for cell in cells], timeout=POLL, fetch_local=False)

    def close(self) -> None:
        """Leave the cluster, or end the one that was started here and remove its files."""
        self.ray.shutdown()
        if self._ours:
            shutil.rmtree(self._ours, ignore_errors=True)
            self._ours = ""
        remove_empty(self._folder / ATTEMPTS)


class RayCell(RemoteCell):
    """A cell in a task of Ray.

    Args:
        job, attempt: see `RemoteCell`.
        ray: the package.
        result: the task's reference.
    """

    def __init__(self, job: Job, attempt: Attempt, ray: Any, result: Any) -> None:
        super().__init__(job, attempt)
        self.ray, self.result = ray, result

    def why_over(self) -> str:
        """Return why the task is over, in words; empty while it is not."""
        ready, _ = self.ray.wait([self.result], timeout=0, fetch_local=False)
        if not ready:
            return ""
        try:
            self.ray.get(self.result)
        except self.ray.exceptions.RayTaskError as error:
            return f"its task failed ({brief(str(error).strip().splitlines()[-1], 150)})"
        except self.ray.exceptions.RayError as error:
            return f"its machine or its worker died ({type(error).__name__})"
        return "its attempt was called off"

    def cancel(self) -> None:
        """Cancel the task."""
        self.ray.cancel(self.result, force=True)
