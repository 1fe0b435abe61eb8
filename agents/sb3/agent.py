"""Stable-Baselines3's agents with the interface of our own."""

import copy
import os
from collections.abc import Mapping
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from astra_gym.agents import storage
from astra_gym.agents.base import MaybeCallback
from astra_gym.agents.external import check_trusted
from astra_gym.agents.sb3.algorithms import algorithm_called, make_sb3, seed_globals
from astra_gym.agents.sb3.state import load_sb3_state, sb3_numbers, sb3_state
from astra_gym.envs.api.vec_env import Sb3VecEnv
from astra_gym.ssl_core.utils.finite import NonFiniteValueError, not_finite
from astra_gym.ssl_core.utils.messages import shown


class PlanGuard(BaseCallback):
    """Callback that ends the last rollout at the planned step, records the reward, and writes an update's values.

    It writes when a rollout starts, before a checkpoint is saved there, so that a resumed run's curves are complete.
    """

    def __init__(self, total_timesteps: int) -> None:
        super().__init__()
        self.total_timesteps = total_timesteps
        self.target = 0
        self.rewards: list[float] = []
        self.episodes = 0

    def _on_training_start(self) -> None:
        self.target = self.model.num_timesteps + self.total_timesteps

    def _on_rollout_start(self) -> None:
        self.rewards = []
        self.episodes = 0
        self._write()

    def _on_step(self) -> bool:
        for what, name in (("reward", "rewards"), ("observation", "new_obs")):
            if not_finite(self.locals.get(name)):
                raise NonFiniteValueError(f"the environment's {what} is not finite after {self.num_timesteps} steps")
        self.rewards.append(float(np.mean(self.locals["rewards"])))
        self.episodes += int(np.sum(self.locals["dones"]))
        if self.num_timesteps < self.target or self._is_complete():
            return True
        # Stable-Baselines3 drops the step that stops it; but the environment has made this step, so the model must
        # continue from its observation
        self.model._last_obs = self.locals["new_obs"]
        self.model._last_episode_starts = self.locals["dones"]
        return False

    def _is_complete(self) -> bool:
        """Return whether the step is its rollout's last; always False for a custom class without `n_steps`."""
        if not isinstance(self.model, OffPolicyAlgorithm):
            return len(self.rewards) == getattr(self.model, "n_steps", 0)
        frequency, unit = self.model.train_freq  # type: ignore[misc]
        return (len(self.rewards) if unit == TrainFrequencyUnit.STEP else self.episodes) >= frequency

    def _on_rollout_end(self) -> None:
        self.logger.record("rollout/reward_mean", float(np.mean(self.rewards)))

    def _on_training_end(self) -> None:
        self._write()

    def _write(self) -> None:
        if self.logger.name_to_value:
            self.logger.dump(self.model.num_timesteps)


class NoGymnasiumEnv(gymnasium.Env):
    """Placeholder for the environment of a model that was loaded without one: it has spaces and cannot be played."""

    def __init__(self, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, **arguments: Any) -> Any:
        raise ValueError("this agent has no environment: give it one by set_env(env) or load(path, env=env)")


