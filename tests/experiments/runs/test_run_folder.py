"""The run folder."""

import errno
import json
from pathlib import Path

import pytest
import torch

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.run_folder import RunFolder, unwritable
from astra_gym.experiments.runs.run_log import RunLog
from tests.helpers.logged_runs import ARGV, new_folder


def test_a_run_folder_says_how_it_was_made(tmp_path: Path) -> None:
    settings = Settings.of(agent="ppo", device="cpu", precision="fp32", seed=5)
    folder = RunFolder.create(tmp_path / "runs" / "one", settings, ARGV)
    assert folder.settings() == settings
    assert folder.command.read_text() == "experiments/train_agent.py --run_dir 'a folder'\n"
    assert all(part.is_dir() for part in (folder.checkpoints, folder.results, folder.figures))
    [start] = folder.environments()
    assert start["threads"] == torch.get_num_threads()
    assert (start["device"], start["precision"], start["tf32"]) == ("cpu", "fp32", False)
    assert {"commit", "versions"} <= start.keys()
    assert start["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_a_resumed_run_adds_to_it(tmp_path: Path) -> None:
    new_folder(tmp_path / "run")
    again = RunFolder.open(tmp_path / "run")
    again.note_resume(Settings.of(device="cpu", precision="bf16"), ["train_agent.py", "--resume", "run"])
    assert again.command.read_text().splitlines()[1] == "train_agent.py --resume run"
    assert [start["precision"] for start in again.environments()] == ["fp32", "bf16"]


@pytest.mark.parametrize(
    "name", ["checkpoints", "results", "figures", "command.txt", "environment.json", "metrics.jsonl"]
)
def test_what_leads_out_of_the_folder_is_not_written(tmp_path: Path, name: str) -> None:
    folder = new_folder(tmp_path / "run")
    victim = tmp_path / "victim"
    if (folder.path / name).is_dir():
        (folder.path / name).rename(victim)
    else:
        victim.write_text(json.dumps({"starts": []}) if name == "environment.json" else "")
        (folder.path / name).unlink(missing_ok=True)
    before = victim.stat().st_mtime_ns
    (folder.path / name).symlink_to(victim)
    with pytest.raises(ValueError, match=f"{name} is a symbolic link"):
        folder.note_resume(folder.settings(), ARGV)
        RunLog(folder, 6, resumed_step=0).close()
    assert victim.stat().st_mtime_ns == before and (folder.path / name).is_symlink()


def test_a_run_folder_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    new_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"exists and is not empty: go on with it by --resume .*or choose another"):
        new_folder(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="exists and is not empty: choose another --run_dir"):
        new_folder(tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=f"cannot write the run folder {path}.*: choose another --run_dir"):
            new_folder(path)


def test_a_file_that_keeps_a_folder_from_being_written_is_named() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "run/command.txt")
    assert str(unwritable(Path("run"), error)).startswith(
        "cannot write the run folder run (run/command.txt: Permission denied)"
    )


def test_only_a_run_folder_can_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="is not a run folder"):
            RunFolder.open(path)


def test_stretches_of_training_are_kept_with_their_peak(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    folder.note_training(0, 4, 1.26, {"world": 1.0, "agent": 0.251}, {"peak_resident_bytes": 7})
    folder.note_training(4, 9, 2.0, {}, {"peak_gpu_allocated_bytes": 8})
    assert json.loads((folder.results / "training.json").read_text())["stretches"] == [
        {"first": 0, "last": 4, "seconds": 1.3, "world_seconds": 1.0, "agent_seconds": 0.25, "peak_resident_bytes": 7},
        {"first": 4, "last": 9, "seconds": 2.0, "peak_gpu_allocated_bytes": 8},
    ]
