"""The base of our own agents: Stable-Baselines3's interface over a `TorchVectorEnv`."""

import copy
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple, Self, cast

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import configure_logger, get_device
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from torch import Tensor

from astra_gym.agents import storage
from astra_gym.agents.adapters import HeldObservation, NoEnvironment, as_torch_env
from astra_gym.envs.api.protocol import TorchVectorEnv
from astra_gym.envs.api.step_result import StepResult
from astra_gym.ssl_core.utils.finite import NonFiniteValueError, check_number, not_finite
from astra_gym.ssl_core.utils.messages import brief, shown
from astra_gym.ssl_core.utils.rng import Streams

__all__ = ["Agent", "MaybeCallback", "StepResult", "TorchVectorEnv", "Transition", "as_torch_env", "silent_logger"]

MaybeCallback = None | Callable[[dict[str, Any], dict[str, Any]], bool] | list[BaseCallback] | BaseCallback


class Transition(NamedTuple):
    """One step of the vector environment (a play): observation (n, ...) and actions before clipping; on the host,
    reward (n,) float32 and done (n,) bool."""

    observation: Tensor
    action: Tensor
    reward: Tensor
    done: Tensor


def silent_logger() -> Logger:
    """Make a Stable-Baselines3 logger that writes nowhere."""
    return Logger(folder=None, output_formats=[])


