"""Metrics and TensorBoard's curves, also after a run was killed and resumed."""

import errno
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import FormatUnsupportedError, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.records import in_255
from astra_gym.envs.torch_env import TorchViewEnv
from astra_gym.envs.world_config import WorldSettings
from astra_gym.experiments.runs.metrics import metrics_of, read_metrics
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.runs.run_log import LAYOUT, RunLog, image_grid
from astra_gym.ssl_core.settings import renamed
from astra_gym.ssl_core.utils.provenance import ROOT
from tests.helpers.logged_runs import curves, new_folder, record, write
from tests.helpers.sealed import resealed_rows
from tests.helpers.tiny_worlds import TINY


def test_a_row_holds_the_updates_means_and_counts() -> None:
    update = record(3)
    assert update.budget is not None
    row = metrics_of(update)
    assert (row["step"], row["epoch"], row["lr"], row["loss/total"]) == (3, 0.75, 0.1, 5 / 3)
    assert row["reward/mean"] == pytest.approx(np.mean(update.reward.numpy()), rel=1e-6)
    assert row["reward/std"] == pytest.approx(np.std(update.reward.numpy()), rel=1e-6)
    assert row["reward/adversarial"] == pytest.approx(update.terms["adversarial"].mean().item(), rel=1e-6)
    assert row["budget/epsilon_255"] == pytest.approx(255 * update.budget.epsilon.mean().item(), rel=1e-6)
    assert row["budget/strength_255"] == row["budget/epsilon_255"]
    for name, unit in (("epsilon", 255), ("steps", 1), ("step_size", 255)):
        values = [round(unit * value) for value in getattr(update.budget, name).tolist()]
        assert row[f"actions/{in_255(name)}"] == {str(value): values.count(value) for value in sorted(set(values))}


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
    assert [step for step, _ in shown["actions/epsilon_255/histogram"]] == [10]
    assert [step for step, _ in shown["attack/clean_attacked_perturbation"]] == [4, 8, 12]
    assert [row["agent/train/explained_variance"] for row in rows if row["step"] % 3 == 0] == [None] * 4
    assert not any("time/" in key for row in rows for key in row)


def test_info_rows_and_curves_name_a_step_alike(tmp_path: Path) -> None:
    """But for what the documentation says: a row is of means, and its unit is 1/255 where the name ends so."""
    env = TorchViewEnv(AttackEngine(WorldSettings.of(**TINY, reward_lookahead=1.0, lookahead_images=4), 0))
    env.request("attack/gain")
    info = env.play(torch.tensor([[3, 1, 1]] * env.num_envs)).info
    assert env.engine.last is not None
    with RunLog(new_folder(tmp_path / "run"), 4, histograms_every=1) as log:
        row = log.step(env.engine.last)
    assert info.pop("attack/gain").shape == (env.num_envs,)
    expected = {}
    for name, value in info.items():
        mean = value.double().mean().item() if isinstance(value, torch.Tensor) else value
        fraction = name in ("budget/epsilon", "budget/step_size", "budget/strength")
        expected |= {f"{name}_255": 255 * mean} if fraction else {name: mean}
    parts = ("epsilon_255", "steps", "step_size_255")
    summaries = {f"{group}/{part}" for group in ("actions", "by_clean_loss") for part in parts}
    assert row.keys() == expected.keys() | {"reward/mean", "reward/std"} | summaries
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert {"step", "epoch", "lr", "loss/total", "attack/other_steps", "reward/clean", "budget/steps"} <= info.keys()
    numbers = {name for name, value in row.items() if isinstance(value, float)}
    assert curves(tmp_path / "run").keys() == numbers | {f"actions/{part}/histogram" for part in parts}


def test_a_run_of_an_earlier_version_goes_on_under_the_present_names(tmp_path: Path) -> None:
    for name in ("whole", "run"):
        with RunLog(new_folder(tmp_path / name), 3) as log:
            write(log, range(1, 9 if name == "whole" else 5))
    path, whole = tmp_path / "run" / "metrics.jsonl", tmp_path / "whole" / "metrics.jsonl"
    earlier = {now: before for before, now in renamed.METRICS.items()}
    resealed_rows(path, lambda rows: [{earlier.get(name, name): row[name] for name in row} for row in rows])
    assert b'"budget/epsilon"' in path.read_bytes() and b"_255" not in path.read_bytes()
    assert read_metrics(path) == read_metrics(whole)[:4]
    with RunLog(RunFolder.open(tmp_path / "run"), 3, resumed_step=4) as log:
        write(log, range(5, 9))
    assert path.read_bytes() == whole.read_bytes()


