"""Views against torchvision's functional transforms, image by image, and against the distributions stated for them."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from astra_gym.ssl_core.transforms.views import (
    StrongParameters,
    ViewSettings,
    apply_strong,
    apply_weak,
    as_float,
    draw_strong,
    draw_weak,
    resized_crop,
    strong_views,
    two_views,
    weak_views,
)
from tests.helpers.draws import generator
from tests.helpers.gpu import no_waits

OPERATIONS = (
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
)
SIZES = [(16, 16), (32, 32), (24, 40), (40, 20)]


def pictures(n: int, height: int, width: int) -> Tensor:
    """Noise, noise of few levels (ties between the channels, black and white pixels), flat colors and greys."""
    noise = torch.rand(n, 3, height, width, generator=generator(7))
    noise[1::4] = (noise[1::4] * 2).round() / 2
    noise[2::4] = noise[2::4, :, :1, :1]
    noise[3::4] = noise[3::4, :1]
    return noise


def by_torchvision(images: Tensor, parameters: StrongParameters, interpolation: str) -> Tensor:
    views = []
    for k, image in enumerate(images):
        top, left, height, width = parameters.boxes[k].tolist()
        mode = InterpolationMode(interpolation)
        size = list(image.shape[-2:])
        view = reference.resized_crop(image, top, left, height, width, size, interpolation=mode, antialias=True)
        view = view.clamp(0, 1)
        if parameters.flip[k]:
            view = reference.horizontal_flip(view)
        if parameters.jitter[k]:
            for operation in parameters.order[k].tolist():
                view = OPERATIONS[operation](view, float(parameters.factors[k, operation]))
        if parameters.gray[k]:
            view = reference.rgb_to_grayscale(view, num_output_channels=3)
        views.append(view)
    return torch.stack(views)


def check_boxes(boxes: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    """First and second moments of boxes (n, 4) against those of a quarter as many from torchvision."""
    image, ours = torch.empty(3, height, width), boxes.double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(len(boxes) // 4)]
    expected = torch.tensor(theirs, dtype=torch.float64)
    for moment in (1, 2):
        one, other = ours**moment, expected**moment
        error = (one.var(dim=0) / len(one) + other.var(dim=0) / len(other)).sqrt()
        assert ((one.mean(dim=0) - other.mean(dim=0)).abs() <= 5 * error).all()


def unchanged(n: int, height: int, width: int) -> StrongParameters:
    """Parameters that change nothing."""
    no = torch.zeros(n, dtype=torch.bool)
    boxes = torch.tensor([0, 0, height, width]).repeat(n, 1)
    return StrongParameters(
        boxes, no, no, torch.arange(4).repeat(n, 1), torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(n, 1), no
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_strong_views_equal_torchvision_image_by_image(interpolation: str, height: int, width: int) -> None:
    images = pictures(200, height, width)
    parameters = draw_strong(200, height, width, ViewSettings(), generator(1))
    before = images.clone()
    views = apply_strong(images, parameters, interpolation)
    torch.testing.assert_close(views, by_torchvision(images, parameters, interpolation), rtol=0, atol=3e-5)
    assert torch.equal(images, before)
    assert views.min() >= 0 and views.max() <= 1


@pytest.mark.parametrize("operation", range(4))
def test_each_color_operation_over_its_whole_range(operation: int) -> None:
    n = 101
    images = pictures(n, 12, 12)
    parameters = unchanged(n, 12, 12)
    amount = torch.linspace(-0.5, 0.5, n) if operation == 3 else torch.linspace(0, 2, n)
    parameters.factors[:, operation] = amount
    parameters = replace(parameters, jitter=torch.ones(n, dtype=torch.bool))
    expected = torch.stack([OPERATIONS[operation](image, float(f)) for image, f in zip(images, amount, strict=True)])
    torch.testing.assert_close(apply_strong(images, parameters), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(9, 13), (24, 40), (64, 50)])
def test_resized_crop_shrinks_and_enlarges_as_torchvision(interpolation: str, size: tuple[int, int]) -> None:
    images = pictures(60, 24, 40)
    boxes = draw_strong(60, 24, 40, ViewSettings(), generator(2)).boxes
    boxes[:4] = torch.tensor([[0, 0, 1, 1], [23, 39, 1, 1], [0, 0, 24, 40], [5, 0, 2, 40]])
    no = torch.zeros(60, dtype=torch.bool)
    crops = resized_crop(images, boxes, no, size, interpolation)
    for image, box, crop in zip(images, boxes.tolist(), crops, strict=True):
        mode = InterpolationMode(interpolation)
        expected = reference.resized_crop(image, *box, list(size), interpolation=mode, antialias=True).clamp(0, 1)
        torch.testing.assert_close(crop, expected, rtol=0, atol=2e-5)
    assert torch.equal(resized_crop(images, boxes, ~no, size, interpolation), crops.flip(-1))


def test_autocast_does_not_round_the_pixels() -> None:
    images = pictures(8, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = two_views(images, ViewSettings(), generator())
    assert torch.equal(inside, two_views(images, ViewSettings(), generator()))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_strength_zero_is_the_identity_on_square_images(interpolation: str) -> None:
    images = pictures(256, 32, 32)
    settings = ViewSettings(strength=0, flip=0, interpolation=interpolation)
    assert torch.equal(strong_views(images, settings, generator()), images)
    mirrored = strong_views(images, replace(settings, flip=1), generator())
    assert torch.equal(mirrored, images.flip(-1))


@pytest.mark.parametrize(("height", "width", "central"), [(12, 40, [0, 12, 12, 16]), (40, 12, [12, 0, 16, 12])])
def test_strength_zero_cuts_the_centre_of_long_images_as_torchvision(
    height: int, width: int, central: list[int]
) -> None:
    boxes = draw_strong(50, height, width, ViewSettings(strength=0), generator()).boxes
    assert boxes.unique(dim=0).tolist() == [central]
    assert list(RandomResizedCrop.get_params(torch.empty(3, height, width), [1, 1], [3 / 4, 4 / 3])) == central


def test_the_defaults_draw_what_they_always_drew() -> None:
    """Kept numbers: runs are to stay reproducible when settings are added."""
    drawn = draw_strong(4, 32, 32, ViewSettings(strength=0.6), generator(12))
    assert drawn.boxes.tolist() == [[1, 3, 31, 28], [1, 8, 23, 22], [3, 4, 27, 26], [0, 3, 31, 28]]
    assert drawn.order.tolist() == [[3, 0, 2, 1], [3, 2, 1, 0], [3, 1, 0, 2], [1, 0, 2, 3]]
    expected = torch.tensor(
        [
            [0.824811, 0.7977255, 1.0060847, -0.0511509],
            [1.1080254, 1.1209604, 0.8965368, 0.0122525],
            [0.9532924, 1.0222334, 1.0126076, 0.0508647],
            [0.8685494, 0.771752, 1.1637615, -0.0538758],
        ]
    )
    torch.testing.assert_close(drawn.factors, expected, rtol=0, atol=1e-6)
    coins = [drawn.flip.tolist(), drawn.jitter.tolist(), drawn.gray.tolist()]
    assert coins == [[False, True, True, False], [True, False, False, True], [False, False, False, False]]


def test_settings_spelt_out_are_the_defaults() -> None:
    """At strength 1, but for the crop's least share, where 1 - 0.9 is not 0.1 to the last bit."""
    spelt = ViewSettings(crop=(1 - 0.9, 1), ratio=(3 / 4, 4 / 3), jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=0.8)
    ours, theirs = (draw_strong(500, 32, 32, settings, generator(13)) for settings in (spelt, ViewSettings()))
    for name in ("boxes", "flip", "jitter", "order", "factors", "gray"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_jitter_and_probabilities_are_those_of_the_settings_times_the_strength() -> None:
    n, reach = 20_000, (0.8, 0.7, 0.2, 0.25)
    settings = ViewSettings(strength=0.5, jitter=reach, jitter_probability=0.6, gray_probability=0.9)
    drawn = draw_strong(n, 32, 32, settings, generator(14))
    for coins, chance in ((drawn.jitter, 0.3), (drawn.gray, 0.45)):
        assert abs(coins.double().mean() - chance) <= 5 * math.sqrt(chance * (1 - chance) / n)
    uniform = (drawn.factors - torch.tensor([1, 1, 1, 0])) / (torch.tensor(reach) / 2)
    assert torch.allclose(uniform.amax(dim=0), torch.ones(4), atol=1e-3)
    assert torch.allclose(uniform.amin(dim=0), -torch.ones(4), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(32, 32), (12, 30)])
