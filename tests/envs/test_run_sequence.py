"""Version 1 of the environments: training runs end, and others follow."""

import copy
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import astra_gym
from astra_gym.envs.api.vec_env import Sb3VecEnv
from astra_gym.envs.api.vector_checker import check_vector_env
from astra_gym.envs.batch_env import BatchAttackEnv, BatchAttackEnvV1
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.view_env import ViewAttackVectorEnv, ViewAttackVectorEnvV1
from astra_gym.ssl_core.utils.rng import derive_seed
from tests.helpers.states import same

PLANNED = 9
"""Updates of a tiny run: 3 epochs of 3."""


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each step of any world from now on: whether its network had finished training."""
    steps: list[bool] = []
    play = AttackEngine.play

    def counted(engine: AttackEngine, budget: Any) -> Any:
        steps.append(engine.step >= engine.planned_updates)
        return play(engine, budget)

    monkeypatch.setattr(AttackEngine, "play", counted)
    return steps


@pytest.mark.slow
@pytest.mark.parametrize(
    "actions", ["factored", *(pytest.param(kind, marks=pytest.mark.every_agent) for kind in ("flat", "continuous"))]
)
def test_the_checkers_pass_without_a_warning(tiny, actions: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = {"actions": actions, "render_mode": "rgb_array", **tiny}
        check_env(gym.make(astra_gym.BATCH_ID, disable_env_checker=True, **settings).unwrapped)
        sb3_check_env(BatchAttackEnvV1(**settings), skip_render_check=False)
        check_vector_env(gym.make_vec(astra_gym.VIEW_ID, **settings), steps=12)


@pytest.mark.every_agent
def test_the_vector_checker_passes_on_images_of_views(tiny) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_vector_env(ViewAttackVectorEnv(observation="image", **tiny), steps=4)


def test_the_last_planned_update_terminates_and_the_next_reset_begins_another_run(tiny) -> None:
    env = gym.make(astra_gym.BATCH_ID, disable_env_checker=True, **tiny)
    observation, info = env.reset(seed=7)
    assert info == {"new_run": True, "run": 0}
    ends, first = [], observation
    for _ in range(PLANNED):
        observation, _, terminated, truncated, info = env.step(env.action_space.sample())
        ends.append((terminated, truncated))
        assert info["run"] == 0
        if truncated:
            again, info = env.reset()
            np.testing.assert_array_equal(again, observation)
            assert info == {"new_run": False, "run": 0}
    epoch = [(False, False), (False, False), (False, True)]
    assert ends == [*epoch, *epoch, (False, False), (False, False), (True, False)]
    weights = copy.deepcopy(env.unwrapped.engine.learner.network.state_dict())
    with pytest.raises(gym.error.ResetNeeded, match="over after 9 updates"):
        env.step(env.action_space.sample())
    assert same(weights, env.unwrapped.engine.learner.network.state_dict())
    second, info = env.reset()
    assert info == {"new_run": True, "run": 1} and not np.array_equal(first, second)
    other = BatchAttackEnvV1(seed=derive_seed(7, "run/1"), **tiny)
    np.testing.assert_array_equal(second, other.reset()[0])
    np.testing.assert_array_equal(first, env.reset(seed=7)[0])


def test_a_view_world_renews_itself(tiny) -> None:
    env = gym.make_vec(astra_gym.VIEW_ID, **tiny)
    env.action_space.seed(0)
    env.reset(seed=7)
    for step in range(1, 2 * PLANNED + 1):
        observation, _, terminated, _, infos = env.step(env.action_space.sample())
        over = step % PLANNED == 0
        assert terminated.all() and set(infos["new_run"]) == {over} and infos["_new_run"].all()
        assert set(infos["run"]) == {(step - 1) // PLANNED} and set(infos["step"]) == {(step - 1) % PLANNED + 1}
        # the observation is of the new network's first batch, the final one of the last batch of the old one
        assert set(observation[:, -1]) == ({-1.0} if over else set(observation[:1, -1]))
        assert env.unwrapped.engine.step == (0 if over else step % PLANNED)
    assert env.unwrapped.engine.streams.seed == derive_seed(7, "run/2")


@pytest.mark.parametrize("kinds", [(BatchAttackEnv, BatchAttackEnvV1), (ViewAttackVectorEnv, ViewAttackVectorEnvV1)])
def test_within_a_run_both_versions_give_the_same(tiny, kinds: tuple[Any, Any]) -> None:
    old, new = (kind(action_steps=[0, 3, 4], **tiny) for kind in kinds)
    assert old.action_space == new.action_space
    old.action_space.seed(2)
    np.testing.assert_array_equal(old.reset(seed=4)[0], new.reset(seed=4)[0])
    for _ in range(PLANNED - 1):
        action = old.action_space.sample()
        a, b = old.step(action), new.step(action)
        # all but the new names in the infos
        for infos in (a[4], b[4]):
            infos.pop("final_info", None)
        assert data_equivalence((*b[:4], {key: b[4][key] for key in a[4]}), a, exact=True)


def test_no_attack_is_an_action_where_the_world_has_it(tiny) -> None:
    env = ViewAttackVectorEnvV1(**tiny)
    assert env.single_action_space.nvec.tolist() == [13, 13, 5]
    env.reset(seed=0)
    actions = np.array([[5, index % 2, 2] for index in range(8)])
    infos = env.step(actions)[4]
    assert (
        infos["budget/steps"].tolist() == [0, 3] * 4
        and (infos["budget/strength"][::2] == 0).all()
        and (infos["budget/strength"][1::2] > 0).all()
    )
    assert ViewAttackVectorEnvV1(action_steps=[1, 2], **tiny).single_action_space.nvec.tolist() == [13, 2, 5]
    assert BatchAttackEnvV1(actions="flat", **tiny).action_space.n == 845


def vec_env(name: str, tiny: dict[str, Any]) -> VecEnv:
    if name == "batch":
        return DummyVecEnv([lambda: gym.make(astra_gym.BATCH_ID, **tiny)])
    return Sb3VecEnv(gym.make_vec(astra_gym.VIEW_ID, **tiny))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["view", pytest.param("batch", marks=pytest.mark.every_agent)])
def test_stable_baselines3_spends_no_step_on_a_finished_network(tiny, finished: list[bool], name: str) -> None:
    env = vec_env(name, tiny)
    # a rollout is longer than a training run, as it is by default
    PPO("MlpPolicy", env, n_steps=11, batch_size=11, n_epochs=1, device="cpu").learn(12 * env.num_envs)
    assert finished == [False] * 22
    del finished[:]
    old = DummyVecEnv([lambda: BatchAttackEnv(**tiny)])
    PPO("MlpPolicy", old, n_steps=11, batch_size=11, n_epochs=1, device="cpu").learn(11)
    assert sum(finished) == 11 - PLANNED
