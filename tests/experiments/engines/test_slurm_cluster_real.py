"""On a SLURM that is started here: `make test-slurm`."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from astra_gym.experiments.engines.attempts import ATTEMPTS
from astra_gym.experiments.engines.base import EngineFlags
from astra_gym.experiments.engines.slurm_cluster import SlurmEngine
from tests.helpers.cells import job, run_on, updates
from tests.helpers.one_host_slurm import missing, one_host_slurm
from tests.helpers.tiny_training import assert_equal_runs, run

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
LONG = ("--epochs=15", "--evaluate=false", "--images_every=100")


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with one_host_slurm(tmp_path_factory.mktemp("slurm") / "one") as conf:
        yield conf


def engine(**options: object) -> SlurmEngine:
    return SlurmEngine(EngineFlags(engine="slurm", slurm=options))


def queue() -> list[list[str]]:
    """Job and state of all that waits or runs."""
    command = ["squeue", "--noheader", "--array", "--format=%i %T"]
    return [line.split() for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()]


def test_an_array_of_jobs_one_of_which_is_cancelled_by_hand(tmp_path) -> None:
    assert run(tmp_path / "apart", *LONG) == 0
    seen, cancelled = set[str](), list[str]()

    def looked(cells) -> None:
        now = queue()
        seen.update(name for name, _ in now)
        assert sum(state == "RUNNING" for _, state in now) <= 2
        for cell in cells:
            if cell.job.name == "cancelled" and updates(cell.job.run) > 10 and not cancelled:
                cancelled.append(cell.submitted.job_id)
                subprocess.run(["scancel", cancelled[0]], check=True)

    lost = []
    jobs = [job(tmp_path, name, *LONG) for name in ("cancelled", "second", "third")]
    ends = run_on(engine(partition="debug"), tmp_path, jobs, 2, looked, lambda end, _: lost.append(end.unseen))
    assert {name: end.status for name, end in ends.items()} == {"cancelled": 0, "second": 0, "third": 0}
    # a job that SLURM cancels has the state CANCELLED, and its array is 0, 1 and 2
    assert lost == ["its job is CANCELLED"] and {name.rpartition("_")[2] for name in seen} >= {"0", "1", "2"}
    for name in ends:
        assert_equal_runs(tmp_path / name, tmp_path / "apart")
    assert not (tmp_path / ATTEMPTS).exists() and not queue()


def test_at_its_time_limit_a_job_saves_the_run_and_goes_back_to_the_queue(tmp_path) -> None:
    asked = []

    def saved() -> list[int]:
        log = tmp_path / "logs" / "long.log"
        return [int(step) for step in re.findall(r"saved at step (\d+)", log.read_text() if log.exists() else "")]

    def looked(cells) -> None:
        for name, state in queue():
            if state == "PENDING":
                # a job that was put back is held for two minutes
                subprocess.run(["scontrol", "update", f"JobId={name}", "StartTime=now"], capture_output=True)
        if saved() and updates(tmp_path / "long") > saved()[0] + 5 and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGINT))

    flags = ("--epochs=100000", "--evaluate=false")
    ends = run_on(engine(timeout_min=2, signal_delay_s=60), tmp_path, [job(tmp_path, "long", *flags)], 1, looked)
    assert ends["long"].status == 128 + signal.SIGTERM
    # at the limit, and at Ctrl-C
    assert len(saved()) == 2 and 0 < saved()[0] < saved()[1]


def test_an_interrupt_saves_what_runs_and_takes_the_rest_from_the_queue(tmp_path) -> None:
    asked = []

    def looked(cells) -> None:
        if any(updates(cell.job.run) > 10 for cell in cells) and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGINT))

    jobs = [job(tmp_path, name, "--epochs=100000") for name in ("runs", "waits")]
    ends = run_on(engine(), tmp_path, jobs, 1, looked)
    assert {name: end.status for name, end in ends.items()} == dict.fromkeys(("runs", "waits"), 128 + signal.SIGTERM)
    assert "saved at step" in (tmp_path / "logs" / "runs.log").read_text()
    assert not (tmp_path / "waits").exists() and not queue()


def test_what_slurm_refuses_is_one_line(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"--engine slurm: the jobs were refused: .*invalid partition"):
        run_on(engine(partition="nowhere"), tmp_path, [job(tmp_path, "x"), job(tmp_path, "y")], 2)
    assert not list((tmp_path / ATTEMPTS).glob("*.json"))
