"""An attack that stops where it has succeeded, in a real world."""

from typing import Any

import pytest

from astra_gym.agents import FriendlyAgent
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.torch_env import TorchViewEnv
from astra_gym.envs.world_config import WorldSettings
from tests.helpers.rule_agents import TINY, rule_agent


def test_friendly_asks_for_a_world_that_stops(world: Any) -> None:
    env, agent = rule_agent("friendly")
    agent.learn(env.num_envs)
    assert isinstance(agent, FriendlyAgent)
    assert (env.engine.last.budget.steps < 4).any()  # type: ignore[union-attr]
    settings = WorldSettings.of(**TINY)
    with pytest.raises(ValueError, match="it never does: make it with attack_stop='retrieval'"):
        FriendlyAgent(TorchViewEnv(AttackEngine(settings)), [[0, 0, 0]])