class Sb3Agent:
    """An algorithm of Stable-Baselines3, or a custom one, with the interface of our own agents; `model` is its object.

    Callbacks get the model as their `model`. Stable-Baselines3 draws from the global generators: constructing this
    agent seeds them, loading a state restores them.

    Args:
        name: a name of `astra_gym.agents.sb3.algorithms.ALGORITHMS`, or the dotted path of a subclass of
            Stable-Baselines3's `BaseAlgorithm`.
        env, planned_plays, gamma, seed, device, overrides: as in `make_sb3`; `env` may also be a single
            `gymnasium.Env`, or a vector environment of Gymnasium.
    """

    def __init__(
        self,
        name: str,
        env: Any,
        *,
        planned_plays: int,
        gamma: float,
        seed: int | None = 0,
        device: torch.device | str = "auto",
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.kind = name
        self.arguments = {"planned_plays": planned_plays, "gamma": gamma, **(overrides or {})}
        self.model = make_sb3(
            name,
            _as_vec_env(env),
            planned_plays=planned_plays,
            gamma=gamma,
            seed=seed,
            device=device,
            overrides=overrides,
        )

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Run Stable-Baselines3's `learn` for exactly `total_timesteps`, even if that ends inside a rollout.

        `log_interval` counts rollouts, as in our own agents. Off-policy algorithms would count episodes, of which a
        play has hundreds. So for them values are written once per rollout, whatever `log_interval` is.

        Raises:
            ValueError: if the environment gives an observation or a reward that is not finite.
        """
        guard = PlanGuard(total_timesteps)
        if isinstance(callback, list):
            callback = CallbackList(callback)
        if not isinstance(callback, BaseCallback):
            callback = ConvertCallback(callback)
        # arguments by name, since their order differs between algorithms
        self.model.learn(
            total_timesteps,
            callback=CallbackList([guard, callback]),
            log_interval=None if isinstance(self.model, OffPolicyAlgorithm) else log_interval,  # type: ignore[arg-type]
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
        return self

    def predict(
        self,
        observation: np.ndarray | Tensor,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Run Stable-Baselines3's `predict`; random actions draw from torch's global generator.

        Raises:
            ValueError: if the observation is not finite.
        """
        values = observation.cpu().numpy() if isinstance(observation, Tensor) else observation
        if not_finite(values):
            raise ValueError("the observation is not finite: it has NaN or infinite values")
        return self.model.predict(values, state, episode_start, deterministic)

    def numbers(self) -> dict[str, Any]:
        """See `sb3_numbers`."""
        return sb3_numbers(self.model)

    def state_dict(self) -> dict[str, Any]:
        """See `sb3_state`."""
        return {"kind": self.kind, **sb3_state(self.model)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `load_sb3_state`.

        Raises:
            ValueError: if the state is another agent's.
        """
        if state.get("kind") != self.kind:
            raise ValueError(f"the state is a {shown(state.get('kind'))} agent's: expected {shown(self.kind)}")
        load_sb3_state(self.model, state)

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Begin with the networks and optimizers of another agent's `state_dict`, in a run of its own.

        Raises:
            RuntimeError, ValueError: if they have other shapes.
        """
        self.model.set_parameters(copy.deepcopy(state["parameters"]), exact_match=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the agent to a file that loads with weights_only; atomically.

        Raises:
            ValueError: if an argument is not a plain value, such as a learning rate's schedule, or what is learned is
                not finite; a file at the path is then kept.
        """
        storage.check_finite(path, self.numbers())
        for name, value in self.arguments.items():
            if callable(value):
                raise ValueError(
                    f"{name} is {shown(value)}: a function cannot be saved, use state_dict and load_state_dict"
                )
        content = {
            "observation_space": storage.space_to_dict(self.model.observation_space),
            "action_space": storage.space_to_dict(self.model.action_space),
            "num_envs": self.model.n_envs,
            "arguments": self.arguments,
            "state": self.state_dict(),
        }
        storage.write(path, self.kind, content)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        env: Any = None,
        device: torch.device | str = "auto",
        force_reset: bool = True,
        kind: str | None = None,
    ) -> Self:
        """Read an agent that `save` wrote; the global generators' states are restored as well.

        Args:
            path: the file.
            env: an environment with the saved spaces; without one the agent predicts only.
            device: device for image observations.
            force_reset: reset the environment at the next `learn`; False continues from the last observation.
            kind: name of the expected agent. A custom class must be named by its dotted path: a name in a file is not
                imported unless the caller names it too.

        Raises:
            ValueError: if the file is missing, truncated, foreign or another agent's, names a custom class that `kind`
                does not, or holds numbers that are not finite, or if the environment does not fit.
        """
        saved = storage.read(path)
        name = saved["agent"]
        check_trusted(path, name, kind)
        with storage.restoring(path):
            algorithm_called(name)
            both = storage.space_from_dict(saved["observation_space"]), storage.space_from_dict(saved["action_space"])
            blank = DummyVecEnv([lambda: NoGymnasiumEnv(*both) for _ in range(saved["num_envs"])])
            overrides = dict(saved["arguments"])
            planned_plays, gamma = overrides.pop("planned_plays"), overrides.pop("gamma")
            agent = cls(
                name, blank, planned_plays=planned_plays, gamma=gamma, seed=None, device=device, overrides=overrides
            )
        if env is not None:
            agent.set_env(env)
        with storage.restoring(path):
            agent.load_state_dict(saved["state"])
        storage.check_finite(path, agent.numbers())
        if force_reset:
            agent.model._last_obs = None
        return agent

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Continue in another environment.

        Raises:
            ValueError: if the spaces or the number of sub-environments differ.
        """
        vec_env = _as_vec_env(env)
        if vec_env.num_envs != self.model.n_envs:
            raise ValueError(f"the environment has {vec_env.num_envs} sub-environments: expected {self.model.n_envs}")
        self.model.set_env(vec_env, force_reset)

    def get_env(self) -> VecEnv | None:
        """Return the vector environment, or None."""
        env = self.model.get_env()
        blank = isinstance(env, DummyVecEnv) and isinstance(env.envs[0], NoGymnasiumEnv)
        return None if blank else env

    @property
    def num_timesteps(self) -> int:
        """Steps of sub-environments so far."""
        return self.model.num_timesteps

    @property
    def action_space(self) -> gymnasium.Space:
        """Action space of one sub-environment."""
        return self.model.action_space

    @property
    def observation_space(self) -> gymnasium.Space:
        """Observation space of one sub-environment."""
        return self.model.observation_space

    @property
    def policy(self) -> BasePolicy:
        """Stable-Baselines3's policy."""
        return self.model.policy

    @property
    def device(self) -> torch.device:
        """Device of the policy."""
        return self.model.device

    @property
    def logger(self) -> Logger:
        """The Stable-Baselines3 logger."""
        return self.model.logger

    def set_logger(self, logger: Logger) -> None:
        """Record to this logger from now on."""
        self.model.set_logger(logger)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the global generators, see `seed_globals`, and never the environment; None changes nothing."""
        if seed is not None:
            seed_globals(seed, self.model.action_space)


def _as_vec_env(env: Any) -> VecEnv:
    if isinstance(env, VectorEnv):
        return Sb3VecEnv(env)
    # without SB3's Monitor wrapper, which refuses to continue a restored episode that it did not reset
    return DummyVecEnv([lambda: env]) if isinstance(env, gymnasium.Env) else env
