from functools import partial

import numpy as np
import pytest
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.sb3_env import Sb3BatchVecEnv, Sb3ViewVecEnv
from astra_gym.envs.view_env import ViewAttackVectorEnv


def sample(env: VecEnv, seed: int = 0) -> np.ndarray:
    env.action_space.seed(seed)
    return np.stack([env.action_space.sample() for _ in range(env.num_envs)])


@pytest.mark.slow
@pytest.mark.parametrize("actions", ["factored", "flat", "continuous"])
@pytest.mark.parametrize("observation", ["features", "image"])
def test_the_contract_of_a_vec_env(tiny, actions: str, observation: str) -> None:
    env = Sb3ViewVecEnv(actions=actions, observation=observation, **tiny)
    observations = env.reset()
    assert env.num_envs == 8
    for _ in range(3):
        assert all(env.observation_space.contains(row) for row in observations)
        previous = observations
        observations, rewards, dones, infos = env.step(sample(env))
        assert rewards.dtype == np.float32 and rewards.shape == dones.shape == (8,)
        assert dones.all() and len(infos) == 8
        for row, info in zip(previous, infos, strict=True):
            np.testing.assert_array_equal(info["terminal_observation"], row)
            assert info["TimeLimit.truncated"] is False
            assert isinstance(info["budget/epsilon"], float) and isinstance(info["budget/steps"], int)
            assert {"reward/adversarial", "reward/clean", "budget/strength", "loss/total"} <= info.keys()


def test_it_is_the_gymnasium_environment(tiny) -> None:
    mine, other = Sb3ViewVecEnv(seed=5, **tiny), ViewAttackVectorEnv(**tiny)
    np.testing.assert_array_equal(mine.reset(), other.reset(seed=5)[0])
    for step in range(4):
        actions = sample(mine, step)
        a, b = mine.step(actions), other.step(actions)
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_allclose(a[1], b[1])


def test_seeding_makes_no_new_world(tiny) -> None:
    env = Sb3ViewVecEnv(seed=5, **tiny)
    env.reset()
    env.step(sample(env))
    before = env.reset()
    env.seed(77)
    np.testing.assert_array_equal(before, env.reset())
    assert env.engine.step == 1


def test_vec_monitor_and_vec_normalize_work(tiny) -> None:
    env = VecNormalize(VecMonitor(Sb3ViewVecEnv(**tiny)), gamma=0.0)
    env.reset()
    for _ in range(3):
        observations, _, _, infos = env.step(sample(env))
    assert np.abs(observations).max() <= 10
    assert all(info["episode"]["l"] == 1 for info in infos)
    np.testing.assert_allclose(infos[0]["episode"]["r"], env.get_original_reward()[0], atol=1e-5)


@pytest.mark.parametrize("algorithm", [partial(PPO, batch_size=16), A2C])
def test_stable_baselines3_learns_on_it_without_wiping_the_world(tiny, algorithm) -> None:
    env = Sb3ViewVecEnv(**tiny)
    model = algorithm("MlpPolicy", env, n_steps=2, gamma=0.0, seed=3, device="cpu")
    model.learn(32)
    assert env.engine.step == 4
    model.learn(16, reset_num_timesteps=False)
    assert env.engine.step == 6


def test_the_batch_environment_truncates_at_the_end_of_an_epoch(tiny, engine: AttackEngine) -> None:
    env = Sb3BatchVecEnv(engine)
    env.reset()
    ends = []
    for _ in range(6):
        observations, rewards, dones, infos = env.step(sample(env))
        ends.append(bool(dones[0]))
        assert infos[0]["TimeLimit.truncated"] is ends[-1]
        if ends[-1]:
            np.testing.assert_array_equal(infos[0]["terminal_observation"], observations[0])
    assert ends == [False, False, True] * 2
    assert rewards.shape == (1,)
    with pytest.raises(ValueError, match="expected"):
        env.step(np.zeros((1, 2), int))


def test_attributes_and_methods(tiny) -> None:
    env = Sb3ViewVecEnv(**tiny)
    assert env.get_attr("engine", [0, 3]) == [env.engine] * 2
    assert env.env_method("_for_each", {"run": 2}, indices=[0])[0]["run"].tolist() == [2] * 8
    assert env.env_is_wrapped(VecMonitor) == [False] * 8
    with pytest.raises(ValueError, match="one object"):
        env.set_attr("engine", None)
    with pytest.raises(ValueError, match="num_envs is 3"):
        Sb3ViewVecEnv(3, **tiny)
    assert Sb3ViewVecEnv(method="simclr", **tiny).action_space.n == 1
