"""Bisection: what halves it plays and keeps, what it draws, and that it resumes."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces

from astra_gym.agents import StepResult, make_agent
from astra_gym.agents.bisection import Bisection, BisectionSettings
from astra_gym.envs.api.spaces import meaning

BLOCK, VIEWS = 3, 64


class Halves:
    """A reward at every third play, the same for all views: high for small first parts and large second ones."""

    device, num_envs = torch.device("cpu"), VIEWS
    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, space: spaces.Space, noise: float = 0.0) -> None:
        self.action_space, self.noise = space, noise
        self.generator, self.played = torch.Generator().manual_seed(0), list[torch.Tensor]()

    def observe(self) -> torch.Tensor:
        return torch.zeros(VIEWS, 2)

    def play(self, actions: torch.Tensor) -> StepResult:
        self.played.append(actions)
        reward = 0.0
        if len(self.played) % BLOCK == 0:
            at = actions.double().view(VIEWS, -1).mean(0)
            # a falling trend, larger than the difference
            reward = 1.0 + float(at[-1] - at[0]) / 10 - 0.02 * len(self.played)
            reward += self.noise * float(torch.randn((), generator=self.generator))
        done = torch.ones(VIEWS, dtype=torch.bool)
        return StepResult(torch.full((VIEWS,), reward), done, {})


def test_halves_are_played_there_and_back_and_the_better_one_stays() -> None:
    env = Halves(spaces.MultiDiscrete([5, 1, 8]))
    agent = Bisection(env, BisectionSettings(halvings=2, settle=False), seed=3)
    assert agent.queue == [0, 1, 2, 0, 1, 2]
    agent.learn(4 * BLOCK * VIEWS)
    seen = [{int(each) for each in env.played[at * BLOCK][:, 0]} for at in range(4)]
    assert seen[0] == seen[3] and seen[1] == seen[2] and sorted(map(sorted, seen[:2])) == [[0, 1, 2], [3, 4]]
    assert set(env.played[0][:, 2].tolist()) == set(range(8))
    # the middle part has one member, so it is left out
    assert agent.ranges == [[0, 3], [0, 1], [0, 8]] and agent.queue == [2, 0, 1, 2]
    agent.learn(13 * BLOCK * VIEWS)
    assert agent.ranges == [[0, 2], [0, 1], [6, 8]] and not agent.queue
    last = env.played[-1]
    assert set(last[:, 0].tolist()) == {0, 1} and set(last[:, 2].tolist()) == {6, 7}
    action, _ = agent.predict(np.zeros((1, 2), np.float32), deterministic=True)
    assert action.tolist() == [[0, 0, 6]]
    agent.settings = BisectionSettings(halvings=2)
    agent.learn(VIEWS)
    assert (env.played[-1] == torch.tensor([0, 0, 6])).all()


@pytest.mark.parametrize("space", [spaces.Box(-2, 3, (2,), np.float32), spaces.Discrete(40)])
def test_other_spaces(space: spaces.Space) -> None:
    env = Halves(space)
    agent = make_agent("bisection", env, seed=1, device="cpu", gamma=0.0, planned_plays=100)
    agent.learn(30 * BLOCK * VIEWS)
    assert all(space.contains(action.numpy()) for action in env.played[0])
    if isinstance(space, spaces.Box):
        assert agent.ranges == [[0, 0.5], [0.5, 1]]
        assert env.played[-1].unique(dim=0).tolist() == [[-0.75, 1.75]]
    else:
        # the first part is also the last, so both halves earn the same
        assert agent.ranges[0][1] - agent.ranges[0][0] == 20


def test_it_begins_as_uniform_random_and_resumes() -> None:
    whole, part, rest = (Halves(spaces.MultiDiscrete([6, 6]), 0.1) for _ in range(3))
    make = partial(Bisection, settings=BisectionSettings(order=(1,)), seed=2)
    make(whole).learn(20 * VIEWS)
    assert (torch.cat([each[:, 0] for each in whole.played]).bincount(minlength=6) > 100).all()
    first = make(part)
    first.learn(5 * VIEWS)
    second = make(rest)
    second.load_state_dict(first.state_dict())
    rest.played, rest.generator = list(part.played), part.generator
    second.learn(15 * VIEWS, reset_num_timesteps=False)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(rest.played, whole.played, strict=True))


def test_it_begins_with_the_ranges_of_another_run_and_halves_them_further() -> None:
    env = Halves(spaces.MultiDiscrete([8, 8]))
    first, second = (Bisection(env, BisectionSettings(settle=False), seed=seed) for seed in (2, 3))
    first.learn(8 * BLOCK * VIEWS)
    assert first.ranges == [[0, 4], [4, 8]] and not first.queue
    second.take_over(first.state_dict())
    assert second.ranges == first.ranges and second.queue == [0, 1]
    drawn, _ = second.predict(np.zeros((400, 2), np.float32), deterministic=False)
    # a prediction draws from all of them, not from the half that is being tried
    assert set(drawn[:, 0]) == {0, 1, 2, 3} and set(drawn[:, 1]) == {4, 5, 6, 7}
    second.learn(9 * BLOCK * VIEWS)
    assert second.ranges == [[0, 2], [6, 8]]
    with pytest.raises(RuntimeError, match=r"at most \[4.0, 8.0\] here"):
        Bisection(Halves(spaces.MultiDiscrete([4, 8]))).take_over({"learner": {"ranges": [[0, 5], [0, 8]]}})


def test_parts_have_names_where_an_attack_is_chosen() -> None:
    three, sets = spaces.MultiDiscrete([13, 12, 5]), {"steps": range(4), "epsilon": range(6)}
    for space, order, queue in (
        (three, ("steps", "epsilon"), [1, 0]),
        (three, ("step_size", 0), [2, 0]),
        (spaces.Box(-1, 1, (3,), np.float32), ("steps",), [1]),
        # the space itself says what its parts are
        (meaning(spaces.MultiDiscrete([4, 6]), sets), ("epsilon", "steps"), [1, 0]),
    ):
        agent = make_agent("bisection", Halves(space), seed=0, gamma=0.0, planned_plays=9, overrides={"order": order})
        assert agent.queue == queue and agent.settings.order == order
    wrong = {
        (
            "steps",
            1,
        ): r"order is \['steps', 1\]: expected different numbers from 0 to 2, or names among epsilon",
        ("size",): "or names among epsilon, steps, step_size",
        "steps": "order of the agent 'bisection' is 'steps': expected a list",
    }
    for given, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            make_agent("bisection", Halves(three), seed=0, gamma=0.0, planned_plays=9, overrides={"order": given})
    with pytest.raises(ValueError, match=r"order is \['steps'\]: expected different numbers from 0 to 0$"):
        Bisection(Halves(spaces.Discrete(780)), BisectionSettings(order=("steps",)))


def test_wrong_settings_are_refused() -> None:
    env = Halves(spaces.MultiDiscrete([6, 6]))
    with pytest.raises(ValueError, match=r"order is \[0, 2\]: expected different numbers from 0 to 1"):
        Bisection(env, BisectionSettings(order=(0, 2)))
    with pytest.raises(ValueError, match="blocks is 0"):
        BisectionSettings(blocks=0)
    with pytest.raises(ValueError, match="needs a bounded Box"):
        Bisection(Halves(spaces.Box(-np.inf, np.inf, (1,), np.float32)))
