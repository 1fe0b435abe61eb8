import pickle
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as wrappers

import astra_gym
from astra_gym.envs.view_env import ViewAttackVectorEnv

WORKING = (
    wrappers.RecordEpisodeStatistics,
    wrappers.NormalizeReward,
    wrappers.DictInfoToList,
    partial(wrappers.ClipReward, max_reward=1.0),
    partial(wrappers.TransformReward, func=np.negative),
)
REFUSING = (
    wrappers.NormalizeObservation,
    wrappers.FlattenObservation,
    partial(wrappers.DtypeObservation, dtype=np.float64),
)
KINDS = ("factored", "flat", "continuous")
# Gymnasium says of version 0 that there is a version 1
pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")


@pytest.mark.slow
@pytest.mark.parametrize("observation", ["features", "image"])
@pytest.mark.parametrize("actions", KINDS)
def test_the_contract_of_a_vector_environment(tiny, actions: str, observation: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is out of date")
        env = gym.make_vec(astra_gym.VIEW_V0_ID, actions=actions, observation=observation, **tiny)
        observations, info = env.reset(seed=4)
        assert info == {}
        for _ in range(4):
            assert env.observation_space.contains(observations)
            assert all(env.single_observation_space.contains(row) for row in observations)
            chosen = env.action_space.sample()
            previous = observations
            observations, rewards, terminated, truncated, infos = env.step(chosen)
            assert rewards.shape == (8,) and rewards.dtype == np.float64 and np.isfinite(rewards).all()
            assert terminated.dtype == truncated.dtype == np.bool_
            assert terminated.all() and not truncated.any()
            assert infos["_final_obs"].all() and infos["final_obs"].dtype == object
            np.testing.assert_array_equal(np.stack(list(infos["final_obs"])), previous)
            for key, value in infos.items():
                assert key == "final_info" or len(value) == 8, key
            np.testing.assert_array_equal(infos["final_info"]["budget/epsilon"], infos["budget/epsilon"])
        assert env.metadata["autoreset_mode"] is env.autoreset_mode is AutoresetMode.SAME_STEP
        env.close()


def test_every_view_is_paid_for_its_own_attack(tiny) -> None:
    env = gym.make_vec(astra_gym.VIEW_V0_ID, **tiny)
    env.reset(seed=0)
    actions = np.array([[k, k, k % 5] for k in range(8)])
    _, rewards, _, _, infos = env.step(actions)
    np.testing.assert_allclose(infos["budget/epsilon"] * 255, np.arange(8) + 3, rtol=1e-5)
    np.testing.assert_array_equal(infos["budget/steps"], np.arange(8) + 3)
    np.testing.assert_allclose(infos["budget/step_size"] * 255, np.arange(8) % 5 + 1, rtol=1e-5)
    np.testing.assert_allclose(rewards, (infos["reward/adversarial"] - infos["reward/clean"]) / 3, atol=1e-6)
    assert len(set(rewards)) > 4
    assert (infos["budget/strength"] <= infos["budget/epsilon"] + 1e-6).all()


def test_same_seed_same_world(tiny) -> None:
    def play(env: gym.vector.VectorEnv) -> list[np.ndarray]:
        env.action_space.seed(1)
        seen = [env.reset(seed=9)[0]]
        for _ in range(4):
            observation, reward, *_ = env.step(env.action_space.sample())
            seen += [observation, reward]
        return seen

    env = gym.make_vec(astra_gym.VIEW_V0_ID, **tiny)
    first = play(env)
    for other in (env, gym.make_vec(pickle.loads(pickle.dumps(env.spec)))):
        for a, b in zip(first, play(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_num_envs_is_the_number_of_views(tiny) -> None:
    assert gym.make_vec(astra_gym.VIEW_V0_ID, num_envs=8, **tiny).num_envs == 8
    assert gym.make_vec(astra_gym.VIEW_V0_ID, **tiny).num_envs == 8
    with pytest.raises(ValueError, match=r"num_envs is 4: .* has 8 attacked views; leave it out or give 8"):
        gym.make_vec(astra_gym.VIEW_V0_ID, num_envs=4, **tiny)


def test_the_single_environment_does_not_exist() -> None:
    with pytest.raises(gym.error.Error):
        gym.make(astra_gym.VIEW_V0_ID)


def test_horizon_and_seeds(tiny) -> None:
    assert ViewAttackVectorEnv(max_episode_steps=1, **tiny).num_envs == 8
    with pytest.raises(ValueError, match="one step"):
        ViewAttackVectorEnv(max_episode_steps=2, **tiny)
    env = ViewAttackVectorEnv(**tiny)
    with pytest.raises(ValueError, match="one Python integer"):
        env.reset(seed=[1] * 8)
    observations, _ = env.reset(seed=1)
    np.testing.assert_array_equal(env.reset()[0], observations)


@pytest.mark.parametrize(
    "actions",
    [
        *(np.zeros((7, 3), int), np.zeros((8, 2), int), np.zeros((8, 3)), np.full((8, 3), 20), np.zeros(8, int)),
        *(5, None, "abc", np.full((8, 3), "a"), np.full((8, 3), None), np.full((8, 3), 20, np.uint16)),
    ],
)
def test_bad_actions_lose_nothing(tiny, actions: np.ndarray) -> None:
    env = ViewAttackVectorEnv(**tiny)
    observations, _ = env.reset(seed=1)
    with pytest.raises(ValueError, match="expected"):
        env.step(actions)
    np.testing.assert_array_equal(observations, env.reset()[0])
    assert env.engine.step == 0


def test_methods_without_an_attack_take_no_action(tiny) -> None:
    env = ViewAttackVectorEnv(method="simclr", **tiny)
    env.reset(seed=0)
    _, rewards, *_ = env.step(env.action_space.sample())
    assert (rewards == 0).all() and env.engine.step == 1
    with pytest.raises(ValueError, match="takes any kind of actions but 'none'"):
        ViewAttackVectorEnv(actions="none", **tiny)
    with pytest.raises(ValueError, match="did you mean 'features'"):
        ViewAttackVectorEnv(observation="feature", **tiny)


def test_which_wrappers_work_and_which_refuse_same_step_autoreset(tiny) -> None:
    """What the environment's docstring says of Gymnasium's vector wrappers."""
    for wrap in WORKING:
        env = wrap(ViewAttackVectorEnv(**tiny))
        env.reset(seed=0)
        env.step(env.action_space.sample())
    for wrap in REFUSING:
        with pytest.raises(ValueError, match="SAME_STEP"):
            wrap(ViewAttackVectorEnv(**tiny))


def test_unsigned_actions_are_numbers_too(tiny) -> None:
    env = ViewAttackVectorEnv(**tiny)
    env.reset(seed=0)
    assert set(env.step(np.full((8, 3), 2, np.uint16))[4]["budget/steps"]) == {5}
