"""The 15 common corruptions of ImageNet-C at severities 1 to 5 (Hendrycks & Dietterich 2019), drawn anew.

The constants are those of the published sets: CIFAR-10-C for 32 pixels, Tiny-ImageNet-C for 64, ImageNet-C for 224; an
image of another size takes the nearest by ratio. Where the definition in words and the published images differ, the
images are followed: glass blur copies a neighbour's colour and does not swap, 8-bit values are cut off, not rounded.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from astra_gym.ssl_core.evaluation.severities import SEVERITIES, nearest_table
from astra_gym.ssl_core.utils.registry import pick

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
FROST_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The photographs that the published sets draw from; a sixth lies beside them and is never drawn."""
SMALLEST = 8
_CHUNK = 2**22

Array = np.ndarray[Any, np.dtype[Any]]
Draws = Sequence[torch.Generator]


def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    generator: torch.Generator,
    *,
    photographs: Sequence[Tensor] | None = None,
) -> Tensor:
    """Corrupt every image on its own.

    An image's draws come from one number of `generator`, so they depend neither on the other images nor on how a set
    is cut into batches that follow one another.

    Args:
        images: uint8 (n, 3, H, W) on the CPU, H and W at least 8.
        name: a corruption of `FAMILIES`.
        severity: 1 to 5.
        generator: of the CPU; n numbers are drawn from it.
        photographs: of frost, by `load_photographs`; without them frost is a random texture.

    Returns:
        New images, of the same shape and type.

    Raises:
        ValueError: if an argument is not as above.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.device.type != "cpu":
        got = f"{images.dtype} {tuple(images.shape)} on {images.device}"
        raise ValueError(f"images are {got}: expected uint8 (n, 3, H, W) on the CPU")
    height, width = images.shape[2:]
    if min(height, width) < SMALLEST:
        raise ValueError(f"images of {height} x {width} are too small to corrupt: expected at least {SMALLEST} pixels")
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"severity is {severity!r}: expected one of {', '.join(map(str, SEVERITIES))}")
    corruption = pick(name, _CORRUPTIONS, "corruption")
    table = nearest_table(height, width)
    if name == "frost":
        corruption = partial(_frost, scale=table.frost_scale, photographs=photographs)
    constants = table.constants[name][severity - 1]
    seeds = torch.randint(2**63 - 1, (len(images),), generator=generator)
    corrupted = torch.empty_like(images, memory_format=torch.contiguous_format)
    for rows in torch.arange(len(images)).split(max(1, _CHUNK // (3 * height * width))):
        draws = [torch.Generator().manual_seed(seed) for seed in seeds[rows].tolist()]
        moved = corruption(images[rows].numpy().astype(np.float64) / 255, constants, draws)
        corrupted[rows] = torch.from_numpy(_cut_off(moved))
    return corrupted


def departures(name: str, height: int, width: int, *, photographs: bool) -> tuple[str, ...]:
    """In what `corrupt` departs from the published images of a corruption, at a size, with or without photographs."""
    table = nearest_table(height, width)
    found = [table.stored] if table.stored else []
    if (height, width) != (table.side, table.side):
        found.append(f"severities of {table.name}, made for {table.side} x {table.side}, at {height} x {width}")
    if name == "frost" and not photographs:
        found.append("frost is a random texture of the photographs' colours and roughness, not a photograph")
    return tuple(found)


def load_photographs(folder: Path | str) -> tuple[Tensor, ...]:
    """The photographs of frost of the published sets, `FROST_FILES`, as uint8 (3, height, width).

    They come with the authors' code and, under the Apache licence, in the package imagecorruptions.

    Raises:
        ValueError: if one is missing or is no image.
    """
    photographs = []
    for file in FROST_FILES:
        try:
            with Image.open(Path(folder) / file) as image:
                photographs.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous())
        except OSError as error:
            raise ValueError(f"{folder} has no photographs of frost: expected {', '.join(FROST_FILES)}") from error
    return tuple(photographs)


def _cut_off(x: Array) -> Array:
    """8-bit values of x in [0, 1]; a millionth guards against 100 being cut to 99 by the arithmetic's rounding."""
    return (255 * x.clip(0, 1) + 1e-6).astype(np.uint8)


def _rounded(x: Array) -> Array:
    return np.rint(255 * x.clip(0, 1)) / 255


