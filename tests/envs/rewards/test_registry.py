"""The table of reward terms, and the search for a custom one."""

import pytest

from astra_gym.envs.rewards.registry import REWARD_TERMS, find_term


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
