"""Agents that follow a rule, in real worlds that are tiny."""

from typing import Any

from astra_gym.agents import make_agent
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.torch_env import TorchViewEnv
from astra_gym.envs.world_config import WorldSettings

TINY = {"batch_size": 4, "epochs": 6, "limit": 14, "test_limit": 20, "image_size": 8, "width": 2, "method": "acl"}
"""3 updates an epoch, 18 in all."""


def rule_agent(name: str, stop: str | None = None, **more: Any) -> tuple[TorchViewEnv, Any]:
    # small enough for some views of so small a world to stay retrieved
    unit = 1 / 255 if name == "customized" else 8 / 255
    sets = {"action_steps": (0, 1, 2, 4), "action_epsilons": (unit, 2 * unit, 3 * unit)}
    settings = WorldSettings.of(**TINY, **sets, attack_stop="retrieval" if name == "friendly" else stop)
    env = TorchViewEnv(AttackEngine(settings, seed=3))
    actions = {
        "delayed": [[1, 0, 1], [1, 2, 1]],
        "accelerating": [[1, 2, 1], [1, 3, 1]],
        "escalating": [[1, 2, 1], [1, 3, 1]],
        "customized": [[k, 1, 0] for k in range(3)],
        "friendly": [[2, 3, 4]],
    }[name]
    given = {"planned_plays": 18, "schedule_actions": actions} | more
    return env, make_agent(name, env, seed=0, device="cpu", gamma=0.0, **given)
