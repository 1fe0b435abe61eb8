"""The evaluation by torchrun: the rows of one process, one voice; a rank that is killed ends the others."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from astra_gym.experiments.evaluate_encoder import main
from astra_gym.ssl_core.distributed.ranks import STARTED, TIMEOUT
from astra_gym.ssl_core.evaluation.results import Row, read_results
from tests.helpers.on_ranks import LONGEST, ROOT, ended, ranks_of, started
from tests.helpers.tiny_training import run

SCRIPT = ROOT / "experiments" / "evaluate_encoder.py"
FLAGS = ("--protocols=slf", "--attacks", "fgsm", "pgd20", "--epsilons=8/255", "--epochs=1", "--shifts=corruptions")


def rows_of(folder: Path) -> list[Row]:
    return [replace(row, seconds=None) for row in read_results(folder / "evaluation.json")]


@pytest.mark.every_agent
def test_an_evaluation_by_torchrun_is_that_of_one_process(tmp_path: Path) -> None:
    assert run(tmp_path / "run", "--epochs=1", "--evaluate=false", "--progress=off") == 0
    words = (str(tmp_path / "run"), *FLAGS, "--severities=3")
    assert main([*words, f"--out={tmp_path / 'one'}", "--progress=off"]) == 0
    with started(SCRIPT, *words, f"--out={tmp_path / 'two'}") as process:
        status, output = ended(process)
    assert status == 0 and output.count("results lie in") == 1, output
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two") and len(rows_of(tmp_path / "two")) > 15


@pytest.mark.every_agent
def test_a_wrong_flag_is_told_once() -> None:
    with started(SCRIPT, "runs/NAME", "--epsilon=3") as process:
        status, output = ended(process)
    assert status == 1 and output.count("evaluate_encoder.py: error") == 1 and "unknown flag" in output, output


def test_a_limit_that_is_no_number_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in zip((*STARTED, TIMEOUT), ("0", "2", "127.0.0.1", "1", "soon"), strict=True):
        monkeypatch.setenv(name, value)
    assert main(["runs/NAME"]) == 2
    assert "expected a positive number of seconds, not 'soon'" in capsys.readouterr().err


@pytest.mark.every_agent
def test_a_killed_rank_ends_the_evaluation_which_goes_on_in_one_process(tmp_path: Path) -> None:
    assert run(tmp_path / "run", "--epochs=1", "--evaluate=false", "--progress=off", "--test_limit=200") == 0
    words = (
        str(tmp_path / "run"),
        "--protocols=slf",
        "--attacks=autoattack",
        "--epochs=1",
        f"--out={tmp_path / 'out'}",
    )
    with started(SCRIPT, *words) as process:
        until = time.monotonic() + LONGEST
        while not list((tmp_path / "out" / "states").rglob("*.json")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        status, output = ended(process)
    assert status == 1 and "resume by" in output, output
    assert main([*words, "--progress=off"]) == 0
