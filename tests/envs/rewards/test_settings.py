"""The weights of reward terms: each said in one place, by its setting or by its name, and bad ones refused."""

import math
import sys

import pytest

from astra_gym.envs.rewards.registry import REWARD_TERMS
from astra_gym.envs.rewards.settings import RewardSection
from astra_gym.ssl_core.methods import make_method


@pytest.mark.parametrize("name", REWARD_TERMS)
def test_a_weight_by_name_is_the_weight_of_the_setting(name: str) -> None:
    by_name = RewardSection(reward_weights={name: 0.25})
    assert by_name == RewardSection(**{f"reward_{name}": 0.25}) and by_name.reward_weights is None
    assert by_name.weights[name] == 0.25
    # text from a command line, and the setting repeated
    assert RewardSection(reward_weights={name: "1/4"}, **{f"reward_{name}": 0.25}) == by_name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reward_scope": "image"}, "reward scope"),
        ({"reward_clean": math.inf}, "reward_clean"),
        ({"reward_cost": math.nan}, "reward_cost is nan"),
        ({"reward_lookahead": math.inf}, "reward_lookahead is inf"),
        ({"reward_progress": "1"}, "reward_progress is '1'"),
        ({"lookahead_images": 1}, "lookahead_images is 1: expected 2 or more"),
        ({"lookahead_images": 2.0}, "lookahead_images is 2.0"),
        ({"reward_cost": 0.1, "reward_weights": {"cost": 0.2}}, "reward_cost is 0.1 and reward_weights.cost 0.2: give"),
        (
            {"reward_weights": {"coast": 1.0}},
            "unknown reward term 'coast': choose from adversarial, clean, mixed, cost, lookahead, progress, judge, a",
        ),
        ({"reward_weights": {"cost": math.nan}}, "reward_weights.cost is nan: expected a finite number"),
        ({"reward_weights": {"mine:Term": "much"}}, "reward_weights.mine:Term is 'much': expected a finite number"),
        ({"reward_weights": 3}, "reward_weights is 3: expected settings by name"),
        ({"reward_weights": {1: 2.0}}, r"reward_weights is \{1: 2.0\}: expected settings by name"),
    ],
)
def test_a_bad_weight_an_unknown_term_and_one_given_twice_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        RewardSection(**given)
    assert len(str(error.value)) <= 300


def test_a_term_is_refused_with_a_method_that_lacks_its_loss() -> None:
    section = RewardSection(reward_weights={"lookahead": 1.0})
    section.check_terms(make_method("acl"))
    with pytest.raises(ValueError, match=r"reward_lookahead is 1\.0, but what the attack of TARO"):
        section.check_terms(make_method("taro"))


def test_a_custom_term_is_imported_when_it_is_paid_and_not_before() -> None:
    section = RewardSection(reward_weights={"no_such_module:Term": 1, "cost": 0.5})
    assert section.reward_weights == {"no_such_module:Term": 1.0} and section.reward_cost == 0.5
    with pytest.raises(ValueError, match="reward term 'no_such_module:Term': cannot import no_such_module"):
        section.paid_terms()
    assert not any(name.startswith("no_such") for name in sys.modules)
    unpaid = RewardSection(reward_weights={"no_such_module:Term": 0, "progress": 1})
    assert list(unpaid.paid_terms()) == ["progress"]
