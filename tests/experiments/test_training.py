"""A run's plan: whoever chooses the attacks, the planned target updates are made, no fewer and no more."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from experiments.commandline import load
from experiments.train_agent import main
from experiments.training import Run
from tests.experiments.test_train_agent import TINY, call, expect_error

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
    for argv, step in ((flags, made), (["--resume", str(folder)], resumed))[: 1 if name == "Eager" else 2]:
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
    assert "planned updates:" not in capsys.readouterr().err


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
    expect_error(
        capsys, call("--resume", str(folder)), f"agent '{mine}:Own': cannot import {mine}: ModuleNotFoundError"
    )
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
