"""Numbers gone bad: a run ends with status 1 and one line, and the last good checkpoint stays as it was."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import DQN, PPO

from astra_gym.agents import REINFORCE
from astra_gym.envs.torch_env import TorchViewEnv
from astra_gym.experiments.runs import run as run_module
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.utils.finite import not_finite

TINY = (
    *("--limit=14", "--test_limit=30", "--batch_size=4", "--image_size=8", "--width=2", "--projector_hidden=8"),
    *("--projector_dim=8", "--epochs=2", "--warmup_epochs=0", "--evaluate=false", "--progress=off"),
)
"""3 updates an epoch, 6 in all; a checkpoint after each epoch."""
SOURCE = """
import torch
from astra_gym.ssl_core.methods import ACL

class BadViews(ACL):
    first = 4

    def make_views(self, images, settings, moment, generator):
        views = super().make_views(images, settings, moment, generator)
        return views / 0 if moment.step == self.first else views

class BadFromTheStart(BadViews):
    first = 0

class BadRewards(ACL):
    plays = 0

    def reward_terms(self, objective, clean, adversarial):
        type(self).plays += 1
        terms = super().reward_terms(objective, clean, adversarial)
        return {name: values * 1e30 * 1e30 for name, values in terms.items()} if self.plays == 5 else terms
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of a user's own methods, in the current directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad_methods_here.py").write_text(SOURCE)
    yield "bad_methods_here"
    sys.modules.pop("bad_methods_here", None)


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`spoiled(class, method, nth, spoil)`: after its nth call `spoil(object)` writes over what it made."""

    def arrange(owner: type, name: str, nth: int, spoil: Callable[[Any], None]) -> None:
        calls, method = [0], getattr(owner, name)

        def spoiling(self: Any, *arguments: Any, **named: Any) -> Any:
            made = method(self, *arguments, **named)
            calls[0] += 1
            if calls[0] == nth:
                with torch.no_grad():
                    spoil(self)
            return made

        monkeypatch.setattr(owner, name, spoiling)

    return arrange


def failed(capsys: pytest.CaptureFixture[str], folder: Path, *flags: str) -> str:
    """What a run says that ends with status 1: one line, short, without the paths."""
    capsys.readouterr()
    assert main([*TINY, f"--run_dir={folder}", *flags]) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "Traceback" not in shown
    said = shown.strip().replace(str(folder), "RUN")
    assert len(said) < 300, said
    return said


def saved_step(folder: Path) -> int:
    """The step of the checkpoint, which has to be a good one."""
    payload = load_checkpoint(folder / "checkpoints" / "last.pt", "run")
    assert not_finite({name: payload[name] for name in ("agent", "world", "network")}) == []
    return payload["step"]


def last_good(step: int) -> str:
    return f"the last good checkpoint, of update {step}, is RUN/checkpoints/last.pt"


def policy_of(agent: REINFORCE) -> None:
    agent.policy.head.weight[0, 0] = float("nan")


def moments_of(agent: REINFORCE) -> None:
    agent.optimizer.state[agent.policy.head.weight]["exp_avg_sq"].fill_(float("inf"))


def weights_of(model: Any) -> None:
    for weight in model.policy.parameters():
        weight.fill_(float("nan"))


@pytest.mark.parametrize("spoil", [policy_of, pytest.param(moments_of, marks=pytest.mark.every_agent)])
def test_a_policy_that_breaks_at_the_last_update_does_not_replace_a_good_one(
    tmp_path: Path, capsys, spoiled, spoil: Callable[[Any], None]
) -> None:
    folder = tmp_path / "run"
    spoiled(REINFORCE, "_update", 6, spoil)
    said = failed(capsys, folder, "--agent=reinforce", "--keep_every=1")
    assert "NaN or infinite after update 6: agent/learner/" in said and "last budget (pixels in 1/255): " in said
    assert said.endswith(last_good(3)) and saved_step(folder) == 3
    # what was trained under it is not kept either
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["epoch-0001.pt", "last.pt"]
    # and from the good one the run is completed
    if spoil is policy_of:
        assert main(["--resume", str(folder)]) == 0 and saved_step(folder) == 6


@pytest.mark.parametrize(
    ("flags", "owner", "method", "nth", "spoil", "update", "good"),
    [
        # seen by its own next update
        (["--agent=reinforce"], REINFORCE, "_update", 4, policy_of, 5, 3),
        # by torch, in 257 lines, when it draws an action
        (["--agent=ppo", "--agent_kwargs.n_steps=2"], PPO, "train", 2, weights_of, 4, 0),
        # by nobody until the next checkpoint is due
        (["--agent=dqn"], DQN, "train", 1, weights_of, 6, 3),
        # a network that lies beside the optimizer's
        (
            ["--method=byol", "--agent=fixed", "--method_kwargs.predictor_hidden=4"],
            TargetLearner,
            "update",
            6,
            lambda learner: learner.others["momentum"].backbone.conv.weight.fill_(float("nan")),
            6,
            3,
        ),
    ],
)
def test_whatever_breaks_is_named_with_update_budget_and_the_last_good_checkpoint(
    tmp_path: Path, capsys, spoiled, flags: list[str], owner: type, method: str, nth: int, spoil, update: int, good: int
) -> None:
    folder = tmp_path / "run"
    spoiled(owner, method, nth, spoil)
    said = failed(capsys, folder, *flags)
    assert f"NaN or infinite after update {update}: " in said and "; last budget" in said
    assert said.endswith(last_good(good)) and saved_step(folder) == good


@pytest.mark.parametrize(
    "agent", ["ppo", *(pytest.param(name, marks=pytest.mark.every_agent) for name in ("reinforce", "fixed"))]
)
@pytest.mark.parametrize(
    ("method", "message"),
    [("BadViews", "views before update 5 are not finite; last budget"), ("BadRewards", "the rewards of update 5 are")],
)
def test_a_method_of_a_users_own_that_gives_no_numbers(
    mine: str, tmp_path: Path, capsys, agent: str, method: str, message: str
) -> None:
    folder = tmp_path / "run"
    said = failed(capsys, folder, f"--method={mine}:{method}", f"--agent={agent}")
    assert message in said and "epsilon" in said
    # PPO's rollout is longer than an epoch
    good = 0 if agent == "ppo" else 3
    assert said.endswith(last_good(good)) and saved_step(folder) == good


def test_what_is_bad_from_the_start_leaves_no_folder(mine: str, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    said = failed(capsys, folder, f"--method={mine}:BadFromTheStart")
    assert "NaN or infinite after update 0: world/views; last no attack yet; training has not begun" in said
    assert not folder.exists()


def test_a_post_processing_that_breaks_leaves_the_trained_encoder(tmp_path: Path, capsys, monkeypatch) -> None:
    folder, post = tmp_path / "run", run_module.post_process

    def broken(*arguments: Any) -> Any:
        processed = post(*arguments)
        processed.backbone.conv.weight.data.fill_(float("nan"))
        return processed

    monkeypatch.setattr(run_module, "post_process", broken)
    short = [f"--post_kwargs.{name}=1" for name in ("epochs", "probe_epochs", "steps")]
    said = failed(capsys, folder, "--method=dynacl++", "--agent=fixed", "--post_kwargs.clusters=2", *short)
    assert "post-processed/backbone.conv.weight" in said and "training is done and saved in RUN" in said
    assert saved_step(folder) == 6


def test_a_checkpoint_that_was_saved_broken_is_not_resumed(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    assert main([*TINY, f"--run_dir={folder}", "--agent=reinforce", "--epochs=1"]) == 0
    last = folder / "checkpoints" / "last.pt"
    payload = load_checkpoint(last, "run")
    payload["agent"]["learner"]["scale"] = float("nan")
    save_checkpoint(last, "run", {name: payload[name] for name in payload if name not in ("format", "schema", "kind")})
    capsys.readouterr()
    assert main(["--resume", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert f"{last} cannot be resumed: NaN or infinite after update 3: agent/learner/scale" in shown
    assert shown.count("\n") == 1


def test_save_keeps_what_is_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert main([*TINY, f"--run_dir={folder.path}", "--agent=reinforce", "--epochs=1"]) == 0
    run = Run(folder.settings(), torch.device("cpu"))
    run.restore(folder)
    before = (folder.checkpoints / "last.pt").read_bytes()
    run.engine.statistics.mean[0] = float("inf")  # type: ignore[index]
    for write in (run.save, run.keep_encoders):
        run.settings.run.__dict__["keep_every"], run._kept_epochs = 1, 0
        with pytest.raises(FloatingPointError, match="after update 3: world/statistics/mean"):
            write(folder)
    assert (folder.checkpoints / "last.pt").read_bytes() == before
    assert [path.name for path in folder.checkpoints.iterdir()] == ["last.pt"]
    with pytest.raises(CheckpointError):
        load_checkpoint(folder.checkpoints / "epoch-0001.pt", "encoder")


@pytest.mark.parametrize("agent", ["reinforce", pytest.param("ppo", marks=pytest.mark.every_agent)])
def test_an_observation_that_breaks_on_its_way_to_the_agent(tmp_path: Path, capsys, monkeypatch, agent: str) -> None:
    folder, observe = tmp_path / "run", TorchViewEnv.observe

    def broken(env: TorchViewEnv) -> torch.Tensor:
        seen = observe(env)
        return seen / 0 if env.engine.step == 5 else seen

    monkeypatch.setattr(TorchViewEnv, "observe", broken)
    said = failed(capsys, folder, f"--agent={agent}", "--agent_kwargs.n_steps=1")
    assert "the environment's observation is not finite after " in said
    assert said.endswith(last_good(3)) and saved_step(folder) == 3
