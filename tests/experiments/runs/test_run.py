"""A run's plan: whoever chooses the attacks, the planned target updates are made, no fewer and no more."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from astra_gym.envs.engine import AttackEngine
from astra_gym.experiments.config.cli import load
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.distributed.ranks import Ranks
from astra_gym.ssl_core.models.checkpoint import encoder_name, kept_encoders, load_checkpoint, load_network
from tests.helpers.tiny_training import TINY, TINY_SETTINGS, assert_equal_runs, call, expect_error

SOURCE = """
import numpy as np
from stable_baselines3 import PPO

class Lazy(PPO):
    def learn(self, total_timesteps, **arguments):
        return super().learn(total_timesteps // 2, **arguments)

class Eager(PPO):
    def learn(self, total_timesteps, **arguments):
        super().learn(total_timesteps, **arguments)
        self.env.step(np.stack([self.action_space.sample() for _ in range(self.n_envs)]))
        return self

class Own(PPO):
    pass
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's module in the current directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_agents_here.py").write_text(SOURCE)
    yield "own_agents_here"
    sys.modules.pop("own_agents_here", None)


def step_of(folder: Path) -> int:
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["step"]


@pytest.mark.parametrize(("name", "made", "resumed"), [("Lazy", 6, 9), ("Eager", 13, 13)])
def test_an_agent_that_leaves_the_plan_fails_and_what_is_trained_is_saved(
    mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, made: int, resumed: int
) -> None:
    folder = tmp_path / "run"
    flags = [*TINY, f"--run_dir={folder}", f"--agent={mine}:{name}", "--agent_kwargs.n_steps=1"]
    # the play that Eager makes by itself is in no row, which a resume would find first
    for argv, step in ((flags, made), (["--resume", str(folder), "--trust"], resumed))[: 1 if name == "Eager" else 2]:
        assert main(argv) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert f"the agent {mine}:{name} made {step} of 12 planned updates" in line and f"saved in {folder}" in line
        assert step_of(folder) == step
    assert not (folder / "results" / "slf.json").exists()


def test_an_interrupted_agent_has_not_left_the_plan(mine: str, tmp_path: Path, interrupt, capsys) -> None:
    interrupt(step=3)
    flags = [f"--run_dir={tmp_path / 'run'}", f"--agent={mine}:Lazy", "--agent_kwargs.n_steps=1"]
    assert main([*TINY, *flags]) == 130
    assert step_of(tmp_path / "run") < 12
    out, err = capsys.readouterr()
    # its module is imported only if it is named again
    assert "planned updates:" not in err and "run --trust" in out


def test_a_run_that_keeps_the_last_batch_is_resumed_before_it_and_logs_each_update_once(
    tmp_path: Path, interrupt, capsys
) -> None:
    words = [*TINY, "--method=acl", "--agent=random", "--drop_last=false", "--evaluate=false"]
    assert main([*words, f"--run_dir={tmp_path / 'whole'}"]) == 0
    updates = step_of(tmp_path / "whole")
    before_the_last = updates // load(tmp_path / "whole" / "config.yaml").optimizer.epochs - 1
    interrupt(before_the_last)
    assert main([*words, f"--run_dir={tmp_path / 'run'}"]) == 130
    assert step_of(tmp_path / "run") == before_the_last
    assert main(["--resume", str(tmp_path / "run")]) == 0
    whole, resumed = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "run"))
    assert [row["step"] for row in whole] == [*range(1, updates + 1)]
    assert resumed == whole
    views = [sum(row["actions/steps"].values()) for row in whole]
    assert len(set(views)) == 2 and all("agent/rollout/reward_mean" in row for row in whole)


