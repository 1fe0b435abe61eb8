"""The weights of reward terms: each said in one place, by its setting or by its name, and unknown ones refused."""

import math
import sys

import pytest

from astra_gym.envs.rewards.registry import REWARD_TERMS, find_term, paid_terms, weights_of
from astra_gym.envs.world_config import WorldSettings


@pytest.mark.parametrize("name", REWARD_TERMS)
def test_a_weight_by_name_is_the_weight_of_the_setting(name: str) -> None:
    by_name = WorldSettings(reward_weights={name: 0.25})
    assert by_name == WorldSettings(**{f"reward_{name}": 0.25}) and by_name.reward_weights is None
    assert weights_of(by_name)[name] == 0.25
    # text from a command line, and the setting repeated
    assert WorldSettings(reward_weights={name: "1/4"}, **{f"reward_{name}": 0.25}) == by_name


def test_a_weight_given_twice_an_unknown_term_and_a_bad_weight_are_refused() -> None:
    for given, message in (
        ({"reward_cost": 0.1, "reward_weights": {"cost": 0.2}}, "reward_cost is 0.1 and reward_weights.cost 0.2: give"),
        (
            {"reward_weights": {"coast": 1.0}},
            "unknown reward term 'coast': choose from adversarial, clean, mixed, cost, lookahead, progress; did you",
        ),
        ({"reward_weights": {"cost": math.nan}}, "reward_weights.cost is nan: expected a finite number"),
        ({"reward_weights": {"mine:Term": "much"}}, "reward_weights.mine:Term is 'much': expected a finite number"),
        ({"reward_weights": 3}, "reward_weights is 3: expected settings by name"),
        ({"reward_weights": {1: 2.0}}, r"reward_weights is \{1: 2.0\}: expected settings by name"),
        ({"method": "acl", "reward_weights": {"mixed": 0.1}}, "only the methods astra"),
        (
            {"method": "taro", "reward_weights": {"lookahead": 1.0}},
            "reward_lookahead is 1.0, but what the attack of TARO",
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            WorldSettings(**given)
        assert len(str(error.value)) <= 300


def test_a_custom_term_is_imported_when_it_is_paid_and_not_before() -> None:
    settings = WorldSettings(reward_weights={"no_such_module:Term": 1, "cost": 0.5})
    assert settings.reward_weights == {"no_such_module:Term": 1.0} and settings.reward_cost == 0.5
    with pytest.raises(ValueError, match="reward term 'no_such_module:Term': cannot import no_such_module"):
        paid_terms(settings)
    assert not any(name.startswith("no_such") for name in sys.modules)
    assert list(paid_terms(WorldSettings(reward_weights={"no_such_module:Term": 0, "progress": 1}))) == ["progress"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math:pi", "reward term 'math:pi' is a float: expected a subclass of astra_gym.envs.rewards.term.RewardTerm"),
        ("pathlib:Path", "is the class Path: expected a subclass"),
        ("lookahed", "unknown reward term 'lookahed': .*did you mean 'lookahead'"),
    ],
)
def test_what_is_no_term_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_term(name)


def test_every_term_says_what_it_pays() -> None:
    assert all(kind.summary for kind in REWARD_TERMS.values())
    assert {name for name, kind in REWARD_TERMS.items() if kind.sign < 0} == {"clean", "mixed", "cost"}
