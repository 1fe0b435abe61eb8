"""Controllers: they hold an action for a block, and find a good one from rewards that are rare, noisy and drift."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from astra_gym.agents import StepResult, make_agent
from astra_gym.agents.controllers import (
    CONTROLLERS,
    EliminationSettings,
    GaussianProcessBandit,
    GaussianProcessSettings,
    SuccessiveElimination,
    Switching,
)

BLOCK = 3
SPACES: dict[str, spaces.Space] = {
    "factored": spaces.MultiDiscrete([9, 5, 4]),
    "flat": spaces.Discrete(40),
    "continuous": spaces.Box(-1, 1, (3,), np.float32),
}


class Blocks:
    """A reward at every third play: how near the block's action is to the best, a falling trend, and noise."""

    device, num_envs = torch.device("cpu"), 1
    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, actions: str = "factored", seed: int = 0, noise: float = 0.15) -> None:
        self.action_space, self.noise = SPACES[actions], noise
        self.generator, self.plays, self.held = torch.Generator().manual_seed(seed), 0, list[np.ndarray]()

    def observe(self) -> torch.Tensor:
        return torch.zeros(1, 2)

    def value(self, action: Any) -> float:
        at, space = np.asarray(action, dtype=float), self.action_space
        if isinstance(space, spaces.Box):
            place = (at + 1) / 2
        else:
            place = at / (np.asarray(space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n) - 1)
        return float(1 - np.abs(place - 0.3).mean())

    def play(self, actions: torch.Tensor) -> StepResult:
        self.held.append(actions[0].numpy())
        self.plays += 1
        reward = 0.0
        if self.plays % BLOCK == 0:
            noise = self.noise * float(torch.randn((), generator=self.generator))
            reward = 1e-3 * (self.value(actions[0]) + noise + 20 / (10 + self.plays))
        return StepResult(torch.tensor([reward]), torch.tensor([False]), {})


def make(name: str, env: Any, **overrides: Any) -> Any:
    given = {"seed": 0, "device": "cpu", "gamma": 0.9, "planned_plays": 300}
    return make_agent(name, env, **given, overrides=overrides)


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("actions", SPACES)
def test_an_action_is_held_for_a_block(name: str, actions: str) -> None:
    env = Blocks(actions)
    agent = make(name, env)
    agent.learn(12 * BLOCK)
    blocks = [env.held[at : at + BLOCK] for at in range(0, len(env.held), BLOCK)]
    assert all((held == block[0]).all() and env.action_space.contains(held) for block in blocks for held in block)
    assert len({block[0].tobytes() for block in blocks}) > 2 and len(agent.tried) == 12


# uniform random actions have 0.68 on average; a comparison of two blocks is too weak for so much noise
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least", "noise"), [("gp", 0.85, 0.15), ("elimination", 0.75, 0.15), ("switching", 0.8, 0.02)]
)
@pytest.mark.parametrize("actions", ["factored", pytest.param("continuous", marks=pytest.mark.every_agent)])
def test_a_good_action_is_found_in_sixty_blocks(name: str, least: float, noise: float, actions: str) -> None:
    found = []
    for seed in range(5):
        env = Blocks(actions, seed, noise)
        agent = make_agent(name, env, seed=seed, device="cpu", gamma=0.9, planned_plays=60 * BLOCK)
        agent.learn(60 * BLOCK)
        found.append(env.value(agent.predict(np.zeros((1, 2), np.float32), deterministic=True)[0][0]))
    assert np.mean(found) >= least, found


