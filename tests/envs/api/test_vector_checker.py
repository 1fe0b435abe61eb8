"""The checker passes on Gymnasium's own environments, and catches faults planted in a small sound one."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from astra_gym.envs.api.vector_checker import check_vector_env

N = 4


class Walk(VectorEnv):
    """Random walks of +-1 with noise, from a random start; an episode ends outside of +-3."""

    def __init__(self, mode: AutoresetMode = AutoresetMode.SAME_STEP) -> None:
        self.num_envs, self.render_mode = N, "rgb_array"
        self.metadata = {"autoreset_mode": mode, "render_modes": ["rgb_array"], "render_fps": 4}
        self.single_observation_space = gym.spaces.Box(-9, 9, (1,), np.float32)
        self.single_action_space = gym.spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, N)
        self.action_space = batch_space(self.single_action_space, N)
        self.late = np.zeros(N, bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.begin((options or {}).get("reset_mask", np.ones(N, bool)))
        return self.seen(), {}

    def begin(self, mask: np.ndarray) -> None:
        if mask.all():
            self.place = np.zeros(N, np.float32)
        self.place[mask] = self.np_random.uniform(-0.5, 0.5, mask.sum())
        self.late = self.late & ~mask

    def seen(self) -> Any:
        return self.place[:, None].copy()

    def move(self, actions: np.ndarray) -> np.ndarray:
        self.place = (self.place + 2 * actions - 1 + self.np_random.uniform(-0.1, 0.1, N)).astype(np.float32)
        return np.abs(self.place).astype(np.float64)

    def step(self, actions: np.ndarray) -> Any:
        late = self.late.copy()
        reward = self.move(actions)
        reward[late] = 0
        if late.any():
            self.begin(late)
        ended, infos = np.abs(self.place) > 3, {}
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and ended.any():
            infos = {"final_obs": np.full(N, None), "_final_obs": ended.copy()}
            for index in np.flatnonzero(ended):
                infos["final_obs"][index] = self.seen()[index].copy()
            self.begin(ended)
        elif self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            self.late = ended
        return self.seen(), reward, ended, np.zeros(N, bool), infos

    def render(self) -> Any:
        return tuple(np.full((4, 4, 3), 9, np.uint8) for _ in range(N))


class Observed(Walk):
    """Observations of the wrong type."""

    def seen(self) -> Any:
        return super().seen().astype(np.float64)


class Batched(Walk):
    """A batched space of another number of sub-environments."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = batch_space(self.single_observation_space, N + 1)


class Undeclared(Walk):
    """No autoreset mode."""

    def __init__(self) -> None:
        super().__init__()
        self.metadata = {}


