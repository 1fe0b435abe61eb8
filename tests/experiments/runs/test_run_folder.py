"""The run folder, metrics and TensorBoard's curves, also after a run was killed and resumed."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import FormatUnsupportedError, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from astra_gym.envs.records import StepRecord
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.metrics import metrics_of, read_metrics
from astra_gym.experiments.runs.run_folder import RunFolder, RunLog, image_grid
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.utils.provenance import ROOT

ARGV = ["experiments/train_agent.py", "--run_dir", "a folder"]


def record(step: int, n: int = 6, attacked: bool = True) -> StepRecord:
    """A target update made from its number alone."""
    generator = torch.Generator().manual_seed(step)
    views = torch.rand(n, 3, 8, 8, generator=generator)
    budget = Budget(
        epsilon=torch.randint(3, 16, (n,), generator=generator) / 255,
        step_size=torch.randint(1, 6, (n,), generator=generator) / 255,
        steps=torch.randint(3, 15, (n,), generator=generator),
    )
    terms = {name: torch.rand(n, generator=generator) for name in ("adversarial", "clean")}
    return StepRecord(
        step=step,
        epoch=step / 4,
        reward=terms["adversarial"] - terms["clean"] if attacked else torch.zeros(0),
        terms=terms if attacked else {},
        budget=budget if attacked else None,
        strength=budget.epsilon if attacked else torch.zeros(0),
        losses={"clean": 2.5, "total": 5.0 / step},
        lr=0.1,
        views=views,
        adversarial=(views + 8 / 255).clamp(0, 1) if attacked else None,
        end_of_epoch=step % 4 == 0,
    )


def new_folder(path: Path) -> RunFolder:
    return RunFolder.create(path, Settings(device="cpu", precision="fp32"), ARGV)


def write(log: RunLog, steps: Iterable[int]) -> None:
    """What a run with an SB3 agent writes: every update, the agent's figures every third, images every fourth."""
    agent = Logger(folder=None, output_formats=[log.agent_writer(lambda timesteps: timesteps // 6)])
    for step in steps:
        update = record(step)
        log.step(update)
        if step % 4 == 0:
            log.images(update)
        if step % 3 == 0:
            agent.record("train/entropy", 1 / step)
            agent.record("train/explained_variance", float("nan"))
            agent.record("time/fps", os.getpid())
            agent.dump(6 * step)


def curves(path: Path) -> dict[str, Any]:
    """All that TensorBoard would show but for wall-clock and memory figures."""
    events = EventAccumulator(str(path), size_guidance=dict.fromkeys(("scalars", "histograms", "images"), 0))
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [(e.step, repr(e.value)) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    histograms = {tag: [(e.step, e.histogram_value) for e in events.Histograms(tag)] for tag in tags["histograms"]}
    images = {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in tags["images"]}
    shown = scalars | {f"{tag}/histogram": values for tag, values in histograms.items()} | images
    return {tag: values for tag, values in shown.items() if not tag.startswith(("time/", "memory/"))}


def test_a_run_folder_says_how_it_was_made(tmp_path: Path) -> None:
    settings = Settings(agent="ppo", device="cpu", precision="fp32", seed=5)
    folder = RunFolder.create(tmp_path / "runs" / "one", settings, ARGV)
    assert folder.settings() == settings
    assert folder.command.read_text() == "experiments/train_agent.py --run_dir 'a folder'\n"
    assert all(part.is_dir() for part in (folder.checkpoints, folder.results, folder.figures))
    [start] = folder.environments()
    assert start["threads"] == torch.get_num_threads()
    assert (start["device"], start["precision"]) == ("cpu", "fp32")
    assert {"commit", "versions"} <= start.keys()
    assert start["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_a_resumed_run_adds_to_it(tmp_path: Path) -> None:
    new_folder(tmp_path / "run")
    again = RunFolder.open(tmp_path / "run")
    again.note_resume(Settings(device="cpu", precision="bf16"), ["train_agent.py", "--resume", "run"])
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


def test_only_a_run_folder_can_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="is not a run folder"):
            RunFolder.open(path)


def test_a_row_holds_the_updates_means_and_counts() -> None:
    update = record(3)
    assert update.budget is not None
    row = metrics_of(update)
    assert (row["step"], row["epoch"], row["lr"], row["loss/total"]) == (3, 0.75, 0.1, 5 / 3)
    assert row["reward/mean"] == pytest.approx(np.mean(update.reward.numpy()), rel=1e-6)
    assert row["reward/std"] == pytest.approx(np.std(update.reward.numpy()), rel=1e-6)
    assert row["reward/adversarial"] == pytest.approx(update.terms["adversarial"].mean().item(), rel=1e-6)
    assert row["budget/epsilon"] == pytest.approx(255 * update.budget.epsilon.mean().item(), rel=1e-6)
    assert row["budget/strength"] == row["budget/epsilon"]
    for name, unit in (("epsilon", 255), ("steps", 1), ("step_size", 255)):
        values = [round(unit * value) for value in getattr(update.budget, name).tolist()]
        assert row[f"actions/{name}"] == {str(value): values.count(value) for value in sorted(set(values))}


def test_a_method_without_an_attack_has_rows_too(tmp_path: Path) -> None:
    update = record(10, attacked=False)
    assert metrics_of(update).keys() == {"step", "epoch", "lr", "loss/clean", "loss/total"}
    with RunLog(new_folder(tmp_path / "run"), 3) as log:
        log.step(update)
        log.images(update)
    assert curves(tmp_path / "run").keys() == {"epoch", "lr", "loss/clean", "loss/total"}


def test_metrics_and_curves_say_the_same(tmp_path: Path) -> None:
    with RunLog(new_folder(tmp_path / "run"), 3) as log:
        write(log, range(1, 13))
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    shown = curves(tmp_path / "run")
    for tag in ("loss/total", "reward/mean", "budget/steps", "agent/train/entropy"):
        expected = [(row["step"], repr(float(np.float32(row[tag])))) for row in rows if tag in row]
        assert shown[tag] == expected
    assert [step for step, _ in shown["actions/epsilon/histogram"]] == [10]
    assert [step for step, _ in shown["attack/clean_attacked_perturbation"]] == [4, 8, 12]
    assert [row["agent/train/explained_variance"] for row in rows if row["step"] % 3 == 0] == [None] * 4
    assert not any("time/" in key for row in rows for key in row)


def test_equal_runs_have_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with RunLog(new_folder(tmp_path / name), 3) as log:
            write(log, range(1, 13))
    assert (tmp_path / "one" / "metrics.jsonl").read_bytes() == (tmp_path / "two" / "metrics.jsonl").read_bytes()
    assert curves(tmp_path / "one") == curves(tmp_path / "two")


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_run_folder import RunFolder, RunLog, write
log = RunLog(RunFolder(Path({path!r})), 3)
write(log, range(1, 9))
log.flush()
write(log, range(9, 12))
log._file.write('{{"step": 12, "epo')
log.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_and_resumed_runs_curves_are_those_of_one_never_interrupted(tmp_path: Path) -> None:
    with RunLog(new_folder(tmp_path / "whole"), 3) as log:
        write(log, range(1, 21))
    folder = new_folder(tmp_path / "killed")
    script = KILLED.format(root=str(ROOT), tests=str(Path(__file__).parent), path=str(folder.path))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert len(read_metrics(folder.path / "metrics.jsonl")) == 11
    with RunLog(folder, 3, resumed_step=8) as log:
        write(log, range(9, 21))
    assert (folder.path / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert curves(folder.path) == curves(tmp_path / "whole")


def test_a_log_that_was_damaged_is_told_and_kept_as_far_as_it_can_be_read(tmp_path: Path) -> None:
    whole = new_folder(tmp_path / "run")
    with RunLog(whole, 3) as log:
        write(log, range(1, 7))
    lines = (whole.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 8  # two of them are the agent's
    damages = {
        "lost": (None, ["lacks 6 of the 6 updates before the checkpoint, the first of them 1"]),
        "cut": ("".join(lines[:5]) + lines[5][:20], ["lacks 2 of the 6 updates before the checkpoint, the first"]),
        "garbage": ("".join([lines[0], "garbage\n", *lines[2:]]), ["line 2 is left out", "lacks 1 of the 6 updates"]),
        "nul": ("\0" * 40 + "\n[]\n" + "".join(lines), ["2 lines, the first of them 1, are left out"]),
        "binary": (b"\xff\xfe\n", ["line 1 is left out", "lacks 6"]),
        "whole": ("".join(lines), []),
    }
    for name, (content, told) in damages.items():
        folder = new_folder(tmp_path / name)
        path = folder.path / "metrics.jsonl"
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        with RunLog(folder, 3, resumed_step=6) as log:
            assert len(log.damages) == len(told), (name, log.damages)
            for damage, part in zip(log.damages, told, strict=True):
                assert str(path) in damage and part in damage and "\n" not in damage
            write(log, range(7, 9))
        assert [row["step"] for row in read_metrics(path)][-2:] == [7, 8]


@pytest.mark.parametrize("back", [0, 30, 3600, 10 * 365 * 86400])
def test_a_clock_that_has_gone_back_does_not_change_the_curves(tmp_path: Path, monkeypatch, back: int) -> None:
    with RunLog(new_folder(tmp_path / "whole"), 3) as log:
        write(log, range(1, 13))
    folder, real, gone = new_folder(tmp_path / "run"), time.time, 0
    monkeypatch.setattr(time, "time", lambda: real() - gone)
    (folder.path / "events.out.tfevents.backup").touch()
    # resumed twice, each time with an earlier clock, after updates that are taken back
    for count, (first, last) in enumerate([(1, 6), (5, 10), (9, 13)]):
        gone = count * back
        with RunLog(folder, 3, resumed_step=first - 1 if count else None) as log:
            write(log, range(first, last))
    monkeypatch.undo()
    (folder.path / "events.out.tfevents.backup").unlink()
    assert curves(folder.path) == curves(tmp_path / "whole")


def test_a_log_that_cannot_be_ended_hides_no_other_error(tmp_path: Path, monkeypatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def close() -> None:
        raise full

    for failed in (None, RuntimeError("the work")):
        with pytest.raises((OSError, RuntimeError)) as caught, RunLog(new_folder(tmp_path / f"{failed}"), 3) as log:
            write(log, range(1, 3))
            board = log._board.close
            monkeypatch.setattr(log._board, "close", close)
            if failed:
                raise failed
        board()
        assert caught.value is (failed or full)
        assert log._file.closed


def test_a_run_killed_before_its_first_update_can_go_on(tmp_path: Path) -> None:
    with RunLog(new_folder(tmp_path / "run"), 3, resumed_step=0) as log:
        write(log, range(1, 4))
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


def test_hparams_belong_to_the_run_itself(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    with RunLog(folder, 3) as log:
        log.hparams(folder.settings(), ["eval/SA", "eval/RA"])
        log.scalars({"eval/SA": 98.5, "eval/RA": 91.0}, 12)
    assert sorted(path.name for path in folder.path.iterdir() if path.is_dir()) == ["checkpoints", "figures", "results"]
    events = EventAccumulator(str(folder.path))
    events.Reload()
    plugin = events.PluginTagToContent(metadata.PLUGIN_NAME)
    start = plugin_data_pb2.HParamsPluginData.FromString(plugin[metadata.SESSION_START_INFO_TAG]).session_start_info
    assert start.hparams["agent"].string_value == "reinforce"
    assert start.hparams["epochs"].number_value == folder.settings().epochs
    described = plugin_data_pb2.HParamsPluginData.FromString(plugin[metadata.EXPERIMENT_TAG]).experiment
    assert [info.name.tag for info in described.metric_infos] == ["eval/SA", "eval/RA"]
    assert [event.value for event in events.Scalars("eval/SA")] == [98.5]


def test_the_agents_logger_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    with RunLog(new_folder(tmp_path / "run"), 3) as log:
        logger = Logger(folder=None, output_formats=[log.agent_writer(lambda timesteps: timesteps)])
        logger.record("train/name", "a string", exclude="tensorboard")
        logger.dump(1)
        logger.record("train/parts", [1, 2])
        with pytest.raises(FormatUnsupportedError):
            logger.dump(1)


def test_the_rate_is_in_tensorboard_only(tmp_path: Path) -> None:
    with RunLog(new_folder(tmp_path / "run"), 3) as log:
        write(log, range(1, 4))
        assert log.images_per_second > 0
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [event.step for event in events.Scalars("time/images_per_second")] == [2, 3]
    assert "time" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_peak_memory_is_told_once_an_epoch_and_in_tensorboard_only(tmp_path: Path) -> None:
    with RunLog(new_folder(tmp_path / "run"), 3) as log:
        write(log, range(1, 10))
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    shown = events.Scalars("memory/peak_resident_bytes")
    assert [event.step for event in shown] == [4, 8] and shown[0].value > 2**20
    assert "memory" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_stretches_of_training_are_kept_with_their_peak(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    folder.note_training(0, 4, 1.26, {"world": 1.0, "agent": 0.251}, {"peak_resident_bytes": 7})
    folder.note_training(4, 9, 2.0, {}, {"peak_gpu_allocated_bytes": 8})
    assert json.loads((folder.results / "training.json").read_text())["stretches"] == [
        {"first": 0, "last": 4, "seconds": 1.3, "world_seconds": 1.0, "agent_seconds": 0.25, "peak_resident_bytes": 7},
        {"first": 4, "last": 9, "seconds": 2.0, "peak_gpu_allocated_bytes": 8},
    ]


def test_rows_are_on_the_disk_at_once(tmp_path: Path) -> None:
    with RunLog(new_folder(tmp_path / "run"), 3) as log:
        row = log.step(record(1))
        assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text()) == row


def test_a_grid_puts_rows_below_each_other() -> None:
    grid = image_grid([torch.zeros(4, 3, 8, 8), torch.full((4, 3, 8, 8), 0.5)], side=16, gap=1)
    assert grid.shape == (3, 2 * 18, 4 * 18)
    assert grid[:, 1:17, 1:17].eq(0).all()
    assert grid[:, 19:35, 1:17].eq(0.5).all()
    assert grid[:, 0].eq(1).all()
