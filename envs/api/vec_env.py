"""Any Gymnasium vector environment as a `VecEnv` of Stable-Baselines3, which takes no others."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import iterate
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

SELECTABLE = (SyncVectorEnv, AsyncVectorEnv)
"""Gymnasium's environments of single ones: parts of them can be reset, and their sub-environments are objects."""


def autoreset_mode(env: VectorEnv) -> AutoresetMode:
    """Return the autoreset mode that a vector environment declares.

    Raises:
        ValueError: if it declares none.
    """
    mode = env.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise ValueError(
            f"metadata['autoreset_mode'] of {type(env.unwrapped).__name__} is {mode!r}: expected a member of "
            "gymnasium.vector.AutoresetMode"
        )
    return mode


def info_rows(infos: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Split a vector environment's infos into a dict for each sub-environment, by Gymnasium's masks `_key`.

    Entries of one-dimensional arrays become Python's own values. A value that is no array of `count` rows is every
    sub-environment's.
    """
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for key, values in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        column: Iterable[Any] = [values] * count
        if isinstance(values, Mapping):
            column = info_rows(values, count)
        elif isinstance(values, np.ndarray) and values.shape[:1] == (count,):
            column = values.tolist() if values.ndim == 1 else values.copy()
        for row, value, present in zip(rows, column, infos.get(f"_{key}", [True] * count), strict=True):
            if present:
                row[key] = value
    return rows


class Sb3VecEnv(VecEnv):
    """A Gymnasium `VectorEnv` for Stable-Baselines3, with the results of a `DummyVecEnv` of the same environments.

    A `VecEnv` returns the first observation of the next episode when one has ended, and the ended episode's last one
    in `info["terminal_observation"]`. For that,
    | autoreset mode | what is done when sub-environments have ended |
    |---|---|
    | `SAME_STEP` | nothing: their next episodes have begun; `final_obs` and `final_info` are of the ended ones |
    | `DISABLED` | `reset(options={"reset_mask": ended})`, as the mode has it |
    | `NEXT_STEP` | the same, before the environment resets them; if all have ended, its own step that resets |

    `reset_infos` holds what the resets gave. Seeds and options go to the next `reset`, as Stable-Baselines3 has it.

    Args:
        env: the vector environment.
        partial_reset: for several sub-environments and `NEXT_STEP`: whether the environment's `reset` takes a
            `reset_mask`; None: only Gymnasium's `SyncVectorEnv` and `AsyncVectorEnv` do. With False a sub-environment
            begins its next episode one step late: that step starts at the ended episode's last observation, ignores the
            action and has reward 0, and its info holds `autoreset=True`.

    Raises:
        ValueError: if the environment declares no autoreset mode, or `partial_reset` is needed and not given.
    """

    def __init__(self, env: VectorEnv, *, partial_reset: bool | None = None) -> None:
        self.env, self.mode = env, autoreset_mode(env)
        several = self.mode is AutoresetMode.NEXT_STEP and env.num_envs > 1
        if several and partial_reset is None and not isinstance(env.unwrapped, SELECTABLE):
            raise ValueError(
                f"{type(env.unwrapped).__name__} resets a sub-environment one step after its end: say "
                "partial_reset=True if reset() takes a reset_mask, or False to let that step pass, with reward 0 and "
                "its action ignored"
            )
        self.late = several and partial_reset is False
        self._ended = np.zeros(env.num_envs, np.bool_)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = env.metadata

    def reset(self) -> VecEnvObs:
        """Reset all sub-environments, with the seeds and options that are waiting; return their observations.

        Raises:
            ValueError: if options differ between sub-environments, which share one `reset`.
        """
        options = self._options[0]
        if any(each != options for each in self._options):
            raise ValueError("options differ between sub-environments: expected the same for all, which share a reset")
        # a vector environment adds the number of the sub-environment to the seed itself
        observation, infos = self.env.reset(seed=self._seeds[0], options=dict(options) or None)
        self.reset_infos = info_rows(infos, self.num_envs)
        self._ended[:] = False
        self._reset_seeds()
        self._reset_options()
        return deepcopy(observation)

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions of the coming step."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Play the actions; return observations, rewards (float32), dones and one info per sub-environment.

        Raises:
            ValueError: if the environment does not keep to its autoreset mode.
        """
        observation, reward, terminated, truncated, infos = self.env.step(self._actions)
        # copies, since some environments write the next values over the last ones
        observation, rewards = deepcopy(observation), np.array(reward, np.float32)
        dones = np.logical_or(terminated, truncated)
        rows = info_rows(infos, self.num_envs)
        for row, ended, stopped in zip(rows, truncated, terminated, strict=True):
            row["TimeLimit.truncated"] = bool(ended and not stopped)
        if self.late:
            for index in np.flatnonzero(self._ended):
                self.reset_infos[index] = dict(rows[index])
                rows[index]["autoreset"] = True
        if dones.any():
            observation = self._finish(observation, dones, rows)
        self._ended = dones
        return observation, rewards, dones.copy(), rows

    def _finish(self, observation: Any, dones: np.ndarray, rows: list[dict[str, Any]]) -> Any:
        """Complete the infos of ended episodes; return the observations with the first ones of their next episodes."""
        ended = np.flatnonzero(dones)
        if self.mode is AutoresetMode.SAME_STEP:
            for index in ended:
                begun = rows[index]
                if "final_obs" not in begun:
                    name = type(self.env.unwrapped).__name__
                    raise ValueError(f"{name} declares SAME_STEP, but gives no final_obs where an episode has ended")
                # a wrapper adds the episode's statistics beside the infos of the next episode
                kept = {key: begun.pop(key) for key in ("episode", "TimeLimit.truncated") if key in begun}
                final = {"terminal_observation": begun.pop("final_obs")}
                rows[index] = begun.pop("final_info", {}) | kept | final
                self.reset_infos[index] = begun
            return observation
        finals = self._each(observation)
        for index in ended:
            rows[index]["terminal_observation"] = deepcopy(finals[index])
        if self.late:
            return observation
        if self.mode is AutoresetMode.NEXT_STEP and dones.all():
            begun_at, _, _, _, infos = self.env.step(self._actions)
        else:
            begun_at, infos = self.env.reset(options={"reset_mask": dones.copy()})
        begun_at = deepcopy(begun_at)
        for place, (old, new) in enumerate(zip(finals, self._each(begun_at), strict=True)):
            if not dones[place] and not data_equivalence(old, new, exact=True):
                name = type(self.env.unwrapped).__name__
                raise ValueError(f"{name} has reset sub-environments outside the reset_mask: it takes no partial reset")
        resets = info_rows(infos, self.num_envs)
        for index in ended:
            self.reset_infos[index] = resets[index]
        return begun_at

    def _each(self, observation: Any) -> list[Any]:
        return list(iterate(self.env.observation_space, observation))

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return a frame (h, w, 3) of each sub-environment, None where there is none."""
        frames: Any = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of each sub-environment; where all are one object, its attribute for each index."""
        inner, chosen = self.env.unwrapped, list(self._get_indices(indices))
        if isinstance(inner, SyncVectorEnv):
            return [inner.envs[index].get_wrapper_attr(attr_name) for index in chosen]
        if isinstance(inner, AsyncVectorEnv):
            values = inner.get_attr(attr_name)
            return [values[index] for index in chosen]
        return [getattr(self.env if hasattr(self.env, attr_name) else inner, attr_name)] * len(chosen)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of sub-environments.

        Raises:
            ValueError: if they are one object.
        """
        inner = self.env.unwrapped
        if not isinstance(inner, SELECTABLE):
            raise ValueError(
                f"{attr_name} can't be set for single sub-environments of {type(inner).__name__}, which are one "
                "object: set it on the environment itself"
            )
        chosen = set(self._get_indices(indices))
        old = [value] * self.num_envs if len(chosen) == self.num_envs else inner.get_attr(attr_name)
        inner.set_attr(attr_name, [value if index in chosen else each for index, each in enumerate(old)])

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of each sub-environment; where all are one object, once, with the result for each index.

        Raises:
            ValueError: if it is to be called on some of the processes of an `AsyncVectorEnv`, which calls all.
        """
        inner, chosen = self.env.unwrapped, list(self._get_indices(indices))
        if isinstance(inner, SyncVectorEnv):
            return [inner.envs[index].get_wrapper_attr(method_name)(*args, **kwargs) for index in chosen]
        if isinstance(inner, AsyncVectorEnv):
            if len(chosen) < self.num_envs:
                raise ValueError(
                    f"indices are {chosen}: AsyncVectorEnv calls {method_name} on all or none; leave them out"
                )
            return list(inner.call(method_name, *args, **kwargs))
        owner = self.env if hasattr(self.env, method_name) else inner
        return [getattr(owner, method_name)(*args, **kwargs)] * len(chosen)

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Return whether sub-environments have a wrapper; False where they are one object, or in processes."""
        inner, chosen = self.env.unwrapped, list(self._get_indices(indices))
        if isinstance(inner, SyncVectorEnv):
            return [is_wrapped(inner.envs[index], wrapper_class) for index in chosen]
        return [False] * len(chosen)
