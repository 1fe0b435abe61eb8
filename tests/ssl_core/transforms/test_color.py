"""Color operations against torchvision's on float images; `test_views.py` has them in the order of a view."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from astra_gym.ssl_core.transforms.color import OPERATIONS, color, grayscale, luma

BY_TORCHVISION = (
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
)


def pictures(n: int) -> Tensor:
    noise = torch.rand(n, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    noise[1::3] = (noise[1::3] * 2).round() / 2
    noise[2::3] = noise[2::3, :1]
    return noise


@pytest.mark.parametrize("index", range(4))
def test_each_operation_works_in_place_and_with_its_own_factor_for_each_image(index: int) -> None:
    factors = torch.linspace(-0.5, 0.5, 30) if index == 3 else torch.linspace(0, 2, 30)
    images = pictures(30)
    expected = [BY_TORCHVISION[index](image, float(own)) for image, own in zip(images, factors, strict=True)]
    OPERATIONS[index](images, factors.view(-1, 1, 1, 1))
    torch.testing.assert_close(images, torch.stack(expected), rtol=0, atol=1e-5)


def test_grayscale_is_the_luma_in_every_channel() -> None:
    images = pictures(6)
    expected = reference.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(luma(images).expand_as(images), expected, rtol=0, atol=1e-6)
    grayscale(images, torch.zeros(6, 1, 1, 1))
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)


def test_images_keep_their_places_and_those_without_an_operation_every_bit() -> None:
    images = pictures(24)
    jitter, gray = torch.arange(24) % 2 == 1, torch.arange(24) % 3 == 1
    order = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(row)) for row in range(24)])
    factors = torch.tensor([1.3, 0.7, 1.2, 0.1]).repeat(24, 1)
    views = color(images.clone(), jitter, order, factors, gray)
    for row, image in enumerate(images):
        expected = image
        if jitter[row]:
            for index in order[row].tolist():
                expected = BY_TORCHVISION[index](expected, float(factors[row, index]))
        if gray[row]:
            expected = reference.rgb_to_grayscale(expected, num_output_channels=3)
        torch.testing.assert_close(views[row], expected, rtol=0, atol=1e-5)
        assert torch.equal(views[row], image) or jitter[row] or gray[row]
