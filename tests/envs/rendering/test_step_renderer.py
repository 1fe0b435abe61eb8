"""Frames of the environments: what they show, and that drawing changes nothing."""

from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from astra_gym.envs.batch_env import BatchAttackEnvV1
from astra_gym.envs.rendering.drawing import GAP, LARGE, SMALL
from astra_gym.envs.view_env import ViewAttackVectorEnvV1


def tile(frame: np.ndarray, line: int, edge: int, column: int = 0) -> np.ndarray:
    left, top = GAP + column * (edge + GAP), GAP + line * (edge + GAP)
    # without the row's label
    return frame[top + edge // 2 : top + edge, left : left + edge]


def test_a_frame_of_the_batch_shows_views_and_budget(tiny) -> None:
    env = BatchAttackEnvV1(render_mode="rgb_array", **tiny)
    env.reset(seed=0)
    before = env.render()
    np.testing.assert_array_equal(tile(before, 0, LARGE.tile), tile(before, 1, LARGE.tile))
    env.step(np.array([12, 12, 4]))
    after = env.render()
    assert before.dtype == np.uint8 and before.shape == after.shape and not (np.array(after.shape[:2]) % 2).any()
    record = env.engine.last
    for column in range(6):
        pixel = (record.views[column] * 255).round().byte().permute(1, 2, 0).numpy()
        big = pixel.repeat(LARGE.tile // 8, 0).repeat(LARGE.tile // 8, 1)
        np.testing.assert_array_equal(tile(after, 0, LARGE.tile, column), big[LARGE.tile // 2 :])
    assert (tile(after, 1, LARGE.tile) != tile(after, 0, LARGE.tile)).any()
    env.step(np.array([12, 0, 4]))
    # no attack: no change, which is gray
    assert set(np.unique(tile(env.render(), 2, LARGE.tile))) == {128}


def test_each_view_has_a_frame_of_its_own(tiny) -> None:
    env = ViewAttackVectorEnvV1(render_mode="rgb_array", **tiny)
    env.reset(seed=0)
    actions = np.full((8, 3), 4)
    actions[3, 1] = 0
    env.step(actions)
    frames = env.render()
    assert len(frames) == 8 and len({frame.shape for frame in frames}) == 1
    grays = [set(np.unique(tile(frame, 2, SMALL.tile))) == {128} for frame in frames]
    assert grays == [index == 3 for index in range(8)]


@pytest.mark.parametrize("kind", [BatchAttackEnvV1, ViewAttackVectorEnvV1])
def test_drawing_changes_nothing(tiny, kind: Any) -> None:
    env, other = kind(render_mode="rgb_array", **tiny), kind(**tiny)
    for each in (env, other):
        each.reset(seed=3)
        each.action_space.seed(1)
    for _ in range(3):
        env.render()
        found, expected = (each.step(each.action_space.sample()) for each in (env, other))
        env.render()
        assert data_equivalence(found, expected, exact=True)
    with pytest.warns(UserWarning, match="make the environment with render_mode='rgb_array'"):
        assert other.render() is None
    with pytest.raises(ValueError, match="expected 'rgb_array' or None"):
        kind(render_mode="human", **tiny)


def test_a_method_without_an_attack_is_drawn_too(tiny) -> None:
    env = BatchAttackEnvV1(render_mode="rgb_array", method="simclr", **tiny)
    env.reset(seed=0)
    env.step(0)
    frame = env.render()
    np.testing.assert_array_equal(tile(frame, 0, LARGE.tile), tile(frame, 1, LARGE.tile))
