"""Blur and solarisation against torchvision's, image by image."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from astra_gym.ssl_core.transforms.blur import SIGMAS, FilterParameters, apply_filters, draw_filters, gaussian_blur
from astra_gym.ssl_core.transforms.views import ViewSettings, strong_views, two_views
from tests.helpers.draws import generator


def pictures(n: int, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(n, 3, height, width, generator=generator(7))


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (7, 9)])
def test_blur_equals_torchvisions(size: tuple[int, int]) -> None:
    images, sigma = pictures(20, *size), torch.linspace(*SIGMAS, 20)
    radius = min(6, min(size) - 1)
    for image, own, blurred in zip(images, sigma, gaussian_blur(images, sigma), strict=True):
        expected = reference.gaussian_blur(image, [2 * radius + 1] * 2, [float(own)] * 2)
        torch.testing.assert_close(blurred, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (4, 4), (32, 32)])
def test_blur_keeps_flat_images_and_of_small_images_the_mean_at_least_nearly(size: tuple[int, int]) -> None:
    sigma = torch.linspace(*SIGMAS, 8)
    flat = torch.rand(8, 3, 1, 1, generator=generator(1)).expand(-1, -1, *size)
    torch.testing.assert_close(gaussian_blur(flat, sigma), flat, rtol=0, atol=1e-6)
    images = pictures(8, *size)
    blurred = gaussian_blur(images, sigma)
    assert (blurred.amax(dim=(2, 3)) <= images.amax(dim=(2, 3)) + 1e-6).all()
    assert (blurred.amin(dim=(2, 3)) >= images.amin(dim=(2, 3)) - 1e-6).all()


def test_blur_of_a_point_is_the_bell_of_its_own_width() -> None:
    point = torch.zeros(2, 1, 33, 33)
    point[..., 16, 16] = 1
    sigma = torch.tensor([0.8, 1.6])
    for blurred, own in zip(gaussian_blur(point, sigma), sigma.tolist(), strict=True):
        weights = [math.exp(-(k**2) / (2 * own**2)) for k in range(-6, 7)]
        assert float(blurred[0, 16, 16]) == pytest.approx(1 / sum(weights) ** 2, rel=1e-5)
        ratio = float(blurred[0, 16, 18] / blurred[0, 16, 16])
        assert ratio == pytest.approx(math.exp(-2 / own**2), rel=1e-5)


def test_the_threshold_of_solarisation_is_level_128() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    no, yes = torch.zeros(1, dtype=torch.bool), torch.ones(1, dtype=torch.bool)
    filtered = apply_filters(levels.float() / 255, FilterParameters(no, torch.ones(1), yes))
    assert torch.equal(filtered.mul(255).round().to(torch.uint8), reference.solarize(levels, 128))


def test_draws_are_distributed_as_stated() -> None:
    n = 20_000
    drawn = draw_filters(n, 0.3, 0.7, generator(3))
    for coins, chance in ((drawn.blur, 0.3), (drawn.solarize, 0.7)):
        assert abs(coins.double().mean() - chance) <= 5 * math.sqrt(chance * (1 - chance) / n)
    # EMP-SSL's and solo-learn's range
    low, high = 0.1, 2.0
    uniform = (drawn.sigma.double() - low) / (high - low)
    assert uniform.min() >= 0 and uniform.max() <= 1 and uniform.min() < 0.001 and uniform.max() > 0.999
    assert abs(uniform.mean() - 0.5) <= 5 / math.sqrt(12 * n)
    assert abs(uniform.var() - 1 / 12) <= 5 * math.sqrt(1 / 180 / n)
    columns = [drawn.blur, drawn.solarize, drawn.sigma]
    correlation = torch.corrcoef(torch.stack([column.double() for column in columns])).fill_diagonal_(0)
    assert correlation.abs().max() <= 5 / math.sqrt(n)


def test_a_probability_for_each_image() -> None:
    even = torch.arange(400) % 2
    drawn = draw_filters(400, even * 1.0, 0.5 * (1 - even), generator(1))
    assert torch.equal(drawn.blur, even == 1)
    assert not drawn.solarize[even == 1].any() and drawn.solarize.any()
    # the numbers are the same whatever the probabilities are
    assert torch.equal(drawn.sigma, draw_filters(400, 0.0, 0.0, generator(1)).sigma)


def test_of_two_views_both_are_blurred_and_the_second_is_solarised() -> None:
    images, plain = pictures(60, 16, 16), ViewSettings()
    stream = generator()
    views = two_views(images, plain, stream)
    changed = replace(plain, blur_probability=0.4, solarize_probability=0.6)
    filtered = two_views(images, changed, generator())
    parameters = draw_filters(120, 0.4, torch.arange(120) % 2 * 0.6, stream)
    assert torch.equal(filtered, apply_filters(views.clone(), parameters))
    assert not parameters.solarize[0::2].any() and 15 < parameters.solarize[1::2].sum() < 55
    assert parameters.blur[0::2].any() and parameters.blur[1::2].any()
    # at strength 0 nothing is done to an image, whatever the probabilities
    still = replace(changed, strength=0, flip=0)
    assert torch.equal(two_views(images, still, generator()), images.repeat_interleave(2, dim=0))
    # a single strong view has no filters
    assert torch.equal(strong_views(images, changed, generator()), strong_views(images, plain, generator()))
