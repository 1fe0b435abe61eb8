import pytest

from astra_gym.ssl_core.utils.registry import pick

TABLE = {"reinforce": 1, "ppo": 2}


def test_pick_finds() -> None:
    assert pick("ppo", TABLE, "agent") == 2


def test_the_error_lists_the_choices_and_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown agent 'reinfroce': choose from reinforce, ppo; did you mean 'reinf"):
        pick("reinfroce", TABLE, "agent")


@pytest.mark.parametrize("name", ["zzz", "", None, 3, ["ppo"]])
def test_nothing_near_offers_nothing(name) -> None:
    with pytest.raises(ValueError) as error:
        pick(name, TABLE, "agent")
    assert "did you mean" not in str(error.value) or name == ["ppo"]
