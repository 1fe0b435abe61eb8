"""A small vector environment whose best action is known, and the same one in every shell that agents take."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from astra_gym.agents import StepResult

FACTORS = (7, 5, 3)
FEATURES = 6


class KnownOptimum:
    """Each observation has a hidden best action; the reward is 1 there and falls linearly with the distance.

    `horizon` plays make an episode of every sub-environment (1: each play is terminal).
    """

    def __init__(
        self, actions: str = "factored", num_envs: int = 64, seed: int = 0, horizon: int = 1, image: bool = False
    ) -> None:
        self.num_envs, self.horizon, self.image, self.actions = num_envs, horizon, image, actions
        self.device = torch.device("cpu")
        self.action_space: gymnasium.Space = {
            "factored": spaces.MultiDiscrete(FACTORS),
            "flat": spaces.Discrete(int(np.prod(FACTORS))),
            "continuous": spaces.Box(-1, 1, (3,), np.float32),
        }[actions]
        self.observation_space: gymnasium.Space = (
            spaces.Box(0, 255, (3, 8, 8), np.uint8) if image else spaces.Box(-10, 10, (FEATURES,), np.float32)
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randn((FEATURES, 3), generator=torch.Generator().manual_seed(1))
        self.plays = 0
        self._draw()

    def _draw(self) -> None:
        if self.image:
            color = torch.randint(0, 256, (self.num_envs, 3, 1, 1), generator=self.generator, dtype=torch.uint8)
            self.current, self.ideal = color.expand(-1, -1, 8, 8), color[:, :, 0, 0] / 255
        else:
            self.current = torch.randn((self.num_envs, FEATURES), generator=self.generator).clamp(-10, 10)
            self.ideal = torch.sigmoid(self.current @ self.weights)

    def observe(self) -> Tensor:
        return self.current

    def play(self, actions: Tensor) -> StepResult:
        reward = self.reward(actions)
        self.plays += 1
        self._draw()
        done = torch.full((self.num_envs,), self.plays % self.horizon == 0)
        return StepResult(reward, done, {"plays": self.plays})

    def reward(self, actions: Tensor) -> Tensor:
        if self.actions == "continuous":
            assert actions.dtype == torch.float32 and actions.abs().max() <= 1
            place = (actions + 1) / 2
        else:
            assert actions.dtype == torch.int64
            rows = actions.numpy()
            parts = np.stack(np.unravel_index(rows, FACTORS), 1) if self.actions == "flat" else rows
            place = torch.as_tensor(parts) / (torch.tensor(FACTORS) - 1)
        return 1 - (place - self.ideal).abs().mean(1).float()

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.get_state(),
            "plays": self.plays,
            "current": self.current,
            "ideal": self.ideal,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.plays, self.current, self.ideal = state["plays"], state["current"], state["ideal"]


class AsVecEnv(VecEnv):
    """The world as a Stable-Baselines3 `VecEnv`."""

    def __init__(self, world: KnownOptimum) -> None:
        self.world = world
        self.resets = 0
        super().__init__(world.num_envs, world.observation_space, world.action_space)

    def reset(self) -> np.ndarray:
        self.resets += 1
        return self.world.observe().numpy().copy()

    def step_async(self, actions: np.ndarray) -> None:
        self.pending = torch.as_tensor(actions)

    def step_wait(self) -> Any:
        last = self.world.observe().numpy().copy()
        reward, done, info = self.world.play(self.pending)
        infos = [{**info, "terminal_observation": each} for each in last]
        return self.world.observe().numpy().copy(), reward.numpy(), done.numpy(), infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None for _ in range(self.num_envs)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class AsVectorEnv(VectorEnv):
    """The world as a Gymnasium `VectorEnv`."""

    def __init__(self, world: KnownOptimum, mode: Any = AutoresetMode.SAME_STEP) -> None:
        self.world, self.num_envs = world, world.num_envs
        self.metadata = {"autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = world.observation_space, world.action_space

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.world.observe().numpy().copy(), {}

    def step(self, actions: np.ndarray) -> Any:
        last = np.full(self.num_envs, None)
        last[:] = list(self.world.observe().numpy().copy())
        reward, done, info = self.world.play(torch.as_tensor(actions))
        ended = done.numpy()
        info = {**info, "final_obs": last, "_final_obs": ended}
        return self.world.observe().numpy().copy(), reward.numpy(), np.zeros_like(ended), ended, info


class AsEnv(gymnasium.Env):
    """A world of one sub-environment as a Gymnasium `Env`."""

    def __init__(self, world: KnownOptimum) -> None:
        self.world = world
        self.observation_space, self.action_space = world.observation_space, world.action_space
        self.over = True

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.over = False
        return self.world.observe()[0].numpy().copy(), {}

    def step(self, action: Any) -> Any:
        assert not self.over, "an episode that is over was played"
        reward, done, info = self.world.play(torch.as_tensor(np.asarray(action))[None])
        self.over = bool(done)
        return self.world.observe()[0].numpy().copy(), float(reward), False, self.over, info


@pytest.fixture
def world() -> type[KnownOptimum]:
    return KnownOptimum


@pytest.fixture
def shells() -> dict[str, Callable[..., Any]]:
    """The shells by name: each makes an environment of a world."""
    return {"torch": lambda it: it, "vec_env": AsVecEnv, "vector_env": AsVectorEnv, "env": AsEnv}


@pytest.fixture
def score() -> Callable[..., float]:
    """(reward - random) / (best - random) of an agent's predictions on a fresh world of the same kind."""

    def measure(agent: Any, actions: str, deterministic: bool = True, image: bool = False) -> float:
        fresh = KnownOptimum(actions, num_envs=2000, seed=99, image=image)
        chosen, _ = agent.predict(fresh.observe().numpy(), deterministic=deterministic)
        earned = float(fresh.reward(torch.as_tensor(chosen)).mean())
        if actions == "continuous":
            grid = torch.rand((2000, 3), generator=torch.Generator().manual_seed(7)) * 2 - 1
            random, best = float(fresh.reward(grid).mean()), 1.0
        else:
            every = torch.cartesian_prod(*(torch.arange(n) for n in FACTORS))
            place = every / (torch.tensor(FACTORS) - 1)
            table = 1 - (place[None] - fresh.ideal[:, None]).abs().mean(2)
            random, best = float(table.mean()), float(table.max(1).values.mean())
        return (earned - random) / (best - random)

    return measure