def test_a_run_of_one_s_own_is_read_from_another_folder_without_its_module(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main([*TINY, f"--run_dir={folder}", f"--agent={mine}:Own", "--evaluate=false"]) == 0
    saved = load(folder / "config.yaml")
    del sys.modules[mine]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    assert load(folder / "config.yaml") == saved and mine not in sys.modules
    capsys.readouterr()
    # to go on it is needed: said by the parser and by the run
    told = f"agent '{mine}:Own': cannot import {mine}: ModuleNotFoundError"
    expect_error(capsys, call("--resume", str(folder), "--trust"), told)
    with pytest.raises(ValueError, match=f"cannot import {mine}"):
        Run(saved, torch.device("cpu"))


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--agent=bandit", "--agent_kwargs.step_size=abc"], ["step_size", "'bandit'", "'abc'", "a number"]),
        (["--agent=ppo", "--agent_kwargs.n_epochs=x"], ["n_epochs", "'ppo'", "'x'", "an integer"]),
        (["--agent=ppo", "--agent_kwargs.n_steps=0"], ["n_steps", "'ppo'", "0", "a positive number"]),
        (["--agent=ppo", "--agent_kwargs._init_setup_model=false"], ["_init_setup_model is no setting of 'ppo'"]),
        (["--agent=ppo", "--agent_kwargs.device=cpu"], ["device is no setting of 'ppo'"]),
    ],
)
def test_bad_settings_of_an_agent_are_one_line(tmp_path: Path, capsys, flags: list[str], parts: list[str]) -> None:
    expect_error(capsys, call(*TINY, f"--run_dir={tmp_path / 'run'}", *flags), *parts)
    assert not (tmp_path / "run").exists()


def test_the_discount_of_a_stable_baselines_agent_is_a_setting(tmp_path: Path) -> None:
    flags = ["--agent=ppo", "--agent_kwargs.gamma=0.9", "--evaluate=false", "--epochs=1"]
    assert main([*TINY, f"--run_dir={tmp_path / 'run'}", *flags]) == 0
    assert Run(load(tmp_path / "run" / "config.yaml"), torch.device("cpu")).agent.model.gamma == 0.9


def assert_same_encoders(a: Path, b: Path) -> None:
    """Those of three epochs, equal bit for bit."""
    assert kept(a) == kept(b) and len(kept(a)) == 3
    for name in kept(a):
        ours, theirs = (load_checkpoint(folder / "checkpoints" / name, "encoder") for folder in (a, b))
        assert_equal_states(ours["network"].pop("state"), theirs["network"].pop("state"))
        assert ours == theirs


@pytest.fixture
def weights_by_step(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, torch.Tensor]]:
    """The target network's state after every update of this process, noted as it trains."""
    states: dict[int, dict[str, torch.Tensor]] = {}
    play = AttackEngine.play

    def watched(engine, budget):
        record = play(engine, budget)
        states[record.step] = {name: value.clone() for name, value in engine.learner.network.state_dict().items()}
        return record

    monkeypatch.setattr(AttackEngine, "play", watched)
    return states


