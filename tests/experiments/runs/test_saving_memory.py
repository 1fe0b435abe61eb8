"""Runs that save memory, on the command line: exact on resume, labeled, and refused in one line where they must be."""

import json
import re
from pathlib import Path

import pytest
import torch

from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.models.checkpoint import load_network

TINY = (
    *("--limit=26", "--test_limit=30", "--batch_size=4", "--image_size=8", "--width=2", "--projector_hidden=8"),
    *("--projector_dim=8", "--epochs=2", "--warmup_epochs=0", "--agent=fixed", "--evaluate=false"),
)
"""12 updates in all."""


def run(folder: Path, *flags: str) -> int:
    return main([*TINY, f"--run_dir={folder}", *flags])


def assert_equal_runs(a: Path, b: Path) -> None:
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    one, other = (load_network(folder)[0].state_dict() for folder in (a, b))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("recompute", ["true", pytest.param("false", marks=pytest.mark.every_agent)])
def test_in_chunks_interrupted_and_resumed_equals_uninterrupted(tmp_path, interrupt, capsys, recompute) -> None:
    flags = ["--update_chunks=2", f"--recompute={recompute}"]
    assert run(tmp_path / "straight", *flags) == 0
    assert "12 updates to make in 2 chunks each (ghost batch norm), into" in capsys.readouterr().out
    interrupt(step=3)
    assert run(tmp_path / "resumed", *flags) == 130
    assert main(["--resume", str(tmp_path / "resumed")]) == 0
    assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")


@pytest.mark.every_agent
def test_recomputation_may_begin_and_end_on_resume_and_changes_nothing(tmp_path, interrupt, capsys) -> None:
    assert run(tmp_path / "straight") == 0
    resumed = tmp_path / "resumed"
    interrupt(step=3)
    assert run(resumed) == 130
    interrupt(step=6)
    assert main(["--resume", str(resumed), "--recompute=true"]) == 130
    assert main(["--resume", str(resumed)]) == 0
    assert "not bit for bit" not in capsys.readouterr().out
    assert_equal_runs(tmp_path / "straight", resumed)


def test_a_run_reports_its_peak_memory(tmp_path, interrupt, capsys) -> None:
    folder = tmp_path / "run"
    interrupt(step=3)
    assert run(folder, "--device=cpu") == 130
    assert main(["--resume", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "chunks" not in shown
    assert len(re.findall(r"trained \d+ updates in \d+ s, peak resident set \d+ MiB", shown)) == 2
    stretches = json.loads((folder / "results" / "training.json").read_text())["stretches"]
    assert 0 < stretches[0]["peak_resident_bytes"] <= stretches[1]["peak_resident_bytes"]


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What a command line is refused with, which must be one line."""
    capsys.readouterr()
    try:
        status = main(list(flags))
    except SystemExit as end:
        status = end.code
    line = capsys.readouterr().err
    assert status == 2 and len(line.strip().splitlines()) == 1, line
    return line


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--update_chunks=5", "update_chunks is 5: more than the batch's 4 images"),
        ("--update_chunks=3", "update_chunks is 3: .* at most 2"),
        ("--update_chunks=0", "update_chunks is 0: expected 1, .* or more"),
        ("--update_chunks=half", "--update_chunks: expected an integer, got 'half'"),
        ("--recompute=perhaps", "--recompute: expected true or false, got 'perhaps'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flag: str, message: str) -> None:
    line = refused(capsys, *TINY, f"--run_dir={tmp_path / 'run'}", flag)
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_the_number_of_chunks_may_not_change_on_resume(tmp_path, capsys) -> None:
    assert run(tmp_path / "run", "--epochs=1") == 0
    line = refused(capsys, "--resume", str(tmp_path / "run"), "--update_chunks=2")
    assert "--update_chunks 2 (it has 1)" in line
