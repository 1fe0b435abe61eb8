"""The controls: uniform random and fixed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from astra_gym.agents import FixedAgent, RandomAgent, make_agent


def test_random_is_uniform_over_the_factors(world: Any) -> None:
    agent = RandomAgent(world())
    drawn, _ = agent.predict(np.zeros((30_000, 6), np.float32), deterministic=True)
    for column, choices in zip(drawn.T, agent.action_space.nvec, strict=True):  # type: ignore[attr-defined]
        share = np.bincount(column, minlength=choices) / len(column)
        np.testing.assert_allclose(share, 1 / choices, atol=0.01)
    assert abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.02


def test_random_fills_the_box(world: Any) -> None:
    drawn, _ = RandomAgent(world("continuous")).predict(np.zeros((30_000, 6), np.float32))
    assert drawn.dtype == np.float32 and drawn.min() >= -1 and drawn.max() <= 1
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(drawn.std(0), 1 / np.sqrt(3), atol=0.01)


def test_random_refuses_an_unbounded_box(world: Any) -> None:
    env = world("continuous")
    env.action_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    with pytest.raises(ValueError, match="bounded"):
        RandomAgent(env)


@pytest.mark.parametrize(
    ("actions", "action"), [("factored", [5, 2, 1]), ("flat", 17), ("continuous", [0.5, -1.0, 0.25])]
)
def test_fixed_plays_its_action(world: Any, actions: str, action: Any) -> None:
    agent = FixedAgent(world(actions, num_envs=4), action)
    sent: list[Any] = []
    agent.learn(8, callback=lambda local, _: sent.append(local["actions"].tolist()) or True)
    assert sent == [[action] * 4] * 2
    assert agent.predict(np.zeros(6, np.float32))[0].tolist() == action


@pytest.mark.parametrize(
    ("actions", "action"),
    [
        ("factored", [7, 0, 0]),
        ("factored", [1, 1]),
        ("factored", [1.0, 1.0, 1.0]),
        ("flat", 105),
        ("flat", -1),
        ("flat", "17"),
        ("factored", [[1, 1], 1]),
        ("continuous", ["a", "b", "c"]),
        ("continuous", [0.0, 0.0, 1.5]),
        ("continuous", [0.0, 0.0, np.nan]),
    ],
)
def test_fixed_refuses_what_is_no_action(world: Any, actions: str, action: Any) -> None:
    with pytest.raises(ValueError, match="fixed action is"):
        FixedAgent(world(actions), action)


def test_the_hardest_attack_is_a_fixed_one(world: Any) -> None:
    agent = make_agent("fixed-max", world(), seed=0, gamma=0.0, planned_plays=5, fixed_action=[6, 4, 2])
    assert isinstance(agent, FixedAgent) and agent.predict(np.zeros(6, np.float32))[0].tolist() == [6, 4, 2]
    with pytest.raises(ValueError, match="fixed_action is None: agent 'fixed-max'"):
        make_agent("fixed-max", world(), seed=0, gamma=0.0, planned_plays=5)


def test_controls_take_the_arguments_of_every_agent(world: Any, tmp_path: Path) -> None:
    agent = FixedAgent(world(num_envs=2), [0, 0, 0], seed=7, device="cpu", tensorboard_log=tmp_path / "log")
    assert agent.seed == 7 and agent.device.type == "cpu" and agent.tensorboard_log == str(tmp_path / "log")
    agent.learn(4)
    assert list((tmp_path / "log" / "run_1").glob("events*"))
    assert RandomAgent(world()).seed == 0
    with pytest.raises(TypeError, match="sed"):
        RandomAgent(world(), sed=7)  # type: ignore[call-arg]
