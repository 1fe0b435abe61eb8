import copy
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import astra_gym
from astra_gym.envs.batch_env import BatchAttackEnv

KINDS = ("factored", "flat", "continuous")
# Gymnasium says of version 0 that there is a version 1
pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")


def rollout(env: gym.Env, seed: int | None, steps: int) -> list[np.ndarray]:
    env.action_space.seed(0)
    seen = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        seen += [observation, np.array([reward, terminated, truncated])]
        if truncated:
            seen.append(env.reset()[0])
    return seen


@pytest.mark.parametrize("actions", KINDS)
def test_gymnasiums_checker_passes_without_a_warning(tiny, actions: str) -> None:
    env = gym.make(astra_gym.BATCH_V0_ID, actions=actions, disable_env_checker=True, **tiny).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)


@pytest.mark.slow
@pytest.mark.parametrize(
    "actions", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.every_agent) for kind in KINDS[1:])]
)
def test_stable_baselines3s_checker_passes_without_a_warning(tiny, actions: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(BatchAttackEnv(actions=actions, **tiny), skip_render_check=False)


def test_make_vec_and_the_pickled_spec(tiny) -> None:
    env = gym.make(astra_gym.BATCH_V0_ID, **tiny)
    again = gym.make(pickle.loads(pickle.dumps(env.spec)))
    for a, b in zip(rollout(env, 5, 4), rollout(again, 5, 4), strict=True):
        np.testing.assert_array_equal(a, b)
    vector = gym.make_vec(astra_gym.BATCH_V0_ID, num_envs=2, **tiny)
    observations, _ = vector.reset(seed=1)
    assert observations.shape == (2, 35)
    vector.step(vector.action_space.sample())


def test_registering_twice_is_harmless() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        astra_gym.register()


def test_a_seed_is_a_new_world_and_gives_the_same_episode(tiny) -> None:
    env = BatchAttackEnv(**tiny)
    first = rollout(env, 7, 5)
    for a, b in zip(first, rollout(env, 7, 5), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], rollout(env, 8, 0)[0])


def test_reset_without_a_seed_goes_on_in_the_same_world(tiny) -> None:
    env = BatchAttackEnv(**tiny)
    env.reset(seed=1)
    observation = env.step(env.action_space.sample())[0]
    again, _ = env.reset()
    np.testing.assert_array_equal(observation, again)
    assert env.engine.step == 1


@pytest.mark.parametrize(("length", "expected"), [(None, 3), (2, 2), (5, 5)])
def test_an_episode_is_an_epoch_by_default_and_ends_truncated(tiny, length: int | None, expected: int) -> None:
    env = gym.make(astra_gym.BATCH_V0_ID, episode_steps=length, disable_env_checker=True, **tiny)
    env.reset(seed=0)
    ends = []
    for _ in range(2 * expected):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not terminated
        ends.append(truncated)
        if truncated:
            env.reset()
    assert ends == ([False] * (expected - 1) + [True]) * 2


def test_info_names_rewards_losses_budget_and_strength(tiny) -> None:
    env = BatchAttackEnv(**tiny)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.array([5, 2, 1]))
    assert info["reward/adversarial"].shape == info["budget/strength"].shape == (8,)
    assert reward == pytest.approx((info["reward/adversarial"] - info["reward/clean"]).mean() / 3, abs=1e-6)
    np.testing.assert_allclose(info["budget/epsilon"], 8 / 255, rtol=1e-6)
    assert set(info["budget/steps"]) == {5}
    assert {"loss/total", "loss/clean", "loss/adversarial", "loss/mixed", "lr", "step", "epoch"} <= set(info)


def test_the_observation_is_mean_and_deviation_of_the_views(tiny) -> None:
    env = BatchAttackEnv(**tiny)
    observation, _ = env.reset(seed=0)
    each = env.engine.observe().numpy()
    np.testing.assert_allclose(observation[:17], each[:, :-1].mean(0), atol=1e-5)
    np.testing.assert_allclose(observation[17:34], each[:, :-1].std(0), atol=1e-5)
    assert observation[34] == -1


@pytest.mark.parametrize("action", [np.array([13, 0, 0]), np.array([0, 0]), np.array([0.0, 0.0, 0.0]), 3, None, "abc"])
def test_bad_actions_lose_nothing(tiny, action) -> None:
    env = BatchAttackEnv(**tiny)
    observation, _ = env.reset(seed=0)
    before = copy.deepcopy(env.engine.learner.network.state_dict())
    with pytest.raises(ValueError, match="expected"):
        env.step(action)
    np.testing.assert_array_equal(observation, env.reset()[0])
    assert env.engine.step == 0
    assert all((before[name] == value).all() for name, value in env.engine.learner.network.state_dict().items())


def test_bad_settings_are_refused(tiny) -> None:
    for length in (0, 1.5):
        with pytest.raises(ValueError, match="episode_steps"):
            BatchAttackEnv(episode_steps=length, **tiny)
    with pytest.raises(ValueError, match="takes actions 'none'"):
        BatchAttackEnv(**tiny, method="simclr", actions="flat")
    assert BatchAttackEnv(**tiny, method="simclr").action_space.n == 1
    with pytest.raises(TypeError, match=r"argument 'batchsize': .*did you mean 'batch_size'"):
        BatchAttackEnv(batchsize=3)