class Agent:
    """An agent with Stable-Baselines3's interface: learn, predict, save, load, callbacks, logger.

    Learning alternates *rollouts* of `n_steps` plays with updates. Between two rollouts, where
    `callback.on_rollout_start` is called, no transition is pending; elsewhere pending transitions are saved too. So an
    agent saved together with its environment resumes exactly. A `learn` that ends inside a rollout keeps its
    transitions for the next `learn`.

    As in Stable-Baselines3, `num_timesteps` counts steps of sub-environments (num_envs per play). `learn` with
    `reset_num_timesteps=False` makes `total_timesteps` *further* steps and continues the running episode. With True it
    counts from 0 and resets the environment (a `TorchVectorEnv` has no reset and continues).

    Args:
        env: anything that `as_torch_env` takes.
        seed: seed of the agent's own random streams; torch's, NumPy's and Python's global generators are never touched.
        device: device of the agent; "auto" is the device of a `TorchVectorEnv`, else a GPU if there is one.
        n_steps: plays in a rollout.
        tensorboard_log: folder for TensorBoard files, as in Stable-Baselines3; `set_logger` takes precedence.

    Raises:
        ValueError: if the environment or its spaces are not supported, or `n_steps` is not positive.
    """

    kind: ClassVar[str]
    # the agent's own settings, a record of this class, if it has any
    settings_class: ClassVar[type[Any] | None] = None
    settings: Any = None

    def __init__(
        self,
        env: Any,
        *,
        seed: int = 0,
        device: torch.device | str = "auto",
        n_steps: int = 1,
        tensorboard_log: str | None = None,
    ) -> None:
        check_number("n_steps", n_steps, 1, expected="a positive number of plays", whole=True)
        adapted = as_torch_env(env, get_device(device))
        self.device = get_device(adapted.device if device == "auto" else device)
        for space in (adapted.observation_space, adapted.action_space):
            storage.space_to_dict(space)
            if np.any(getattr(space, "start", 0)):
                raise ValueError(f"the space is {space}: expected one that starts at 0")
        self.observation_space: gymnasium.Space = adapted.observation_space
        self.action_space: gymnasium.Space = adapted.action_space
        self.n_envs = adapted.num_envs
        self.n_steps, self.tensorboard_log = n_steps, tensorboard_log
        self.num_timesteps = self.rollouts = 0
        self._env, self._given_env = adapted, env
        self._rollout: list[Transition] = []
        self._streams = Streams(seed)
        self._logger, self._custom_logger = silent_logger(), False

    # hooks of subclasses

    def _act(self, observation: Tensor) -> Tensor:
        """Draw actions (n, ...) for a play, from the agent's stream `agent/actions`."""
        raise NotImplementedError

    def _update(self, rollout: list[Transition]) -> None:
        """Learn from a rollout of `n_steps` plays, which `rollouts` already counts."""

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        """Choose actions (n, ...) outside training; random ones come from the agent's stream `agent/predict`."""
        raise NotImplementedError

    def _send(self, actions: Tensor) -> Tensor:
        """Return the actions for the environment: those of a Box are clipped to it."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        low = torch.as_tensor(self.action_space.low, device=actions.device)
        return actions.clamp(low, torch.as_tensor(self.action_space.high, device=actions.device))

    def _arguments(self) -> dict[str, Any]:
        """Return the constructor's further arguments as plain values, for `load`."""
        return {} if self.settings_class is None else {"settings": asdict(self.settings)}

    @classmethod
    def _from_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments from the plain values of `_arguments`."""
        own = {} if cls.settings_class is None else {"settings": cls.settings_class(**arguments["settings"])}
        return arguments | own

    def _learner_state(self) -> dict[str, Any]:
        """Return what is learned, as plain values and tensors."""
        return {}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        """Restore `_learner_state`."""

    # learning

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Play and learn for `total_timesteps` steps of sub-environments, rounded up to whole plays.

        Args:
            total_timesteps: num_envs times the number of plays.
            callback: Stable-Baselines3 callbacks: one, a list, or a function of (locals, globals).
            log_interval: rollouts between two writings of the logger; None for never.
            tb_log_name: name of the run, if the agent has a `tensorboard_log`.
            reset_num_timesteps: count from 0 and reset the environment; False continues.
            progress_bar: whether to show Stable-Baselines3's (needs tqdm and rich).

        Raises:
            ValueError: if there is no environment, or it gives an observation or a reward that is not finite.
        """
        if reset_num_timesteps:
            self.num_timesteps = 0
            if isinstance(self._env, HeldObservation):
                self._env.observation = None
                self._rollout.clear()
        target = self.num_timesteps + total_timesteps
        if self.tensorboard_log is not None and not self._custom_logger:
            self._logger = configure_logger(0, self.tensorboard_log, tb_log_name, reset_num_timesteps)
        callbacks = self._init_callback(callback, progress_bar)
        callbacks.on_training_start({"self": self, "total_timesteps": target}, globals())
        while True:
            if len(self._rollout) == self.n_steps:
                callbacks.on_rollout_end()
                self._finish_rollout(log_interval)
            if self.num_timesteps >= target:
                break
            if not self._rollout:
                callbacks.on_rollout_start()
            callbacks.update_locals(self._play())
            if not callbacks.on_step():
                break
        callbacks.on_training_end()
        return self

    def _play(self) -> dict[str, Any]:
        """Play once; return the play under the names that Stable-Baselines3's callbacks read."""
        # a copy, since an environment may write its next observation into this one
        observation = self._env.observe().to(self.device, copy=True)
        if not (observation.is_cuda and getattr(self._env, "checks_finite", False)) and not_finite(observation):
            raise NonFiniteValueError(f"the environment's observation is not finite after {self.num_timesteps} steps")
        actions = self._act(observation)
        sent = self._send(actions)
        # non-blocking only to a GPU: a copy to the host could be read before it has arrived
        played = self._env.play(sent.to(self._env.device, non_blocking=self._env.device.type != "cpu"))
        reward, done = played.reward.cpu(), played.done.cpu()
        rewards = reward.numpy()
        if not np.isfinite(rewards).all():
            raise NonFiniteValueError(
                f"the environment's reward is not finite in {int((~np.isfinite(rewards)).sum())} of {self.n_envs} "
                f"sub-environments after {self.num_timesteps} timesteps"
            )
        self._rollout.append(Transition(observation, actions, reward, done))
        self.num_timesteps += self.n_envs
        return {
            "actions": sent,
            "rewards": rewards,
            "dones": done.numpy(),
            "infos": played.info.get("infos", [played.info] * self.n_envs),
        }

    def _finish_rollout(self, log_interval: int | None) -> None:
        rollout, self._rollout = self._rollout, []
        self.rollouts += 1
        rewards = torch.stack([transition.reward for transition in rollout])
        self._logger.record("rollout/reward_mean", float(rewards.mean()))
        self._update(rollout)
        # written now, not at the next rollout, since a run resumed from here would lose it
        if log_interval is not None and self.rollouts % log_interval == 0:
            self._logger.dump(self.num_timesteps)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool) -> BaseCallback:
        if isinstance(callback, list):
            callback = CallbackList(callback)
        if not isinstance(callback, BaseCallback):
            callback = ConvertCallback(callback)
        if progress_bar:
            callback = CallbackList([callback, ProgressBarCallback()])
        callback.init_callback(cast(Any, self))
        return callback

    # acting

    def predict(
        self,
        observation: np.ndarray | Tensor,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Choose the actions for one observation, or for a batch of any size; `state` is returned unchanged.

        Raises:
            ValueError: if the observation does not fit the space's shape or dtype, or is not finite.
        """
        values = observation.cpu().numpy() if isinstance(observation, Tensor) else np.asarray(observation)
        shape = self.observation_space.shape or ()
        single = values.shape == shape
        if not single and values.shape[1:] != shape:
            raise ValueError(f"the observation has shape {values.shape}: expected {shape}, or (n, ...) of it")
        integral = np.issubdtype(self.observation_space.dtype, np.integer)
        if values.dtype != self.observation_space.dtype if integral else not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"the observation has dtype {values.dtype}: expected {self.observation_space.dtype}")
        if not np.isfinite(values).all():
            raise ValueError("the observation is not finite: it has NaN or infinite values")
        batch = torch.as_tensor(np.atleast_1d(values[None] if single else values), device=self.device)
        actions = self._send(self._predict(batch, deterministic)).cpu().numpy()
        return (actions.squeeze(0) if single else actions), state

    # the environment, the logger and the seed

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Continue in another environment with the same spaces.

        Args:
            env: anything that `as_torch_env` takes.
            force_reset: start with a reset (a `TorchVectorEnv` has none); False continues from the last
                observation, for a resume that restores the environment's own state.

        Raises:
            ValueError: if the spaces or the number of sub-environments differ.
        """
        adapted = as_torch_env(env, self.device)
        for what in ("observation_space", "action_space"):
            given, own = getattr(adapted, what), getattr(self, what)
            if given != own:
                raise ValueError(f"the environment's {what} is {given}: expected {own}")
        if adapted.num_envs != self.n_envs:
            raise ValueError(f"the environment has {adapted.num_envs} sub-environments: expected {self.n_envs}")
        if isinstance(adapted, HeldObservation):
            if force_reset:
                self._rollout.clear()
            elif isinstance(self._env, HeldObservation):
                adapted.observation = self._env.observation
        self._env, self._given_env = adapted, env

    def get_env(self) -> Any:
        """Return the environment as it was given, or None."""
        return None if isinstance(self._env, NoEnvironment) else self._given_env

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """Return the environment's `VecNormalize` wrapper, if it has one: Stable-Baselines3's callbacks ask for it."""
        return unwrap_vec_normalize(self._given_env) if isinstance(self._given_env, VecEnv) else None

    def set_logger(self, logger: Logger) -> None:
        """Record to this Stable-Baselines3 logger from now on."""
        self._logger = logger
        self._custom_logger = True

    @property
    def logger(self) -> Logger:
        """The Stable-Baselines3 logger."""
        return self._logger

    @property
    def seed(self) -> int:
        """The seed of the agent's random streams."""
        return self._streams.seed

    def set_random_seed(self, seed: int | None = None) -> None:
        """Restart the agent's random streams; None changes nothing. Learned values stay."""
        if seed is not None:
            self._streams = Streams(seed)

    # state

    def numbers(self) -> dict[str, Any]:
        """Return all values of the agent that must be finite, by name; not copied."""
        return {"learner": self._learner_state(), "rollout": [transition._asdict() for transition in self._rollout]}

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that exact resuming needs: plain values and tensors (weights_only-loadable)."""
        state = {
            "kind": self.kind,
            "num_timesteps": self.num_timesteps,
            "rollouts": self.rollouts,
            "streams": self._streams.state_dict(),
            "observation": self._env.observation if isinstance(self._env, HeldObservation) else None,
            "rollout": [transition._asdict() for transition in self._rollout],
            "learner": self._learner_state(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; the caller restores the environment's own state.

        Raises:
            ValueError: if the state is another agent's.
        """
        if state.get("kind") != self.kind:
            raise ValueError(f"the state is a {shown(state.get('kind'))} agent's: expected {self.kind!r}")
        try:
            self._load_learner_state(state["learner"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"the state does not fit this {shown(self.kind)} agent: {brief(error, 150)}") from error
        self.num_timesteps, self.rollouts = state["num_timesteps"], state["rollouts"]
        self._streams.load_state_dict(state["streams"])
        places: tuple[torch.device | str, ...] = (self.device, self.device, "cpu", "cpu")
        kept = [zip(Transition(**each), places, strict=True) for each in state["rollout"]]
        self._rollout = [Transition(*(value.to(place, copy=True) for value, place in pairs)) for pairs in kept]
        if isinstance(self._env, HeldObservation):
            saved = state["observation"]
            self._env.observation = None if saved is None else saved.to(self._env.device, copy=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the agent to a file, atomically; `.zip` is added to a path without suffix. If its numbers are not
        finite, raise a ValueError and write nothing."""
        storage.check_finite(path, self.numbers())
        content = {
            "observation_space": storage.space_to_dict(self.observation_space),
            "action_space": storage.space_to_dict(self.action_space),
            "num_envs": self.n_envs,
            "arguments": {"seed": self.seed, **self._arguments()},
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
    ) -> Self:
        """Read an agent that `save` wrote.

        Args:
            path: the file.
            env: an environment with the saved spaces; without one the agent predicts only.
            device: device of the agent.
            force_reset: as in `set_env`.

        Raises:
            ValueError: if the file is missing, truncated, foreign, another agent's or not of finite numbers, or the
                environment does not fit.
        """
        saved = storage.read(path)
        if saved["agent"] != cls.kind:
            raise ValueError(f"{path} holds a {shown(saved['agent'])} agent: expected {shown(cls.kind)}")
        with storage.restoring(path):
            both = storage.space_from_dict(saved["observation_space"]), storage.space_from_dict(saved["action_space"])
            device = as_torch_env(env, get_device(device)).device if device == "auto" and env is not None else device
            blank = NoEnvironment(saved["num_envs"], *both)
            agent = cls(blank, device=get_device(device), **cls._from_arguments(saved["arguments"]))
            agent.load_state_dict(saved["state"])
        storage.check_finite(path, agent.numbers())
        if env is not None:
            agent.set_env(env, force_reset)
        return agent
