"""The 15 common corruptions of ImageNet-C at severities 1 to 5 (Hendrycks & Dietterich 2019), drawn anew.

The constants are those of the published sets: CIFAR-10-C for 32 pixels, Tiny-ImageNet-C for 64, ImageNet-C for 224; an
image of another size uses the nearest by ratio. Where the definition in words and the published images differ, the code
follows the images: glass blur copies a neighbor's color and does not swap, 8-bit values are truncated, not rounded.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from astra_gym.ssl_core.evaluation.image_filters import extended, sampled, smoothed
from astra_gym.ssl_core.evaluation.severities import SEVERITIES, nearest_table
from astra_gym.ssl_core.utils.registry import pick

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
FROST_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""Photographs that the published sets draw from; a sixth in the same folder is never drawn."""
SMALLEST = 8
_CHUNK = 2**22

Draws = Sequence[torch.Generator]


def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    generator: torch.Generator,
    *,
    photographs: Sequence[Tensor] | None = None,
) -> Tensor:
    """Corrupt every image independently.

    An image's draws come from one number of `generator`, so they depend neither on the other images, nor on the split
    of a set into consecutive batches, nor on the device. All else is computed on the device, except `pixelate` and
    `jpeg_compression`, which use Pillow.

    Args:
        images: uint8 (n, 3, H, W), H and W at least 8.
        name: a corruption of `FAMILIES`.
        severity: 1 to 5.
        generator: random generator on the CPU; n numbers are drawn from it.
        photographs: photographs of frost from `load_photographs`; None: frost is a random texture.

    Returns:
        New images, of the same shape and type, on the same device. A GPU's differ from the CPU's by 1 of 255 at most,
        and only by rounding.

    Raises:
        ValueError: if an argument is not as above.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: expected uint8 (n, 3, H, W)")
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
    size = max(1, _CHUNK // (3 * height * width))
    for rows in (slice(first, first + size) for first in range(0, len(images), size)):
        draws = [torch.Generator().manual_seed(seed) for seed in seeds[rows].tolist()]
        corrupted[rows] = _cut_off(corruption(images[rows].double() / 255, constants, draws))
    return corrupted


def departures(name: str, height: int, width: int, *, photographs: bool) -> tuple[str, ...]:
    """Differences of `corrupt` from the published images of a corruption, at a size, with or without photographs."""
    table = nearest_table(height, width)
    found = [table.stored] if table.stored else []
    if (height, width) != (table.side, table.side):
        found.append(f"severities of {table.name}, made for {table.side} x {table.side}, at {height} x {width}")
    if name == "frost" and not photographs:
        found.append("frost is a random texture of the photographs' colors and roughness, not a photograph")
    return tuple(found)


def load_photographs(folder: Path | str) -> tuple[Tensor, ...]:
    """Load the photographs of frost of the published sets, `FROST_FILES`, as uint8 (3, height, width).

    They come with the authors' code and, under the Apache license, in the package imagecorruptions.

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


def _cut_off(x: Tensor) -> Tensor:
    """Truncate x in [0, 1] to 8-bit values; a millionth is added so that rounding errors do not turn 100 into 99."""
    return (255 * x.clamp(0, 1) + 1e-6).to(torch.uint8)


def _rounded(x: Tensor) -> Tensor:
    return (255 * x.clamp(0, 1)).round() / 255


def _uniform(draws: Draws, *shape: int, low: float = 0, high: float = 1) -> Tensor:
    unit = torch.stack([torch.rand(shape, generator=draw, dtype=torch.float64) for draw in draws])
    return low + (high - low) * unit


def _normal(draws: Draws, *shape: int) -> Tensor:
    return torch.stack([torch.randn(shape, generator=draw, dtype=torch.float64) for draw in draws])


def _gaussian_noise(x: Tensor, deviation: float, draws: Draws) -> Tensor:
    return x + deviation * _normal(draws, *x.shape[1:]).to(x.device)


def _shot_noise(x: Tensor, photons: float, draws: Draws) -> Tensor:
    counts = [torch.poisson(rate, generator=draw) for rate, draw in zip((photons * x).cpu(), draws, strict=True)]
    return torch.stack(counts).to(x.device) / photons


