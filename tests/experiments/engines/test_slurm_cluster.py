"""On submitit's executor of processes, which does what SLURM does with jobs, signals and what is queued again."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from astra_gym.experiments.engines.attempts import ATTEMPTS
from astra_gym.experiments.engines.base import EngineFlags
from astra_gym.experiments.engines.slurm_cluster import SlurmEngine
from tests.helpers.cells import attendant, job, run_on, updates
from tests.helpers.tiny_training import assert_equal_runs, run

LONG = ("--epochs=15", "--evaluate=false", "--images_every=100")


def engine(**options: object) -> SlurmEngine:
    return SlurmEngine(EngineFlags(engine="slurm", slurm={"cluster": "local", "timeout_min": 30} | options))


def sends(folder: Path, numbers: dict[str, int]) -> Callable:
    """What sends each cell's attendant a signal once, when the run has made some updates."""
    sent = dict(numbers)

    def looked(cells) -> None:
        for cell in cells:
            if cell.job.name in sent and updates(cell.job.run) > 10:
                os.kill(attendant(folder, cell.job.name), sent.pop(cell.job.name))

    looked.left = sent
    return looked


@pytest.mark.every_agent
def test_a_job_that_is_killed_and_one_that_is_told_to_leave_make_the_run_of_one_that_was_not(tmp_path, capfd) -> None:
    """The signal before the time limit saves the run, and the job begins again by itself."""
    assert run(tmp_path / "apart", *LONG) == 0
    looked = sends(tmp_path, {"killed": signal.SIGKILL, "told": signal.SIGUSR2})
    lost = []
    jobs = [job(tmp_path, name, *LONG) for name in ("killed", "told")]
    ends = run_on(engine(), tmp_path, jobs, 2, looked, lambda end, attempt: lost.append((end.job.name, attempt)))
    assert not looked.left and lost == [("killed", 2)]
    assert {name: end.status for name, end in ends.items()} == {"killed": 0, "told": 0}
    for name in ("killed", "told"):
        assert len((tmp_path / name / "command.txt").read_text().splitlines()) == 2
        assert_equal_runs(tmp_path / name, tmp_path / "apart")
    assert "SIGTERM: saved at step" in (tmp_path / "logs" / "told.log").read_text()
    assert "saved at step" not in (tmp_path / "logs" / "killed.log").read_text()
    assert not (tmp_path / ATTEMPTS).exists()


@pytest.mark.every_agent
def test_an_interrupt_saves_what_runs_and_begins_nothing_else(tmp_path) -> None:
    def looked(cells) -> None:
        if any(updates(cell.job.run) > 10 for cell in cells) and not asked:
            asked.append(True)
            # as a terminal sends Ctrl-C, to submitit's processes too
            attends = attendant(tmp_path, "long")
            parent = int(Path(f"/proc/{attends}/stat").read_text().rpartition(")")[2].split()[1])
            for each in (parent, attends, os.getpid()):
                os.kill(each, signal.SIGINT)

    asked: list[bool] = []
    ends = run_on(engine(), tmp_path, [job(tmp_path, "long", "--epochs=5000"), job(tmp_path, "never")], 1, looked)
    assert {name: end.status for name, end in ends.items()} == {"long": 128 + signal.SIGTERM}
    assert "saved at step" in (tmp_path / "logs" / "long.log").read_text()
    # a log of submitit may say why something did not end well
    assert [path.name for path in (tmp_path / ATTEMPTS).iterdir()] == ["slurm"]


@pytest.mark.slow
def test_a_cell_whose_jobs_all_die_is_given_up(tmp_path) -> None:
    def looked(cells) -> None:
        for cell in cells:
            # which may be dead already, and not seen to be
            with contextlib.suppress(ProcessLookupError):
                os.kill(attendant(tmp_path, cell.job.name), signal.SIGKILL)

    flags = EngineFlags(engine="slurm", cell_attempts=2, slurm={"cluster": "local"})
    attempts = []
    jobs = [job(tmp_path, "hopeless")]
    ends = run_on(SlurmEngine(flags), tmp_path, jobs, 1, looked, lambda end, attempt: attempts.append(attempt))
    assert attempts == [2] and ends["hopeless"].reason == "ended unseen, since its job is FINISHED"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"cpus_per_task": 2}, "--slurm.cpus_per_task is set for every job (--cell_cpus): leave it out"),
        ({"nodes": 2}, "--slurm.nodes is set for every job (one a cell)"),
        ({"partion": "x"}, "Unknown argument 'partion' for executor 'slurm'"),
        ({"timeout_min": "soon"}, '"timeout_min" expected type'),
        ({"cluster": "ray"}, "--slurm.cluster ray: expected slurm or local"),
    ],
)
def test_parameters_that_cannot_be(options, part: str) -> None:
    with pytest.raises(ValueError) as raised:
        engine(**options)
    [line] = str(raised.value).splitlines()
    assert part in line and len(line) < 300


def test_where_something_is_missing_a_line_says_what_to_do(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no srun here: .* try it by --slurm.cluster local"):
        SlurmEngine(EngineFlags(engine="slurm"))
    with pytest.raises(ValueError, match=r"--cell_gpus 0\.5: SLURM gives whole GPUs"):
        SlurmEngine(EngineFlags(engine="slurm", cell_gpus=0.5))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"submitit is not installed: pip install '\.\[slurm\]' in the checkout"):
        engine()
