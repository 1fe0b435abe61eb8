"""Crops: their blur and solarisation against torchvision's, image by image, the rest against strong views."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from ssl_core.crops import SIGMAS, CropParameters, CropSettings, apply_crops, draw_crops, gaussian_blur, multi_crops
from ssl_core.views import StrongParameters, ViewSettings, apply_strong, draw_strong

PATCHES = CropSettings(scale=(0.25, 0.25), ratio=(1, 1))
PLAIN = CropSettings(jitter_probability=0, gray_probability=0, blur_probability=0, solarize_probability=0, flip=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_crops_are_strong_views_blurred_then_solarised() -> None:
    images = pictures(120)
    parameters = draw_crops(120, 32, 32, CropSettings(blur_probability=0.5, solarize_probability=0.5), generator(1))
    before = images.clone()
    crops = apply_crops(images, parameters)
    assert torch.equal(images, before)
    assert crops.min() >= 0 and crops.max() <= 1
    expected = apply_strong(images, parameters.strong, "bilinear")
    for row, view in enumerate(expected):
        if parameters.blur[row]:
            view = reference.gaussian_blur(view, [13, 13], [float(parameters.sigma[row])] * 2)
        # A value at the threshold, but for rounding, may fall on either side.
        decided = (view - 128 / 255).abs() > 1e-5
        if parameters.solarize[row]:
            view = reference.solarize(view, 128 / 255)
        torch.testing.assert_close(crops[row][decided], view[decided], rtol=0, atol=5e-6)
    both = {(bool(a), bool(b)) for a, b in zip(parameters.blur, parameters.solarize, strict=True)}
    assert len(both) == 4


def test_the_threshold_of_solarisation_is_level_128() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    no, yes = torch.zeros(1, dtype=torch.bool), torch.ones(1, dtype=torch.bool)
    neutral = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    strong = StrongParameters(torch.tensor([[0, 0, 16, 16]]), no, no, torch.arange(4).view(1, 4), neutral, no)
    view = apply_crops(levels.float() / 255, CropParameters(strong, no, torch.ones(1), yes))
    assert torch.equal(view.mul(255).round().to(torch.uint8), reference.solarize(levels, 128))


def test_settings_are_those_of_views() -> None:
    settings = CropSettings((0.2, 0.9), (0.8, 1.5), 0.3, (0.1, 0.2, 0.3, 0.4), 0.6, 0.7, interpolation="bicubic")
    same = ViewSettings(1, 0.3, "bicubic", 4, (0.2, 0.9), (0.8, 1.5), (0.1, 0.2, 0.3, 0.4), 0.6, 0.7)
    assert settings.views == same
    ours, theirs = draw_crops(50, 32, 32, settings, generator(2)).strong, draw_strong(50, 32, 32, same, generator(2))
    for name in ("boxes", "flip", "jitter", "order", "factors", "gray"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_draws_are_distributed_as_stated() -> None:
    n = 20_000
    drawn = draw_crops(n, 32, 32, CropSettings(blur_probability=0.3, solarize_probability=0.7), generator(3))
    for coins, chance in ((drawn.blur, 0.3), (drawn.solarize, 0.7)):
        assert abs(coins.double().mean() - chance) <= 5 * math.sqrt(chance * (1 - chance) / n)
    low, high = SIGMAS
    uniform = (drawn.sigma.double() - low) / (high - low)
    assert uniform.min() >= 0 and uniform.max() <= 1 and uniform.min() < 0.001 and uniform.max() > 0.999
    assert abs(uniform.mean() - 0.5) <= 5 / math.sqrt(12 * n)
    assert abs(uniform.var() - 1 / 12) <= 5 * math.sqrt(1 / 180 / n)
    columns = [drawn.blur, drawn.solarize, drawn.sigma, drawn.strong.flip, drawn.strong.jitter]
    correlation = torch.corrcoef(torch.stack([column.double() for column in columns])).fill_diagonal_(0)
    assert correlation.abs().max() <= 5 / math.sqrt(n)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_crops_without_waiting_for_it() -> None:
    images, settings = pictures(32), CropSettings(blur_probability=0.5, solarize_probability=0)
    there = images.cuda()
    multi_crops(there, 2, settings, generator())
    torch.cuda.set_sync_debug_mode("error")
    try:
        crops = multi_crops(there, 2, settings, generator(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(crops.cpu(), multi_crops(images, 2, settings, generator(1)), rtol=0, atol=3e-5)