def _impulse_noise(x: Tensor, share: float, draws: Draws) -> Tensor:
    hit, salt = _uniform(draws, 2, *x.shape[1:]).to(x.device).unbind(1)
    return torch.where(hit <= share, (salt <= 0.5).double(), x)


def _disk(radius: float, alias: float) -> Tensor:
    """Make a disk's weights, smoothed against aliasing by a Gaussian of 3 or 5 taps, and trimmed of zeros."""
    half = 8 if radius <= 8 else math.ceil(radius)
    across = np.arange(-half, half + 1)
    disk = (across[:, None] ** 2 + across**2 <= radius**2).astype(np.float64)
    disk = gaussian_filter(disk / disk.sum(), alias, radius=1 if radius <= 8 else 2, mode="mirror")
    reach = int(np.abs(across)[disk.any(axis=0)].max())
    return torch.from_numpy(disk[half - reach : half + reach + 1, half - reach : half + reach + 1].copy())


def _defocus_blur(x: Tensor, constants: tuple[float, float], draws: Draws) -> Tensor:
    kernel = _disk(*constants).to(x.device)
    planes = extended(extended(x, 2, len(kernel) // 2, "mirror"), 3, len(kernel) // 2, "mirror")
    return F.conv2d(planes.flatten(0, 1)[:, None], kernel[None, None]).reshape(x.shape)


def _glass_blur(x: Tensor, constants: tuple[float, int, int], draws: Draws) -> Tensor:
    sigma, reach, passes = constants
    n, _, height, width = x.shape
    x = _cut_off(smoothed(x, sigma, "nearest")).double() / 255
    # Each pixel in turn, from the last to the first, takes a nearby pixel's color; source[p] is where p's color comes
    # from. This runs on the host, since each pixel depends on the previous one.
    source = np.arange(height * width)[:, None].repeat(n, axis=1)
    images = np.arange(n)
    for _ in range(passes):
        shifts = _uniform(draws, 2, height * width, low=-reach, high=reach).numpy()
        dy, dx = np.moveaxis(np.floor(shifts), 1, 0).astype(int)
        neighbor = np.ascontiguousarray((np.arange(height * width) + dy * width + dx).T)
        for row in range(height - reach, reach, -1):
            for pixel in range(row * width + width - reach, row * width + reach, -1):
                source[pixel] = source[neighbor[pixel], images]
    places = torch.from_numpy(source.T.copy()).to(x.device)[:, None]
    return smoothed(x.flatten(2).gather(2, places.expand(-1, 3, -1)).view(x.shape), sigma, "nearest")


def _motion(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """ImageMagick's motion blur of (n, c, H, W): a half Gaussian of 2 radius + 1 taps along `degrees` (n,).

    The degrees are on the host.
    """
    height, width = x.shape[2:]
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    # on the host, since a GPU's cosine may differ in its last digit, which may give another pixel
    angle = np.deg2rad(degrees.numpy())[:, None]
    right, down = (np.ceil(taps * part(angle) - 0.5).astype(int) for part in (np.cos, np.sin))
    rows = (np.arange(height) + down[..., None]).clip(0, height - 1)
    columns = (np.arange(width) + right[..., None]).clip(0, width - 1)
    rows, columns = (torch.from_numpy(each).to(x.device) for each in (rows, columns))
    flat, blurred = x.flatten(2), torch.zeros_like(x).flatten(2)
    for tap, weight in enumerate(weights.tolist()):
        places = (rows[:, tap, :, None] * width + columns[:, tap, None]).flatten(1)
        blurred += flat.gather(2, places[:, None].expand(-1, x.shape[1], -1)).mul_(weight)
    return _rounded(blurred.view(x.shape))


def _motion_blur(x: Tensor, constants: tuple[int, float], draws: Draws) -> Tensor:
    return _motion(x, *constants, _uniform(draws, low=-45, high=45))


def _zoom_matrix(side: int, factor: float) -> Tensor:
    """Matrix (side, side) that enlarges a line's middle by linear interpolation, corners aligned, trimmed to side."""
    crop = math.ceil(side / factor)
    enlarged = round(crop * factor)
    trim = (enlarged - side) // 2
    places = np.arange(trim, trim + side) * ((crop - 1) / (enlarged - 1)) + (side - crop) // 2
    return torch.from_numpy(np.maximum(0, 1 - np.abs(places[:, None] - np.arange(side))))


def _zoom(x: Tensor, factor: float) -> Tensor:
    down, across = (_zoom_matrix(side, factor).to(x.device) for side in x.shape[-2:])
    return down @ x @ across.T


def _zoom_blur(x: Tensor, constants: tuple[float, float], draws: Draws) -> Tensor:
    # Rounding decides whether the end is among the factors, as in the published sets.
    factors = np.arange(1, *constants).tolist()
    return (x + sum(_zoom(x, factor) for factor in factors)) / (len(factors) + 1)


def _snow(x: Tensor, constants: tuple[float, ...], draws: Draws) -> Tensor:
    mean, deviation, factor, threshold, radius, sigma, kept = constants
    flakes = _zoom(mean + deviation * _normal(draws, 1, *x.shape[2:]).to(x.device), factor)
    flakes = _cut_off(torch.where(flakes < threshold, 0, flakes)).double() / 255
    flakes = _motion(flakes, int(radius), sigma, _uniform(draws, low=-135, high=-45))
    red, green, blue = x.split(1, dim=1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    return kept * x + (1 - kept) * torch.maximum(x, 1.5 * grey + 0.5) + flakes + flakes.flip(2, 3)


def _fractal(draws: Draws, side: int, decay: float, device: torch.device | str = "cpu") -> Tensor:
    """Plasma (n, side, side) by diamond-square on a torus; the noise's range falls by decay^2 per level."""
    field = torch.zeros(len(draws), side, side, dtype=torch.float64, device=device)
    step, noise = side, 100.0
    while step >= 2:
        half, cells = step // 2, side // step
        shake = noise**2 * _uniform(draws, 3, cells, cells, low=-1).to(device)
        corner = field[:, ::step, ::step].clone()
        below, beside = corner.roll(-1, 1), corner.roll(-1, 2)
        center = (corner + below + beside + below.roll(-1, 2)) / 4 + shake[:, 0]
        field[:, half::step, half::step] = center
        field[:, ::step, half::step] = (corner + beside + center + center.roll(1, 1)) / 4 + shake[:, 1]
        field[:, half::step, ::step] = (corner + below + center + center.roll(1, 2)) / 4 + shake[:, 2]
        step, noise = half, noise / decay
    return field


def _power_of_two(side: int) -> int:
    return 1 << (side - 1).bit_length()


def _fog(x: Tensor, constants: tuple[float, float], draws: Draws) -> Tensor:
    strength, decay = constants
    height, width = x.shape[2:]
    field = _fractal(draws, _power_of_two(max(height, width)), decay, x.device)
    field -= field.amin(dim=(1, 2), keepdim=True)
    field /= field.amax(dim=(1, 2), keepdim=True)
    brightest = x.amax(dim=(1, 2, 3), keepdim=True)
    return (x + strength * field[:, None, :height, :width]) * brightest / (brightest + strength)


# Mean color, standard deviation of gray, and share of fine grain in its variance, for each of the five photographs.
# With these and the decay, the texture's autocorrelation is within 0.15 of the photographs' up to 8 pixels.
_FROST_COLORS = np.array([(78, 149, 166), (201, 205, 214), (201, 205, 214), (138, 153, 165), (112, 123, 135)]) / 255
_FROST_CONTRASTS = np.array([18, 22, 22, 29, 43]) / 255
_FROST_GRAIN = 0.4
_FROST_DECAY = 1.25


def _standardized(fields: Tensor) -> Tensor:
    return (fields - fields.mean(dim=(1, 2), keepdim=True)) / fields.std(dim=(1, 2), keepdim=True, unbiased=False)


def _frost_texture(draws: Draws, side: int, scale: float, device: torch.device) -> Tensor:
    """Texture (n, side, side), mean 0, deviation 1: a fractal, and grain as wide as a photograph's scaled pixel."""
    large = _standardized(_fractal(draws, side, _FROST_DECAY, device))
    grain = _standardized(smoothed(_normal(draws, side, side).to(device), scale, "reflect"))
    return math.sqrt(1 - _FROST_GRAIN) * large + math.sqrt(_FROST_GRAIN) * grain


def _frost(
    x: Tensor, constants: tuple[float, float], draws: Draws, scale: float, photographs: Sequence[Tensor] | None
) -> Tensor:
    height, width = x.shape[2:]
    which, top, left = _uniform(draws, 3).T
    chosen = (which * len(FROST_FILES)).long()
    if photographs is None:
        fields = _frost_texture(draws, 2 * _power_of_two(max(height, width)), scale, x.device)[:, None]
        color, contrast = (torch.from_numpy(each)[chosen].to(x.device) for each in (_FROST_COLORS, _FROST_CONTRASTS))
        textures = list((color[:, :, None, None] + contrast[:, None, None, None] * fields).clamp(0, 1))
    else:
        scaled = [_scaled(photograph, scale, height, width).to(x.device) for photograph in photographs]
        textures = [scaled[index] for index in chosen.tolist()]
    frost = torch.empty_like(x)
    for index, texture in enumerate(textures):
        row, column = int(top[index] * (texture.shape[1] - height)), int(left[index] * (texture.shape[2] - width))
        frost[index] = texture[:, row : row + height, column : column + width]
    return constants[0] * x + constants[1] * frost


def _scaled(photograph: Tensor, scale: float, height: int, width: int) -> Tensor:
    """Scale a photograph by the published factor, or more if it would not cover the image."""
    scale = max(scale, (height + 1) / photograph.shape[1], (width + 1) / photograph.shape[2])
    scaled = F.interpolate(photograph[None].double(), scale_factor=scale, mode="bilinear", align_corners=False)
    return _rounded(scaled[0] / 255)


def _brightness(x: Tensor, more: float, draws: Draws) -> Tensor:
    """Raise V of HSV: hue and saturation stay, so the color is scaled; black, which has neither, becomes gray."""
    value = x.amax(dim=1, keepdim=True)
    raised = (value + more).clamp(max=1)
    return torch.where(value > 0, x * raised / torch.where(value > 0, value, 1), raised)


def _contrast(x: Tensor, share: float, draws: Draws) -> Tensor:
    means = x.mean(dim=(2, 3), keepdim=True)
    return share * (x - means) + means


def _elastic_transform(x: Tensor, constants: tuple[float, float, float], draws: Draws) -> Tensor:
    height, width = x.shape[2:]
    side = min(height, width)
    strength, sigma, jitter = (side * part for part in constants)
    third, middle = side // 3, np.array((width // 2, height // 2))
    fixed = middle + third * np.array(((1, 1), (1, -1), (-1, -1)))
    moved = fixed + _uniform(draws, 3, 2, low=-jitter, high=jitter).numpy()
    noise = _uniform(draws, 2, height, width, low=-1).to(x.device)
    shift = (strength * smoothed(noise, sigma, "reflect", truncate=3)).flatten(2)
    # The affine map takes the fixed points to the moved ones; its inverse gives the source of a result's pixel.
    corners = np.concatenate((moved, np.ones((len(x), 3, 1))), axis=2)
    inverse = torch.from_numpy(np.linalg.solve(corners, np.broadcast_to(fixed, (len(x), 3, 2)))).to(x.device)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = (each.flatten().double().to(x.device) for each in (rows, columns))
    across, down = (torch.stack((columns, rows, torch.ones_like(rows)), dim=1) @ inverse).unbind(2)
    affine = sampled(x, down, across, "mirror").view(x.shape)
    return sampled(affine, rows + shift[:, 1], columns + shift[:, 0], "reflect").view(x.shape)


def _by_pillow(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pictures = (Image.fromarray(picture) for picture in _cut_off(x).cpu().permute(0, 2, 3, 1).contiguous().numpy())
    changed = np.stack([np.asarray(change(picture)) for picture in pictures])
    return torch.from_numpy(changed).to(x.device).permute(0, 3, 1, 2).double() / 255


def _pixelate(x: Tensor, share: float, draws: Draws) -> Tensor:
    height, width = x.shape[2:]
    few = int(width * share), int(height * share)
    box = Image.Resampling.BOX
    return _by_pillow(x, lambda picture: picture.resize(few, box).resize((width, height), box))


def _jpeg_compression(x: Tensor, quality: int, draws: Draws) -> Tensor:
    def change(picture: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        return Image.open(stream)

    return _by_pillow(x, change)


_CORRUPTIONS: Mapping[str, Callable[..., Tensor]] = {
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
