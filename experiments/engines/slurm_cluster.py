"""The engine `slurm`: the cells are an array of SLURM's jobs, by submitit; each attends to the process of a run.

Before a job's time limit, or when it is preempted, SLURM sends it a signal: the run is saved, and the job goes back to
the queue, where the next machine resumes the run.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from astra_gym.experiments.engines.attempts import ATTEMPTS, Attempt, remove_empty
from astra_gym.experiments.engines.base import POLL, Ended, EngineFlags, Job, missing
from astra_gym.experiments.engines.cell import changed, found_here
from astra_gym.experiments.engines.remote import Attendant, RemoteCell, Task, ordered
from astra_gym.ssl_core.utils.messages import brief
from astra_gym.ssl_core.utils.stopping import blocked

SET_BY_FLAGS = {
    "cpus_per_task": "--cell_cpus",
    "gpus_per_node": "--cell_gpus",
    "array_parallelism": "--jobs",
    "nodes": "one a cell",
    "tasks_per_node": "one a cell",
}
"""Parameters that are not passed on, and what sets them."""
GENERAL = ("name", "timeout_min", "mem_gb", "stderr_to_stdout")
"""Parameters of every executor of submitit; the others are of SLURM."""
TIMEOUT = 240
"""Minutes of a job by default."""
STRETCHES = 1000
"""Times by default that a job may reach its time limit and go on; it makes progress in each."""
LOOK = 10.0
"""Seconds between two questions to SLURM."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY")
TAKEN = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED")
"""States of a job that will not run again: it ended, or its machine was taken from it."""


class SlurmAttendant(Attendant):
    """What attends to a cell in a job: at SLURM's signal it saves the run, and the job goes back to the queue."""

    def checkpoint(self, task: Task) -> Any:
        """Save the run; return what the job does when it begins again."""
        from submitit.helpers import DelayedSubmission

        self.save()
        return DelayedSubmission(SlurmAttendant(), task)


