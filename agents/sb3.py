"""Stable-Baselines3's algorithms, with settings for few updates and a state that resumes exactly."""

import copy
import inspect
import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents import storage
from agents.base import silent_logger
from agents.policies import Sb3ImageExtractor, is_image
from ssl_core.lookup import pick

ALGORITHMS: dict[str, type[OnPolicyAlgorithm]] = {"ppo": PPO, "a2c": A2C}

# what an on-policy algorithm counts by plain numbers
COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining", "_total_timesteps")

VECTOR_ENVS = 16


def seed_globals(seed: int, action_space: gymnasium.Space | None = None) -> None:
    """Seeds what Stable-Baselines3 draws from: Python's, NumPy's and torch's global generators and the action space's.

    Called once, at the start of a run; a resume restores the states instead.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if action_space is not None:
        action_space.seed(seed)


def global_states(action_space: gymnasium.Space) -> dict[str, Any]:
    """The states of all generators that `seed_globals` seeds, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.tensor(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "action_space": copy.deepcopy(action_space.np_random.bit_generator.state),
    }


def load_global_states(state: Mapping[str, Any], action_space: gymnasium.Space) -> None:
    """Restores `global_states`; GPU generators only where as many GPUs are at hand as were then."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
    action_space.np_random.bit_generator.state = copy.deepcopy(state["action_space"])


def sb3_state(model: BaseAlgorithm) -> dict[str, Any]:
    """A copy of everything an on-policy model needs to go on exactly from a rollout boundary.

    The networks' parameters and every optimiser's, the counters, the last observation and episode starts, the buffers
    of episode figures, and the *global* generators' states: plain tensors and values, which load with weights_only. No
    rollout is in it: take it in `on_rollout_start` or after `learn`.
    """
    return copy.deepcopy(
        {
            "parameters": model.get_parameters(),
            "counters": {name: getattr(model, name) for name in COUNTERS},
            "last_obs": storage.array_to_tensor(model._last_obs),  # type: ignore[arg-type]
            "last_episode_starts": storage.array_to_tensor(model._last_episode_starts),
            "episodes": _plain(model.ep_info_buffer),
            "successes": _plain(model.ep_success_buffer),
            "generators": global_states(model.action_space),
        }
    )


def load_sb3_state(model: BaseAlgorithm, state: Mapping[str, Any]) -> None:
    """Restores `sb3_state` in a model that was constructed with the same arguments; the global generators last.

    The next `learn(..., reset_num_timesteps=False)` goes on without resetting the environment, whose own state is the
    caller's business.

    Raises:
        ValueError: if the parameters do not fit the model.
    """
    try:
        model.set_parameters(copy.deepcopy(state["parameters"]), exact_match=True, device=model.device)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"the state does not fit this {type(model).__name__}: {error}") from error
    for name, value in state["counters"].items():
        setattr(model, name, value)
    model._last_obs = _array(state["last_obs"])
    model._last_episode_starts = _array(state["last_episode_starts"])
    model.ep_info_buffer = _refilled(state["episodes"], model._stats_window_size)
    model.ep_success_buffer = _refilled(state["successes"], model._stats_window_size)
    load_global_states(state["generators"], model.action_space)


def _plain(buffer: deque[Any] | None) -> list[Any] | None:
    if buffer is None:
        return None
    return [{k: float(v) for k, v in e.items()} if isinstance(e, dict) else float(e) for e in buffer]


def _refilled(values: list[Any] | None, size: int) -> deque[Any] | None:
    return None if values is None else deque(copy.deepcopy(values), maxlen=size)


def _array(values: Tensor | None) -> np.ndarray | None:
    return None if values is None else values.cpu().numpy().copy()


def rollout_length(planned_plays: int, preferred: int, low: int, high: int) -> int:
    """The divisor of the planned plays in [low, high] that is nearest to the preferred, so that rollouts fill the plan.

    Where there is none (a prime plan) it is the preferred length, at most the plan: the guard in `Sb3Agent.learn` then
    ends the last rollout early.
    """
    divisors = [n for n in range(low, min(high, planned_plays) + 1) if planned_plays % n == 0]
    return min(divisors, key=lambda n: (abs(n - preferred), n)) if divisors else min(preferred, planned_plays)


def settings_for(name: str, env: VecEnv, planned_plays: int, gamma: float) -> dict[str, Any]:
    """Constructor arguments of PPO or A2C for a run of some hundred plays.

    With many sub-environments a rollout is one play, with few it is several; advantages are normalised because the
    rewards' scale is not known beforehand, and mix in few later values because the value network is young throughout.
    """
    many = env.num_envs >= VECTOR_ENVS
    if name == "ppo":
        n_steps = 1 if many else rollout_length(planned_plays, 10, 4, 32)
        samples = n_steps * env.num_envs
        batch = max(n for n in range(1, min(samples, 128) + 1) if samples % n == 0)
        own: dict[str, Any] = {
            "learning_rate": 2e-3 if many else 5e-3,
            "batch_size": batch if batch > 1 else samples,
            "n_epochs": 5 if many else 10,
            "clip_range": 0.2,
            "gae_lambda": 0.5,
            "ent_coef": 0.005,
        }
    else:
        n_steps = 1 if many else rollout_length(planned_plays, 5, 4, 16)
        own = {
            # a convolutional network collapses at the rate that suits features
            "learning_rate": 3e-3 if is_image(env.observation_space) else 1e-2,
            "use_rms_prop": False,
            "normalize_advantage": n_steps * env.num_envs > 1,
            "gae_lambda": 0.95,
            "ent_coef": 0.005,
        }
    policy: dict[str, Any] = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}
    if isinstance(env.action_space, spaces.Box):
        policy["log_std_init"] = -0.5
    if is_image(env.observation_space):
        policy["features_extractor_class"] = Sb3ImageExtractor
    return {**own, "n_steps": n_steps, "gamma": gamma, "max_grad_norm": 1.0, "policy_kwargs": policy}


def make_sb3(
    name: str,
    env: VecEnv,
    *,
    planned_plays: int,
    gamma: float,
    seed: int | None,
    device: torch.device | str = "auto",
    **overrides: Any,
) -> OnPolicyAlgorithm:
    """PPO or A2C with settings for a run of `planned_plays` plays.

    Feature observations are learnt from on the CPU whatever the device: they come as NumPy arrays, and
    Stable-Baselines3 itself advises against a GPU there.

    Args:
        name: "ppo" or "a2c".
        env: the vector environment.
        planned_plays: plays of the whole run.
        gamma: discount: 0 where each step ends its episode.
        seed: of the *global* generators, see `seed_globals`; None leaves them, for a model whose state is loaded next.
            The environment is never seeded from here.
        device: for image observations.
        overrides: arguments of the algorithm's constructor; `policy_kwargs` are added to ours.

    Raises:
        ValueError: if the name or a setting is unknown, the environment is not a `VecEnv`, or the plan is not positive.
    """
    algorithm = pick(name, ALGORITHMS, "Stable-Baselines3 agent")
    if not isinstance(env, VecEnv):
        raise ValueError(f"env is a {type(env).__name__}: {name} needs a Stable-Baselines3 VecEnv")
    if planned_plays < 1:
        raise ValueError(f"planned_plays is {planned_plays}: expected a positive number")
    if seed is not None:
        seed_globals(seed, env.action_space)
    image = is_image(env.observation_space)
    settings = settings_for(name, env, planned_plays, gamma)
    known = inspect.signature(algorithm).parameters
    for key in overrides:
        pick(key, known, f"setting of {name!r}")
    policy_kwargs = {**settings["policy_kwargs"], **overrides.get("policy_kwargs", {})}
    arguments = {**settings, **overrides, "policy_kwargs": policy_kwargs}
    # "CnnPolicy" is the same class but for its default extractor, and is not warned of on a GPU
    model = algorithm("CnnPolicy" if image else "MlpPolicy", env, device=device if image else "cpu", **arguments)
    model.set_logger(silent_logger())
    return model
