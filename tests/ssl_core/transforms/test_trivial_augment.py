"""TrivialAugmentWide against torchvision's, image by image, at each strength of its own table."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from astra_gym.ssl_core.transforms.trivial_augment import (
    BINS,
    NAMES,
    OPERATIONS,
    TrivialParameters,
    apply_trivial,
    draw_trivial,
    trivial_augment,
)
from astra_gym.ssl_core.transforms.views import as_float
from tests.helpers.draws import generator
from tests.helpers.gpu import no_waits

GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
BY_LEVELS = ("Identity", *GEOMETRIC, "Posterize", "Equalize")
SIZES = [(32, 32), (16, 24), (17, 17)]


def pictures(n: int, height: int, width: int) -> Tensor:
    """uint8: noise, noise of few levels and of a narrow range, ramps, flat colors."""
    noise = torch.randint(256, (n, 3, height, width), generator=generator(7), dtype=torch.uint8)
    noise[1::5] = noise[1::5] // 85 * 85
    noise[2::5] = 90 + noise[2::5] // 4
    noise[3::5] = torch.linspace(10, 240, width).to(torch.uint8)
    noise[4::5] = noise[4::5, :, :1, :1]
    return noise


def strengths(name: str) -> list[float]:
    """torchvision's own table, with both signs."""
    make, signed = v2.TrivialAugmentWide._AUGMENTATION_SPACE[name]
    table = make(BINS, 32, 32)
    values = [0.0] if table is None else [float(value) for value in table]
    return values + [-value for value in values] if signed else values


def by_torchvision(image: Tensor, name: str, strength: float) -> Tensor:
    transform: Any = v2.TrivialAugmentWide()
    return transform._apply_image_or_video_transform(
        image, name, strength, interpolation=InterpolationMode.NEAREST, fill={type(image): None}
    )


def undecided(name: str, strength: float, height: int, width: int) -> Tensor:
    """(height, width): whose source is half-way between two pixels, but for rounding."""
    y, x = (torch.arange(size, dtype=torch.float64) + 0.5 for size in (height, width))
    x, y = x.expand(height, width), y[:, None].expand(height, width)
    if name == "ShearX":
        x, y = x + strength * y, y
    elif name == "ShearY":
        x, y = x, y + strength * x
    elif name == "Rotate":
        z = torch.complex(x - width / 2, y - height / 2) * complex(
            math.cos(math.radians(strength)), math.sin(math.radians(strength))
        )
        x, y = z.real + width / 2, z.imag + height / 2
    # Pixels end at whole numbers.
    return ((x - x.round()).abs() < 2e-3) | ((y - y.round()).abs() < 2e-3)


def applied(images: Tensor, name: str, strength: float) -> Tensor:
    n = len(images)
    operation = torch.full((n,), NAMES.index(name))
    return apply_trivial(images, TrivialParameters(operation, torch.full((n,), strength, dtype=torch.float64)))


def test_the_operations_and_their_strengths_are_torchvisions() -> None:
    assert tuple(v2.TrivialAugmentWide._AUGMENTATION_SPACE) == NAMES
    for name, ours in OPERATIONS.items():
        signed = [-float(value) for value in ours.table] if ours.signed else []
        expected = strengths(name)
        got = ours.table.tolist() + signed
        assert got == (expected if len(expected) > 1 else expected * BINS)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_equals_torchvisions_at_each_strength(name: str, height: int, width: int) -> None:
    images = pictures(5, height, width)
    for strength in strengths(name):
        views = applied(as_float(images), name, strength)
        assert views.min() >= 0 and views.max() <= 1
        levels = by_torchvision(images, name, strength)
        if name in GEOMETRIC:
            decided = ~undecided(name, strength, height, width)
            assert decided.double().mean() > 0.8
            assert torch.equal(views[..., decided], as_float(levels)[..., decided]), strength
        elif name in BY_LEVELS:
            assert torch.equal(views, as_float(levels)), strength
        elif name == "Solarize":
            torch.testing.assert_close(views, as_float(levels), rtol=0, atol=1e-7)
        else:
            # torchvision on 8 bits cuts off what is beyond a level, and so does it with what it moves away from.
            assert ((views * 255 - levels).abs() <= 2).all(), strength
            expected = torch.stack([by_torchvision(image, name, strength) for image in as_float(images)])
            torch.testing.assert_close(views, expected, rtol=0, atol=2e-6)


