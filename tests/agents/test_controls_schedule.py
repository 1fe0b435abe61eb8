"""The schedule: its boundaries, exact resume, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from astra_gym.agents import ScheduleAgent, make_agent


def played(agent: Any, plays: int, **arguments: Any) -> list[Any]:
    """The actions of further plays; every sub-environment has the same."""
    sent: list[Any] = []

    def keep(local: dict[str, Any], _: Any) -> bool:
        rows = local["actions"].tolist()
        assert rows == [rows[0]] * agent.n_envs
        sent.append(rows[0])
        return True

    agent.learn(plays * agent.n_envs, callback=keep, reset_num_timesteps=False, **arguments)
    return sent


@pytest.mark.parametrize(
    ("plays", "expected"),
    [
        (8, [4] * 2 + [3] * 2 + [2] * 2 + [9] * 2),
        # boundaries at 10/4, 20/4, 30/4: rounded up
        (10, [4] * 3 + [3] * 2 + [2] * 3 + [9] * 2),
        (7, [4] * 2 + [3] * 2 + [2] * 2 + [9]),
        (4, [4, 3, 2, 9]),
    ],
)
def test_each_action_has_an_equal_part(world: Any, plays: int, expected: list[int]) -> None:
    agent = ScheduleAgent(world("flat", num_envs=3), [4, 3, 2, 9], planned_plays=plays)
    assert played(agent, plays) == expected
    # beyond the plan: the last
    assert played(agent, 5) == [9] * 5


@pytest.mark.parametrize(("actions", "schedule"), [
    ("factored", [[0, 0, 0], [6, 4, 2]]), ("flat", [3, 104]), ("continuous", [[0.0, 0.5, -1.0], [1.0, 1.0, 0.25]])
])  # fmt: skip
def test_every_kind_of_action(world: Any, actions: str, schedule: list[Any]) -> None:
    agent = ScheduleAgent(world(actions, num_envs=2), schedule, planned_plays=5)
    assert played(agent, 5) == [schedule[0]] * 3 + [schedule[1]] * 2


def test_prediction_is_the_coming_play_s(world: Any) -> None:
    agent = ScheduleAgent(world("flat", num_envs=2), [5, 7], planned_plays=4)
    for expected in (5, 5, 7, 7, 7):
        assert agent.predict(np.zeros((3, 6), np.float32))[0].tolist() == [expected] * 3
        played(agent, 1)
    # counting from 0 starts it again
    agent.learn(2)
    assert agent.predict(np.zeros(6, np.float32))[0] == 5


@pytest.mark.parametrize("cut", [2, 3, 6])
def test_saved_and_loaded_goes_on_in_its_place(world: Any, tmp_path: Path, cut: int) -> None:
    schedule = [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    whole = played(ScheduleAgent(world(num_envs=2), schedule, planned_plays=7), 7)
    agent = make_agent(
        "schedule", world(num_envs=2), seed=0, device="cpu", gamma=0.0, planned_plays=7, schedule_actions=schedule
    )
    first = played(agent, cut)
    agent.save(tmp_path / "agent")
    loaded = ScheduleAgent.load(tmp_path / "agent", world(num_envs=2), device="cpu")
    assert first + played(loaded, 7 - cut) == whole


def test_logs_the_part(world: Any) -> None:
    agent = ScheduleAgent(world("flat", num_envs=2), [5, 7], planned_plays=4)
    parts = []
    for _ in range(4):
        played(agent, 1, log_interval=None)
        parts.append(agent.logger.name_to_value["train/part"])
    assert parts == [0, 0, 1, 1]


def test_refusals(world: Any) -> None:
    with pytest.raises(ValueError, match="no actions"):
        ScheduleAgent(world(), [], planned_plays=5)
    with pytest.raises(ValueError, match="planned_plays is 1: expected at least the schedule's 2 actions"):
        ScheduleAgent(world("flat"), [1, 2], planned_plays=1)
    with pytest.raises(ValueError, match="action 1 of the schedule is 105: expected an element of Discrete"):
        ScheduleAgent(world("flat"), [1, 105], planned_plays=5)
    with pytest.raises(ValueError, match="schedule_actions is None"):
        make_agent("schedule", world(), seed=0, gamma=0.0, planned_plays=5)
    with pytest.raises(ValueError, match="'schedule' has no settings: got step_size"):
        make_agent("schedule", world(), seed=0, gamma=0.0, planned_plays=5, overrides={"step_size": 1.0})
