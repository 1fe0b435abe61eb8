"""Frames of attacks in progress: what they show, and that drawing changes nothing."""

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence

from astra_gym.envs.attack_step_env import AttackStepVectorEnv
from astra_gym.envs.rendering.drawing import GAP, SMALL


def row(frame: np.ndarray, number: int) -> np.ndarray:
    """A frame's clean view (0), attacked view (1) or change (2), without its label."""
    top = GAP + number * (SMALL.tile + GAP)
    return frame[top + SMALL.tile // 2 : top + SMALL.tile, GAP : GAP + SMALL.tile]


def text(frame: np.ndarray) -> bytes:
    """The first line under the views."""
    top = GAP + 3 * (SMALL.tile + GAP)
    return frame[top : top + SMALL.line, GAP : GAP + SMALL.tile].tobytes()


def test_each_view_has_a_frame_with_where_its_attack_stands(tiny) -> None:
    env = AttackStepVectorEnv(render_mode="rgb_array", horizon=2, step_sizes=(8 / 255,), **tiny)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.render()
    env.reset(seed=0)
    before = env.render()
    assert len(before) == 8 and len({frame.shape for frame in before}) == 1 and before[0].dtype == np.uint8
    env.step(np.array([1, 0] * 4))
    during = env.render()
    for index, (old, new) in enumerate(zip(before, during, strict=True)):
        np.testing.assert_array_equal(row(old, 0), row(new, 0))
        assert (row(old, 1) != row(new, 1)).any() == (index % 2 == 0)
    # "moving, 1 of 2" and "stopped after 0"
    assert {text(frame) for frame in during[::2]}.isdisjoint(text(frame) for frame in during[1::2])
    env.step(np.array([1, 0] * 4))
    # the last picture of an attack that is over, although the next one has begun
    after = env.render()
    np.testing.assert_array_equal(row(after[0], 0), row(before[0], 0))
    assert text(after[0]) != text(during[0]) and text(after[1]) == text(during[1])
    env.step(np.array([1, 0] * 4))
    assert (row(env.render()[0], 0) != row(before[0], 0)).any()


def test_drawing_changes_nothing(tiny) -> None:
    env, other = (AttackStepVectorEnv(render_mode=mode, horizon=3, **tiny) for mode in ("rgb_array", None))
    for each in (env, other):
        each.reset(seed=3)
        each.action_space.seed(1)
    for _ in range(5):
        env.render()
        found, expected = (each.step(each.action_space.sample()) for each in (env, other))
        env.render()
        assert data_equivalence(found, expected, exact=True)
    with pytest.warns(UserWarning, match="make the environment with render_mode='rgb_array'"):
        assert other.render() is None
    with pytest.raises(ValueError, match="expected 'rgb_array' or None"):
        AttackStepVectorEnv(render_mode="human", **tiny)