def test_the_posterior_is_that_of_a_plain_gaussian_process() -> None:
    agent = GaussianProcessBandit(Blocks(), GaussianProcessSettings(length=0.4, memory=7.0, noise=0.6))
    agent.tried = [(3, 0.2), (70, 0.5), (3, 0.1), (150, 0.9)]
    points = agent.points[[3, 70, 99]].numpy()
    mean, covariance = agent._posterior(agent.points[[3, 70, 99]])
    at, rewards = agent.points[[3, 70, 3, 150]].numpy(), np.array([0.2, 0.5, 0.1, 0.9])
    rewards = rewards - rewards.mean()
    rewards = rewards / np.sqrt(np.mean(np.diff(rewards) ** 2) / 2)

    def own(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([[np.exp(-((x - y) ** 2).sum() / (2 * 0.4**2)) for y in b] for x in a])

    times = np.arange(4)
    apart = np.abs(times[:, None] - times)
    known = own(at, at) * np.exp(-apart / 7) + 4 * np.exp(-apart / 10) + 0.36 * np.eye(4)
    cross = own(points, at) * np.exp(-(4 - times) / 7)
    np.testing.assert_allclose(mean.numpy(), cross @ np.linalg.solve(known, rewards), rtol=1e-9)
    np.testing.assert_allclose(
        covariance.numpy(), own(points, points) - cross @ np.linalg.solve(known, cross.T), rtol=1e-8, atol=1e-12
    )


def test_exploration_ends() -> None:
    env = Blocks(noise=0.0)
    agent = GaussianProcessBandit(env, GaussianProcessSettings(warmup=3, explore=6), seed=1)
    agent.learn(11 * BLOCK)
    blocks = [env.held[at] for at in range(0, len(env.held), BLOCK)]
    assert len({block.tobytes() for block in blocks[:6]}) > 3
    best = [agent._best() for agent.tried in [agent.tried[: 6 + at] for at in range(5)]]
    assert all((block == agent._action(at).numpy()).all() for block, at in zip(blocks[6:], best, strict=True))
    with pytest.raises(ValueError, match="explore is 2: expected an integer of 4 or more"):
        GaussianProcessSettings(explore=2)


def test_elimination_keeps_the_better_half_of_each_round() -> None:
    env = Blocks(noise=0.0)
    agent = SuccessiveElimination(env, EliminationSettings(candidates=6, blocks=2))
    first = list(agent.left)
    values = {point: env.value(agent._action(point)) for point in first}
    agent.learn((12 + 6 + 4) * BLOCK)
    ranked = sorted(first, key=lambda point: -values[point])
    assert [point for point, _ in agent.tried[:12]].count(ranked[0]) == 2
    assert agent.left == [agent.current] and agent.current in ranked[:2]
    agent.learn(3 * BLOCK, reset_num_timesteps=False)
    assert {point for point, _ in agent.tried[-3:]} == {agent.current}


def test_switching_keeps_a_neighbor_that_earned_more() -> None:
    agent = Switching(Blocks(noise=0.0))
    for reward in (1.0, 2.0, 1.0, 0.5):
        before = agent.current
        agent.tried.append((before, reward))
        agent.current = agent._choose()
        if reward == 2.0:
            assert agent.kept == agent.current == before
    (kept, _), (other, _) = agent.tried[2:]
    assert agent.current == kept != other
    assert (agent.points[kept] - agent.points[other]).abs().max() <= 0.3 + 1e-9


@pytest.mark.parametrize("name", CONTROLLERS)
def test_saved_in_a_block_and_loaded_equals_straight(name: str, tmp_path: Path) -> None:
    straight, env = make(name, Blocks("continuous")), Blocks("continuous")
    straight.learn(40)
    agent = make(name, env)
    agent.learn(20)
    agent.save(tmp_path / "agent")
    loaded = type(agent).load(tmp_path / "agent", env=env)
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.tried == straight.tried and loaded.current == straight.current


def test_bad_settings_and_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="width is 2"):
        make("switching", Blocks(), width=2)
    with pytest.raises(ValueError, match="candidates is 0"):
        make("elimination", Blocks(), candidates=0)
    env = Blocks()
    env.action_space = spaces.Box(-np.inf, np.inf, (2,))
    with pytest.raises(ValueError, match="a controller needs a bounded Box"):
        make("gp", env)
