"""Escalation, against gains that are written down; its exact resume in a real world is in test_base.py."""

from typing import Any

import pytest

from astra_gym.agents import make_agent
from tests.helpers.scripted_worlds import LISTED, Scripted, played


def gains(*values: float) -> list[dict[str, Any]]:
    """The reports of plays in which attacks gain so much, on average over two views."""
    return [{"attack/gain": [2 * gain, 0.0]} for gain in values]


def made(world: Any, rows: list[dict[str, Any]], **settings: Any) -> Any:
    return make_agent(
        "escalating",
        Scripted(world(num_envs=2), rows),
        seed=0,
        device="cpu",
        gamma=0.0,
        planned_plays=len(rows),
        schedule_actions=LISTED,
        overrides=settings,
    )


def test_the_next_attack_follows_when_the_gain_has_collapsed(world: Any) -> None:
    # means of all at first: present 1, 1, 1, then (1 + 0.1) / 2 and (0.55 + 0.1) / 2 against usual 0.775 and 0.606
    rows = gains(1, 1, 1, 0.1, 0.1, 0.1, *[0.2] * 4, 0.0, 0.0, 0.0, 0.0)
    agent = made(world, rows, present=2, memory=4, fall=0.5)
    assert played(agent, 5) == [[0, 0]] * 5 and agent.chosen == 0
    usual = [1.0, 1.0, 1.0, 0.775, 0.60625, 0.4796875]
    assert agent._usual == pytest.approx(usual[4]) and agent._present == pytest.approx(0.325)
    # the sixth play brings 0.2125 against half of 0.48, so the seventh is of the next attack
    assert played(agent, 2) == [[0, 0], [1, 1]] and agent.chosen == 1
    # what that attack gains is usual for it, however little it is
    assert agent._usual == agent._present == pytest.approx(0.2)
    assert played(agent, 3) == [[1, 1]] * 3
    # the last of the list stays, whatever comes
    assert played(agent, 4) == [[1, 1], [1, 1], [2, 2], [2, 2]] and agent.chosen == 2
    assert agent.predict(agent.get_env().observe().numpy())[0].tolist() == [[2, 2, 2]] * 2


def test_a_slow_decline_and_noise_change_nothing(world: Any) -> None:
    rows = gains(*(0.05 if k < 12 else 1.2 * 0.998**k * (1.3 if k % 2 else 0.7) for k in range(300)))
    agent = made(world, rows)
    assert played(agent, 300) == [[0, 0]] * 300


def test_an_attack_that_gains_nothing_at_all_is_not_kept(world: Any) -> None:
    agent = made(world, gains(*[-0.03] * 30), present=5, memory=20)
    assert played(agent, 30) == [[0, 0]] * 6 + [[1, 1]] * 6 + [[2, 2]] * 18


def test_settings_out_of_range_are_refused(world: Any) -> None:
    for settings, said in (
        ({"fall": 0.0}, r"fall is 0.0: expected a share in \(0, 1\)"),
        ({"fall": 1.0}, r"fall is 1.0: expected a share in \(0, 1\)"),
        ({"present": 0}, "present is 0"),
        ({"memory": 10}, r"memory is 10: expected more than present \(10\)"),
    ):
        with pytest.raises(ValueError, match=said):
            made(world, gains(1.0), **settings)