@pytest.mark.parametrize(("crop", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.2, 0.6), (0.5, 3.0)), ((1, 1), (2, 3))])
def test_crops_of_other_settings_are_distributed_as_torchvision_draws_them(
    height: int, width: int, crop: tuple[float, float], ratio: tuple[float, float]
) -> None:
    settings = ViewSettings(strength=0.3, crop=crop, ratio=ratio)
    check_boxes(draw_strong(20_000, height, width, settings, generator(3)).boxes, height, width, crop, ratio)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(32, 32), (12, 30)])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_crop_boxes_are_distributed_as_torchvision_draws_them(height: int, width: int, strength: float) -> None:
    boxes = draw_strong(20_000, height, width, ViewSettings(strength=strength), generator(3)).boxes
    check_boxes(boxes, height, width, (1 - 0.9 * strength, 1), (3 / 4, 4 / 3))


def test_crop_boxes_lie_inside_and_keep_scale_and_ratio() -> None:
    top, left, height, width = draw_strong(20_000, 32, 32, ViewSettings(), generator(4)).boxes.unbind(1)
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == 32 and (left + width).max() == 32
    # A side is rounded by half a pixel at most.
    assert ((height + 0.5) * (width + 0.5)).min() >= 0.1 * 32**2
    assert ((width - 0.5) / (height + 0.5)).max() <= 4 / 3
    assert ((width + 0.5) / (height - 0.5)).min() >= 3 / 4
    assert (height * width).min() < 0.12 * 32**2 and (height * width).max() > 0.95 * 32**2


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_coins_fall_and_factors_spread_as_stated(strength: float) -> None:
    n = 20_000
    drawn = draw_strong(n, 32, 32, ViewSettings(strength=strength, flip=0.3), generator(5))
    for coins, chance in ((drawn.flip, 0.3), (drawn.jitter, 0.8 * strength), (drawn.gray, 0.2 * strength)):
        assert abs(coins.double().mean() - chance) <= 5 * math.sqrt(chance * (1 - chance) / n)
    for column, (center, reach) in enumerate([(1, 0.4), (1, 0.4), (1, 0.4), (0, 0.1)]):
        uniform = (drawn.factors[:, column].double() - center) / (reach * strength)
        assert uniform.abs().max() <= 1 + 1e-6
        assert uniform.min() < -0.999 and uniform.max() > 0.999
        assert abs(uniform.mean()) <= 5 / math.sqrt(3 * n)
        assert abs(uniform.var() - 1 / 3) <= 5 * math.sqrt(4 / 45 / n)
    orders, counts = drawn.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert ((counts - n / 24).abs() <= 5 * math.sqrt(n / 24)).all()


