"""The budgets of agents that go through a list, in worlds of several sets."""

import pytest

from astra_gym.agents import AGENTS
from astra_gym.agents.entries import BUDGET
from astra_gym.experiments.config.settings import Settings
from astra_gym.ssl_core.attacks.pgd import ConstantBudget

LISTS = [name for name, entry in AGENTS.items() if entry.budgets]


def listed(agent: str, preset: str = "digits-wide", **more: object) -> list[tuple[float, int, float]]:
    """Radius and step size in 1/255."""
    found = Settings.from_preset(preset, method="acl", agent=agent, **more).listed_budgets
    return [(round(255 * one.epsilon, 6), one.steps, round(255 * one.step_size, 6)) for one in found]


def test_every_list_is_of_an_agent_that_takes_a_budget() -> None:
    takers = {name for name, entry in AGENTS.items() if entry.takes}
    assert takers == {"fixed", *LISTS} and all({*AGENTS[name].takes} <= {*BUDGET, "schedule"} for name in takers)
    assert Settings.of(agent="random").listed_budgets == []


def test_delayed_begins_without_steps_or_without_a_radius() -> None:
    assert listed("delayed") == [(8, 0, 2), (8, 5, 2)]
    assert listed("delayed", epsilon=32 / 255, steps=1, step_size=32 / 255) == [(32, 0, 32), (32, 1, 32)]
    assert listed("delayed", action_steps=(3, 5)) == [(0, 5, 2), (8, 5, 2)]
    message = "begins with clean views, but actions begin at 3 steps and a radius of 3/255: put 0 into --action_steps"
    with pytest.raises(ValueError, match=message):
        Settings.from_preset("digits-grid", agent="delayed")


def test_accelerating_climbs_from_2_steps_to_8_or_what_is_given() -> None:
    assert [steps for _, steps, _ in listed("accelerating")] == [2, 4, 8]
    assert [steps for _, steps, _ in listed("accelerating", steps=14)] == [2, 4, 8, 14]
    # 3 is the least of ASTrA's sets
    assert [steps for _, steps, _ in listed("accelerating", "digits-grid")] == [3, 4, 5, 6, 7, 8]
    with pytest.raises(ValueError, match=r"takes 2 to 8 steps, and actions have \[0, 1\]"):
        listed("accelerating", action_steps=(0, 1))


def test_escalating_goes_as_far_in_more_steps_from_a_wide_step_that_the_world_has() -> None:
    assert listed("escalating") == [(24, 1, 32), (24, 2, 16), (24, 4, 8), (24, 8, 4)]
    assert listed("escalating", epsilon=8 / 255, steps=4, step_size=4 / 255) == [(8, 4, 4), (8, 8, 2)]
    # a world without sets of its own gets wide ones
    assert listed("escalating", "digits-grid") == [(24, 1, 32), (24, 2, 16), (24, 4, 8), (24, 8, 4)]
    # ASTrA's sets begin at 3 steps, and end at 15/255 and steps of 5/255
    narrow = {
        "action_epsilons": (15 / 255,),
        "action_steps": (3, 6, 7, 12, 14),
        "action_step_sizes": (1 / 255, 5 / 255),
    }
    assert listed("escalating", **narrow) == [(15, 3, 5), (15, 6, 2.5), (15, 12, 1.25)]
    assert listed("escalating", **narrow, steps=7, step_size=1 / 255) == [(15, 7, 1), (15, 14, 1)]


def test_customized_climbs_over_the_radii_up_to_its_cap() -> None:
    assert listed("customized") == [(4, 5, 2), (8, 5, 2)]
    radii = [radius for radius, _, _ in listed("customized", epsilon=24 / 255, steps=2, step_size=16 / 255)]
    assert radii == [4, 8, 12, 16, 20, 24]
    assert [radius for radius, _, _ in listed("customized", "digits-grid")] == [3, 4, 5, 6, 7, 8]
    with pytest.raises(ValueError, match="takes radii up to 2/255, and actions have none: raise --epsilon"):
        listed("customized", "digits-grid", epsilon=2 / 255)


def test_friendly_plays_its_budget_in_a_world_that_stops() -> None:
    settings = Settings.from_preset("digits-grid", agent="friendly", steps=10)
    assert settings.listed_budgets == [ConstantBudget(epsilon=8 / 255, step_size=2 / 255, steps=10)]
    assert settings.attack.attack_stop == settings.world.attack.attack_stop == "retrieval"
    assert Settings.from_preset("digits-grid", agent="fixed").attack.attack_stop is None


def test_actions_are_continuous_where_the_sets_lack_a_listed_budget() -> None:
    kinds = {agent: Settings.from_preset("digits-wide", agent=agent).agent.actions for agent in LISTS}
    # 5 steps are not in the set; these take theirs from the sets
    assert kinds == dict.fromkeys(LISTS, "continuous") | dict.fromkeys(("accelerating", "escalating"), "factored")
    more = {"epsilon": 8 / 255, "steps": 4, "step_size": 2 / 255}
    assert Settings.from_preset("digits-wide", agent="customized", **more).agent.actions == "factored"