def _uniform(draws: Draws, *shape: int, low: float = 0, high: float = 1) -> Array:
    unit = np.stack([torch.rand(shape, generator=draw, dtype=torch.float64).numpy() for draw in draws])
    return low + (high - low) * unit


def _normal(draws: Draws, *shape: int) -> Array:
    return np.stack([torch.randn(shape, generator=draw, dtype=torch.float64).numpy() for draw in draws])


def _gaussian_noise(x: Array, deviation: float, draws: Draws) -> Array:
    return x + deviation * _normal(draws, *x.shape[1:])


def _shot_noise(x: Array, photons: float, draws: Draws) -> Array:
    rates = torch.from_numpy(photons * x)
    return np.stack([torch.poisson(rate, generator=draw) for rate, draw in zip(rates, draws, strict=True)]) / photons


def _impulse_noise(x: Array, share: float, draws: Draws) -> Array:
    hit, salt = np.moveaxis(_uniform(draws, 2, *x.shape[1:]), 1, 0)
    return np.where(hit <= share, salt <= 0.5, x)


def _disk(radius: float, alias: float) -> Array:
    """A disk's weights, smoothed against aliasing by a Gaussian of 3 or 5 taps, and cut to what is not zero."""
    half = 8 if radius <= 8 else math.ceil(radius)
    across = np.arange(-half, half + 1)
    disk = (across[:, None] ** 2 + across**2 <= radius**2).astype(np.float64)
    disk = gaussian_filter(disk / disk.sum(), alias, radius=1 if radius <= 8 else 2, mode="mirror")
    reach = int(np.abs(across)[disk.any(axis=0)].max())
    return disk[half - reach : half + reach + 1, half - reach : half + reach + 1]


def _defocus_blur(x: Array, constants: tuple[float, float], draws: Draws) -> Array:
    kernel = torch.from_numpy(_disk(*constants).copy())
    pad = len(kernel) // 2
    planes = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="reflect")
    flat = torch.from_numpy(planes).flatten(0, 1)[:, None]
    return F.conv2d(flat, kernel[None, None]).reshape(x.shape).numpy()


def _smooth(x: Array, sigma: float) -> Array:
    return gaussian_filter(x, sigma, mode="nearest", truncate=4, axes=(2, 3))


def _glass_blur(x: Array, constants: tuple[float, int, int], draws: Draws) -> Array:
    sigma, reach, passes = constants
    n, _, height, width = x.shape
    x = _cut_off(_smooth(x, sigma)) / 255
    # Each pixel in turn, from the last to the first, takes the colour of one nearby: source[p] is where p's came from.
    source = np.arange(height * width)[:, None].repeat(n, axis=1)
    images = np.arange(n)
    for _ in range(passes):
        dy, dx = np.moveaxis(np.floor(_uniform(draws, 2, height * width, low=-reach, high=reach)), 1, 0).astype(int)
        neighbour = np.ascontiguousarray((np.arange(height * width) + dy * width + dx).T)
        for row in range(height - reach, reach, -1):
            for pixel in range(row * width + width - reach, row * width + reach, -1):
                source[pixel] = source[neighbour[pixel], images]
    shuffled = np.take_along_axis(x.reshape(n, 3, -1), source.T[:, None], axis=2)
    return _smooth(shuffled.reshape(x.shape), sigma)


def _motion(x: Array, radius: int, sigma: float, degrees: Array) -> Array:
    """ImageMagick's motion blur of (n, c, H, W): a half Gaussian of 2 radius + 1 taps along each image's direction."""
    n, channels, height, width = x.shape
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = np.deg2rad(degrees)[:, None]
    right, down = (np.ceil(taps * part(angle) - 0.5).astype(int) for part in (np.cos, np.sin))
    blurred = np.zeros((n, channels, height * width))
    for tap, weight in enumerate(weights):
        rows = (np.arange(height) + down[:, tap, None]).clip(0, height - 1)
        columns = (np.arange(width) + right[:, tap, None]).clip(0, width - 1)
        places = (rows[:, :, None] * width + columns[:, None]).reshape(n, 1, -1)
        blurred += weight * np.take_along_axis(x.reshape(n, channels, -1), places, axis=2)
    return _rounded(blurred.reshape(x.shape))


