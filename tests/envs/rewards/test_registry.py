"""The table of reward terms, and the search for a custom one."""

import pytest

from astra_gym.envs.rewards.registry import REWARD_TERMS, find_term
from astra_gym.envs.rewards.term import RewardTerm


class Misspelt(RewardTerm):
    """Nobody calls its method."""

    def forzen(self, attack: object) -> dict:
        return {}


class Doubled(RewardTerm):
    """Its weight says how much it pays."""

    sign = 2

    def after_update(self, n: int) -> dict:
        return {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math:pi", "reward term 'math:pi' is a float: expected a subclass of astra_gym.envs.rewards.term.RewardTerm"),
        ("pathlib:Path", "is the class Path: expected a subclass"),
        (f"{__name__}:Misspelt", "gives no values: expected one of the methods frozen, before_update, after_update"),
        (f"{__name__}:Doubled", "has the sign 2: expected 1, or -1 for a cost"),
        ("lookahed", "unknown reward term 'lookahed': .*did you mean 'lookahead'"),
    ],
)
def test_what_is_no_term_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_term(name)


def test_every_term_says_what_it_pays() -> None:
    assert all(kind.summary for kind in REWARD_TERMS.values())
    assert {name for name, kind in REWARD_TERMS.items() if kind.sign < 0} == {"clean", "mixed", "cost"}
