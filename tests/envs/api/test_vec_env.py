"""`Sb3VecEnv` against Stable-Baselines3's `DummyVecEnv`, on Gymnasium's own environments."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from astra_gym.envs.api.vec_env import Sb3VecEnv

MODES = list(AutoresetMode)
ENVS = ("CartPole-v1", "Pendulum-v1", "Taxi-v4", "Blackjack-v1")
NUMBER, STEPS = 3, 60


class DictEnv(gym.Env):
    """Counts to a random length; its observations are dicts, and an info holds a nested dict now and then."""

    observation_space = gym.spaces.Dict(count=gym.spaces.Box(0, 99, (2,), np.float32), odd=gym.spaces.Discrete(2))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.count, self.length = (options or {}).get("start", 0), int(self.np_random.integers(2, 6))
        return self._seen(), {"length": self.length}

    def step(self, action: int) -> Any:
        self.count += 1
        more = {"inner": {"action": int(action)}} if self.count % 2 else {}
        return self._seen(), float(action), self.count == self.length, self.count == 4, {"count": self.count} | more

    def _seen(self) -> Any:
        return {"count": np.full(2, self.count, np.float32), "odd": np.int64(self.count % 2)}


def maker(name: str) -> Any:
    # short episodes, so that many of them end truncated
    return DictEnv if name == "Dict" else lambda: gym.make(name, max_episode_steps=13)


def play(env: VecEnv) -> list[Any]:
    env.seed(5)
    env.action_space.seed(1)
    seen: list[Any] = [env.reset(), copy.deepcopy(env.reset_infos)]
    for _ in range(STEPS):
        result = env.step(np.stack([env.action_space.sample() for _ in range(NUMBER)]))
        seen.append(copy.deepcopy((*result, env.reset_infos)))
    return seen


@pytest.mark.parametrize("name", [*ENVS, "Dict"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_results_are_those_of_a_dummy_vec_env(name: str, mode: AutoresetMode) -> None:
    makers = [maker(name)] * NUMBER
    expected = play(DummyVecEnv(makers))
    for keep in (True, False):
        found = play(Sb3VecEnv(SyncVectorEnv(makers, copy=keep, autoreset_mode=mode)))
        np.testing.assert_equal(found, expected)
    ends = [info for step in expected[2:] for info in step[3] if "terminal_observation" in info]
    assert len(ends) > NUMBER and any(info["TimeLimit.truncated"] for info in ends) == (name != "Blackjack-v1")
    assert expected[2][0]["odd"].dtype == np.int64 if name == "Dict" else expected[2][1].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_processes_give_the_same(mode: AutoresetMode) -> None:
    settings = {"vectorization_mode": "async", "max_episode_steps": 13, "vector_kwargs": {"autoreset_mode": mode}}
    env = Sb3VecEnv(gym.make_vec("Pendulum-v1", NUMBER, **settings))
    np.testing.assert_equal(play(env), play(DummyVecEnv([maker("Pendulum-v1")] * NUMBER)))
    assert env.get_attr("render_mode", [1]) == [None]
    assert len(env.env_method("get_wrapper_attr", "spec")) == NUMBER
    with pytest.raises(ValueError, match="all or none"):
        env.env_method("get_wrapper_attr", "spec", indices=[0])
    env.close()


def test_an_environment_that_can_not_reset_a_part_needs_a_word() -> None:
    def own(number: int) -> Any:
        return gym.make_vec("CartPole-v1", number, vectorization_mode="vector_entry_point", max_episode_steps=13)

    with pytest.raises(ValueError, match="say partial_reset"):
        Sb3VecEnv(own(3))
    with pytest.raises(ValueError, match="takes no partial reset"):
        play(Sb3VecEnv(own(3), partial_reset=True))
    # one sub-environment needs none: its own step that resets is left out
    env = Sb3VecEnv(own(1))
    env.seed(2)
    env.reset()
    for count in range(1, 27):
        _, reward, dones, infos = env.step(np.array([count % 2]))
        assert reward == [1.0] and dones[0] == infos[0]["TimeLimit.truncated"] == (count % 13 == 0)
    late = Sb3VecEnv(own(2), partial_reset=False)
    late.reset()
    for count in range(1, 29):
        observation, rewards, dones, infos = late.step(np.array([count % 2] * 2))
        assert dones.tolist() == [count % 14 == 13] * 2 and rewards.tolist() == [float(count % 14 != 0)] * 2
        assert ("autoreset" in infos[1]) == (count % 14 == 0)
        if dones[1]:
            np.testing.assert_array_equal(infos[1]["terminal_observation"], observation[1])


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_statistics_of_a_wrapper_reach_stable_baselines3(mode: AutoresetMode) -> None:
    env = wrappers.RecordEpisodeStatistics(SyncVectorEnv([maker("CartPole-v1")] * NUMBER, autoreset_mode=mode))
    model = PPO("MlpPolicy", Sb3VecEnv(env), n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(96)
    lengths = [episode["l"] for episode in model.ep_info_buffer]
    assert len(lengths) > NUMBER and max(lengths) <= 13 and sum(lengths) <= 96
    assert [episode["r"] for episode in model.ep_info_buffer] == lengths


def test_attributes_methods_options_and_what_is_refused() -> None:
    env = Sb3VecEnv(SyncVectorEnv([lambda: Monitor(DictEnv())] * NUMBER, autoreset_mode="SameStep"))
    env.set_options({"start": 1})
    assert env.reset()["count"][:, 0].tolist() == [1, 1, 1]
    assert env.reset()["count"][:, 0].tolist() == [0, 0, 0]
    env.set_attr("count", 3, indices=[1])
    assert env.get_attr("count") == [0, 3, 0]
    env.set_attr("count", 2)
    assert env.get_attr("count", [0, 2]) == [2, 2]
    assert env.env_method("_seen", indices=[2])[0]["count"][0] == 2
    assert env.env_is_wrapped(Monitor, [0]) == [True] and not env.has_attr("nothing")
    env.set_options([{"start": 1}, {}, {}])
    with pytest.raises(ValueError, match="options differ"):
        env.reset()
    env.env.unwrapped.metadata["autoreset_mode"] = None
    with pytest.raises(ValueError, match="expected a member of"):
        Sb3VecEnv(env.env)
