"""The main command by torchrun: one voice, one folder, stops, kills, restarts, resumes on fewer ranks."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.train_agent import main
from tests.helpers.on_ranks import LONGEST, ended, ranks_of, started
from tests.helpers.tiny_training import SCRIPT, TINY, assert_equal_runs


@contextmanager
def torchrun(*flags: str, options: tuple[str, ...] = (), world: tuple[str, ...] = TINY) -> Iterator[subprocess.Popen]:
    with started(SCRIPT, *world, "--evaluate=false", *flags, options=options) as process:
        yield process


def await_update(folder: Path, update: int, process: subprocess.Popen) -> None:
    until = time.monotonic() + LONGEST
    file = folder / "metrics.jsonl"
    while not file.exists() or max([row["step"] for row in read_metrics(file)], default=0) < update:
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_one_process_goes_on(tmp_path: Path, interrupt, capsys) -> None:
    folder = tmp_path / "run"
    with torchrun("--method=acl", f"--run_dir={folder}", "--epochs=40") as process:
        await_update(folder, 2, process)
        os.kill(ranks_of(process)[1], signal.SIGTERM)
        status, output = ended(process)
    assert status == 1 and output.count("SIGTERM: saved at step") == 1 and output.count("updates to make") == 1, output
    steps = len({row["step"] for row in read_metrics(folder / "metrics.jsonl")})
    assert f"saved at step {steps} of 240" in output
    interrupt(steps + 1)
    assert main([f"--resume={folder}"]) == 130
    output = capsys.readouterr().out
    assert "ranks was 2 and is 1" in output and "SIGINT: saved at step" in output, output


@pytest.mark.every_agent
def test_what_ranks_cannot_do_is_refused_by_name_and_once(tmp_path: Path) -> None:
    with torchrun(f"--run_dir={tmp_path / 'run'}", "--compile_blocks=true") as process:
        status, output = ended(process)
    lines = [line for line in output.splitlines() if "train_agent.py: error" in line]
    assert status == 1 and len(lines) == 1 and "compile_blocks is for one process" in lines[0], output
    assert not (tmp_path / "run").exists()


@pytest.mark.every_agent
def test_a_folder_in_use_is_all_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("not a run")
    with torchrun(f"--run_dir={tmp_path}") as process:
        status, output = ended(process)
    # the other rank is ended by torchrun's signal, which is no news
    assert status == 1 and output.count("train_agent.py: error") == 1 and "is not empty" in output, output


@pytest.mark.every_agent
def test_a_rank_that_leaves_the_evaluation_at_the_end_leaves_word_what_to_do(tmp_path: Path) -> None:
    words = (*TINY, f"--run_dir={tmp_path / 'run'}", "--probe_epochs=2000", "--method=acl")
    with started(SCRIPT, *words) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("linear probe on"):
            assert process.poll() is None
        os.kill(ranks_of(process)[1], signal.SIGTERM)
        status, output = ended(process)
    assert status == 1 and output.count("training is done and saved: evaluate it by") == 1, output


@pytest.mark.every_agent
def test_a_killed_rank_ends_the_others_and_a_restart_goes_on(tmp_path: Path) -> None:
    killed_and_restarted(tmp_path, kills=1, epochs=3)


def killed_and_restarted(tmp_path: Path, kills: int, epochs: int) -> None:
    draw = random.Random(kills)
    world = (*TINY, f"--epochs={epochs}", "--method=acl", "--probe_every=0")
    folder = tmp_path / "killed"
    with torchrun(f"--run_dir={folder}", options=(f"--max_restarts={kills}",), world=world) as process:
        last = 0
        for _ in range(kills):
            last = min(last + draw.randint(1, 7), 6 * epochs - 2)
            await_update(folder, last, process)
            before = ranks_of(process)
            os.kill(draw.choice(before), signal.SIGKILL)
            until = time.monotonic() + LONGEST
            while set(ranks_of(process)) & set(before):
                assert time.monotonic() < until, "the killed rank's group hangs"
                time.sleep(0.2)
        status, output = ended(process)
    assert status == 0, output
    whole = tmp_path / "whole"
    with torchrun(f"--run_dir={whole}", world=world) as process:
        assert ended(process)[0] == 0
    assert_equal_runs(folder, whole)


@pytest.mark.every_agent
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    killed_and_restarted(tmp_path, kills=20, epochs=12)


def test_other_commands_are_not_divided(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from astra_gym.experiments import report

    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert report.main(["somewhere"]) == 2
    assert "only train and evaluate divide their work" in capsys.readouterr().err
