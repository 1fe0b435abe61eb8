import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.transforms.moebius import DIRECTIONS, MAGNITUDES, distort, draw_magnitudes, moebius_grid


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 17, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def strengths(n: int = 4, low: float = 0.2, high: float = 0.3) -> Tensor:
    return torch.linspace(low, high, n, dtype=torch.float64)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_grid_is_that_of_real_arithmetic(direction: str) -> None:
    """x' = (x u + y v) / (u^2 + v^2) and y' = (y u - x v) / (u^2 + v^2), u and v the parts of c z + 1."""
    magnitudes = strengths()
    c = magnitudes.numpy() * DIRECTIONS[direction]
    y, x = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 13), indexing="ij")
    real, imaginary = c.real[:, None, None], c.imag[:, None, None]
    u, v = real * x - imaginary * y + 1, real * y + imaginary * x
    expected = np.stack([(x * u + y * v) / (u**2 + v**2), (y * u - x * v) / (u**2 + v**2)], axis=-1)
    grid = moebius_grid(9, 13, magnitudes * DIRECTIONS[direction])
    assert grid.shape == (4, 9, 13, 2)
    assert np.allclose(grid.numpy(), expected)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("padded", [False, True])
def test_without_strength_an_image_stays_as_it_is(direction: str, padded: bool, images: Tensor) -> None:
    assert torch.allclose(distort(images, direction, padded, torch.zeros(4)), images)


@pytest.mark.parametrize("padded", [False, True])
def test_opposite_directions_are_mirror_images(padded: bool, images: Tensor) -> None:
    for one, other, axis in (("left", "right", 3), ("top", "bottom", 2)):
        mirrored = distort(images.flip(axis), one, padded, strengths()).flip(axis)
        assert torch.allclose(mirrored, distort(images, other, padded, strengths()))


@pytest.mark.parametrize("padded", [False, True])
def test_rows_and_columns_change_places_between_right_and_top(padded: bool, images: Tensor) -> None:
    for one, other in (("right", "top"), ("left", "bottom")):
        turned = distort(images.mT, one, padded, strengths()).mT
        assert torch.allclose(turned, distort(images, other, padded, strengths()))


def ramp(height: int = 9, width: int = 9) -> Tensor:
    """An image whose value is its column, from 0 to 1, so that a pixel tells where it was looked up."""
    return torch.linspace(0, 1, width, dtype=torch.float64).expand(1, 3, height, width).clone()


def test_points_of_the_right_view_are_looked_up_in_closed_form() -> None:
    """On the middle row, x is looked up at x / (0.25 x + 1): 1 at 0.8, and -1 at -4/3, a third beyond the border."""
    for padded, beyond in ((False, 0.0), (True, 1 / 6)):
        middle = distort(ramp(), "right", padded, torch.tensor([0.25]))[0, 0, 4]
        assert float(middle[4]) == pytest.approx(0.5)
        assert float(middle[8]) == pytest.approx((0.8 + 1) / 2)
        assert float(middle[0]) == pytest.approx(beyond)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_black_and_padded_differ_only_beyond_the_image(direction: str) -> None:
    images = 0.2 + 0.8 * torch.rand(1, 3, 33, 33, generator=torch.Generator().manual_seed(1))
    black, padded = (distort(images, direction, flag, torch.tensor([0.3])) for flag in (False, True))
    grid = moebius_grid(33, 33, torch.tensor([0.3]) * DIRECTIONS[direction])[0]
    inside = (grid.abs() <= 1).all(-1)
    assert torch.equal(black[0, :, inside], padded[0, :, inside])
    far = (grid.abs() > 1 + 2 / 32).any(-1)
    assert far.any() and not black[0, :, far].any()
    assert float(padded.min()) >= 0.19


def test_each_image_has_its_own_strength(images: Tensor) -> None:
    together = distort(images, "left", True, strengths())
    alone = [distort(images[[row]], "left", True, strengths()[[row]]) for row in range(4)]
    assert torch.allclose(together, torch.cat(alone))
    assert not torch.allclose(together, distort(images, "left", True, strengths().flip(0)))


def test_strengths_are_drawn_uniformly_from_their_range() -> None:
    drawn = draw_magnitudes(20_000, torch.Generator().manual_seed(0))
    low, high = MAGNITUDES
    assert float(drawn.min()) >= low and float(drawn.max()) <= high
    assert float(drawn.mean()) == pytest.approx((low + high) / 2, abs=0.001)
    assert float(drawn.std()) == pytest.approx((high - low) / 12**0.5, rel=0.02)
    assert torch.equal(drawn, draw_magnitudes(20_000, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    "images, direction, magnitude, message",
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "left", torch.zeros(2), "expected float"),
        (torch.zeros(3, 8, 8), "left", torch.zeros(3), r"expected float \(n, 3, H, W\)"),
        (torch.zeros(2, 3, 8, 8), "lift", torch.zeros(2), "unknown direction 'lift'.*did you mean 'left'"),
        (torch.zeros(2, 3, 8, 8), "left", torch.zeros(3), r"expected a float for each image, \(2,\)"),
        (torch.zeros(2, 3, 8, 8), "left", torch.zeros(2, dtype=torch.int64), "expected a float for each image"),
        (torch.zeros(2, 3, 8, 8), "left", torch.tensor([0.1, -0.1]), r"in \[-0.1, 0.1\]: expected at least 0"),
        (torch.zeros(2, 3, 8, 8), "left", torch.tensor([0.1, 0.71]), "below 0.707"),
        (torch.zeros(2, 3, 8, 8), "left", torch.tensor([0.1, float("nan")]), "expected at least 0"),
    ],
)
def test_bad_arguments_are_refused(images: Tensor, direction: str, magnitude: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distort(images, direction, True, magnitude)
