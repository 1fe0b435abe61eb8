"""Crops: their blur and solarisation against torchvision's, image by image, the rest against strong views."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from astra_gym.ssl_core.transforms.multi_crop import CropSettings, apply_crops, draw_crops, multi_crops
from astra_gym.ssl_core.transforms.views import ViewSettings, apply_strong, draw_strong
from tests.helpers.draws import generator
from tests.helpers.gpu import no_waits

PATCHES = CropSettings(scale=(0.25, 0.25), ratio=(1, 1))
PLAIN = CropSettings(jitter_probability=0, gray_probability=0, blur_probability=0, solarize_probability=0, flip=0)


def pictures(n: int, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(n, 3, height, width, generator=generator(7))


def test_crops_are_strong_views_blurred_then_solarised() -> None:
    images = pictures(120)
    parameters = draw_crops(120, 32, 32, CropSettings(blur_probability=0.5, solarize_probability=0.5), generator(1))
    before = images.clone()
    crops = apply_crops(images, parameters)
    assert torch.equal(images, before)
    assert crops.min() >= 0 and crops.max() <= 1
    expected = apply_strong(images, parameters.strong, "bilinear")
    for row, view in enumerate(expected):
        if parameters.filters.blur[row]:
            view = reference.gaussian_blur(view, [13, 13], [float(parameters.filters.sigma[row])] * 2)
        # A value at the threshold, but for rounding, may fall on either side.
        decided = (view - 128 / 255).abs() > 1e-5
        if parameters.filters.solarize[row]:
            view = reference.solarize(view, 128 / 255)
        torch.testing.assert_close(crops[row][decided], view[decided], rtol=0, atol=5e-6)
    both = {(bool(a), bool(b)) for a, b in zip(parameters.filters.blur, parameters.filters.solarize, strict=True)}
    assert len(both) == 4


def test_settings_are_those_of_views() -> None:
    settings = CropSettings((0.2, 0.9), (0.8, 1.5), 0.3, (0.1, 0.2, 0.3, 0.4), 0.6, 0.7, interpolation="bicubic")
    same = ViewSettings(1, 0.3, "bicubic", 4, (0.2, 0.9), (0.8, 1.5), (0.1, 0.2, 0.3, 0.4), 0.6, 0.7)
    assert settings.views == same
    ours, theirs = draw_crops(50, 32, 32, settings, generator(2)).strong, draw_strong(50, 32, 32, same, generator(2))
    for name in ("boxes", "flip", "jitter", "order", "factors", "gray"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_patches_are_squares_of_a_quarter() -> None:
    boxes = draw_crops(2000, 32, 32, PATCHES, generator(4)).strong.boxes
    assert (boxes[:, 2:] == 16).all()
    assert boxes[:, :2].min() == 0 and boxes[:, :2].max() == 16
    assert len(boxes.unique(dim=0)) > 280


def test_rows_are_in_the_order_of_the_images() -> None:
    flat = torch.rand(5, 3, 1, 1, generator=generator(8)).expand(-1, -1, 16, 16).contiguous()
    crops = multi_crops(flat, 3, PLAIN, generator())
    torch.testing.assert_close(crops, flat.repeat_interleave(3, dim=0), rtol=0, atol=1e-6)
    images = pictures(5)
    crops = multi_crops(images, 3, PLAIN, generator())
    assert crops.shape == (15, 3, 32, 32)
    parameters = draw_crops(15, 32, 32, PLAIN, generator())
    assert torch.equal(crops, apply_crops(images.repeat_interleave(3, dim=0), parameters))
    assert all(not torch.equal(crops[row], crops[row + 1]) for row in range(14))
    assert multi_crops(images, 1, CropSettings(), generator()).shape == images.shape


def test_crops_follow_the_generator_and_settings_do_not_shift_it() -> None:
    images, state, ends = pictures(6, 16, 16), torch.get_rng_state(), []
    for settings in (CropSettings(), PATCHES, PLAIN, CropSettings(blur_probability=1, interpolation="bicubic")):
        stream = generator(1)
        first = multi_crops(images, 2, settings, stream)
        ends.append(stream.get_state())
        assert torch.equal(first, multi_crops(images, 2, settings, generator(1)))
        assert not torch.equal(first, multi_crops(images, 2, settings, stream))
    assert all(torch.equal(ends[0], end) for end in ends)
    assert torch.equal(torch.get_rng_state(), state)


def test_autocast_does_not_round_the_pixels() -> None:
    settings = CropSettings(blur_probability=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = multi_crops(pictures(4), 2, settings, generator())
    assert torch.equal(inside, multi_crops(pictures(4), 2, settings, generator()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": (0.0, 1.0)}, r"crop is \(0.0, 1.0\), expected two shares"),
        ({"ratio": (0, 1)}, r"ratio is \(0, 1\)"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "jitter is"),
        ({"blur_probability": 1.1}, "blur_probability is 1.1"),
        ({"solarize_probability": math.nan}, "solarize_probability is nan"),
        ({"gray_probability": -1}, "gray_probability is -1"),
        ({"interpolation": "bilinea"}, "did you mean 'bilinear'"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CropSettings(), **change)


def test_other_images_and_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="0 crops of an image, expected 1 or more"):
        multi_crops(pictures(2), 0, CropSettings(), generator())
    with pytest.raises(ValueError, match=r"got torch\.uint8"):
        multi_crops(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 2, CropSettings(), generator())
    with pytest.raises(ValueError, match="4 images but parameters for 5 views"):
        apply_crops(pictures(4), draw_crops(5, 32, 32, CropSettings(), generator()))


@pytest.mark.gpu
def test_a_gpu_makes_the_same_crops_without_waiting_for_it(gpu: torch.device) -> None:
    images, settings = pictures(32), CropSettings(blur_probability=0.5, solarize_probability=0)
    there = images.to(gpu)
    multi_crops(there, 2, settings, generator())
    with no_waits(gpu):
        crops = multi_crops(there, 2, settings, generator(1))
    torch.testing.assert_close(crops.cpu(), multi_crops(images, 2, settings, generator(1)), rtol=0, atol=3e-5)
