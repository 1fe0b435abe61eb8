"""Starting from what an agent has learned in another run: to learn on, or frozen."""

import re
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from astra_gym.agents.base import Agent
from astra_gym.agents.controls import OnePlayAgent
from astra_gym.agents.reinforce import REINFORCE
from astra_gym.agents.sb3.agent import Sb3Agent
from astra_gym.ssl_core.models.checkpoint import CheckpointError, checkpoint_at, load_checkpoint
from astra_gym.ssl_core.utils.messages import brief, shown

SHAPES = r"copying a param with shape torch\.Size\((.*?)\) from .*? torch\.Size\((.*?)\)"
"""Torch's words for a parameter of another shape."""


class FrozenAgent(OnePlayAgent):
    """An agent that acts as another one does, by random draws where that one draws, and learns nothing.

    Args:
        env: the environment of `inner`, or the `TorchVectorEnv` behind it.
        inner: the agent whose actions are played.
    """

    kind: ClassVar[str] = "frozen"

    def __init__(self, env: Any, inner: Agent | Sb3Agent) -> None:
        super().__init__(env, seed=0, device=inner.device)
        self.inner = inner

    def _act(self, observation: Tensor) -> Tensor:
        return self._predict(observation, deterministic=False)

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        actions, _ = self.inner.predict(observation.cpu().numpy(), deterministic=deterministic)
        return torch.as_tensor(actions).to(self.device)

    def numbers(self) -> dict[str, Any]:
        """Return the inner agent's values."""
        return self.inner.numbers()

    def _learner_state(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


def start_from(agent: Agent | Sb3Agent, run: str | Path) -> None:
    """Let an agent begin with what the agent of another run has learned; its counts and streams stay its own.

    Args:
        agent: an agent of the same kind, which may be frozen.
        run: folder of the run.

    Raises:
        ValueError: if there is no such run, its agent is of another kind, or what it has learned has other shapes.
    """
    found = agent.inner if isinstance(agent, FrozenAgent) else agent
    if not isinstance(found, OnePlayAgent | REINFORCE | Sb3Agent):
        raise ValueError(f"agent_from: the agent {shown(found.kind)} learns nothing, leave it out")
    try:
        state = load_checkpoint(checkpoint_at(Path(run)), "run")["agent"]
    except CheckpointError as error:
        raise ValueError(f"agent_from: {error}") from error
    if state["kind"] == FrozenAgent.kind:
        state = state["learner"]
    if state["kind"] != found.kind:
        raise ValueError(
            f"agent_from is {shown(str(run))}, a run of the agent {shown(state['kind'])}: expected one of "
            f"{shown(found.kind)}, or give --agent {state['kind']}"
        )
    try:
        found.take_over(state)
    except (RuntimeError, KeyError, ValueError) as error:
        # torch lists every tensor that differs, after a line on the class
        said = " ".join(str(error).partition("\n\t")[2].split()) or str(error)
        reason = brief(re.sub(SHAPES, r"\1 there, \2 here", said), 150)
        raise ValueError(f"what the agent of {shown(str(run))} has learned does not fit here: {reason}") from error
