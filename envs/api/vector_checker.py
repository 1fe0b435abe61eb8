"""A checker of vector environments, in the manner of Gymnasium's `check_env`, which takes single ones only."""

import copy
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import logger
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.utils.passive_env_checker import data_shares_objects
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

SEED = 123


class VectorStep(NamedTuple):
    """What a `step` returned, copied."""

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    infos: dict[str, Any]

    @property
    def ended(self) -> np.ndarray:
        """Which sub-environments' episodes ended (num_envs,)."""
        return np.logical_or(self.terminated, self.truncated)


def check_vector_env(env: VectorEnv, *, steps: int = 250) -> None:
    """Check that a vector environment follows Gymnasium's API, by playing random actions.

    Checked are its spaces; what `reset` and `step` return, in shape, dtype and range; that equal seeds and actions give
    equal results; that no returned array is written or returned again; the declared autoreset mode, at every episode's
    end that is met; that the environment renders in its render mode, without an effect on what follows; and `close`,
    which comes last. Give an environment without wrappers.

    Args:
        env: the environment, which is played and closed.
        steps: number of steps; the check of the autoreset mode needs an episode that ends within them.

    Raises:
        AssertionError: saying what is wrong.
    """
    _require(isinstance(env, VectorEnv), f"the environment is a {type(env).__name__}: expected a VectorEnv")
    _check_declarations(env)
    first = _played(env, steps, check=True)
    short = min(steps, 20)
    _check_equal(first, _played(env, short), "equal seeds and actions give different results")
    if _same(_played(env, short, seed=SEED + 1), (first[0], first[1][:short])):
        logger.warn("two seeds give the same results: does reset use its seed?")
    _check_reset(env, env.reset())
    _check_reset(env, env.reset(options={}))
    if env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
        _check_finals(env, first[1])
    if env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
        _check_late_reset(env, first)
    _check_data_is_new(env)
    if env.render_mode is not None:
        # before the steps that are compared, and between them
        _check_equal(first, _played(env, short, render=True), "rendering changes the results that follow")
    elif env.metadata.get("render_modes"):
        logger.warn("the environment was made without a render mode, so rendering was not checked")
    if not any(step.ended.any() for step in first[1]):
        logger.warn(f"no episode ended in {steps} steps, so the autoreset mode was not checked")
    env.close()
    env.close()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _same(one: Any, other: Any) -> bool:
    """Whether nested values are equal; NaN equals NaN, unlike in Gymnasium's `data_equivalence`."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple) or (isinstance(one, np.ndarray) and one.dtype == object):
        return len(one) == len(other) and all(map(_same, one, other))
    numbers = isinstance(one, np.ndarray | np.generic | float) and np.asarray(one).dtype.kind in "fc"
    return np.array_equal(one, other, equal_nan=numbers)


def _check_declarations(env: VectorEnv) -> None:
    for name in ("num_envs", "observation_space", "action_space", "single_observation_space", "single_action_space"):
        _require(hasattr(env, name), f"the environment has no {name}")
    number = env.num_envs
    _require(isinstance(number, int) and number > 0, f"num_envs is {number!r}: expected a positive integer")
    for kind in ("observation", "action"):
        single, batched = getattr(env, f"single_{kind}_space"), getattr(env, f"{kind}_space")
        for space in (single, batched):
            _require(isinstance(space, gym.Space), f"a {kind} space is {space!r}: expected a gymnasium.Space")
        expected = batch_space(single, number)
        _require(
            expected == batched or is_space_dtype_shape_equiv(expected, batched),
            f"{kind}_space is {batched}: expected single_{kind}_space in a batch of {number}, {expected}",
        )
    mode = env.metadata.get("autoreset_mode")
    _require(isinstance(mode, AutoresetMode), f"metadata['autoreset_mode'] is {mode!r}: expected an AutoresetMode")
    modes = env.metadata.get("render_modes", [])
    _require(
        env.render_mode is None or env.render_mode in modes,
        f"render_mode is {env.render_mode!r}, and metadata['render_modes'] are {modes}: expected one of them, or None",
    )
    if modes:
        rate = env.metadata.get("render_fps")
        _require(bool(rate and rate > 0), f"metadata['render_fps'] is {rate!r}: expected a positive number")


def _played(
    env: VectorEnv,
    steps: int,
    *,
    seed: int = SEED,
    check: bool = False,
    render: bool = False,
    other_actions: int | None = None,
) -> tuple[tuple[Any, Any], list[VectorStep]]:
    """Reset with a seed and play; return copies of what `reset` and each `step` returned.

    Args:
        check: check every return.
        render: render before each step and after the last.
        other_actions: step, from 0, at which the sub-environments that ended in the step before get other actions.
    """
    returned = env.reset(seed=seed)
    if check:
        _check_reset(env, returned)
    start = copy.deepcopy(returned)
    env.action_space.seed(SEED)
    spare = copy.deepcopy(env.single_action_space)
    spare.seed(SEED + 1)
    seen: list[VectorStep] = []
    for count in range(steps):
        if render:
            _check_frames(env)
        actions = env.action_space.sample()
        if count == other_actions and isinstance(actions, np.ndarray):
            for index in np.flatnonzero(seen[-1].ended):
                drawn = [spare.sample() for _ in range(9)]
                actions[index] = next((each for each in drawn if not _same(each, actions[index])), drawn[0])
        found: Any = env.step(actions)
        if check:
            _check_step(env, found)
        step = VectorStep(*copy.deepcopy(found))
        if check:
            _check_autoreset(env, seen[-1] if seen else None, step)
        seen.append(step)
        if env.metadata["autoreset_mode"] is AutoresetMode.DISABLED and step.ended.any():
            begun = env.reset(options={"reset_mask": step.ended.copy()})
            if check:
                _check_partial_reset(env, step, begun)
    if render:
        _check_frames(env)
    return start, seen


def _check_reset(env: VectorEnv, returned: Any) -> None:
    _require(isinstance(returned, tuple) and len(returned) == 2, "reset returns no pair of observations and infos")
    _check_observation(env, returned[0], "reset")
    _check_infos(env, returned[1], "reset")


def _check_step(env: VectorEnv, found: Any) -> None:
    _require(isinstance(found, tuple) and len(found) == 5, "step returns no tuple of 5")
    observation, reward, terminated, truncated, infos = found
    _check_observation(env, observation, "step")
    expected = (env.num_envs,)
    for name, values, kinds in (
        ("rewards", reward, "f"),
        ("terminations", terminated, "b"),
        ("truncations", truncated, "b"),
    ):
        what = {"f": "floats", "b": "booleans"}[kinds]
        given = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
        fits = isinstance(values, np.ndarray) and values.shape == expected and values.dtype.kind in kinds
        _require(fits, f"step gives {name} as {given}: expected an array of {what} {expected}")
    _require(bool(np.isfinite(reward).all()), f"step gives rewards that are not finite: {reward}")
    _check_infos(env, infos, "step")


def _check_observation(env: VectorEnv, observation: Any, where: str) -> None:
    _require(
        env.observation_space.contains(observation),
        f"{where} gives observations outside the observation space {env.observation_space}: {_described(observation)}",
    )


def _described(values: Any) -> str:
    return f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"


def _check_infos(env: VectorEnv, infos: Any, where: str) -> None:
    _require(isinstance(infos, dict), f"{where} gives infos as {_described(infos)}: expected a dict")
    for key, values in infos.items():
        mask = infos.get(f"_{key}")
        if mask is None:
            continue
        fits = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (env.num_envs,)
        _require(fits, f"infos['_{key}'] is {_described(mask)}: expected a boolean array ({env.num_envs},)")
        if isinstance(values, dict):
            _check_infos(env, values, where)
        else:
            length = len(values) if isinstance(values, np.ndarray) and values.ndim else None
            _require(
                length == env.num_envs,
                f"infos['{key}'] is {_described(values)}: expected an array with a row for each of {env.num_envs}",
            )


def _check_autoreset(env: VectorEnv, before: VectorStep | None, step: VectorStep) -> None:
    mode = env.metadata["autoreset_mode"]
    if mode is AutoresetMode.NEXT_STEP and before is not None:
        late = before.ended
        kept = not step.ended[late].any() and not step.reward[late].any()
        _require(kept, "NEXT_STEP: a step that resets a sub-environment ends no episode and has reward 0; not so here")
    if mode is not AutoresetMode.SAME_STEP:
        return
    ended = step.ended
    finals: Any = step.infos.get("final_obs")
    mask = step.infos.get("_final_obs", np.zeros(env.num_envs, np.bool_))
    _require(
        bool((mask == ended).all()) and (finals is not None or not ended.any()),
        f"SAME_STEP: episodes ended at {np.flatnonzero(ended)}, and infos have final_obs at {np.flatnonzero(mask)}",
    )
    for index in np.flatnonzero(ended):
        fits = env.single_observation_space.contains(finals[index])
        _require(fits, f"SAME_STEP: final_obs[{index}] is {_described(finals[index])}, outside the observation space")
    has_info = step.infos.get("_final_info", ended)
    _require(bool((has_info == ended).all()), "SAME_STEP: infos['_final_info'] is not where episodes ended")


def _check_finals(env: VectorEnv, played: list[VectorStep]) -> None:
    """Check that final observations are of the ended episodes. One of many may be as the next first one by chance."""
    pairs = [
        (step.infos["final_obs"][index], list(iterate(env.observation_space, step.observation))[index])
        for step in played
        for index in np.flatnonzero(step.ended)
    ]
    different = not pairs or any(not _same(final, begun) for final, begun in pairs)
    _require(different, "SAME_STEP: final_obs is the next episode's first observation: expected the ended one's last")


def _check_partial_reset(env: VectorEnv, step: VectorStep, begun: Any) -> None:
    _check_reset(env, begun)
    pairs = zip(iterate(env.observation_space, step.observation), iterate(env.observation_space, begun[0]), strict=True)
    for index, (old, new) in enumerate(pairs):
        _require(
            bool(step.ended[index]) or _same(old, new),
            f"DISABLED: reset changed sub-environment {index}, which is outside the reset_mask",
        )


def _check_equal(first: Any, second: Any, message: str) -> None:
    _require(_same(first[0], second[0]), f"{message}: those of reset(seed={SEED})")
    for count, (one, other) in enumerate(zip(first[1], second[1], strict=False)):
        for name, a, b in zip(VectorStep._fields, one, other, strict=True):
            _require(_same(a, b), f"{message}: the {name} of step {count + 1}")


def _check_late_reset(env: VectorEnv, first: Any) -> None:
    """Replay up to the first reset, and take other actions there: they must have no effect."""
    late = next((count + 1 for count, step in enumerate(first[1][:-1]) if step.ended.any()), None)
    if late is None:
        return
    again = _played(env, late + 1, other_actions=late)[1][late]
    pairs = [iterate(env.observation_space, step.observation) for step in (first[1][late], again)]
    for index, (old, new) in enumerate(zip(*pairs, strict=True)):
        if first[1][late - 1].ended[index]:
            same = _same(old, new)
            _require(same, "NEXT_STEP: a step that resets a sub-environment depends on its action")


def _check_data_is_new(env: VectorEnv) -> None:
    """Check that no array is returned twice, or written after it was returned."""
    returns = [("reset", env.reset(seed=SEED))]
    kept = [copy.deepcopy(returns[0][1])]
    for _ in range(3):
        observation, *numbers, infos = env.step(env.action_space.sample())
        returns.append(("step", (observation, infos, *numbers)))
        kept.append(copy.deepcopy(returns[-1][1]))
        ended = np.logical_or(numbers[1], numbers[2])
        if env.metadata["autoreset_mode"] is AutoresetMode.DISABLED and ended.any():
            break
    returns.append(("reset", env.reset(seed=SEED)))
    for (where, found), copied in zip(returns, kept, strict=False):
        for name, now, then in zip(("observations", "infos"), found, copied, strict=False):
            same = _same(now, then)
            _require(same, f"{name} that {where} returned were changed by a later call: expected new arrays")
    for index, (_, found) in enumerate(returns):
        for _, other in returns[:index]:
            shared = any(data_shares_objects(a, b) for a, b in zip(found, other, strict=False))
            overlap = _memory(found) & _memory(other)
            _require(not shared and not overlap, "two calls returned the same data: expected new arrays and dicts")


def _memory(values: Any) -> set[int]:
    """Return the addresses of all arrays in nested values."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple) or (isinstance(values, np.ndarray) and values.dtype == object):
        return {address for each in values for address in _memory(each)}
    return {values.__array_interface__["data"][0]} if isinstance(values, np.ndarray) and values.size else set()


def _check_frames(env: VectorEnv) -> None:
    frames: Any = env.render()
    listed = isinstance(frames, list | tuple) and len(frames) == env.num_envs
    _require(listed, f"render gives {_described(frames)}: expected a frame for each of {env.num_envs} sub-environments")
    if env.render_mode == "rgb_array":
        for frame in frames:
            fits = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
            _require(fits, f"render gives a frame as {_described(frame)}: expected uint8 (h, w, 3)")
        _require(len({frame.shape for frame in frames}) == 1, "render gives frames of different sizes")