def test_coins_are_independent_of_each_other() -> None:
    n = 20_000
    drawn = draw_strong(n, 32, 32, ViewSettings(), generator(6))
    columns = [drawn.flip, drawn.jitter, drawn.gray, *drawn.factors.unbind(1), *drawn.boxes[:, :2].unbind(1)]
    correlation = torch.corrcoef(torch.stack([column.double() for column in columns]))
    correlation = correlation[:7].fill_diagonal_(0)
    assert correlation.abs().max() <= 5 / math.sqrt(n)


def test_views_follow_the_generator_and_nothing_else() -> None:
    images = pictures(16, 16, 16)
    state = torch.get_rng_state()
    for views in (two_views, strong_views, weak_views):
        first = views(images, ViewSettings(), generator(1))
        assert torch.equal(first, views(images, ViewSettings(), generator(1)))
        assert not torch.equal(first, views(images, ViewSettings(), generator(2)))
        stream = generator(1)
        views(images, ViewSettings(), stream)
        assert not torch.equal(first, views(images, ViewSettings(), stream))
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_do_not_shift_the_stream() -> None:
    states = []
    others = ViewSettings(strength=0, flip=0, interpolation="bilinear"), ViewSettings(crop=(1, 1), ratio=(1, 1))
    for settings in (ViewSettings(), *others):
        stream = generator(1)
        strong_views(pictures(8, 16, 16), settings, stream)
        states.append(stream.get_state())
    assert all(torch.equal(states[0], state) for state in states)


def test_two_views_are_interleaved_and_differ() -> None:
    flat = torch.rand(32, 3, 1, 1, generator=generator(8)).expand(-1, -1, 16, 16)
    plain = two_views(flat, ViewSettings(strength=0), generator())
    torch.testing.assert_close(plain, flat.repeat_interleave(2, dim=0))
    images = pictures(32, 16, 16)
    views = two_views(images, ViewSettings(), generator())
    assert views.shape == (64, 3, 16, 16)
    assert torch.equal(views, strong_views(images.repeat_interleave(2, dim=0), ViewSettings(), generator()))
    # Flat and grey pictures may have two equal views, noise may not.
    assert all(not torch.equal(views[2 * k], views[2 * k + 1]) for k in range(0, 32, 4))


