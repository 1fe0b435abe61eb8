"""What a probe is made of: its settings, in what they depart from the standard, and any module as an encoder."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.downstream.linear_probe import (
    PROBE_LR,
    PlainEncoder,
    ProbeSettings,
    TrainingAttack,
    departures,
    standard_probe,
    train_probe,
)
from astra_gym.ssl_core.transforms.views import ViewSettings
from astra_gym.ssl_core.utils.hashing import fingerprint


def test_defaults_are_the_published_protocol() -> None:
    assert ProbeSettings() == ProbeSettings(25, 0.01, 512, (10, 20), 0.9, 2e-4, True)


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"lr": 0.0}, {"batch_size": 0}, {"milestones": (5, 2)}, {"momentum": 1.0}, {"weight_decay": -1.0}],
)
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"the probe's {next(iter(change))} is"):
        ProbeSettings(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"epsilon": 8.0}, {"epsilon": 0.0}, {"step_size": 2.0}, {"steps": 0}])
def test_attacks_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"the training attack's {next(iter(change))} is"):
        TrainingAttack(**change)  # type: ignore[arg-type]


def test_the_standard_probe_has_the_published_rate_of_the_data_set() -> None:
    assert TrainingAttack() == TrainingAttack(8 / 255, 2 / 255, 10)
    rates = {name: standard_probe(name).lr for name in ("cifar10", "cifar100", "stl10", "digits")}
    assert rates == {"cifar10": 0.01, "cifar100": 0.05, "stl10": 0.1, "digits": 0.1}
    assert all(replace(standard_probe(name), lr=0.01) == ProbeSettings() for name in PROBE_LR)


def test_departures_name_every_field_that_differs() -> None:
    standard = ProbeSettings()
    assert departures(standard, ProbeSettings()) == ()
    changed = ProbeSettings(epochs=5, lr=0.1, milestones=(2, 4), augment=False)
    assert departures(changed, standard) == (
        "epochs 5, not 25",
        "lr 0.1, not 0.01",
        "milestones (2, 4), not (10, 20)",
        "augment False, not True",
    )
    assert departures(TrainingAttack(epsilon=4 / 255, steps=3), TrainingAttack()) == (
        "epsilon 4/255, not 8/255",
        "steps 3, not 10",
    )
    assert departures(replace(standard, lr=0.01 + 1e-12), standard) == (f"lr {0.01 + 1e-12!r}, not 0.01",)
    with pytest.raises(ValueError, match="TrainingAttack cannot be compared with ProbeSettings"):
        departures(TrainingAttack(), standard)


class Channel(nn.Module):
    """One feature a color channel: its mean."""

    feature_dim = 3

    def features(self, images: Tensor, route: str) -> Tensor:
        return images.mean((2, 3))


class Reshaped(nn.Module):
    """The color channels' means, in a form of choice."""

    def __init__(self, form: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.form = form

    def forward(self, images: Tensor) -> object:
        return self.form(images)


@pytest.mark.parametrize(
    "form", [lambda x: x.mean((2, 3)), lambda x: x.mean((2, 3), keepdim=True), lambda x: x], ids=["2d", "1x1", "maps"]
)
def test_any_module_can_be_an_encoder(form: Callable[[Tensor], object]) -> None:
    encoder = PlainEncoder(Reshaped(form), (3, 6, 6))
    assert encoder.feature_dim == 3
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 3, 6, 6), generator=generator).to(torch.uint8)
    data = ImageSet(images, torch.arange(60) % 3, ("a", "b", "c"), "noise")
    settings = ProbeSettings(epochs=2, lr=0.1, milestones=())
    for attack in (None, TrainingAttack(steps=2)):
        ours, theirs = (
            train_probe(one, "any", data, settings, ViewSettings(padding=1), seed=0, attack=attack)
            for one in (encoder, Channel())
        )
        torch.testing.assert_close(ours.head.get_parameter("weight"), theirs.head.get_parameter("weight"))


def test_a_plain_encoder_leaves_the_module_as_it_is() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5)).train()
    before = fingerprint(module)
    encoder = PlainEncoder(module, (3, 6, 6))
    assert encoder.module is module and encoder.feature_dim == 5
    assert fingerprint(module) == before and all(part.training for part in module.modules())


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda x: (x.mean((2, 3)),), r"gave tuple for 2 images"),
        (lambda x: x.flatten(2), r"gave a tensor \(2, 3, 36\) for 2 images: expected features \(2, d\)"),
        (lambda x: x.mean((2, 3))[:1], r"gave a tensor \(1, 3\) for 2 images"),
        (lambda x: x.mean(), r"gave a tensor \(\) for 2 images"),
        (lambda x: x.sub_(0.5).mean((2, 3)), "changes the images that it is given"),
        (lambda x: F.batch_norm(x, None, None, training=True), "depend on the other images of its batch"),
    ],
)
def test_a_module_that_is_no_encoder_is_refused(form: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlainEncoder(Reshaped(form), (3, 6, 6))


def test_features_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="features that are not finite"):
        PlainEncoder(Reshaped(lambda x: x.mean((2, 3)) / 0), (3, 6, 6))
    encoder = PlainEncoder(Reshaped(lambda x: (0.9 - x.mean((2, 3))).log()), (3, 6, 6))
    with pytest.raises(RuntimeError, match="features that are not finite"):
        encoder.features(torch.ones(2, 3, 6, 6), "any")


def test_features_are_of_the_images_type() -> None:
    encoder = PlainEncoder(Reshaped(lambda x: x.double().mean((2, 3))), (3, 6, 6))
    assert encoder.features(torch.ones(2, 3, 6, 6), "any").dtype == torch.float32
    assert encoder.features(torch.ones(2, 3, 6, 6).double(), "any").dtype == torch.float64