def assert_equal_states(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def kept(folder: Path) -> dict[str, int]:
    """The step of every kept encoder, by its file."""
    return {path.name: load_checkpoint(path, "encoder")["step"] for _, path in kept_encoders(folder)}


def test_what_is_saved_after_the_ranks_have_parted_is_still_of_them(tmp_path: Path) -> None:
    """As the result of a post-processing is, which runs on rank 0 alone."""
    settings = Settings.of(**TINY_SETTINGS, method="acl")
    folder, run = RunFolder.create(tmp_path / "run", settings, []), Run(settings, torch.device("cpu"))
    run.engine.learner.ranks = Ranks(0, 2)
    run.begin(folder)
    run.engine.learner.ranks.leave()
    run.save(folder)
    assert load_checkpoint(folder.checkpoints / "last.pt", "run")["circumstances"]["ranks"] == 2


def test_by_default_no_encoders_are_kept(tmp_path: Path) -> None:
    assert main([*TINY, f"--run_dir={tmp_path / 'run'}", "--agent=fixed", "--evaluate=false", "--epochs=1"]) == 0
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.pt"]
    assert kept_encoders(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        # a rollout of one update: the epochs' very ends, and the last epoch although it is no multiple
        pytest.param(
            ["--agent=fixed", "--keep_every=2"],
            {"epoch-0002.pt": 12, "epoch-0004.pt": 24, "epoch-0005.pt": 30},
            marks=pytest.mark.every_agent,
        ),
        pytest.param(
            ["--agent=none", "--method=simclr", "--keep_every=9"],
            {"epoch-0005.pt": 30},
            marks=pytest.mark.every_agent,
        ),
        # rollouts of 4 updates: the first boundary at or after the epoch's end
        (
            ["--agent=a2c", "--agent_kwargs.n_steps=4", "--keep_every=1"],
            {"epoch-0001.pt": 8, "epoch-0002.pt": 12, "epoch-0003.pt": 20, "epoch-0004.pt": 24, "epoch-0005.pt": 30},
        ),
        # a rollout of two epochs and more
        pytest.param(
            ["--agent=a2c", "--agent_kwargs.n_steps=13", "--keep_every=1"],
            {"epoch-0001.pt": 13, "epoch-0002.pt": 13, "epoch-0003.pt": 26, "epoch-0004.pt": 26, "epoch-0005.pt": 30},
            marks=pytest.mark.every_agent,
        ),
    ],
)
def test_encoders_are_kept_at_the_first_boundary_of_their_epochs(
    tmp_path: Path, weights_by_step: dict[int, dict[str, torch.Tensor]], flags: list[str], expected: dict[str, int]
) -> None:
    folder = tmp_path / "run"
    often = ["--epochs=5", "--checkpoint_every=3", "--evaluate=false"]
    assert main([*TINY, *often, f"--run_dir={folder}", *flags]) == 0
    assert kept(folder) == expected
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.pt", *expected}
    for epoch, path in kept_encoders(folder):
        step = expected[path.name]
        assert epoch == step / 6
        network, route = load_network(path)
        assert route == ("normal" if "--method=simclr" in flags else "pgd") and not network.training
        assert_equal_states(network.state_dict(), weights_by_step[step])
        assert load_checkpoint(path, "encoder").keys() == {
            *("format", "schema", "kind", "step", "epoch", "evaluation_route", "network")
        }
    assert_equal_states(load_network(folder)[0].state_dict(), weights_by_step[30])


@pytest.mark.every_agent
@pytest.mark.parametrize("agent", ["reinforce", "ppo"])
def test_a_run_that_is_killed_and_resumed_keeps_the_same_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    flags = [*TINY, "--epochs=6", "--checkpoint_every=4", "--evaluate=false", f"--agent={agent}", "--keep_every=1"]
    if agent == "ppo":
        flags.append("--agent_kwargs.n_steps=4")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert main([*flags, f"--run_dir={straight}"]) == 0
    expected = {path.name: path for _, path in kept_encoders(straight)}
    assert len(expected) == 6
    save = Run.save

    def dies(run: Run, folder: RunFolder) -> None:
        if run.engine.step >= 24:
            raise KeyboardInterrupt
        save(run, folder)

    # the encoders of a boundary are there when its checkpoint is not: killed there, the run begins anew
    monkeypatch.setattr(Run, "save", dies)
    assert main([*flags, f"--run_dir={killed}"]) == 130
    monkeypatch.setattr(Run, "save", save)
    assert step_of(killed) == 0 and len(kept(killed)) == 4
    # the last was lost with the process, and one is damaged: both come again
    (killed / "checkpoints" / encoder_name(4)).unlink()
    (killed / "checkpoints" / encoder_name(2)).write_bytes(b"")
    assert main(["--resume", str(killed)]) == 0
    assert kept(killed) == kept(straight)
    for name, path in expected.items():
        assert_equal_states(
            load_network(killed / "checkpoints" / name)[0].state_dict(), load_network(path)[0].state_dict()
        )


