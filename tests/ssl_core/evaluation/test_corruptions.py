import colorsys
import io
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from sklearn.datasets import load_sample_image
from torch import Tensor

from astra_gym.ssl_core.evaluation import corruptions
from astra_gym.ssl_core.evaluation.corruptions import FAMILIES, corrupt, departures
from astra_gym.ssl_core.evaluation.severities import SEVERITIES, nearest_table
from tests.helpers.draws import generator

NAMES = [name for names in FAMILIES.values() for name in names]
UNDRAWN = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}


@cache
def natural(side: int, height: int | None = None) -> Tensor:
    """Eight crops of scikit-learn's two photographs, scaled to a side."""
    crops = []
    for name in ("china.jpg", "flower.jpg"):
        photograph = Image.fromarray(np.array(load_sample_image(name)))
        for left in (0, 140, 280, 420):
            crop = photograph.crop((left, 80, left + 220, 300)).resize((side, height or side))
            crops.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
    return torch.stack(crops)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return natural(32)


def constants(name: str, severity: int = 5, side: int = 32) -> tuple[float, ...]:
    values = nearest_table(side, side).constants[name][severity - 1]
    return values if isinstance(values, tuple) else (values,)


def as_arrays(images: Tensor) -> np.ndarray:
    return images.numpy().astype(np.float64) / 255


