"""The state of a Stable-Baselines3 model as plain tensors and values: exact resuming, and nothing left out silently."""

import copy
import functools
import random
import types
from collections import deque
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from astra_gym.ssl_core.utils.messages import brief

PLAIN = (bool, int, float, str)
ARRAY = "ndarray"
"""The only key of a dict that represents a NumPy array."""
# set again by the constructor or the next `learn`: the log folder, the start time, the constructor's arguments
SET_ANEW = {
    "_custom_logger",
    "_num_timesteps_at_start",
    "_stats_window_size",
    "n_envs",
    "policy_kwargs",
    "replay_buffer_kwargs",
    "rollout_buffer_kwargs",
    "seed",
    "start_time",
    "tensorboard_log",
    "train_freq",
    "verbose",
}
EPISODES = ("ep_info_buffer", "ep_success_buffer")
STATELESS = (gymnasium.Space, VecEnv, Logger, torch.device, type, types.FunctionType, types.MethodType)
HOOKS = ("extra_state", "load_extra_state")


def global_states(action_space: gymnasium.Space) -> dict[str, Any]:
    """Return the states of all generators that `seed_globals` seeds, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.tensor(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "action_space": copy.deepcopy(action_space.np_random.bit_generator.state),
    }


def load_global_states(state: Mapping[str, Any], action_space: gymnasium.Space) -> None:
    """Restore `global_states`; GPU generators only if there are as many GPUs as there were then."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
    action_space.np_random.bit_generator.state = copy.deepcopy(state["action_space"])


def check_resumable(model: BaseAlgorithm) -> None:
    """Refuse a model that `sb3_state` could not save completely.

    A class may have attributes that are more than numbers, strings, arrays, tensors and lists or dicts of them (a
    generator, another object, a network outside `_get_torch_save_params`). It may then define two methods,
    `extra_state() -> plain values and tensors` and `load_extra_state(state)`, which are trusted to cover them all.

    Raises:
        ValueError: naming the attribute.
    """
    name = type(model).__name__
    if model.use_sde:
        # the noise of SDE is drawn before `on_rollout_start`, where checkpoints are saved, and would be drawn again on
        # resuming
        raise ValueError(f"{name} has use_sde=True, which cannot be resumed exactly: leave it out")
    _check_noise(model.action_noise)
    given = [hook for hook in HOOKS if callable(getattr(model, hook, None))]
    if len(given) == 1:
        raise ValueError(f"{name} defines {given[0]} only: expected both of {', '.join(HOOKS)}")
    survey(model)


def sb3_state(model: BaseAlgorithm) -> dict[str, Any]:
    """Return a copy of everything a model needs to resume exactly from the start of a rollout.

    The copy holds the parameters of the networks (target networks too) and of every optimizer, the counters and other
    plain values, last observation and episode starts, the filled part of a replay buffer, the buffers of episode
    values, and the states of the *global* generators. All of it loads with weights_only. It holds no rollout: call this
    in `on_rollout_start` or after `learn`.

    Raises:
        ValueError: if the model holds something else, see `check_resumable`.
    """
    check_resumable(model)
    replay = getattr(model, "replay_buffer", None)
    return {
        "parameters": copy.deepcopy(model.get_parameters()),
        "attributes": survey(model),
        "episodes": {name: _plain(list(getattr(model, name) or [])) for name in EPISODES},
        "replay": None if replay is None else _replay_state(replay),
        "extra": copy.deepcopy(cast(Any, model).extra_state()) if _has_hooks(model) else None,
        "generators": global_states(model.action_space),
    }


def sb3_numbers(model: BaseAlgorithm) -> dict[str, Any]:
    """Return all values of a model that must be finite, by name; not copied.

    These are parameters and optimizers, the entropy's coefficient and the last observation. Attributes of a custom
    class are left out, since one may rightly be infinite, such as a best value so far.
    """
    return {
        "parameters": model.get_parameters(),
        **{name: getattr(model, name, None) for name in ("log_ent_coef", "_last_obs")},
    }


