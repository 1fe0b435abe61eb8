"""The table of observations, custom ones in every environment, and what is refused."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.envs.batch_env import BatchAttackEnv
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.observations import (
    OBSERVATIONS,
    Losses,
    Observation,
    RunningStatistics,
    find_observation,
    observation_for,
)
from astra_gym.envs.sb3_env import Sb3BatchVecEnv, Sb3ViewVecEnv
from astra_gym.envs.torch_env import TorchBatchEnv, TorchViewEnv
from astra_gym.envs.view_env import ViewAttackVectorEnv
from astra_gym.envs.world_config import WorldSettings


class Mean(Observation):
    """The mean of each view, or of all."""

    view_space = gym.spaces.Box(0, 1, (1,), np.float32)  # type: ignore[assignment]
    batch_space = view_space  # type: ignore[assignment]

    def of_views(self, views: Tensor) -> Tensor:
        return self.world.method.attacked(views).mean((1, 2, 3))[:, None]

    def of_batch(self, views: Tensor) -> Tensor:
        return self.of_views(views).mean()[None, None]


class OfBatches(Observation):
    """The progress of the run, of the batch only."""

    batch_space = gym.spaces.Box(0, 1, (1,), np.float32)  # type: ignore[assignment]

    def of_batch(self, views: Tensor) -> Tensor:
        return views.new_full((1, 1), self.world.progress)


class Wrong(Mean):
    def of_views(self, views: Tensor) -> Tensor:
        return super().of_views(views)[:-1]


class Outside(Mean):
    def of_views(self, views: Tensor) -> Tensor:
        return super().of_views(views) + 1


class Kind(Mean):
    view_space = gym.spaces.Discrete(3)  # type: ignore[assignment]

    def of_views(self, views: Tensor) -> Tensor:
        return (3 + super().of_views(views)[:, 0]).long()


class NoSpace(Observation):
    of_views = of_batch = Mean.of_views


NAMES = ("Mean", "OfBatches", "Wrong", "Outside", "Kind", "NoSpace")
MEAN, OF_BATCHES, WRONG, OUTSIDE, KIND, NO_SPACE = (f"{__name__}:{name}" for name in NAMES)


def test_the_training_s_progress_runs_from_minus_one_to_one() -> None:
    statistics, raw = RunningStatistics(), torch.tensor([[1.0], [3.0]])
    statistics.update(raw)
    assert [statistics.standardize(raw, progress)[0, -1].item() for progress in (0.0, 0.5, 1.0)] == [-1, 0, 1]


def test_which_environment_has_which() -> None:
    offered = {name: [env for env in ("view", "batch") if kind.offers(env)] for name, kind in OBSERVATIONS.items()}
    assert offered == {"features": ["view", "batch"], "image": ["view"], "losses": ["batch"]}
    assert all(kind.summary and kind.checks_finite for kind in OBSERVATIONS.values())
    assert not Mean.checks_finite


def test_losses_have_one_size_in_all_worlds_and_cost_no_pass(tiny: dict[str, Any]) -> None:
    for more in ({"judge_epsilon": 16 / 255, "judge_score": "mean"}, {"width": 4, "batch_size": 6, "method": "acl"}):
        settings = WorldSettings.of(**tiny | more)
        engine, twin = AttackEngine(settings, seed=3), AttackEngine(settings, seed=3)
        seen, space = Losses(engine).of_batch(engine.all_views), Losses(engine).batch_space
        assert seen.shape == (1, 8) and space.contains(seen[0].numpy())
        loss = twin.raw_observation(twin.all_views)[0][:, -1] / np.log(len(twin.all_views) - 1)
        values = [loss.mean(), loss.std(correction=0), *loss.quantile(torch.tensor([0.1, 0.5, 0.9]))]
        judge = settings.judge
        expected = [-1, *values, judge.epsilon * 255 / 32, 0.5 if judge.judge_score == "mean" else 0]
        torch.testing.assert_close(seen[0], torch.tensor(expected, dtype=torch.float32))
        twin = AttackEngine(settings, seed=3)
        action = torch.zeros(1, len(TorchBatchEnv(twin).action_space.nvec), dtype=torch.int64)
        for world in (engine, twin):
            TorchBatchEnv(world).play(action)
        ours, theirs = engine.learner.network.state_dict(), twin.learner.network.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
        assert Losses(engine).of_batch(engine.all_views)[0, 0] > -1


def test_a_custom_one_is_seen_in_every_environment(tiny: dict[str, Any]) -> None:
    engine = AttackEngine(WorldSettings.of(**tiny), seed=3)
    expected = engine.views.mean((1, 2, 3))
    assert torch.equal(TorchViewEnv(engine, observation=MEAN).observe(), expected[:, None])
    assert torch.equal(TorchBatchEnv(engine, observation=MEAN).observe(), expected.mean()[None, None])
    assert not TorchViewEnv(engine, observation=MEAN).checks_finite
    other = torch.rand(8, 3, 8, 8)
    assert torch.equal(
        TorchBatchEnv(engine, observation=MEAN).observation_of(other)[0, 0], other.mean((1, 2, 3)).mean()
    )
    view, batch = (
        ViewAttackVectorEnv(observation=MEAN, seed=3, **tiny),
        BatchAttackEnv(observation=MEAN, seed=3, **tiny),
    )
    np.testing.assert_array_equal(view.reset()[0], expected[:, None])
    np.testing.assert_array_equal(batch.reset()[0], expected.mean()[None])
    np.testing.assert_array_equal(Sb3ViewVecEnv(engine=engine, observation=MEAN).reset(), expected[:, None])
    np.testing.assert_array_equal(Sb3BatchVecEnv(engine, observation=MEAN).reset(), expected.mean()[None, None])
    only = BatchAttackEnv(observation=OF_BATCHES, seed=3, **tiny)
    first = only.reset()[0]
    assert first == 0 and only.step(only.action_space.sample())[0] > 0


@pytest.mark.parametrize(
    ("env", "name", "message"),
    [
        ("batch", "image", "observation 'image' is of single views: the batch environment offers 'features', 'losses'"),
        ("view", OF_BATCHES, "of whole batches: the view environment offers 'features', 'image'; or take env batch"),
        ("view", "imgae", "unknown observation 'imgae': choose from features, image, losses; did you mean 'image'"),
        ("view", "math:pi", "observation 'math:pi' is a float: expected a subclass of"),
    ],
)
def test_what_an_environment_does_not_have_is_refused(env: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        observation_for(env, name)


def test_the_wrong_rows_are_refused(tiny: dict[str, Any]) -> None:
    env = TorchViewEnv(AttackEngine(WorldSettings.of(**tiny), seed=3), observation=WRONG)
    with pytest.raises(ValueError, match=r"gives torch.float32 \(7, 1\): expected torch.float32 \(8, 1\)"):
        env.observe()
    assert find_observation(WRONG) is Wrong


@pytest.mark.parametrize(("name", "message"), [(OUTSIDE, r"from 1.* elements of .*Box\(0"), (KIND, "from 3 to 3")])
def test_values_outside_of_the_space_are_refused(name: str, message: str, tiny: dict[str, Any]) -> None:
    env = TorchViewEnv(AttackEngine(WorldSettings.of(**tiny), seed=3), observation=name)
    with pytest.raises(ValueError, match=message):
        env.observe()


def test_a_space_that_is_missing_is_named(tiny: dict[str, Any]) -> None:
    engine = AttackEngine(WorldSettings.of(**tiny), seed=3)
    for made, missing in ((TorchViewEnv, "NoSpace has no view_space"), (TorchBatchEnv, "NoSpace has no batch_space")):
        with pytest.raises(NotImplementedError, match=missing):
            made(engine, observation=NO_SPACE)