def test_equal_runs_have_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with RunLog(new_folder(tmp_path / name), 3) as log:
            write(log, range(1, 13))
    assert (tmp_path / "one" / "metrics.jsonl").read_bytes() == (tmp_path / "two" / "metrics.jsonl").read_bytes()
    assert curves(tmp_path / "one") == curves(tmp_path / "two")


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}]
from pathlib import Path
from tests.helpers.logged_runs import RunFolder, RunLog, write
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
    script = KILLED.format(root=str(ROOT), path=str(folder.path))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert len(read_metrics(folder.path / "metrics.jsonl")) == 11
    with RunLog(folder, 3, resumed_step=8) as log:
        write(log, range(9, 21))
    assert (folder.path / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert curves(folder.path) == curves(tmp_path / "whole")


def test_a_log_that_was_damaged_is_reported_and_kept_as_far_as_it_can_be_read(tmp_path: Path) -> None:
    whole = new_folder(tmp_path / "run")
    with RunLog(whole, 3) as log:
        write(log, range(1, 7))
    lines = (whole.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 8  # two of them are the agent's
    damages = {
        "lost": (None, ["metrics.jsonl is missing"]),
        "cut": ("".join(lines[:5]) + lines[5][:20], ["metrics.jsonl lacks 2 of 6 updates: 5, 6"]),
        "garbage": (
            "".join([lines[0], "garbage\n", *lines[2:]]),
            ["metrics.jsonl, line 2: damaged", "metrics.jsonl lacks 1 of 6 updates: 2"],
        ),
        "nul": ("\0" * 40 + "\n[]\n" + "".join(lines), ["metrics.jsonl, line 1, 2: damaged"]),
        "binary": (
            b"\xff\xfe\n",
            ["metrics.jsonl, line 1: damaged", "metrics.jsonl lacks 6 of 6 updates: 1, 2"],
        ),
        "whole": ("".join(lines), []),
    }
    for name, (content, reported) in damages.items():
        folder = new_folder(tmp_path / name)
        path = folder.path / "metrics.jsonl"
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        with RunLog(folder, 3, resumed_step=6) as log:
            assert len(log.damage) == len(reported), (name, log.damage)
            for damage, part in zip(log.damage, reported, strict=True):
                assert damage.startswith(part) and "\n" not in damage
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


def test_metrics_that_end_before_the_checkpoint_are_reported(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    with RunLog(folder, 3) as log:
        write(log, range(1, 5))
    with RunLog(folder, 3, resumed_step=6) as log:
        assert log.damage == ["metrics.jsonl lacks 2 of 6 updates: 5, 6"]
        write(log, range(7, 8))
    assert [row["step"] for row in read_metrics(folder.path / "metrics.jsonl")] == [1, 2, 3, 4, 7]


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
    assert start.hparams["epochs"].number_value == folder.settings().optimizer.epochs
    described = plugin_data_pb2.HParamsPluginData.FromString(plugin[metadata.EXPERIMENT_TAG]).experiment
    final = [f"final/RA_{epsilon}_255" for epsilon in (2, 4, 8, 12, 16)]
    assert [info.name.tag for info in described.metric_infos] == ["final/SA", *final, "eval/SA", "eval/RA"]
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


def test_rows_are_on_the_disk_at_once(tmp_path: Path) -> None:
    with RunLog(new_folder(tmp_path / "run"), 3) as log:
        row = log.step(record(1))
        assert read_metrics(tmp_path / "run" / "metrics.jsonl") == [row]


def test_a_grid_puts_rows_below_each_other() -> None:
    grid = image_grid([torch.zeros(4, 3, 8, 8), torch.full((4, 3, 8, 8), 0.5)], side=16, gap=1)
    assert grid.shape == (3, 2 * 18, 4 * 18)
    assert grid[:, 1:17, 1:17].eq(0).all()
    assert grid[:, 19:35, 1:17].eq(0.5).all()
    assert grid[:, 0].eq(1).all()


def test_every_card_shows_something_that_a_run_writes(tmp_path: Path) -> None:
    row = metrics_of(record(1))
    names = [*row, "accuracy/SA", "accuracy/RA_8_255", "accuracy/SA_fitted", "time/images_per_second", "memory/process"]
    for cards in LAYOUT.values():
        for _, patterns in cards.values():
            assert all(any(re.match(pattern, name) for name in names) for pattern in patterns)