def _motion_blur(x: Array, constants: tuple[int, float], draws: Draws) -> Array:
    return _motion(x, *constants, _uniform(draws, low=-45, high=45))


def _zoom_matrix(side: int, factor: float) -> Array:
    """(side, side): linear interpolation of a line's middle, enlarged, corners on corners, and trimmed to the side."""
    crop = math.ceil(side / factor)
    enlarged = round(crop * factor)
    trim = (enlarged - side) // 2
    places = np.arange(trim, trim + side) * ((crop - 1) / (enlarged - 1)) + (side - crop) // 2
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(side)))


def _zoom(x: Array, factor: float) -> Array:
    return _zoom_matrix(x.shape[-2], factor) @ x @ _zoom_matrix(x.shape[-1], factor).T


def _zoom_blur(x: Array, constants: tuple[float, float], draws: Draws) -> Array:
    # Rounding decides whether the end is among the factors; it is that of the published sets.
    factors = np.arange(1, *constants)
    return (x + sum(_zoom(x, float(factor)) for factor in factors)) / (len(factors) + 1)


def _snow(x: Array, constants: tuple[float, ...], draws: Draws) -> Array:
    mean, deviation, factor, threshold, radius, sigma, kept = constants
    flakes = _zoom(mean + deviation * _normal(draws, 1, *x.shape[2:]), factor)
    flakes = _cut_off(np.where(flakes < threshold, 0, flakes)) / 255
    flakes = _motion(flakes, int(radius), sigma, _uniform(draws, low=-135, high=-45))
    grey = np.tensordot(x, (0.299, 0.587, 0.114), (1, 0))[:, None]
    return kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5) + flakes + flakes[:, :, ::-1, ::-1]


def _fractal(draws: Draws, side: int, decay: float) -> Array:
    """(n, side, side) plasma by diamonds and squares on a torus; the noise's range falls by decay^2 a level."""
    field = np.zeros((len(draws), side, side))
    step, noise = side, 100.0
    while step >= 2:
        half, cells = step // 2, side // step
        shake = noise**2 * _uniform(draws, 3, cells, cells, low=-1)
        corner = field[:, ::step, ::step]
        below, beside = np.roll(corner, -1, axis=1), np.roll(corner, -1, axis=2)
        centre = (corner + below + beside + np.roll(below, -1, axis=2)) / 4 + shake[:, 0]
        field[:, half::step, half::step] = centre
        field[:, ::step, half::step] = (corner + beside + centre + np.roll(centre, 1, axis=1)) / 4 + shake[:, 1]
        field[:, half::step, ::step] = (corner + below + centre + np.roll(centre, 1, axis=2)) / 4 + shake[:, 2]
        step, noise = half, noise / decay
    return field


def _power_of_two(side: int) -> int:
    return 1 << (side - 1).bit_length()


def _fog(x: Array, constants: tuple[float, float], draws: Draws) -> Array:
    strength, decay = constants
    height, width = x.shape[2:]
    field = _fractal(draws, _power_of_two(max(height, width)), decay)
    field -= field.min(axis=(1, 2), keepdims=True)
    field /= field.max(axis=(1, 2), keepdims=True)
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    return (x + strength * field[:, None, :height, :width]) * brightest / (brightest + strength)


# Of the five photographs: mean colour, standard deviation of grey, and the share of its variance that is fine grain.
# With these and the decay, the texture's autocorrelation is within 0.15 of theirs up to 8 pixels.
_FROST_COLOURS = np.array([(78, 149, 166), (201, 205, 214), (201, 205, 214), (138, 153, 165), (112, 123, 135)]) / 255
_FROST_CONTRASTS = np.array([18, 22, 22, 29, 43]) / 255
_FROST_GRAIN = 0.4
_FROST_DECAY = 1.25


def _standardised(fields: Array) -> Array:
    return (fields - fields.mean(axis=(1, 2), keepdims=True)) / fields.std(axis=(1, 2), keepdims=True)


def _frost_texture(draws: Draws, side: int, scale: float) -> Array:
    """(n, side, side), mean 0 and deviation 1: a fractal and grain, as wide as a photograph's pixel at its scale."""
    large = _standardised(_fractal(draws, side, _FROST_DECAY))
    grain = _standardised(gaussian_filter(_normal(draws, side, side), scale, axes=(1, 2)))
    return math.sqrt(1 - _FROST_GRAIN) * large + math.sqrt(_FROST_GRAIN) * grain


