"""Acceleration, against gradients that are written down."""

from typing import Any

import numpy as np
import pytest

from astra_gym.agents import AcceleratingAgent, make_agent
from astra_gym.agents.rules.accelerating import AccelerationSettings
from tests.helpers.scripted_worlds import LISTED, Scripted, played


def test_accelerating_climbs_when_a_period_s_gradient_exceeds_the_remembered_one(world: Any) -> None:
    # two plays an epoch, whose means are 9; 4, remembered as 5; 5, not above; 6, above: remembered as 7.5; 7; 8; 99
    slopes = [[8, 10], [9, 9], [3, 5], [4, 4], [5, 5], [5, 5], [6, 6], [2, 10], [7, 7], [7, 7], [8, 8], [8, 8]]
    slopes += [[99, 99]] * 4
    rows = [{"attack/slope": [float(one) for one in row], "epoch": (k + 1) / 2} for k, row in enumerate(slopes)]
    env = Scripted(world(num_envs=2), rows)
    agent = make_agent(
        "accelerating",
        env,
        seed=0,
        device="cpu",
        gamma=0.0,
        planned_plays=16,
        schedule_actions=LISTED,
        overrides={"growth": 1.25},
    )
    assert isinstance(agent, AcceleratingAgent) and env.asked == {"attack/slope"}
    assert played(agent, 4) == [[0, 0]] * 4 and agent.threshold == 5.0
    assert played(agent, 4) == [[0, 0]] * 4 and agent.threshold == 7.5
    assert played(agent, 4) == [[1, 1]] * 4 and agent.threshold == 10.0
    # the last of the list stays
    assert played(agent, 4) == [[2, 2]] * 4 and agent.threshold == 10.0
    assert agent.predict(np.zeros((3, 6), np.float32))[0].tolist() == [[2, 2, 2]] * 3


def test_accelerating_sums_over_its_own_period(world: Any) -> None:
    rows = [{"attack/slope": [float(k)], "epoch": (k + 1) / 10} for k in range(10)]
    agent: Any = make_agent(
        "accelerating",
        Scripted(world(num_envs=1), rows),
        seed=0,
        device="cpu",
        gamma=0.0,
        planned_plays=10,
        schedule_actions=LISTED,
        overrides={"period": 0.3},
    )
    # plays 3, 4, 5 have the mean 4; plays 6, 7, 8 have 7
    assert played(agent, 6) == [[0]] * 6 and agent.threshold == 4.0
    assert played(agent, 4) == [[0]] * 3 + [[1]] and agent.threshold == 7.0


@pytest.mark.parametrize("name", ["growth", "period"])
def test_nothing_grows_by_0_or_in_0_epochs(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        AccelerationSettings(**{name: 0.0})
