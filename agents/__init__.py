"""Agents that choose attacks, with one interface: REINFORCE, bandits, Stable-Baselines3's, custom ones, controls."""

if __name__ != "astra_gym.agents":
    raise ImportError(f"{__name__} is a part of astra_gym, not a package of its own: import astra_gym.agents")

from astra_gym.agents.bandits import Exp3Bandit, LinearThompson
from astra_gym.agents.base import Agent, as_torch_env
from astra_gym.agents.controls import FixedAgent, RandomAgent, ScheduleAgent
from astra_gym.agents.entries import AgentEntry
from astra_gym.agents.external import FunctionAgent
from astra_gym.agents.registry import AGENTS, describe, learns, make_agent
from astra_gym.agents.reinforce import REINFORCE
from astra_gym.agents.rules.accelerating import AcceleratingAgent
from astra_gym.agents.rules.customized import CustomizedAgent
from astra_gym.agents.rules.delayed import DelayedAgent
from astra_gym.agents.rules.escalating import EscalatingAgent
from astra_gym.agents.rules.friendly import FriendlyAgent
from astra_gym.agents.sb3.agent import Sb3Agent
from astra_gym.envs.api.protocol import TorchVectorEnv
from astra_gym.envs.api.step_result import StepResult

__all__ = [
    "AGENTS",
    "REINFORCE",
    "AcceleratingAgent",
    "Agent",
    "AgentEntry",
    "CustomizedAgent",
    "DelayedAgent",
    "EscalatingAgent",
    "Exp3Bandit",
    "FixedAgent",
    "FriendlyAgent",
    "FunctionAgent",
    "LinearThompson",
    "RandomAgent",
    "Sb3Agent",
    "ScheduleAgent",
    "StepResult",
    "TorchVectorEnv",
    "as_torch_env",
    "describe",
    "learns",
    "make_agent",
]
