"""The section on the augmentations: what it refuses, and what it makes."""

import math

import pytest

from astra_gym.ssl_core.transforms.settings import ViewsSection


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"perspective_kwargs": [1]}, r"perspective_kwargs is \[1\]: expected settings by name"),
        ({"perspective_kwargs": {"kind": "lcm"}}, "perspective_kwargs has a kind: give it as --perspective"),
        ({"crop_scale": 0.5}, "crop_scale is 0.5: expected 2 numbers"),
        ({"crop_scale": (0.5, math.nan)}, r"crop_scale is \(0.5, nan\): expected 2 numbers"),
        ({"jitter": None}, "jitter is None: expected 4 numbers"),
        ({"jitter": (0.1, 0.1, 0.1, True)}, "expected 4 numbers"),
        ({"flip": None}, "flip is None"),
        ({"flip": -0.1}, "flip"),
        ({"strength": 1.5}, "strength"),
        ({"blur": 1.5}, "blur is 1.5"),
        ({"solarize": -0.1}, "solarize is -0.1"),
        ({"interpolation": "bicubi"}, "did you mean 'bicubic'"),
    ],
)
def test_bad_settings_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewsSection(**setting)


def test_it_makes_the_settings_of_views_and_of_their_distortion() -> None:
    section = ViewsSection(strength=0.3, crop_scale=[0.2, 1.0], blur=0.5, perspective="moebius")
    made = section.make()
    assert (made.strength, made.crop, made.blur_probability) == (0.3, (0.2, 1.0), 0.5)
    assert section.make_perspective().kind == "moebius" and section.crop_scale == (0.2, 1.0)


def test_settings_of_a_distortion_that_is_left_out_have_no_effect() -> None:
    ViewsSection(perspective="moebius", perspective_kwargs={"d": 0.9}).check_given()
    with pytest.raises(ValueError, match="there is no perspective augmentation"):
        ViewsSection(perspective_kwargs={"d": 0.9}).check_given()
