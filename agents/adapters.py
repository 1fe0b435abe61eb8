"""Adapters to `TorchVectorEnv`, so that agents can use every kind of environment."""

from collections.abc import Callable
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from astra_gym.envs.api.protocol import TorchVectorEnv
from astra_gym.envs.api.step_result import StepResult
from astra_gym.envs.api.vec_env import Sb3VecEnv


class HeldObservation:
    """A `TorchVectorEnv` that keeps the current observation, because the adapted environment gives it only once.

    `observation` is None until the first `observe`, which resets the environment. Agents save and restore it, so that
    resuming does not reset the environment.
    """

    def __init__(
        self,
        num_envs: int,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_envs = num_envs
        self.observation_space = observation_space
        self.action_space = action_space
        self.device = torch.device(device)
        self.observation: Tensor | None = None

    def observe(self) -> Tensor:
        if self.observation is None:
            self.observation = self._tensor(self._reset())
        return self.observation

    def play(self, actions: Tensor) -> StepResult:
        self.observe()
        observation, reward, done, info = self._step(actions.cpu().numpy())
        self.observation = self._tensor(observation)
        return StepResult(self._tensor(reward).to(torch.float32), self._tensor(done).to(torch.bool), info)

    def _tensor(self, values: Any) -> Tensor:
        # a copy, since some environments write the next observation over the last one
        return torch.tensor(np.asarray(values), device=self.device)

    def _reset(self) -> Any:
        raise NotImplementedError

    def _step(self, actions: np.ndarray) -> tuple[Any, Any, Any, dict[str, Any]]:
        raise NotImplementedError


class NoEnvironment(HeldObservation):
    """Placeholder for the environment of an agent that was loaded without one: it has spaces and cannot be played."""

    def _reset(self) -> Any:
        raise ValueError("this agent has no environment: give it one by set_env(env) or load(path, env=env)")

    def _step(self, actions: np.ndarray) -> tuple[Any, Any, Any, dict[str, Any]]:
        return self._reset()


class FromVecEnv(HeldObservation):
    """A Stable-Baselines3 `VecEnv`."""

    def __init__(self, env: VecEnv, device: torch.device | str = "cpu") -> None:
        super().__init__(env.num_envs, env.observation_space, env.action_space, device)
        self.env = env

    def _reset(self) -> Any:
        return self.env.reset()

    def _step(self, actions: np.ndarray) -> tuple[Any, Any, Any, dict[str, Any]]:
        observation, reward, done, infos = self.env.step(actions)
        return observation, reward, done, {"infos": infos}


class FromGymnasiumEnv(HeldObservation):
    """A single `gymnasium.Env`: one sub-environment, reset when its episode is terminated or truncated."""

    def __init__(self, env: gymnasium.Env, device: torch.device | str = "cpu") -> None:
        super().__init__(1, env.observation_space, env.action_space, device)
        self.env = env

    def _reset(self) -> Any:
        return np.asarray(self.env.reset()[0])[None]

    def _step(self, actions: np.ndarray) -> tuple[Any, Any, Any, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(actions[0])
        done = terminated or truncated
        if done:
            info = {**info, "final_observation": observation}
            observation = self.env.reset()[0]
        return np.asarray(observation)[None], [float(reward)], [done], info


ADAPTERS: dict[type, Callable[[Any, torch.device | str], HeldObservation]] = {
    VecEnv: FromVecEnv,
    VectorEnv: lambda env, device: FromVecEnv(Sb3VecEnv(env), device),
    gymnasium.Env: FromGymnasiumEnv,
}


def as_torch_env(env: Any, device: torch.device | str = "cpu") -> TorchVectorEnv:
    """Return the environment as a `TorchVectorEnv`: itself if it is one, else adapted.

    Args:
        env: a `TorchVectorEnv`, a Stable-Baselines3 `VecEnv`, a `gymnasium.vector.VectorEnv` (see `Sb3VecEnv`), or a
            single `gymnasium.Env`.
        device: device of an adapter's observations; a `TorchVectorEnv` keeps its own.

    Raises:
        ValueError: if it is none of these, or a vector environment that `Sb3VecEnv` refuses.
    """
    if callable(getattr(env, "observe", None)) and callable(getattr(env, "play", None)):
        return cast(TorchVectorEnv, env)
    for kind, adapter in ADAPTERS.items():
        if isinstance(env, kind):
            return adapter(env, device)
    raise ValueError(
        f"env is a {type(env).__name__}: expected a TorchVectorEnv (observe and play), a Stable-Baselines3 VecEnv, "
        "a gymnasium.vector.VectorEnv or a gymnasium.Env"
    )
