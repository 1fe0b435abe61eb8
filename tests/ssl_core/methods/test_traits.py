import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Any

import pytest

from astra_gym.ssl_core.methods import ACL, METHODS, AttackTraits, LossTraits, Method, NetworkTraits, Routes
from astra_gym.ssl_core.methods.traits import MOVED, TRAITS


def test_one_route_is_for_all_images() -> None:
    single = Routes.single("pgd")
    assert (single.names, single.clean, single.attack, single.evaluation) == (("pgd",), "pgd", "pgd", "pgd")
    assert Routes(names=("a", "b"), attack="b", evaluation="b").clean == "a"


def test_a_free_attack_has_no_steps_of_its_own() -> None:
    assert AttackTraits().has_steps
    assert not AttackTraits(free=True).has_steps and not AttackTraits(exists=False).has_steps


@pytest.mark.parametrize(
    ("record", "given", "message"),
    [
        (Routes, {"names": ("normal",)}, r"route of attack is 'pgd': expected one of the names \('normal',\)"),
        (Routes, {"evaluation": "clean"}, r"route of evaluation is 'clean': expected one of the names \('normal', "),
        (
            Routes,
            {"names": ("pgd", "pgd")},
            r"names of routes are \('pgd', 'pgd'\): expected a tuple of different names",
        ),
        (Routes, {"names": "pgd"}, "names of routes are 'pgd': expected a tuple"),
        (AttackTraits, {"mode": "Train"}, "mode of the attack is 'Train': expected 'eval' or 'train'"),
        (AttackTraits, {"mode": None}, "mode of the attack is None"),
        (AttackTraits, {"reference_mode": "on"}, "reference_mode of the attack is 'on': expected 'eval' or 'train'"),
        (AttackTraits, {"start_radius": 8}, r"start_radius is 8: expected in \[0, 1\], 8/255 and not 8"),
        (AttackTraits, {"exists": False, "free": True}, "free is true, but exists is false"),
        (NetworkTraits, {"others": ("ema",)}, r"others are \('ema',\): expected .* momentum, teacher, initial"),
        (NetworkTraits, {"others": "teacher"}, "others are 'teacher': expected a tuple"),
        (NetworkTraits, {"evaluated": "momentum"}, "evaluated is 'momentum': expected one of target"),
        (NetworkTraits, {"averaged_heads": ("predictor",)}, "averaged_heads is .*: expected 'momentum' among others"),
        (NetworkTraits, {"momentum_first": True}, "momentum_first is True: expected 'momentum' among others"),
        (NetworkTraits, {"shares_projector": True}, "shares_projector is True: expected 'teacher' among others"),
        (LossTraits, {"has_temperature": False}, "expected nt_xent_based=False"),
    ],
)
def test_what_a_method_cannot_be_is_refused(record: type, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(**given)


def test_records_do_not_change_and_name_what_they_are_given() -> None:
    for name, record in TRAITS.items():
        own = record()
        assert getattr(Method, name) == own and pickle.loads(pickle.dumps(own)) == own
        with pytest.raises(FrozenInstanceError):
            setattr(own, fields(own)[0].name, None)
        with pytest.raises(TypeError):
            record(True)


def test_every_flag_is_where_the_table_says() -> None:
    for place in MOVED.values():
        record, _, name = place.partition(".")
        assert hasattr(TRAITS[record](), name)
        assert all(hasattr(getattr(kind(), record), name) for kind in METHODS.values())


@pytest.mark.parametrize("flag", MOVED)
def test_a_former_flag_is_refused_where_it_is_set_and_where_it_is_read(flag: str) -> None:
    place = f"{flag} of Mine is {MOVED[flag]} now"
    record = MOVED[flag].partition(".")[0]
    for value in (True, property(lambda method: True)):
        with pytest.raises(TypeError, match=f"^{place}: set {record} = {TRAITS[record].__name__}\\(...\\)$"):
            type("Mine", (ACL,), {flag: value})
    with pytest.raises(TypeError, match=place):
        dataclass(frozen=True)(type("Mine", (ACL,), {"__annotations__": {flag: bool}, flag: False}))
    with pytest.raises(TypeError, match=place):
        type("Mine", (type("Beside", (), {flag: True}), ACL), {})
    mine = type("Mine", (ACL,), {})
    for owner in (mine, mine(), copy.deepcopy(mine())):
        with pytest.raises(AttributeError, match=place):
            getattr(owner, flag)


def test_an_error_in_a_property_is_not_hidden() -> None:
    class Mine(ACL):
        @property
        def weights(self) -> Any:
            return {"clean": self.no_such_option}

    with pytest.raises(AttributeError, match="no_such_option"):
        _ = Mine().weights


def test_a_subclass_changes_one_trait_and_keeps_the_others() -> None:
    class Mine(METHODS["cf-amc-ssl"]):
        attack = replace(METHODS["cf-amc-ssl"].attack, start_radius=None)

    own, before = Mine().attack, METHODS["cf-amc-ssl"]().attack
    assert own == AttackTraits(mode="train", free=True) and before.start_radius == 0.0
