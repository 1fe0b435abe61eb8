import pytest

from astra_gym.ssl_core.utils.registry import pick

TABLE = {"reinforce": 1, "ppo": 2}


def test_pick_finds() -> None:
    assert pick("ppo", TABLE, "agent") == 2


def test_the_error_lists_the_choices_and_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown agent 'reinfroce': choose from reinforce, ppo; did you mean 'reinf"):
        pick("reinfroce", TABLE, "agent")


def test_of_many_choices_some_are_named_and_where_all_are() -> None:
    many = {f"method_{number:02}": number for number in range(30)}
    with pytest.raises(ValueError) as error:
        pick("zzz", many, "method")
    listed = "method_00, method_01, method_02 and 27 more (see --list of the training)"
    assert str(error.value) == f"unknown method 'zzz': choose from {listed}"


@pytest.mark.parametrize("name", ["zzz", "", None, 3, ["ppo"]])
def test_nothing_near_offers_nothing(name) -> None:
    with pytest.raises(ValueError) as error:
        pick(name, TABLE, "agent")
    assert "did you mean" not in str(error.value) or name == ["ppo"]


def test_of_a_path_to_own_code_the_colon_may_be_missing() -> None:
    with pytest.raises(ValueError, match=r"unknown agent 'my\.agents\.Mine': .*; did you mean 'my\.agents:Mine'\?$"):
        pick("my.agents.Mine", TABLE, "agent")
    # other names have no paths, nor is a version a path
    for name, what in (("my_kernel.make", "optimizer"), ("cifar10.1", "data set"), (".", "agent")):
        with pytest.raises(ValueError) as error:
            pick(name, TABLE, what)
        assert "did you mean" not in str(error.value)
