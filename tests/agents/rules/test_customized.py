"""A radius for each image, against retrievals that are written down, and in a real world."""

from typing import Any

import numpy as np

from astra_gym.agents import CustomizedAgent, make_agent
from tests.helpers.rule_agents import rule_agent
from tests.helpers.scripted_worlds import LISTED, Scripted, played


def test_customized_raises_what_is_retrieved_and_takes_back_what_is_not(world: Any) -> None:
    places = [[0, 1], [4, 5], [0, 1], [1, 0], [0, 1], [0, 1]]
    retrieved = [[True, False], [True, True], [True, True], [True, True], [False, True], [True, False]]
    rows = [{"attack/retrieved": row} for row in retrieved]
    env = Scripted(world(num_envs=2), rows, places)
    agent: Any = make_agent(
        "customized", env, seed=0, device="cpu", gamma=0.0, planned_plays=6, schedule_actions=LISTED
    )
    assert isinstance(agent, CustomizedAgent) and env.asked == {"attack/retrieved"}
    assert played(agent, 1) == [[0, 0]] and agent.memory.tolist() == [1, 0]
    assert played(agent, 1) == [[0, 0]] and agent.memory.tolist() == [1, 0, 0, 0, 1, 1]
    assert played(agent, 1) == [[1, 0]] and agent.memory.tolist() == [2, 1, 0, 0, 1, 1]
    # the views of an image may come in another place of the batch
    assert played(agent, 1) == [[1, 2]] and agent.memory.tolist() == [3, 2, 0, 0, 1, 1]
    # 0 is at the cap, fails there and goes down; 1 reaches it
    assert played(agent, 1) == [[2, 2]] and agent.memory.tolist() == [2, 3, 0, 0, 1, 1]
    assert played(agent, 1) == [[2, 2]] and agent.memory.tolist() == [3, 2, 0, 0, 1, 1]
    # the mean of 7/6 is 1, and is raised
    assert agent.predict(np.zeros((2, 6), np.float32))[0].tolist() == [[1, 1, 1]] * 2


def test_customized_may_rise_by_several_radii_and_never_falls_below_none(world: Any) -> None:
    rows = [{"attack/retrieved": [False]}, {"attack/retrieved": [True]}, {"attack/retrieved": [False]}]
    agent: Any = make_agent(
        "customized",
        Scripted(world(num_envs=1), rows, [[0]] * 3),
        seed=0,
        device="cpu",
        gamma=0.0,
        planned_plays=3,
        schedule_actions=LISTED,
        overrides={"stride": 2},
    )
    assert played(agent, 3) == [[1], [1], [2]] and agent.memory.tolist() == [1]


def test_customized_keeps_a_radius_for_each_image_in_a_real_world() -> None:
    env, agent = rule_agent("customized")
    agent.learn(18 * env.num_envs)
    # 14 images in batches of 4: 12 an epoch, two views each
    assert len(agent.memory) == 28 and 0 < agent.memory.double().mean() < 3 and len(agent.memory.unique()) > 2