class SlurmEngine:
    """The engine.

    Args:
        flags: parameters of the jobs, and what each cell gets. The parameter `cluster` chooses submitit's executor:
            slurm, or local, which tries the same with processes of this machine.

    Raises:
        ValueError: if submitit is not installed, SLURM is not here, or a parameter is wrong.
    """

    def __init__(self, flags: EngineFlags) -> None:
        try:
            import submitit
        except ImportError as error:
            raise missing("slurm", "submitit", error) from error
        self.submitit: Any = submitit
        self.flags, self.attempts = flags, flags.cell_attempts
        options = dict(flags.slurm or {})
        self.cluster = options.pop("cluster", "slurm")
        self.batch = 1000 if self.cluster == "slurm" else 1
        self._timeouts = options.pop("max_num_timeout", STRETCHES)
        self._parameters = self._read(options)
        self._folder, self._jobs = Path(), Path()
        self._states: dict[str, str] = {}
        self._asked = 0.0
        self._ends: dict[str, int] = {}
        self._cells: list[SlurmCell] = []
        with tempfile.TemporaryDirectory() as folder:
            # finds what is wrong with the parameters
            self._executor(Path(folder))

    def _read(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if self.cluster not in ("slurm", "local"):
            raise ValueError(f"--slurm.cluster {self.cluster}: expected slurm or local")
        for name in options:
            if name in SET_BY_FLAGS:
                raise ValueError(f"--slurm.{name} is set for every job ({SET_BY_FLAGS[name]}): leave it out")
        if self.flags.gpus != int(self.flags.gpus):
            raise ValueError(f"--cell_gpus {self.flags.gpus:g}: SLURM gives whole GPUs: expected 0, 1, 2 or more")
        own = {"timeout_min": TIMEOUT, "name": "astra-gym"} | dict(options)
        made: dict[str, Any] = {name if name in GENERAL else f"slurm_{name}": value for name, value in own.items()}
        made["slurm_additional_parameters"] = {"requeue": True, **(made.get("slurm_additional_parameters") or {})}
        made["cpus_per_task"] = self.flags.cell_cpus
        if self.flags.gpus:
            made["gpus_per_node"] = int(self.flags.gpus)
        return made

    def _executor(self, folder: Path) -> Any:
        try:
            executor = self.submitit.AutoExecutor(
                folder, cluster=self.cluster, **{f"{self.cluster}_max_num_timeout": self._timeouts}
            )
            executor.update_parameters(**self._parameters)
        except RuntimeError as error:
            raise ValueError(
                "--engine slurm: there is no srun here: start it on a machine that submits jobs, or try it by "
                "--slurm.cluster local"
            ) from error
        except (NameError, AssertionError, ValueError, TypeError) as error:
            raise ValueError(f"--slurm: {brief(str(error).splitlines()[0], 250)}") from error
        return executor

    def open(self, folder: Path) -> None:
        """Prepare to submit jobs, whose scripts and logs lie in the comparison's folder until all is well."""
        self._folder, self._jobs = folder, folder.resolve() / ATTEMPTS / "slurm"

    def start(self, jobs: Sequence[Job], at_once: int) -> Sequence[RemoteCell]:
        """Submit the jobs as an array, of which no more than `at_once` run side by side.

        Raises:
            ValueError: if SLURM refuses them.
        """
        executor = self._executor(self._jobs)
        executor.update_parameters(slurm_array_parallelism=at_once)
        made = [ordered(job, self.flags, self._folder) for job in jobs]
        # a terminal sends Ctrl-C to submitit's processes here, too, which would kill the runs before they are saved
        try:
            with blocked(), changed(found_here()):
                submitted = executor.map_array(SlurmAttendant(), [task for _, task in made])
        except self.submitit.core.utils.FailedJobError as error:
            for attempt, _ in made:
                attempt.forget()
            said = brief(" ".join(str(error).split()), 200)
            raise ValueError(f"--engine slurm: the jobs were refused: {said}") from error
        # a job that is not known yet is not over
        self._asked = time.monotonic()
        self._states |= {job.job_id: "PENDING" for job in submitted}
        attempts = [attempt for attempt, _ in made]
        cells = [SlurmCell(*each, self) for each in zip(jobs, attempts, submitted, strict=True)]
        self._cells += cells
        return cells

    def wait(self, cells: Sequence["SlurmCell"]) -> None:
        """Wait for `POLL` seconds."""
        time.sleep(POLL)

    def close(self) -> None:
        """Wait until the jobs have ended, whose runs have, and remove their scripts and logs.

        If a cell failed at last they stay, since they may say why.
        """
        deadline = time.monotonic() + LOOK
        while not all(cell.why_over() for cell in self._cells) and time.monotonic() < deadline:
            time.sleep(POLL)
            self._asked = 0.0
        self._cells.clear()
        if not any(self._ends.values()):
            shutil.rmtree(self._jobs, ignore_errors=True)
        remove_empty(self._folder / ATTEMPTS)

    def note(self, end: Ended) -> Ended:
        """Return how a cell ended, and keep in mind whether it did so well at last."""
        self._ends[end.job.name] = end.status
        return end

    def state(self, job: str) -> str:
        """Return the state of a job as SLURM has it, at most `LOOK` seconds old; empty if SLURM does not know it."""
        if time.monotonic() > self._asked + LOOK:
            self._asked = time.monotonic()
            self._states = self._answered([*self._states])
        return self._states.get(job, "")

    def _answered(self, jobs: Sequence[str]) -> dict[str, str]:
        """Ask SLURM; without its database of past jobs, which not every cluster has."""
        main = ",".join(dict.fromkeys(job.partition("_")[0] for job in jobs))
        command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={main}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0 and "Invalid job id" not in done.stderr:
            # SLURM does not answer now, and nothing is known to have ended
            return dict.fromkeys(jobs, "UNKNOWN")
        found = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())
        return {job: found[job] for job in jobs if job in found}


class SlurmCell(RemoteCell):
    """A cell in a job of SLURM.

    Args:
        job, attempt: see `RemoteCell`.
        submitted: the job, as submitit has it.
        engine: its engine.
    """

    def __init__(self, job: Job, attempt: Attempt, submitted: Any, engine: SlurmEngine) -> None:
        super().__init__(job, attempt)
        self.submitted, self.engine = submitted, engine

    def why_over(self) -> str:
        """Return why the job is over, in words; empty while it is not."""
        if self.engine.cluster == "local":
            return f"its job is {self.submitted.state}" if self.submitted.done() else ""
        state = self.engine.state(self.submitted.job_id)
        return f"its job is {state or 'unknown to SLURM'}" if not state or state in (*ENDED, *TAKEN) else ""

    def cancel(self) -> None:
        """Cancel the job."""
        if self.engine.cluster == "local":
            # submitit would send the signal of Ctrl-C, which is held back there
            self.attempt.call_off()
        else:
            self.submitted.cancel(check=False)

    def ended(self) -> Ended:
        """Return how it ended; call this only after its end."""
        return self.engine.note(super().ended())
