"""What is drawn: members of the world's sets, different ones, and flags that the training reads."""

import math
import shlex

import pytest

from astra_gym.envs.api.action_sets import WIDE_SETS, ActionSets
from astra_gym.experiments.config.cli import parse
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.tuning.candidates import (
    LR_SPAN,
    budgets,
    common,
    curve,
    named,
    schedules,
    trainings,
    updates_for,
    with_brief_sets,
)

WIDE = Settings.from_preset("digits-wide").ranges.sets


def test_budgets_are_different_members_of_the_sets_and_a_seed_draws_the_same() -> None:
    found = budgets(WIDE, 64, seed=0)
    assert len(set(found)) == 64 and found == budgets(WIDE, 64, seed=0) != budgets(WIDE, 64, seed=1)
    for candidate in found:
        changes = candidate.changes
        assert changes["epsilon"] in WIDE.epsilons and changes["step_size"] in WIDE.step_sizes
        assert changes["steps"] in WIDE.steps and candidate.steps == changes["steps"]
    # the whole range is covered, and no attack at all is one candidate
    assert {candidate.steps for candidate in found} == set(map(float, WIDE.steps))
    assert sum(not (one.changes["epsilon"] and one.steps) for one in found) == 1


def test_a_small_world_has_all_its_budgets() -> None:
    # ASTrA's sets have 780
    assert len(budgets(ActionSets(), 600, seed=0)) == 600
    sets = ActionSets(epsilons=(4 / 255, 8 / 255), steps=(1, 2), step_sizes=(2 / 255,))
    assert len(budgets(sets, 64, seed=0)) == 4


def test_a_curve_has_every_number_of_steps_at_some_radii_and_no_attack_once() -> None:
    found = curve(WIDE, 8)
    assert len(set(found)) == 1 + 8 * 5 and found[0].steps == 0
    epsilons = {one.changes["epsilon"] for one in found[1:]}
    assert len(epsilons) == 8 and {4 / 255, 96 / 255} <= epsilons <= set(WIDE.epsilons)
    for one in found[1:]:
        budget = one.changes
        reach = budget["steps"] * budget["step_size"]
        assert reach >= 1.25 * budget["epsilon"] - 1e-9 or budget["step_size"] == WIDE.step_sizes[-1]
    assert len(curve(ActionSets(), 4)) == 4 * len(ActionSets().steps)


def test_schedules_begin_with_the_constants() -> None:
    found = schedules(WIDE, 1, 32 / 255, 40, seed=0)
    assert len(set(found)) == 40 and {one.steps for one in found} == {1.0}
    constants = [one.changes["schedule"] for one in found[:20]]
    assert all(len(set(one)) == 1 for one in constants) and constants == sorted(set(constants))
    assert {constants[0][0], constants[-1][0]} == {0.0, 96 / 255}
    assert all(set(one.changes["schedule"]) <= set(WIDE.epsilons) for one in found)


def test_trainings_begin_with_the_worlds_own_values() -> None:
    found = trainings(("lr", "strength"), 0.003, 32, seed=0)
    assert found[0].changes == {} and found[0].steps is None and len(set(found)) == 32
    rates = [one.changes["lr"] for one in found[1:]]
    assert 0.003 / LR_SPAN * 0.99 <= min(rates) < 0.0006 and 0.015 < max(rates) <= 0.003 * LR_SPAN * 1.01
    strengths = [one.changes["strength"] for one in found[1:]]
    assert 0 <= min(strengths) < 0.1 and 0.9 < max(strengths) <= 1
    assert trainings(("strength",), 0.003, 2, seed=0)[1].changes.keys() == {"strength"}


def test_fewer_steps_buy_more_updates() -> None:
    # 3.3 passes for an update, and one for each attack step
    assert updates_for(830, 5) == pytest.approx(100) and updates_for(830, 1) == pytest.approx(830 / 4.3)


def test_a_candidates_name_is_the_flags_that_make_it() -> None:
    training = trainings(("lr", "strength"), 0.003, 4, 3)[-1]
    for candidate in (budgets(WIDE, 8, 3)[-1], schedules(WIDE, 2, 16 / 255, 30, 3)[-1], training):
        made = parse(["--preset", "digits-wide", *shlex.split(named(candidate.changes))]).settings.flat()
        for name, value in candidate.changes.items():
            assert made[name] == pytest.approx(value), name


def test_sets_in_a_candidates_name_are_brief_and_exact() -> None:
    sets = WIDE_SETS.by_setting
    name = named({"agent": "escalating", **sets})
    begin = '--agent escalating --action_epsilons "{from: 0/255, to: 48/255, by: 2/255}" --action_steps [0,1,2,4,8,14] '
    assert name == f"{begin}--action_step_sizes [1/255,2/255,4/255,8/255,16/255,32/255,64/255]"
    found = parse(["--preset", "digits-grid", *shlex.split(name)]).settings.ranges.sets
    assert found == WIDE_SETS and with_brief_sets(name) == name
    # a member that is no multiple of 1/255, were it only by one digit, and others that are near to it
    odd = (0.01, 8 / 255, math.nextafter(12 / 255, 1))
    assert named({"action_epsilons": odd}) == f"--action_epsilons [{','.join(map(repr, odd))}]"
    assert named({"action_epsilons": (4 / 255, 8 / 255)}) == "--action_epsilons [4/255,8/255]"


def test_what_worlds_have_in_common() -> None:
    other = Settings.from_preset("cifar10-16").ranges.sets
    shared = common([WIDE, other])
    assert shared.epsilons == WIDE.epsilons[:13] and shared.steps == WIDE.steps
    assert common([other, WIDE]).epsilons == pytest.approx(shared.epsilons)
    with pytest.raises(ValueError, match="the worlds have no steps in common"):
        common([WIDE, ActionSets(steps=(3, 5))])
