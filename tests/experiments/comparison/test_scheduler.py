"""Real workers, on runs of seconds."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from astra_gym.experiments.comparison.scheduler import Locked, locked
from astra_gym.experiments.engines.base import Ended, EngineFlags
from astra_gym.experiments.engines.local import LocalEngine
from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.runs.run_folder import DIGEST, RunFolder
from astra_gym.ssl_core.evaluation.results import read_results
from astra_gym.ssl_core.utils.provenance import ROOT
from tests.helpers.cells import job, run_on
from tests.helpers.tiny_training import assert_equal_runs

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
HOLD = """
import pathlib, sys
from astra_gym.experiments.comparison.scheduler import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def run(folder: Path, *more: Any, **others: Any) -> dict[str, Ended]:
    return run_on(LocalEngine(EngineFlags()), folder, *more, **others)


@pytest.mark.every_agent
def test_a_worker_makes_bit_for_bit_the_run_of_a_process_of_its_own(tmp_path, monkeypatch) -> None:
    """With an agent that draws from the global generators, the figures, and what it prints in its log."""
    monkeypatch.chdir(tmp_path)
    flags = ["--agent=ppo", "--seed=5", "--progress=lines"]
    assert run(tmp_path, [job(Path(), "forked", *flags)])["forked"].status == 0
    log = (tmp_path / "logs" / "forked.log").read_text()
    assert "epoch 2/2" in log and "RA % at 8/255" in log
    words = shlex.split((tmp_path / "forked" / "command.txt").read_text())
    assert Path(words[0]) == ROOT / "experiments" / "train_agent.py"
    # the command in command.txt is one that can be run
    again = [word.replace("forked", "separate") for word in words]
    subprocess.run([sys.executable, *again], env=ENVIRONMENT, cwd=tmp_path, check=True, capture_output=True)
    one, other = RunFolder.open(tmp_path / "forked"), RunFolder.open(tmp_path / "separate")
    assert_equal_runs(one.path, other.path)
    assert read_results(one.results / "slf.json") == read_results(other.results / "slf.json")
    for name in ("outcomes.json", "policy.json"):
        assert (one.results / name).read_text() == (other.results / name).read_text()
    [start], [apart] = one.environments(), other.environments()
    assert start.pop(DIGEST) != apart.pop(DIGEST)
    assert start == apart and start["threads"] == 1
    for picture in other.figures.iterdir():
        assert (one.figures / picture.name).read_bytes() == picture.read_bytes()


@pytest.mark.slow
def test_a_worker_that_is_killed_or_fails_is_told_and_the_others_go_on(tmp_path) -> None:
    killed = []

    def looked(workers) -> None:
        for worker in workers:
            if worker.job.name == "long" and (tmp_path / "long" / "config.yaml").exists() and not killed:
                killed.append(worker.process.pid)
                os.kill(worker.process.pid, signal.SIGKILL)

    jobs = [job(tmp_path, "long", "--epochs=500"), job(tmp_path, "wrong", "--batch_size=27")]
    ends = run(tmp_path, [*jobs, job(tmp_path, "short", "--epochs=1", "--evaluate=false")], looked=looked)
    assert killed and [ends[name].status for name in ("long", "wrong", "short")] == [-signal.SIGKILL, 2, 0]
    assert "ended with status 2: train_agent.py: error: " in ends["wrong"].reason and "27" in ends["wrong"].reason
    assert ends["long"].reason.startswith("killed by SIGKILL (the system kills")


@pytest.mark.slow
def test_an_interrupt_asks_the_workers_to_save_and_begins_no_other(tmp_path) -> None:
    def looked(workers) -> None:
        path = tmp_path / "long" / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") > 2:
            looked.asked = looked.asked or os.kill(os.getpid(), signal.SIGINT) is None

    looked.asked = False
    ends = run(tmp_path, [job(tmp_path, "long", "--epochs=500"), job(tmp_path, "never")], looked=looked)
    assert [(name, end.status) for name, end in ends.items()] == [("long", 128 + signal.SIGTERM)]
    assert "saved at step" in (tmp_path / "logs" / "long.log").read_text()
    assert read_metrics(tmp_path / "long" / "metrics.jsonl")


@pytest.mark.slow
def test_a_second_interrupt_kills_them(tmp_path) -> None:
    pids: list[int] = []

    def looked(workers) -> None:
        if (tmp_path / "long" / "config.yaml").exists():
            pids[:] = [worker.process.pid for worker in workers]
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [job(tmp_path, "long", "--epochs=500")], looked=looked)
    assert len(pids) == 1 and not is_alive(pids[0])


def is_alive(pid: int) -> bool:
    try:
        # a zombie that its parent has not waited for is dead
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_a_folder_is_run_by_one_process_at_a_time(tmp_path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(Locked, match=rf"is being run by another process \(process {process.pid} on "), locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    with locked(tmp_path):
        pass


def test_nobody_begins_while_workers_of_a_killed_process_still_end(tmp_path, monkeypatch) -> None:
    import fcntl

    monkeypatch.setattr("astra_gym.experiments.comparison.scheduler.PATIENCE", 0.3)
    with locked(tmp_path) as lock:
        pass
    with lock.workers.open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        with pytest.raises(Locked, match="workers of an earlier process"), locked(tmp_path):
            pass
    began = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - began < 30