def test_there_are_15_corruptions_in_four_families() -> None:
    assert {family: len(names) for family, names in FAMILIES.items()} == {
        "noise": 3,
        "blur": 4,
        "weather": 4,
        "digital": 4,
    }
    assert len(set(NAMES)) == 15


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 32), (16, 16), (8, 8), (20, 40), (72, 64)])
def test_every_corruption_changes_images_of_any_shape(name: str, size: tuple[int, int]) -> None:
    images = natural(size[1], size[0])[:2]
    before = images.clone()
    corrupted = corrupt(images, name, 5, generator())
    assert corrupted.dtype == torch.uint8
    assert corrupted.shape == images.shape
    assert torch.equal(images, before)
    assert all(not torch.equal(one, other) for one, other in zip(corrupted, images, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_repeats_with_its_generator_and_varies_with_another(name: str, images: Tensor) -> None:
    first, second, other = (corrupt(images, name, 4, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert torch.equal(first, other) == (name in UNDRAWN)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_corrupted_alike_however_the_set_is_cut(
    name: str, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = corrupt(images, name, 5, generator())
    drawing = generator()
    assert torch.equal(whole, torch.cat([corrupt(part, name, 5, drawing) for part in images.split([1, 5, 2])]))
    monkeypatch.setattr(corruptions, "_CHUNK", 3 * 3 * 32 * 32)
    assert torch.equal(whole, corrupt(images, name, 5, generator()))


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_corrupted_alike_whatever_the_others_show(name: str, images: Tensor) -> None:
    others = torch.cat([255 - images[:4], images[4:]])
    whole, changed = (corrupt(batch, name, 5, generator()) for batch in (images, others))
    assert torch.equal(whole[4:], changed[4:])
    assert not torch.equal(whole[:4], changed[:4])


@pytest.mark.parametrize("name", sorted(set(NAMES) - UNDRAWN))
def test_two_copies_of_an_image_are_corrupted_differently(name: str, images: Tensor) -> None:
    one, other = corrupt(images[:1].repeat(2, 1, 1, 1), name, 5, generator())
    assert not torch.equal(one, other)


# Not by the squared error, by the published constants: elastic_transform trades a large affine part for a finer
# displacement, frost trades the image's share for the frost's, glass_blur trades smoothing for passes.
RISING = sorted(set(NAMES) - {"elastic_transform", "frost", "glass_blur"})


@pytest.mark.parametrize("name", RISING)
@pytest.mark.parametrize("side", [32, 64])
def test_a_higher_severity_is_farther_from_natural_images(name: str, side: int) -> None:
    images = natural(side)
    errors = [
        float((corrupt(images, name, severity, generator()).double() - images).square().mean())
        for severity in SEVERITIES
    ]
    assert all(1.02 * more > less for less, more in pairwise(errors))
    assert errors[4] > 1.5 * errors[0] > 0


def test_global_generators_are_left_alone(images: Tensor) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    for name in NAMES:
        corrupt(images[:1], name, 1, generator())
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_published_strength(severity: int) -> None:
    images = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    gauss, shot, impulse = (
        as_arrays(corrupt(images, name, severity, generator())) for name in FAMILIES["noise"]
    )  # fmt: skip
    level = 128 / 255
    (deviation,) = constants("gaussian_noise", severity, 64)
    (photons,) = constants("shot_noise", severity, 64)
    (share,) = constants("impulse_noise", severity, 64)
    assert gauss.mean() == pytest.approx(level - 0.5 / 255, abs=0.004)
    assert gauss.std() == pytest.approx(deviation, rel=0.03)
    assert shot.std() == pytest.approx((level / photons) ** 0.5, rel=0.05)
    assert (impulse != level).mean() == pytest.approx(share, rel=0.15)
    assert set(np.unique(impulse)) == {0, level, 1}
    assert (impulse == 1).mean() == pytest.approx(share / 2, rel=0.25)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_raises_the_value_of_hsv(severity: int, images: Tensor) -> None:
    image = images[0].clone()
    image[:, 0, 0] = 0
    (more,) = constants("brightness", severity)
    corrupted = corrupt(image[None], "brightness", severity, generator())[0]
    for row in range(0, 32, 3):
        for column in range(0, 32, 3):
            hue, saturation, value = colorsys.rgb_to_hsv(*(image[:, row, column] / 255).tolist())
            expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + more))
            assert corrupted[:, row, column].tolist() == pytest.approx([255 * one for one in expected], abs=1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_draws_each_channel_to_its_mean(severity: int, images: Tensor) -> None:
    (share,) = constants("contrast", severity)
    means = images.double().mean((2, 3), keepdim=True)
    expected = (means + share * (images.double() - means) + 1e-6).floor()
    assert torch.equal(corrupt(images, "contrast", severity, generator()).double(), expected)


def test_an_image_of_one_color_passes_every_blur_as_it_is() -> None:
    images = torch.tensor([100, 7, 255], dtype=torch.uint8)[None, :, None, None].repeat(1, 1, 32, 32)
    for name in FAMILIES["blur"]:
        for severity in SEVERITIES:
            assert torch.equal(corrupt(images, name, severity, generator()), images), (name, severity)


def test_defocus_spreads_a_point_over_a_disk() -> None:
    images = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    images[..., 100, 100] = 255
    spread = corrupt(images, "defocus_blur", 1, generator())[0, 0].numpy()
    inside = np.hypot(*(np.mgrid[:224, :224] - 100)) <= 3
    # 29 pixels lie within the radius 3; smoothing with sigma 0.1 moves nothing to speak of.
    assert inside.sum() == 29
    assert set(np.unique(spread[inside])) == {255 // 29}
    assert not spread[~inside].any()


@pytest.mark.parametrize("radius, alias, weight", [(0.5, 0.6, 1), (1.5, 0.1, 1), (8, 0.5, 1.013), (10, 0.5, 1.011)])
def test_the_disk_is_symmetric_and_weighs_what_the_published_one_does(
    radius: float, alias: float, weight: float
) -> None:
    """Disks that fill their array gain weight, since their smoothing reflects at its border: ImageNet-C's largest."""
    disk = corruptions._disk(radius, alias).numpy()
    assert disk.sum() == pytest.approx(weight, abs=1e-9 if weight == 1 else 5e-4)
    assert np.allclose(disk, disk.T) and np.allclose(disk, disk[::-1])
    assert len(disk) % 2 == 1 and disk[0].any()


def plain_glass(image: np.ndarray, sigma: float, reach: int, shifts: np.ndarray) -> np.ndarray:
    """The published loop on one (H, W, 3) image, whose exchange of two views copies one over the other."""
    image = np.uint8(255 * gaussian_filter(image, (sigma, sigma, 0), mode="nearest") + 1e-6)
    height, width = image.shape[:2]
    for one in shifts:
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                dy, dx = one[:, h * width + w]
                image[h, w] = image[h + dy, w + dx]
    return np.uint8(255 * gaussian_filter(image / 255, (sigma, sigma, 0), mode="nearest") + 1e-6)


@pytest.mark.parametrize("side, severity", [(32, 1), (32, 5), (64, 4), (64, 5)])
def test_glass_blur_is_the_published_loop(side: int, severity: int) -> None:
    image = natural(side)[:1]
    sigma, reach, passes = constants("glass_blur", severity, side)
    drawing = generator()
    own = generator(int(torch.randint(2**63 - 1, (1,), generator=drawing)))
    draws = [torch.rand(2, side * side, generator=own, dtype=torch.float64).numpy() for _ in range(int(passes))]
    shifts = np.floor(2 * reach * np.stack(draws) - reach).astype(int)
    assert set(np.unique(shifts)) == set(range(-int(reach), int(reach)))
    expected = plain_glass(as_arrays(image)[0].transpose(1, 2, 0), sigma, int(reach), shifts)
    corrupted = corrupt(image, "glass_blur", severity, generator())
    assert np.array_equal(corrupted[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("degrees, step", [(0, (0, -1)), (90, (-1, 0)), (45, (-1, -1)), (-45, (1, -1))])
def test_motion_draws_a_point_out_to_half_a_gaussian(degrees: float, step: tuple[int, int]) -> None:
    point = np.zeros((1, 1, 21, 21))
    point[..., 10, 10] = 1
    line = corruptions._motion(torch.from_numpy(point), 4, 2.0, torch.tensor([float(degrees)]).double())[0, 0].numpy()
    weights = np.exp(-(np.arange(9) ** 2) / 8)
    expected = np.zeros((21, 21))
    for tap, weight in enumerate(weights / weights.sum()):
        # On a diagonal, taps lie one apart along the line: some round to the same pixel.
        along = int(np.ceil(tap * (1 if 0 in step else 0.5**0.5) - 0.5))
        expected[10 + step[0] * along, 10 + step[1] * along] += weight
    assert np.abs(line - expected).max() <= 0.51 / 255


@pytest.mark.parametrize("side", [16, 32, 33, 224])
@pytest.mark.parametrize("factor", [1.0, 1.03, 1.25, 2.25, 4.5])
def test_zoom_is_scipys_of_the_middle(side: int, factor: float) -> None:
    plane = np.random.default_rng(0).random((side, side))
    crop = int(np.ceil(side / factor))
    top = (side - crop) // 2
    enlarged = zoom(plane[top : top + crop, top : top + crop], factor, order=1)
    trim = (len(enlarged) - side) // 2
    expected = enlarged[trim : trim + side, trim : trim + side]
    assert np.allclose(corruptions._zoom(torch.from_numpy(plane)[None, None], factor)[0, 0], expected)


def test_zoom_blur_is_the_mean_over_its_factors_and_the_image(images: Tensor) -> None:
    x = torch.from_numpy(as_arrays(images[:1]))
    factors = [1 + percent / 100 for percent in range(7)]
    expected = (x + sum(corruptions._zoom(x, factor) for factor in factors)) / 8
    assert np.allclose(corruptions._zoom_blur(x, (1.06, 0.01), []), expected)


def plain_fractal(side: int, decay: float, shakes: list[np.ndarray]) -> np.ndarray:
    """Diamond-square on a torus, point by point."""
    field = np.zeros((side, side))
    step, reach = side, 100.0**2
    for shake in shakes:
        half = step // 2
        for row in range(0, side, step):
            for column in range(0, side, step):
                corners = [field[(row + a) % side, (column + b) % side] for a in (0, step) for b in (0, step)]
                field[row + half, column + half] = sum(corners) / 4 + reach * shake[0, row // step, column // step]
        for row in range(0, side, step):
            for column in range(0, side, step):
                for index, (r, c) in enumerate(((row, column + half), (row + half, column)), start=1):
                    around = ((half, 0), (-half, 0), (0, half), (0, -half))
                    cross = [field[(r + a) % side, (c + b) % side] for a, b in around]
                    field[r, c] = sum(cross) / 4 + reach * shake[index, row // step, column // step]
        step, reach = half, reach / decay**2
    return field


def test_the_fractal_is_the_diamond_square_algorithm() -> None:
    own = generator(3)
    shakes = [2 * torch.rand(3, k, k, generator=own, dtype=torch.float64).numpy() - 1 for k in (1, 2, 4, 8)]
    assert np.allclose(corruptions._fractal([generator(3)], 16, 1.75)[0], plain_fractal(16, 1.75, shakes))


def test_fog_lies_between_the_dimmed_image_and_the_dimmed_image_with_all_of_it() -> None:
    images = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    images[..., :16] = 51
    strength, _ = constants("fog")
    fog = as_arrays(corrupt(images, "fog", 5, generator()))[0]
    added = fog * (1 + strength) - as_arrays(images)[0]
    assert np.allclose(added[0], added[1]) and np.allclose(added[0], added[2])
    assert added.min() == pytest.approx(0, abs=0.02)
    assert added.max() == pytest.approx(strength, abs=0.02)


def test_snow_whitens_the_image_and_falls_alike_from_both_sides() -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    *_, kept = constants("snow")
    layer = as_arrays(corrupt(images, "snow", 5, generator())) - 0.5 * (1 - kept)
    assert layer.min() == pytest.approx(0, abs=1 / 255)
    assert np.array_equal(layer, layer[:, :, ::-1, ::-1])
    assert np.array_equal(layer[:, 0], layer[:, 2])
    assert layer.max() > 0.2


def test_the_affine_part_takes_three_points_to_where_they_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With shifts of whole pixels only, the transformed image is the image moved by them."""
    images = natural(64)[:1]
    draws = iter([torch.tensor([[(5.0, 3.0)] * 3]).double(), torch.zeros(1, 2, 64, 64).double()])
    monkeypatch.setattr(corruptions, "_uniform", lambda *_, **__: next(draws))
    moved = corruptions._elastic_transform(torch.from_numpy(as_arrays(images)), (0.1, 0.03, 0.03), [generator()])
    assert np.allclose(moved[:, :, 3:, 5:], as_arrays(images)[:, :, :-3, :-5])


def test_the_displacement_looks_each_pixel_up_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    images = natural(64)[:1]
    noise = torch.tensor([0.5, -0.25], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 64, 64)
    draws = iter([torch.zeros(1, 3, 2).double(), noise])
    monkeypatch.setattr(corruptions, "_uniform", lambda *_, **__: next(draws))
    moved = corruptions._elastic_transform(torch.from_numpy(as_arrays(images)), (4 / 64, 0.03, 0), [generator()])
    assert np.allclose(moved[:, :, 1:, :-2], as_arrays(images)[:, :, :-1, 2:])


def test_pixelate_takes_means_of_blocks() -> None:
    images = natural(64)
    corrupted = corrupt(images, "pixelate", 5, generator())
    blocks = images.double().unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))
    assert (corrupted[:, :, ::2, ::2] - blocks).abs().max() <= 1
    assert torch.equal(corrupted[:, :, ::2, ::2], corrupted[:, :, 1::2, 1::2])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_compression_is_pillows(severity: int, images: Tensor) -> None:
    (quality,) = constants("jpeg_compression", severity)
    corrupted = corrupt(images, "jpeg_compression", severity, generator())
    for one, other in zip(images, corrupted, strict=True):
        stream = io.BytesIO()
        Image.fromarray(one.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=int(quality))
        assert np.array_equal(np.asarray(Image.open(stream)), other.permute(1, 2, 0).numpy())


def test_only_what_departs_from_the_published_images_is_a_departure() -> None:
    assert departures("fog", 32, 32, photographs=False) == ()
    assert departures("frost", 32, 32, photographs=True) == ()
    assert "not a photograph" in departures("frost", 32, 32, photographs=False)[0]
    assert departures("fog", 16, 16, photographs=False) == (
        "severities of CIFAR-10-C, made for 32 x 32, at 16 x 16",
    )  # fmt: skip
    assert "JPEG" in departures("fog", 224, 224, photographs=True)[0]
    assert len(departures("frost", 96, 96, photographs=False)) == 3


@pytest.mark.parametrize(
    "shape, dtype, name, severity, message",
    [
        ((2, 3, 32, 32), torch.float32, "fog", 1, r"torch.float32 \(2, 3, 32, 32\): expected uint8"),
        ((2, 1, 32, 32), torch.uint8, "fog", 1, r"expected uint8 \(n, 3, H, W\)"),
        ((3, 32, 32), torch.uint8, "fog", 1, r"expected uint8 \(n, 3, H, W\)"),
        ((2, 3, 7, 32), torch.uint8, "fog", 1, "7 x 32 are too small to corrupt: expected at least 8"),
        ((2, 3, 32, 32), torch.uint8, "frog", 1, "unknown corruption 'frog'.*did you mean 'fog'"),
        ((2, 3, 32, 32), torch.uint8, "fog", 0, "severity is 0: expected one of 1, 2, 3, 4, 5"),
        ((2, 3, 32, 32), torch.uint8, "fog", True, "severity is True"),
    ],
)
def test_bad_arguments_are_refused(
    shape: tuple[int, ...], dtype: torch.dtype, name: str, severity: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(torch.zeros(shape, dtype=dtype), name, severity, generator())
