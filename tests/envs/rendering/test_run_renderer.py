"""Frames of whole trainings: what they show, and that drawing changes nothing."""

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from astra_gym.envs.rendering.drawing import BLUE, GAP, LARGE
from astra_gym.envs.rendering.run_renderer import SHOWN
from astra_gym.envs.training_run.environment import TrainingRunEnv
from tests.helpers.tiny_episodes import TINY, actions, played

LEVERS = ("attack", "lr", "strength")


def blue(frame: np.ndarray) -> int:
    """Blue pixels of the panel: the budget that is spent, bars, and a curve."""
    color = np.array([int(BLUE[at : at + 2], 16) for at in (1, 3, 5)])
    return int((frame[:, SHOWN * (LARGE.tile + GAP) + GAP :] == color).all(axis=2).sum())


def test_a_frame_shows_the_training_so_far() -> None:
    env = TrainingRunEnv(instances=TINY, levers=LEVERS, render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match="call reset"):
        env.render()
    env.reset(seed=0, options={"instance": "small"})
    frames = [env.render()]
    for action in ([2, 2, 4, 2, 2], [0, 0, 0, 0, 0], [2, 2, 4, 4, 4]):
        env.step(np.array(action))
        frames.append(env.render())
    assert len({frame.shape for frame in frames}) == 1 and not (np.array(frames[0].shape[:2]) % 2).any()
    assert [blue(frame) for frame in frames] == sorted({blue(frame) for frame in frames})
    assert [row["steps"] for row in env.episode.history] == [4, 0, 4]
    assert [row["lr"] for row in env.episode.history] == [1, 0.25, 4]
    assert env.episode.history[-1]["score"] == env.episode.score
    # no attack: no change, which is gray
    top = GAP + 2 * (LARGE.tile + GAP) + LARGE.tile // 2
    assert set(np.unique(frames[2][top : top + LARGE.tile // 2, GAP : GAP + LARGE.tile])) == {128}
    env.reset(seed=0, options={"instance": "small"})
    np.testing.assert_array_equal(env.render(), frames[0])


def test_drawing_changes_nothing_and_a_method_without_an_attack_is_drawn_too() -> None:
    env, other = (TrainingRunEnv(instances=TINY, render_mode=mode) for mode in ("rgb_array", None))
    expected = played(other, actions(other)[:3], 4, "clean")[1:]
    env.reset(seed=4, options={"instance": "clean"})
    for action, (_, reward, *_, info) in zip(actions(env), expected, strict=False):
        env.render()
        found = env.step(action)
        assert (found[1], found[4]) == (reward, info)
    assert env.episode.history[0].keys() >= {"loss", "SA"} and env.render().dtype == np.uint8
    with pytest.warns(UserWarning, match="make the environment with render_mode='rgb_array'"):
        assert other.render() is None
    with pytest.raises(ValueError, match="expected 'rgb_array' or None"):
        TrainingRunEnv(instances=TINY, render_mode="human")