def test_flipping_is_symmetric() -> None:
    images = pictures(64, 16, 16)
    parameters = draw_strong(64, 16, 16, ViewSettings(flip=0), generator(9))
    views = apply_strong(images, parameters)
    mirrored = apply_strong(images, replace(parameters, flip=~parameters.flip))
    torch.testing.assert_close(mirrored, views.flip(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_weak_views_equal_torchvision_image_by_image(height: int, width: int) -> None:
    images = pictures(80, height, width)
    parameters = draw_weak(80, ViewSettings(), generator(10))
    views = apply_weak(images, parameters, 4)
    for k, (top, left) in enumerate(parameters.corners.tolist()):
        expected = reference.crop(reference.pad(images[k], [4]), top, left, height, width)
        expected = reference.horizontal_flip(expected) if parameters.flip[k] else expected
        assert torch.equal(views[k], expected)
    assert torch.equal(views, weak_views(images, ViewSettings(), generator(10)))


def test_weak_views_are_drawn_as_stated() -> None:
    n, padding = 18_000, 4
    drawn = draw_weak(n, ViewSettings(flip=0.3, padding=padding), generator(11))
    for column in drawn.corners.unbind(1):
        counts = torch.bincount(column, minlength=2 * padding + 1)
        assert len(counts) == 2 * padding + 1
        assert ((counts - n / 9).abs() <= 5 * math.sqrt(n / 9)).all()
    assert abs(drawn.flip.double().mean() - 0.3) <= 5 * math.sqrt(0.21 / n)
    images = pictures(8, 16, 16)
    assert torch.equal(weak_views(images, ViewSettings(flip=0, padding=0), generator()), images)
    assert torch.equal(weak_views(images, ViewSettings(flip=1, padding=0), generator()), images.flip(-1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 1.1}, r"strength is 1.1: expected a finite number in \[0, 1\]"),
        ({"strength": math.nan}, "strength is nan"),
        ({"flip": -0.1}, "flip is -0.1"),
        ({"padding": -1}, "padding is -1"),
        ({"jitter_probability": 1.2}, "jitter_probability is 1.2"),
        ({"gray_probability": math.nan}, "gray_probability is nan"),
        ({"crop": (0.0, 1.0)}, r"crop is \(0.0, 1.0\), expected two shares of the area"),
        ({"crop": (0.5, 0.2)}, r"crop is \(0.5, 0.2\)"),
        ({"crop": (0.5, 1.1)}, r"crop is \(0.5, 1.1\)"),
        ({"ratio": (0.0, 1.0)}, r"ratio is \(0.0, 1.0\), expected two positive numbers"),
        ({"ratio": (1.0, math.inf)}, "ratio is"),
        ({"jitter": (0.4, 0.4, 0.4)}, r"jitter is \(0.4, 0.4, 0.4\), expected three numbers in \[0, 1\] and one"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "jitter is"),
        ({"jitter": (1.4, 0.4, 0.4, 0.1)}, "jitter is"),
        ({"interpolation": "bicubik"}, "unknown interpolation 'bicubik'.*did you mean 'bicubic'"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewSettings(**change)


@pytest.mark.parametrize("views", [two_views, strong_views, weak_views])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "float32.*got torch.uint8.*as_float"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16), "got torch.bfloat16"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.float64), "got torch.float64"),
        (torch.zeros(2, 1, 8, 8), r"shape \(2, 1, 8, 8\)"),
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\)"),
        (torch.full((2, 3, 8, 8), 1.5), r"in \[0, 1\], got values from 1.5 to 1.5"),
        (torch.full((2, 3, 8, 8), math.nan), "got values from nan"),
    ],
)
def test_other_images_are_refused(views: Callable, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        views(images, ViewSettings(), generator())


def test_another_number_of_parameters_is_refused() -> None:
    images = pictures(4, 8, 8)
    with pytest.raises(ValueError, match="4 images but parameters for 5 views"):
        apply_strong(images, draw_strong(5, 8, 8, ViewSettings(), generator()))
    with pytest.raises(ValueError, match="4 images but parameters for 5 views"):
        apply_weak(images, draw_weak(5, ViewSettings(), generator()), 4)


def test_as_float_maps_bytes_to_the_unit_interval() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_float(levels), torch.arange(256, dtype=torch.float32) / 255)
    with pytest.raises(ValueError, match=r"uint8 images, got torch.float32"):
        as_float(torch.zeros(3))


@pytest.mark.gpu
def test_a_gpu_makes_the_same_views_without_waiting_for_it(gpu: torch.device) -> None:
    images = pictures(64, 32, 32)
    there = images.to(gpu)
    two_views(there, ViewSettings(), generator())
    with no_waits(gpu):
        strong = two_views(there, ViewSettings(), generator(1))
        weak = weak_views(there, ViewSettings(), generator(1))
    torch.testing.assert_close(strong.cpu(), two_views(images, ViewSettings(), generator(1)), rtol=0, atol=3e-5)
    assert torch.equal(weak.cpu(), weak_views(images, ViewSettings(), generator(1)))