def test_an_interrupted_run_goes_on_behind_the_encoders_that_it_has_kept(tmp_path: Path, interrupt) -> None:
    flags = [*TINY, "--epochs=3", "--evaluate=false", "--agent=fixed", "--keep_every=1"]
    assert main([*flags, f"--run_dir={tmp_path / 'straight'}"]) == 0
    folder = tmp_path / "resumed"
    interrupt(step=12)
    assert main([*flags, f"--run_dir={folder}"]) == 130
    assert step_of(folder) == 12 and kept(folder) == {"epoch-0001.pt": 6, "epoch-0002.pt": 12}
    before = {path: path.stat().st_mtime_ns for _, path in kept_encoders(folder)}
    assert main(["--resume", str(folder)]) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert kept(folder) == kept(tmp_path / "straight") == {f"epoch-000{n}.pt": 6 * n for n in (1, 2, 3)}
    for _, path in kept_encoders(folder):
        other = tmp_path / "straight" / "checkpoints" / path.name
        assert_equal_states(load_network(path)[0].state_dict(), load_network(other)[0].state_dict())


def test_the_probe_adds_curves_of_accuracy_and_moves_no_bit(tmp_path: Path) -> None:
    runs = {every: tmp_path / f"every {every}" for every in (0, 2)}
    for every, folder in runs.items():
        assert main([*TINY, f"--run_dir={folder}", f"--probe_every={every}", f"--evaluate={every > 0}"]) == 0
    plain, probed = (read_metrics(folder / "metrics.jsonl") for folder in runs.values())
    accuracies = {row["step"]: {name: row.pop(name) for name in list(row) if "accuracy/" in name} for row in probed}
    assert plain == probed
    measured = {step: found for step, found in accuracies.items() if found}
    ends = [row["step"] for row in plain if row["epoch"] in (2, 4)]
    assert list(measured) == ends
    for found in measured.values():
        assert set(found) == {"accuracy/SA", "accuracy/RA_8_255", "accuracy/SA_fitted"}
        assert 0 <= found["accuracy/RA_8_255"] <= found["accuracy/SA"] <= 100
    ends_in = (load_checkpoint(folder / "checkpoints" / "last.pt", "run") for folder in runs.values())
    assert_equal_states(*(payload["network"]["state"] for payload in ends_in))
    events = EventAccumulator(str(runs[2]))
    events.Reload()
    rows = json.loads((runs[2] / "results" / "slf.json").read_text())["rows"]
    for row in rows:
        (point,) = events.Scalars("final/RA_8_255" if row["epsilon"] else "final/SA")
        assert point.value == pytest.approx(row["value"]) and point.step == plain[-1]["step"]


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["random", pytest.param("ppo", marks=pytest.mark.every_agent)])
def test_a_run_of_passes_ends_when_they_are_spent_and_resumes(agent: str, tmp_path: Path, interrupt, capsys) -> None:
    flags = ["--passes=80", f"--agent={agent}", "--evaluate=false"]
    assert main([*TINY, *flags, f"--run_dir={tmp_path / 'whole'}"]) == 0
    out = capsys.readouterr().out
    assert "updates for 80 of 80 passes to make" in out and "% of passes)" in out
    rows = [row for row in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "loss/total" in row]
    spent = [3.3 + row["budget/steps"] for row in rows]
    assert sum(spent[:-1]) < 80 <= sum(spent) + 1e-6
    interrupt(step=3)
    assert main([*TINY, *flags, f"--run_dir={tmp_path / 'part'}"]) == 130
    assert re.search(r"saved at step \d+; resume", capsys.readouterr().out)
    assert main(["--resume", str(tmp_path / "part")]) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "part")


def test_passes_and_a_coreset_contradict_each_other(capsys) -> None:
    expect_error(capsys, call(*TINY, "--passes=80", "--coreset=random"), "passes is 80, but a coreset")