class Unseeded(Walk):
    """A seed without effect."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(options=options)


class Column(Walk):
    """Rewards (n, 1)."""

    def step(self, actions: np.ndarray) -> Any:
        observation, reward, *others = super().step(actions)
        return observation, reward[:, None], *others


class Infinite(Walk):
    """A reward that is not finite, once in a while."""

    def move(self, actions: np.ndarray) -> np.ndarray:
        reward = super().move(actions)
        return np.where(self.place > 2.5, np.nan, reward)


class Numbers(Walk):
    """Flags that are numbers."""

    def step(self, actions: np.ndarray) -> Any:
        observation, reward, ended, *others = super().step(actions)
        return observation, reward, ended.astype(np.int64), *others


class Reused(Walk):
    """Observations in the same memory."""

    memory = np.zeros((N, 1), np.float32)

    def seen(self) -> Any:
        self.memory[:] = super().seen()
        return self.memory


class NoFinals(Walk):
    """No final observations."""

    def step(self, actions: np.ndarray) -> Any:
        return *super().step(actions)[:4], {}


class WrongFinals(Walk):
    """Final observations of the next episode."""

    def step(self, actions: np.ndarray) -> Any:
        observation, *others, infos = super().step(actions)
        for index in np.flatnonzero(infos.get("_final_obs", [])):
            infos["final_obs"][index] = observation[index].copy()
        return observation, *others, infos


class Paid(Walk):
    """A reward for the step that resets."""

    def __init__(self) -> None:
        super().__init__(AutoresetMode.NEXT_STEP)

    def step(self, actions: np.ndarray) -> Any:
        late = self.late.copy()
        observation, reward, *others = super().step(actions)
        return observation, np.where(late, 1.0, reward), *others


class Acting(Walk):
    """An action in the step that resets."""

    def __init__(self) -> None:
        super().__init__(AutoresetMode.NEXT_STEP)

    def step(self, actions: np.ndarray) -> Any:
        late = self.late.copy()
        found = super().step(actions)
        self.place[late] += 0.1 * actions[late]
        return self.seen(), *found[1:]


class AllReset(Walk):
    """A partial reset that resets all."""

    def __init__(self) -> None:
        super().__init__(AutoresetMode.DISABLED)

    def begin(self, mask: np.ndarray) -> None:
        super().begin(np.ones(N, bool))


class ShortInfos(Walk):
    """Infos with fewer rows than sub-environments."""

    def step(self, actions: np.ndarray) -> Any:
        *others, infos = super().step(actions)
        return *others, {**infos, "extra": np.zeros(N - 1), "_extra": np.ones(N, bool)}


class OneFrame(Walk):
    """A single frame."""

    def render(self) -> Any:
        return super().render()[0]


class DrawingRandomly(Walk):
    """Frames that move the world's random stream."""

    def render(self) -> Any:
        self.np_random.random()
        return super().render()


FAULTS = {
    Observed: "outside the observation space",
    Batched: "expected single_observation_space in a batch of 4",
    Undeclared: r"metadata\['autoreset_mode'\] is None",
    Unseeded: "equal seeds and actions give different results",
    Column: r"rewards as float64 \(4, 1\)",
    Infinite: "not finite",
    Numbers: r"terminations as int64 \(4,\): expected an array of booleans",
    Reused: "changed by a later call|returned the same data",
    NoFinals: r"final_obs at \[\]",
    WrongFinals: "expected the ended one's last",
    Paid: "has reward 0",
    Acting: "depends on its action",
    AllReset: "outside the reset_mask",
    ShortInfos: r"infos\['extra'\] is float64 \(3,\)",
    OneFrame: "expected a frame for each of 4",
    DrawingRandomly: "rendering changes the results",
}


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_the_sound_environment_passes(mode: AutoresetMode) -> None:
    env = Walk(mode)
    check_vector_env(env, steps=60)
    assert env.closed


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(fault: type[Walk]) -> None:
    with pytest.raises(AssertionError, match=FAULTS[fault]) as caught:
        check_vector_env(fault(), steps=60)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("CartPole-v1", {"vectorization_mode": "vector_entry_point"}),
        ("Pendulum-v1", {"vector_kwargs": {"autoreset_mode": "SameStep"}, "max_episode_steps": 30}),
        ("FrozenLake-v1", {"vector_kwargs": {"autoreset_mode": "Disabled"}}),
        ("Taxi-v4", {"vectorization_mode": "sync", "max_episode_steps": 20}),
    ],
)
def test_gymnasiums_own_environments_pass(name: str, settings: dict[str, Any]) -> None:
    env = gym.make_vec(name, 3, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.metadata = {**env.metadata, "render_modes": []}
        check_vector_env(env, steps=80)


def test_what_can_not_be_checked_is_said() -> None:
    env = Walk()
    env.render_mode = None
    with (
        pytest.warns(UserWarning, match="rendering was not checked"),
        pytest.warns(UserWarning, match="no episode ended"),
    ):
        check_vector_env(env, steps=1)
    with pytest.raises(AssertionError, match="expected a VectorEnv"):
        check_vector_env(gym.make("CartPole-v1"))
