"""An attack as an episode: the vector API, what a view is paid, what the target learns, repeating and resuming."""

import copy
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as wrappers

import astra_gym
from astra_gym.envs.attack_step_env import OBSERVED, AttackStepVectorEnv
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.training.non_finite import NonFiniteLossError
from tests.helpers.states import same

COUNTS = np.array([2, 0, 3, 1, 4, 0, 2, 4])
"""Steps of each view of a batch."""


def make(tiny: dict, **arguments: Any) -> AttackStepVectorEnv:
    return AttackStepVectorEnv(**{"horizon": 4, **tiny, **arguments})


def drawn(env: AttackStepVectorEnv, steps: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(4, size=env.num_envs) for _ in range(steps)]


@pytest.mark.slow
def test_the_contract_of_a_vector_environment(tiny: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make_vec(astra_gym.STEP_ID, horizon=3, **tiny)
        observations, info = env.reset(seed=4)
        assert info == {} and env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        # the first attack ends by its horizon, the second because all have stopped
        for number, action in enumerate([1, 2, 3, 1, 0]):
            assert env.observation_space.contains(observations)
            assert all(env.single_observation_space.contains(row) for row in observations)
            previous, ends = observations, number in (2, 4)
            observations, rewards, terminated, truncated, infos = env.step(np.full(8, action))
            assert rewards.shape == (8,) and rewards.dtype == np.float64 and np.isfinite(rewards).all()
            assert terminated.dtype == truncated.dtype == np.bool_
            assert (terminated == ends).all() and not truncated.any()
            assert env.unwrapped.engine.step == [0, 0, 1, 1, 2][number]
            assert {"budget/steps", "attack/loss"} <= infos.keys() and ("final_obs" in infos) == ends
            for key, value in infos.items():
                assert key == "final_info" or len(value) == 8, key
        finals = np.stack(list(infos["final_obs"]))
        left = OBSERVED.index("steps left")
        assert (finals[:, left] == 0).all() and (observations[:, left] == 1).all()
        np.testing.assert_array_equal(np.delete(finals, left, 1), np.delete(previous, left, 1))
        np.testing.assert_array_equal(infos["final_info"]["budget/steps"], [1] * 8)
        env.close()


def test_infos_can_be_lists(tiny: dict) -> None:
    env = wrappers.DictInfoToList(make(tiny, horizon=2))
    env.reset(seed=0)
    for _ in range(2):
        *_, infos = env.step(np.ones(8, int))
    assert [info["budget/steps"] for info in infos] == [2] * 8 and all("final_obs" in info for info in infos)


def test_a_view_is_paid_the_rise_of_its_loss_until_it_stops_minus_the_price(tiny: dict) -> None:
    env = make(tiny, price=0.125, epsilon=16 / 255)
    observations, _ = env.reset(seed=0)
    first, gain = env.attack.values.double().numpy(), OBSERVED.index("gain")
    np.testing.assert_allclose(observations[:, gain] + observations[:, gain + 6], first, rtol=1e-6)
    total, at_stop = np.zeros(8), first
    for step in range(4):
        _, rewards, terminated, _, infos = env.step(np.where(step < COUNTS, 2, 0))
        moved = step < COUNTS
        assert (rewards[~moved] == 0).all() and (rewards[moved] != 0).all()
        total, at_stop = total + rewards, np.where(moved, infos["attack/loss"], at_stop)
    assert terminated.all() and infos["budget/steps"].tolist() == COUNTS.tolist()
    np.testing.assert_allclose(total, at_stop - first - 0.125 * COUNTS, atol=1e-6)
    np.testing.assert_allclose(infos["attack/loss"], infos["reward/adversarial"], rtol=1e-6)
    np.testing.assert_allclose(infos["budget/step_size"], np.where(COUNTS > 0, 2 / 255, 0), rtol=1e-6)


def test_observations_say_what_the_attack_did(tiny: dict) -> None:
    env = make(tiny, horizon=2, price=0.5)
    first = dict(zip(OBSERVED, env.reset(seed=0)[0].T, strict=True))
    assert (first["agreement"] == 0).all() and (first["progress"] == -1).all() and (first["price"] == 0.5).all()
    # a uniform start has the mean distance 1/2, but for pixels at the ends of their range
    assert ((first["distance"] > 0.3) & (first["distance"] < 0.6)).all() and (first["steps left"] == 1).all()
    # tiny networks have views without a gradient
    slopes = env.attack.gradient.abs().sum(dim=(1, 2, 3)).clamp(min=1e-10).log10()
    np.testing.assert_allclose(first["gradient norm"], slopes, rtol=1e-6)
    signs = env.attack.gradient.sign()
    second = dict(zip(OBSERVED, env.step(np.array([3, 0] * 4))[0].T, strict=True))
    assert second["steps left"].tolist() == [0.5, 0] * 4
    agreement = (env.attack.gradient.sign() * signs).mean(dim=(1, 2, 3))[::2]
    np.testing.assert_allclose(second["agreement"], torch.stack([agreement, 0 * agreement], 1).ravel(), atol=1e-6)
    assert (np.abs(second["agreement"][::2]) < 1).all()


def test_views_that_all_stop_at_once_stay_at_their_start(tiny: dict) -> None:
    env = make(tiny)
    env.reset(seed=0)
    start, views = env.attack.moved.clone(), env.engine.views.clone()
    _, rewards, terminated, _, infos = env.step(np.zeros(8, int))
    assert terminated.all() and (rewards == 0).all() and (infos["budget/steps"] == 0).all()
    assert torch.equal(env.engine.last.adversarial, start) and not torch.equal(start, views)


@pytest.mark.parametrize("method", ["astra", "rocl", "simsiam"])
def test_the_target_learns_what_it_learns_from_the_same_budget(tiny: dict, method: str) -> None:
    world = tiny | {"method": method, "passes": 40.0, "reward_cost": 0.5}
    env, other = make(world, epsilon=6 / 255, horizon=3), AttackEngine(WorldSettings.of(**world), seed=5)
    env.reset(seed=5)
    budget = Budget.uniform(env.num_envs, epsilon=6 / 255, step_size=2 / 255, steps=3)
    for _ in range(3):
        for _ in range(3):
            env.step(np.full(env.num_envs, 2))
        record = other.play(budget)
    played = env.engine.last
    assert torch.equal(played.adversarial, record.adversarial) and same(played.losses, record.losses)
    assert same(env.engine.learner.state_dict(), other.learner.state_dict())
    assert env.engine.plan.spent(3) == other.plan.spent(3) and env.engine.progress == other.progress > 0
    assert torch.equal(played.budget.step_size, record.budget.step_size) and played.terms.keys() == record.terms.keys()


def test_views_that_stop_by_themselves_are_as_in_an_attack_with_their_steps(tiny: dict) -> None:
    env, other = make(tiny), AttackEngine(WorldSettings.of(**tiny), seed=5)
    env.reset(seed=5)
    for step in range(4):
        env.step(np.where(step < COUNTS, 3, 0))
    size, radius = torch.full((8,), 4 / 255), torch.full((8,), 8 / 255)
    record = other.play(Budget(epsilon=radius, step_size=size, steps=torch.tensor(COUNTS)))
    torch.testing.assert_close(env.engine.last.adversarial, record.adversarial, rtol=0, atol=1e-4)
    torch.testing.assert_close(env.engine.last.terms["adversarial"], record.terms["adversarial"], rtol=1e-3, atol=1e-4)


def played(env: AttackStepVectorEnv, actions: list[np.ndarray]) -> list[Any]:
    return [[value.tolist() for value in env.step(action)[:3]] for action in actions]


def test_the_same_seed_gives_the_same_episodes(tiny: dict) -> None:
    env, other = make(tiny), make(tiny, seed=9)
    actions = drawn(env, 10)
    first = env.reset(seed=9)[0]
    assert np.array_equal(other.reset()[0], first)
    seen = played(env, actions)
    assert played(other, actions) == seen
    assert np.array_equal(env.reset(seed=9)[0], first) and played(env, actions) == seen
    assert not np.array_equal(env.reset(seed=8)[0], first)


def test_it_resumes_exactly_within_an_attack(tiny: dict) -> None:
    env, other = make(tiny), make(tiny, seed=1)
    actions = [np.where(step % 4 < COUNTS, 1 + step % 3, 0) for step in range(12)]
    env.reset(seed=5)
    played(env, actions[:6])
    state = copy.deepcopy(env.state_dict())
    rest = played(env, actions[6:])
    other.load_state_dict(state)
    assert played(other, actions[6:]) == rest
    assert same(env.state_dict(), other.state_dict())


def test_a_reset_without_a_seed_begins_the_coming_attack_and_counts_a_dropped_one(tiny: dict) -> None:
    env = make(tiny)
    first, _ = env.reset(seed=3)
    assert np.array_equal(env.reset()[0], first)
    env.step(np.array([1, 0] * 4))
    again, _ = env.reset()
    clean, distance = OBSERVED.index("clean loss"), OBSERVED.index("distance")
    assert np.array_equal(again[:, clean], first[:, clean]) and (again[:, distance] != first[:, distance]).all()
    env.step(np.zeros(8, int))
    assert env.engine.last.other_steps == 4 and env.engine.step == 1


def test_a_new_run_begins_when_the_planned_updates_are_made(tiny: dict) -> None:
    env = make(tiny)
    env.reset(seed=3)
    new = [env.step(np.zeros(8, int))[4]["new_run"].all() for _ in range(env.engine.planned_updates)]
    assert new == [False] * 8 + [True] and env.engine.step == 0 and env.engine.streams.seed != 3
    observation, seeds = env.reset()[0], {env.engine.streams.seed}
    assert (observation[:, OBSERVED.index("progress")] == -1).all()
    for _ in range(9):
        env.step(np.zeros(8, int))
    assert env.engine.step == 0 and not seeds & {3, env.engine.streams.seed}


def test_values_that_are_not_finite_stop_the_attack(tiny: dict) -> None:
    env = make(tiny)
    env.reset(seed=0)
    env.attack.gradient[2, 0, 0, 0] = torch.nan
    env.engine.learner.step = 4
    with pytest.raises(NonFiniteLossError, match="before update 5 the attack has values that are not finite"):
        env.step(np.array([1, 1, 0, 1, 1, 1, 1, 1]))


def test_bad_input_is_refused_and_loses_nothing(tiny: dict) -> None:
    for arguments, message in (
        ({"epsilon": 8}, "epsilon is 8: expected in"),
        ({"epsilon": 0}, "epsilon is 0: expected in"),
        ({"step_sizes": (1 / 255, 2)}, "a member of step_sizes is 2: expected in"),
        ({"step_sizes": ()}, "the number of step_sizes is 0"),
        ({"price": -1}, "price is -1"),
        ({"horizon": 0}, "horizon is 0"),
        ({"num_envs": 4}, "num_envs is 4: a batch of 4 images has 8 attacked views"),
        ({"action_steps": (1, 2)}, "action_steps, action_step_sizes and attack_stop have no effect here"),
        ({"attack_stop": "retrieval"}, "have no effect here"),
        ({"method": "simclr"}, "SimCLR has no attack whose views may stop one by one"),
        ({"method": "cf-amc-ssl"}, "has no attack whose views may stop one by one"),
    ):
        with pytest.raises(ValueError, match=message):
            make(tiny, **arguments)
    env = make(tiny)
    first, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match="expected one Python integer"):
        env.reset(seed=[1] * 8)
    for actions in (np.zeros(7, int), np.full(8, 4), np.full(8, -1), np.zeros(8), np.zeros((8, 1), int), None, "stop"):
        with pytest.raises(ValueError, match="expected"):
            env.step(actions)
    assert np.array_equal(env.reset()[0], first) and env.engine.step == 0
