"""The section on the method: what it refuses, and what it makes."""

import math
from dataclasses import dataclass

import pytest

from astra_gym.ssl_core.methods import ACL
from astra_gym.ssl_core.methods.settings import MethodSection

OWN = f"{__name__}:Warm"


@dataclass(frozen=True)
class Warm(ACL):
    temperature: float = 0.7
    mixed_weight: float = 2.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "astr"}, "did you mean 'astra'"),
        ({"mixed_reading": "x"}, "mixed reading"),
        ({"mixed_weight": -1}, "mixed_weight is -1"),
        ({"teacher": math.nan}, "teacher is nan: expected a path"),
        ({"method_kwargs": "x"}, "method_kwargs is 'x': expected settings by name"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_bad_settings_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MethodSection(**setting)


def test_a_shared_value_may_be_given_among_a_methods_options_too() -> None:
    assert MethodSection(method_kwargs={"temperature": 0.3}).make().temperature == 0.3  # type: ignore[attr-defined]
    both = MethodSection(temperature=0.3, method_kwargs={"temperature": 0.3})
    assert both.make().temperature == 0.3  # type: ignore[attr-defined]
    both.check_given()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "emp-ssl", "temperature": 0.2}, "temperature is 0.2, but the loss of the method emp-ssl has none"),
        ({"temperature": 0.2, "method_kwargs": {"temperature": 0.3}}, "method_kwargs.temperature 0.3: give one"),
        ({"mixed_weight": 0.2, "method_kwargs": {"mixed_weight": 0.3}}, "method_kwargs.mixed_weight 0.3: give one"),
    ],
)
def test_an_option_without_an_effect_or_given_twice_is_refused(setting: dict, message: str) -> None:
    section = MethodSection(**setting)
    with pytest.raises(ValueError, match=message):
        section.check_given()


def test_a_method_has_its_own_defaults() -> None:
    assert MethodSection(method=OWN).make() == Warm()
    assert MethodSection(method=OWN, temperature=0.5).make() == Warm(temperature=0.5)
    MethodSection(method=OWN, temperature=0.7, method_kwargs={"temperature": 0.3}).check_given()
    for name, temperature in (("astra", 0.5), ("dino", 0.1), ("moco", 0.2)):
        section = MethodSection(method=name)
        assert section.temperature == section.make().temperature == temperature  # type: ignore[attr-defined]