def _frost(
    x: Array, constants: tuple[float, float], draws: Draws, scale: float, photographs: Sequence[Tensor] | None
) -> Array:
    height, width = x.shape[2:]
    which, top, left = _uniform(draws, 3).T
    chosen = (which * len(FROST_FILES)).astype(int)
    if photographs is None:
        fields = _frost_texture(draws, 2 * _power_of_two(max(height, width)), scale)[:, None]
        colour, contrast = _FROST_COLOURS[chosen][:, :, None, None], _FROST_CONTRASTS[chosen][:, None, None, None]
        textures = list((colour + contrast * fields).clip(0, 1))
    else:
        scaled = [_scaled(photograph, scale, height, width) for photograph in photographs]
        textures = [scaled[index] for index in chosen]
    frost = np.empty_like(x)
    for index, texture in enumerate(textures):
        row, column = int(top[index] * (texture.shape[1] - height)), int(left[index] * (texture.shape[2] - width))
        frost[index] = texture[:, row : row + height, column : column + width]
    return constants[0] * x + constants[1] * frost


def _scaled(photograph: Tensor, scale: float, height: int, width: int) -> Array:
    """A photograph at the published scale, or larger where it would not cover the image."""
    scale = max(scale, (height + 1) / photograph.shape[1], (width + 1) / photograph.shape[2])
    scaled = F.interpolate(photograph[None].double(), scale_factor=scale, mode="bilinear", align_corners=False)
    return _rounded(scaled[0].numpy() / 255)


def _brightness(x: Array, more: float, draws: Draws) -> Array:
    """Raise V of HSV: hue and saturation stay, so the colour is scaled; black, which has neither, becomes grey."""
    value = x.max(axis=1, keepdims=True)
    raised = np.minimum(value + more, 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)


def _contrast(x: Array, share: float, draws: Draws) -> Array:
    means = x.mean(axis=(2, 3), keepdims=True)
    return share * (x - means) + means


def _elastic_transform(x: Array, constants: tuple[float, float, float], draws: Draws) -> Array:
    height, width = x.shape[2:]
    side = min(height, width)
    strength, sigma, jitter = (side * part for part in constants)
    third, middle = side // 3, np.array((width // 2, height // 2))
    fixed = middle + third * np.array(((1, 1), (1, -1), (-1, -1)))
    moved = fixed + _uniform(draws, 3, 2, low=-jitter, high=jitter)
    noise = _uniform(draws, 2, height, width, low=-1)
    shift = strength * gaussian_filter(noise, sigma, mode="reflect", truncate=3, axes=(2, 3))
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    grid = np.stack((columns, rows, np.ones_like(rows)), axis=-1)
    warped = np.empty_like(x)
    for index, image in enumerate(x):
        # The affine map takes the fixed points to the moved ones; a result's pixel is looked up by its inverse.
        inverse = np.linalg.solve(np.column_stack((moved[index], np.ones(3))), fixed)
        across, down = np.moveaxis(grid @ inverse, -1, 0)
        places = (rows + shift[index, 1], columns + shift[index, 0])
        for channel, plane in enumerate(image):
            affine = map_coordinates(plane, (down, across), order=1, mode="mirror")
            warped[index, channel] = map_coordinates(affine, places, order=1, mode="reflect")
    return warped


def _by_pillow(x: Array, change: Callable[[Image.Image], Image.Image]) -> Array:
    pictures = (Image.fromarray(picture) for picture in _cut_off(x).transpose(0, 2, 3, 1))
    return np.stack([np.asarray(change(picture)) for picture in pictures]).transpose(0, 3, 1, 2) / 255


def _pixelate(x: Array, share: float, draws: Draws) -> Array:
    height, width = x.shape[2:]
    few = int(width * share), int(height * share)
    box = Image.Resampling.BOX
    return _by_pillow(x, lambda picture: picture.resize(few, box).resize((width, height), box))


def _jpeg_compression(x: Array, quality: int, draws: Draws) -> Array:
    def change(picture: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        return Image.open(stream)

    return _by_pillow(x, change)


_CORRUPTIONS: Mapping[str, Callable[..., Array]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