def load_sb3_state(model: BaseAlgorithm, state: Mapping[str, Any]) -> None:
    """Restore `sb3_state` in a model that was constructed with the same arguments; the global generators last.

    The next `learn(..., reset_num_timesteps=False)` continues without resetting the environment; the caller restores
    the environment's own state.

    Raises:
        ValueError: if the parameters or the replay buffer do not fit the model.
    """
    try:
        model.set_parameters(copy.deepcopy(state["parameters"]), exact_match=True, device=model.device)
        if state["replay"] is not None:
            _load_replay(model.replay_buffer, state["replay"])  # type: ignore[attr-defined]
        for name, value in state["attributes"].items():
            _load_attribute(model, name, value)
    except (RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(f"the state does not fit this {type(model).__name__}: {brief(error, 150)}") from error
    for name in EPISODES:
        setattr(model, name, deque(copy.deepcopy(state["episodes"][name]), maxlen=model._stats_window_size))
    if state["extra"] is not None:
        cast(Any, model).load_extra_state(copy.deepcopy(state["extra"]))
    load_global_states(state["generators"], model.action_space)


def survey(model: BaseAlgorithm) -> dict[str, Any]:
    """Return a copy of the model's attributes that are plain values, arrays, tensors or containers of them.

    Modules, optimizers and buffers are saved by name elsewhere. Attributes that have no state, or that are set again on
    loading, are left out.

    Raises:
        ValueError: for an attribute that is none of these, unless the class has the hooks.
    """
    modules, optimizers = _saved_by_name(model)
    known = {id(part) for module in modules for part in module.modules()} | {id(each) for each in optimizers}
    held = {each.data_ptr() for module in modules for each in (*module.parameters(), *module.buffers())}
    found: dict[str, Any] = {}
    for name, value in vars(model).items():
        if name in SET_ANEW or name in EPISODES or id(value) in known:
            continue
        if _has_no_state(model, name, value):
            continue
        if isinstance(value, list) and all(isinstance(each, Tensor) and each.data_ptr() in held for each in value):
            continue
        try:
            found[name] = _plain(value)
        except TypeError:
            if not _has_hooks(model):
                raise ValueError(
                    f"{type(model).__name__}.{name} is a {type(value).__name__}, which is not known how to save: give "
                    f"the class the methods {' and '.join(HOOKS)}"
                ) from None
    return found


def _has_no_state(model: BaseAlgorithm, name: str, value: Any) -> bool:
    if isinstance(value, STATELESS) or value is getattr(model, "replay_buffer", None):
        return value is not None
    if isinstance(value, RolloutBuffer) and name == "rollout_buffer":
        return True
    if name == "action_noise" and value is not None:
        return True
    if isinstance(value, functools.partial):
        return isinstance(value.func, STATELESS)
    # Stable-Baselines3's own callable objects (schedules) have no state; a custom one may have some
    own = type(value).__module__.startswith("stable_baselines3.")
    return own and callable(value) and not isinstance(value, nn.Module)


def _saved_by_name(model: BaseAlgorithm) -> tuple[list[nn.Module], list[torch.optim.Optimizer]]:
    names, _ = model._get_torch_save_params()
    parts: list[Any] = [functools.reduce(getattr, name.split("."), model) for name in names]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return modules, [part for part in parts if isinstance(part, torch.optim.Optimizer)]


def _has_hooks(model: BaseAlgorithm) -> bool:
    return all(callable(getattr(model, hook, None)) for hook in HOOKS)


def _check_noise(noise: ActionNoise | None) -> None:
    base = noise.base_noise if isinstance(noise, VectorizedActionNoise) else noise
    if base is not None and type(base) is not NormalActionNoise:
        raise ValueError(f"action_noise is a {type(base).__name__}: only a NormalActionNoise loses nothing in a resume")


def _plain(value: Any) -> Any:
    """Return a copy with a marked tensor for an array and a list for a deque; TypeError if a value is not plain."""
    if value is None or isinstance(value, PLAIN):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {ARRAY: torch.tensor(value)}
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        if not all(isinstance(key, PLAIN) for key in value):
            raise TypeError
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(each) for each in value)
    if isinstance(value, list | deque):
        return [_plain(each) for each in value]
    raise TypeError


def _load_attribute(model: BaseAlgorithm, name: str, saved: Any) -> None:
    current = getattr(model, name, None)
    if isinstance(current, Tensor) and isinstance(saved, Tensor):
        # in place, since an optimizer may hold this tensor
        current.data.copy_(saved)
    elif saved is not None or isinstance(current, np.ndarray):
        setattr(model, name, _like(current, saved))


def _like(current: Any, saved: Any) -> Any:
    """Copy the saved value; its tensors' devices and its sequences' types become those of the current value."""
    if isinstance(saved, Tensor):
        return saved.to(current.device if isinstance(current, Tensor) else saved.device, copy=True)
    if isinstance(saved, dict):
        if saved.keys() == {ARRAY}:
            return saved[ARRAY].cpu().numpy().copy()
        old = current if isinstance(current, dict) else {}
        return {key: _like(old.get(key), each) for key, each in saved.items()}
    if isinstance(saved, list | tuple):
        olds = list(current) if isinstance(current, list | tuple | deque) else []
        parts = [_like(old, each) for old, each in zip_longest(olds[: len(saved)], saved)]
        if isinstance(current, deque):
            return deque(parts, maxlen=current.maxlen)
        return type(current)(*parts) if hasattr(current, "_fields") else type(saved)(parts)
    return saved


def _filled(buffer: BaseBuffer) -> int:
    """Return the number of filled rows of the buffer."""
    # `optimize_memory_usage` keeps the last next observation at `pos`, the row that is written next
    beyond = 1 if getattr(buffer, "optimize_memory_usage", False) else 0
    return buffer.buffer_size if buffer.full else min(buffer.pos + beyond, buffer.buffer_size)


def _replay_state(buffer: ReplayBuffer) -> dict[str, Any]:
    state: dict[str, Any] = {"arrays": {}, "values": {}}
    for name, value in vars(buffer).items():
        if isinstance(value, np.ndarray) and value.shape[:1] == (buffer.buffer_size,):
            state["arrays"][name] = torch.tensor(value[: _filled(buffer)])
        elif isinstance(value, np.generic | bool | int | float):
            state["values"][name] = _plain(value)
        elif not (value is None or name == "obs_shape" or isinstance(value, STATELESS)):
            kind = type(buffer).__name__
            raise ValueError(f"{kind}.{name} is a {type(value).__name__}, which is not known how to save")
    return state


def _load_replay(buffer: ReplayBuffer, state: Mapping[str, Any]) -> None:
    if (size := state["values"]["buffer_size"]) != buffer.buffer_size:
        raise KeyError(f"a replay buffer of {size} plays, and this one has {buffer.buffer_size}")
    for name, saved in state["arrays"].items():
        array = getattr(buffer, name)
        if saved.shape[1:] != array.shape[1:]:
            raise KeyError(f"{name} of shape {tuple(saved.shape)}, and the replay buffer's is {array.shape}")
        array[: len(saved)] = saved.cpu().numpy()
    for name, value in state["values"].items():
        setattr(buffer, name, value)
