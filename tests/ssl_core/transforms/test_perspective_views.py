"""Perspective views against real arithmetic and bilinear sampling written in NumPy, and against their symmetries."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from astra_gym.ssl_core.transforms.moebius import DIRECTIONS, distort, moebius_grid
from astra_gym.ssl_core.transforms.perspective_views import (
    LCM_K,
    PerspectiveParameters,
    PerspectiveSettings,
    apply_perspective,
    draw_perspective,
    lcm_grid,
    perspective_views,
)
from tests.helpers.draws import generator
from tests.helpers.gpu import no_waits

Array = NDArray[np.float64]
MOEBIUS = PerspectiveSettings("moebius", probability=1, magnitude=(0.2, 0.4), d=0.75)
LCM = PerspectiveSettings("lcm", probability=1)


def pictures(n: int, height: int = 20, width: int = 20) -> Tensor:
    return torch.rand(n, 3, height, width, generator=generator(7))


def given(
    kind: str, c: complex, amount: float, n: int = 1, d: float = 0.75, padding: str = "zeros"
) -> PerspectiveParameters:
    yes = torch.ones(n, dtype=torch.bool)
    direction = torch.full((n,), c, dtype=torch.complex64)
    return PerspectiveParameters(kind, yes, direction, torch.full((n,), amount), d, padding)


def moebius_places(x: Array, y: Array, c: complex, d: float) -> tuple[Array, Array]:
    """x' = (x u + y v) / (u^2 + v^2) and y' = (y u - x v) / (u^2 + v^2), u and v the parts of c z + d."""
    u, v = c.real * x - c.imag * y + d, c.real * y + c.imag * x
    return (x * u + y * v) / (u**2 + v**2), (y * u - x * v) / (u**2 + v**2)


def lcm_places(x: Array, y: Array, k: float) -> tuple[Array, Array]:
    """log(k z + 1) by modulus and angle: the view of the right."""
    return np.log((k * x + 1) ** 2 + (k * y) ** 2) / 2, np.arctan2(k * y, k * x + 1)


def looked_up(image: Array, x: Array, y: Array, padding: str) -> Array:
    """Bilinear, corners on corners, pixel by pixel."""
    _, height, width = image.shape
    result = np.zeros((3, *x.shape))
    for place in np.ndindex(*x.shape):
        at = [(y[place] + 1) / 2 * (height - 1), (x[place] + 1) / 2 * (width - 1)]
        if padding != "zeros":
            for axis, last in enumerate((height - 1, width - 1)):
                if padding == "reflection":
                    at[axis] = last - abs(last - abs(at[axis]) % (2 * last))
                at[axis] = min(max(at[axis], 0), last)
        row, column = math.floor(at[0]), math.floor(at[1])
        for i, j in ((row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)):
            if 0 <= i < height and 0 <= j < width:
                result[(slice(None), *place)] += (1 - abs(at[0] - i)) * (1 - abs(at[1] - j)) * image[:, i, j]
    return result


def plane(height: int, width: int) -> tuple[Array, Array]:
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return x, y


@pytest.mark.parametrize("padding", ["zeros", "reflection", "border"])
@pytest.mark.parametrize("size", [(20, 20), (12, 17)])
def test_views_equal_those_looked_up_pixel_by_pixel(padding: str, size: tuple[int, int]) -> None:
    images, settings = pictures(6, *size), replace(MOEBIUS, padding=padding)
    parameters = draw_perspective(6, settings, generator(1))
    views = apply_perspective(images, parameters)
    for row, view in enumerate(views):
        c = complex(parameters.direction[row]) * float(parameters.amount[row])
        expected = looked_up(images[row].double().numpy(), *moebius_places(*plane(*size), c, 0.75), padding)
        assert np.allclose(view.numpy(), expected, atol=2e-5)
    right = looked_up(images[0].double().numpy(), *lcm_places(*plane(*size), 0.7), padding)
    view = apply_perspective(images[:1], given("lcm", 1, 0.7, padding=padding))
    assert np.allclose(view[0].numpy(), right, atol=2e-5)


def test_the_grid_takes_any_c_and_any_d() -> None:
    c = torch.tensor([0.3 + 0.2j, -0.1 + 0.4j, 0.0, -0.35j], dtype=torch.complex128)
    for d in (0.75, 1.0, 1.3):
        grid = moebius_grid(9, 13, c, d)
        for own, places in zip(c.tolist(), grid.numpy(), strict=True):
            assert np.allclose(places, np.stack(moebius_places(*plane(9, 13), own, d), axis=-1))
    assert torch.equal(moebius_grid(9, 13, c), moebius_grid(9, 13, c, 1.0))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_with_d_1_a_view_is_that_of_the_shifts(direction: str) -> None:
    images = pictures(3)
    for padding, padded in (("zeros", False), ("reflection", True)):
        view = apply_perspective(images, given("moebius", DIRECTIONS[direction], 0.3, 3, 1.0, padding))
        torch.testing.assert_close(view, distort(images, direction, padded, torch.full((3,), 0.3)), rtol=0, atol=1e-6)


def test_without_strength_and_with_d_1_images_stay_as_they_are_and_with_less_they_shrink() -> None:
    images = pictures(2, 21, 21)
    torch.testing.assert_close(apply_perspective(images, given("moebius", 1, 0.0, 2, 1.0)), images, rtol=0, atol=2e-6)
    half = apply_perspective(images, given("moebius", 1, 0.0, 2, 0.5))
    assert not half[..., :5, :].any() and not half[..., 16:].any()
    torch.testing.assert_close(half[..., 5:16, 5:16], images[..., ::2, ::2], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("kind", "amount"), [("moebius", 0.4), ("lcm", 0.7)])
def test_the_four_views_are_one_between_a_flip_or_turn_and_its_inverse(kind: str, amount: float) -> None:
    images = pictures(2)

    def seen(side: str, pictures: Tensor) -> Tensor:
        return apply_perspective(pictures, given(kind, DIRECTIONS[side], amount, 2))

    def turned(pictures: Tensor, times: int) -> Tensor:
        return pictures.rot90(times, dims=(2, 3))

    def close(one: Tensor, other: Tensor) -> None:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)

    close(seen("left", images), seen("right", images.flip(3)).flip(3))
    # A quarter turn counter-clockwise brings the lower side to the right. MPD names these two by c, the other way.
    lower, upper = ("bottom", "top") if kind == "lcm" else ("top", "bottom")
    close(seen(lower, images), turned(seen("right", turned(images, 1)), -1))
    close(seen(upper, images), turned(seen("right", turned(images, -1)), 1))
    assert not torch.allclose(seen("left", images), seen("right", images), atol=0.1)


def test_the_log_map_in_closed_form() -> None:
    """The middle stays; on the middle row x is looked up at log(k x + 1); no place is pi / 2 from the axis."""
    k = torch.tensor(LCM_K, dtype=torch.float64)
    for own, grid in zip(k.tolist(), lcm_grid(11, 11, k, torch.ones(2, dtype=torch.complex128)), strict=True):
        assert np.allclose(grid[5, 5].numpy(), 0)
        expected = np.log(own * np.linspace(-1, 1, 11) + 1)
        assert np.allclose(grid[5, :, 0].numpy(), expected) and np.allclose(grid[5, :, 1].numpy(), 0)
        assert grid.isfinite().all() and grid[..., 1].abs().max() < math.pi / 2


@pytest.mark.parametrize("settings", [MOEBIUS, LCM])
def test_draws_are_distributed_as_stated(settings: PerspectiveSettings) -> None:
    n = 20_000
    drawn = draw_perspective(n, replace(settings, probability=0.8), generator(3))
    assert abs(drawn.applied.double().mean() - 0.8) <= 5 * math.sqrt(0.16 / n)
    for side in DIRECTIONS.values():
        assert abs((drawn.direction == side).double().mean() - 0.25) <= 5 * math.sqrt(0.1875 / n)
    low, high = (0.2, 0.4) if settings is MOEBIUS else LCM_K
    uniform = (drawn.amount.double() - low) / (high - low)
    assert uniform.min() >= -1e-6 and uniform.max() <= 1 + 1e-6 and uniform.min() < 0.001 and uniform.max() > 0.999
    assert abs(uniform.mean() - 0.5) <= 5 / math.sqrt(12 * n)
    assert abs(uniform.var() - 1 / 12) <= 5 * math.sqrt(1 / 180 / n)
    columns = torch.stack([drawn.applied.double(), drawn.direction.real, drawn.direction.imag, drawn.amount])
    assert torch.corrcoef(columns).fill_diagonal_(0).abs().max() <= 5 / math.sqrt(n)


def test_none_draws_nothing_and_returns_the_same_tensor() -> None:
    images, stream = pictures(4), generator(1)
    before = stream.get_state()
    assert perspective_views(images, PerspectiveSettings(), stream) is images
    assert torch.equal(stream.get_state(), before)


def test_all_others_draw_the_same_number_whatever_happens() -> None:
    ends = []
    for settings in (MOEBIUS, LCM, replace(MOEBIUS, probability=0), replace(LCM, probability=0.5, padding="border")):
        stream = generator(1)
        perspective_views(pictures(5), settings, stream)
        ends.append(stream.get_state())
    assert all(torch.equal(ends[0], end) for end in ends)


@pytest.mark.parametrize("settings", [MOEBIUS, LCM])
def test_images_that_are_not_distorted_keep_every_bit(settings: PerspectiveSettings) -> None:
    images, state = pictures(60), torch.get_rng_state()
    before, settings = images.clone(), replace(settings, probability=0.5)
    views = perspective_views(images, settings, generator(1))
    applied = draw_perspective(60, settings, generator(1)).applied
    assert torch.equal(images, before) and 0 < applied.sum() < 60
    assert [torch.equal(view, image) for view, image in zip(views, images, strict=True)] == (~applied).tolist()
    assert views.min() >= 0 and views.max() <= 1
    assert torch.equal(views, perspective_views(images, settings, generator(1)))
    assert not torch.equal(views, perspective_views(images, settings, generator(2)))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(views, perspective_views(images, settings, generator(1)))


def test_at_the_greatest_strength_the_pole_is_outside_the_image() -> None:
    """At a corner c z + d is 0 for |c| = d / sqrt(2); of MPD's SimCLR the least modulus is .75 - .4 sqrt(2) = .184."""
    c = 0.4 * torch.tensor([-1 - 1j, 1.0, 1j]) / torch.tensor([2**0.5, 1, 1])
    moduli = [
        np.hypot(*(part for part in (own.real * x - own.imag * y + 0.75, own.real * y + own.imag * x))).min()
        for own in c.tolist()
        for x, y in [plane(21, 21)]
    ]
    assert np.allclose(moduli, [0.75 - 0.4 * 2**0.5, 0.35, 0.35])
    assert moebius_grid(21, 21, c, 0.75).abs().max() < 2**0.5 / 0.184


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "mobius"}, "unknown kind of perspective 'mobius'.*did you mean 'moebius'"),
        ({"padding": "zero"}, "unknown padding 'zero'.*did you mean 'zeros'"),
        ({"probability": 1.5}, "probability is 1.5"),
        ({"probability": math.nan}, "probability is nan"),
        ({"d": 0.0}, "d is 0.0: expected a finite number above 0"),
        ({"magnitude": (0.4, 0.2)}, r"magnitude is \(0.4, 0.2\)"),
        ({"magnitude": (-0.1, 0.2)}, r"magnitude is \(-0.1, 0.2\)"),
        ({"magnitude": (0.2, 0.54)}, r"< 0.53 = d / sqrt\(2\): beyond, the map's pole"),
        ({"d": 0.5}, r"< 0.354 = d / sqrt\(2\)"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MOEBIUS, **change)


def test_other_images_are_refused() -> None:
    for settings in (PerspectiveSettings(), MOEBIUS):
        with pytest.raises(ValueError, match=r"got torch\.uint8"):
            perspective_views(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), settings, generator())
    with pytest.raises(ValueError, match="2 images but parameters for 3 views"):
        apply_perspective(pictures(2), draw_perspective(3, MOEBIUS, generator()))


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [MOEBIUS, LCM])
def test_a_gpu_makes_the_same_views_without_waiting_for_it(settings: PerspectiveSettings, gpu: torch.device) -> None:
    images, settings = pictures(32), replace(settings, probability=0.5)
    there = images.to(gpu)
    perspective_views(there, settings, generator())
    with no_waits(gpu):
        views = perspective_views(there, settings, generator(1))
    torch.testing.assert_close(views.cpu(), perspective_views(images, settings, generator(1)), rtol=0, atol=3e-5)
