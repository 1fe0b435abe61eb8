"""No attack for a share of the plays, against a sequence computed by hand."""

from typing import Any

import pytest

from astra_gym.agents import DelayedAgent, make_agent
from tests.helpers.scripted_worlds import LISTED


def test_delayed_attacks_from_its_share_of_the_plays_on(world: Any) -> None:
    for share, plays, first in ((0.5, 8, 4), (0.5, 7, 4), (0.1, 30, 3), (0.0, 4, 0), (1.0, 4, 4)):
        settings = {"share": share}
        agent = make_agent(
            "delayed",
            world("flat", num_envs=2),
            seed=0,
            device="cpu",
            gamma=0.0,
            planned_plays=plays,
            schedule_actions=[5, 9],
            overrides=settings,
        )
        assert isinstance(agent, DelayedAgent)
        sent: list[Any] = []
        agent.learn(2 * plays, callback=lambda local, _, kept=sent: kept.append(local["actions"].tolist()) or True)
        assert sent == [[5, 5]] * first + [[9, 9]] * (plays - first)
    with pytest.raises(ValueError, match="the agent delayed got 3 actions: expected no attack, and the attack"):
        DelayedAgent(world(), LISTED, planned_plays=9)
    with pytest.raises(ValueError, match=r"share is 1.5: expected a finite number in \[0, 1\]"):
        make_agent(
            "delayed", world(), seed=0, gamma=0.0, planned_plays=9, schedule_actions=LISTED, overrides={"share": 1.5}
        )