def test_levels_are_rounded_to_where_they_are_needed_only() -> None:
    images = pictures(5, 12, 12)
    between = (as_float(images) + 0.3 / 255).clamp(max=1)
    for name, strength in (("Posterize", 4.0), ("Equalize", 0.0)):
        assert torch.equal(applied(between, name, strength), applied(as_float(images), name, strength))
    assert torch.equal(applied(between, "Solarize", 1.0)[images < 255], between[images < 255])
    assert torch.equal(applied(between, "Identity", 0.0), between)


def test_a_half_way_source_is_the_later_pixel_on_every_device() -> None:
    """A turn by 45 degrees looks the diagonal up on the middle of an image of even size, between two pixels."""
    image = torch.arange(16.0).div(15).expand(1, 3, 16, 16).clone()
    view = applied(image, "Rotate", 45.0)
    # Its ends are looked up above and below the image.
    assert torch.equal(view[0, 0].diagonal()[2:-2], torch.full((12,), 8 / 15))


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (8, 8)])
def test_small_images_are_taken(size: tuple[int, int]) -> None:
    images = as_float(pictures(40, *size))
    for name in NAMES:
        for strength in strengths(name)[::6]:
            assert torch.isfinite(applied(images, name, strength)).all()


def test_each_image_has_its_own_operation_and_strength() -> None:
    images, parameters = as_float(pictures(400, 12, 12)), draw_trivial(400, generator(1))
    before = images.clone()
    together = apply_trivial(images, parameters)
    assert torch.equal(images, before)
    for row in range(400):
        one = TrivialParameters(parameters.operation[[row]], parameters.strength[[row]])
        torch.testing.assert_close(apply_trivial(images[[row]], one)[0], together[row], rtol=0, atol=1e-6)
    assert len(parameters.operation.unique()) == len(NAMES)


def test_operations_bins_and_signs_are_uniform() -> None:
    n = 42_000
    drawn = draw_trivial(n, generator(2))
    counts = torch.bincount(drawn.operation, minlength=len(NAMES))
    assert ((counts - n / 14).abs() <= 5 * math.sqrt(n / 14)).all()
    for index, name in enumerate(NAMES):
        values = drawn.strength[drawn.operation == index]
        expected = torch.tensor(sorted(set(strengths(name))), dtype=torch.float64)
        assert torch.equal(values.unique(), expected)
        # Strengths that are rounded to the same bits are one value.
        shares = torch.tensor([OPERATIONS[name].table.eq(abs(float(v))).double().mean() for v in expected])
        shares = shares / torch.where((expected != 0) & torch.tensor(OPERATIONS[name].signed), 2, 1)
        found = torch.stack([(values == v).double().mean() for v in expected])
        assert ((found - shares).abs() <= 5 * (shares * (1 - shares) / len(values)).sqrt() + 1e-12).all(), name


def test_views_follow_the_generator_and_nothing_else() -> None:
    images, state = as_float(pictures(64, 16, 16)), torch.get_rng_state()
    stream = generator(1)
    first = trivial_augment(images, stream)
    assert torch.equal(first, trivial_augment(images, generator(1)))
    assert not torch.equal(first, trivial_augment(images, stream))
    assert torch.equal(first, apply_trivial(images, draw_trivial(64, generator(1))))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "call", [trivial_augment, lambda images, stream: apply_trivial(images, draw_trivial(2, stream))]
)
def test_other_images_are_refused(call: Callable) -> None:
    with pytest.raises(ValueError, match=r"float32.*got torch.uint8.*as_float"):
        call(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), generator())
    with pytest.raises(ValueError, match=r"in \[0, 1\], got values"):
        call(torch.full((2, 3, 8, 8), 2.0), generator())
    with pytest.raises(ValueError, match="3 images but parameters for 2 views"):
        apply_trivial(torch.zeros(3, 3, 8, 8), draw_trivial(2, generator()))


@pytest.mark.gpu
def test_a_gpu_makes_the_same_views_without_waiting_for_it(gpu: torch.device) -> None:
    images = as_float(pictures(200, 32, 32))
    there = images.to(gpu)
    trivial_augment(there, generator())
    with no_waits(gpu):
        views = trivial_augment(there, generator(1))
    torch.testing.assert_close(views.cpu(), trivial_augment(images, generator(1)), rtol=0, atol=1e-5)
