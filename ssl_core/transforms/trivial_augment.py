"""TrivialAugmentWide (Mueller and Hutter, ICCV 2021) on whole batches: one operation per image, of random strength.

The table of operations and strengths is torchvision's `TrivialAugmentWide` with its 31 bins, nearest neighbors and a
black background. Its strengths are meant for 32 pixels and are not scaled: a shift is up to 32 pixels wide.

Images are float32 here; torchvision rounds every result to 8 bits. Posterize, equalize and the threshold of solarize
need levels: they work on the nearest of 256 and equal torchvision's. The others do not round: they equal torchvision's
on float images, within two levels of its results on 8 bits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from astra_gym.ssl_core.transforms.color import brightness, contrast, saturation
from astra_gym.ssl_core.transforms.views import check_images, check_one_each

BINS = 31
_LEVELS = 255
# A source may be half-way between two pixels, as on the diagonals of a turn by 45 degrees. Rounding would then decide,
# and differ between devices. No source of whole pixels is this near to the half.
_HALF = 0.5 + 2**-10


@dataclass(frozen=True)
class Strengths:
    """The possible strengths of an operation: `table` (BINS,) float64, each with either sign if `signed`."""

    table: Tensor
    signed: bool = False


def _up_to(most: float) -> Strengths:
    return Strengths(torch.linspace(0, most, BINS).double(), signed=True)


_NONE = Strengths(torch.zeros(BINS, dtype=torch.float64))
OPERATIONS: Mapping[str, Strengths] = {
    "Identity": _NONE,
    "ShearX": _up_to(0.99),
    "ShearY": _up_to(0.99),
    "TranslateX": _up_to(32),
    "TranslateY": _up_to(32),
    "Rotate": _up_to(135),
    "Brightness": _up_to(0.99),
    "Color": _up_to(0.99),
    "Contrast": _up_to(0.99),
    "Sharpness": _up_to(0.99),
    "Posterize": Strengths((8 - torch.arange(BINS) / ((BINS - 1) / 6)).round().double()),
    "Solarize": Strengths(torch.linspace(1, 0, BINS).double()),
    "AutoContrast": _NONE,
    "Equalize": _NONE,
}
"""The operations and their strengths, in torchvision's order.

Units: shears per pixel, shifts in pixels (cut to whole pixels), turns in degrees counter-clockwise, changes of a factor
from 1, bits, a threshold in [0, 1].
"""
NAMES = tuple(OPERATIONS)
_GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


@dataclass(frozen=True, eq=False)
class TrivialParameters:
    """The operation on each of n images; all tensors on the CPU.

    Attributes:
        operation: (n,) int64, positions in `NAMES`.
        strength: (n,) float64, signed, one of the operation's `Strengths`.
    """

    operation: Tensor
    strength: Tensor


def draw_trivial(n: int, generator: torch.Generator) -> TrivialParameters:
    """Draw operation, bin and sign of n images, uniform and independent: always 3 numbers per image."""
    u = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    operation, place = (u[:, 0] * len(NAMES)).long(), (u[:, 1] * BINS).long()
    tables = torch.stack([strengths.table for strengths in OPERATIONS.values()])
    signed = torch.tensor([strengths.signed for strengths in OPERATIONS.values()])
    strength = tables[operation, place]
    return TrivialParameters(operation, torch.where(signed[operation] & (u[:, 2] < 0.5), -strength, strength))


def apply_trivial(images: Tensor, parameters: TrivialParameters) -> Tensor:
    """Apply given parameters.

    Args:
        images: (n, 3, H, W) float32 in [0, 1], any device.
        parameters: parameters of n images.

    Returns:
        (n, 3, H, W) float32 in [0, 1], a new tensor.

    Raises:
        ValueError: as `views.apply_strong`.
    """
    check_images(images)
    check_one_each(images, parameters.operation)
    # Sorted by operation, so that each works on a slice; the lengths are on the host, which need not wait for the
    # device.
    order = parameters.operation.argsort(stable=True)
    lengths = torch.bincount(parameters.operation, minlength=len(NAMES)).tolist()
    parts = images.index_select(0, order.to(images.device, non_blocking=True)).split(lengths)
    results = []
    for name, part, strength in zip(NAMES, parts, parameters.strength[order].split(lengths), strict=True):
        if not len(part) or name == "Identity":
            results.append(part)
        elif name in _GEOMETRIC:
            results.append(_moved(part, _sources(name, strength, part.shape[-2], part.shape[-1])))
        else:
            results.append(_ACTS[name](part, strength))
    return torch.cat(results).index_select(0, order.argsort().to(images.device, non_blocking=True))


def trivial_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return one view of each image, (n, 3, H, W) float32 in [0, 1]: `draw_trivial`, then `apply_trivial`."""
    check_images(images)
    return apply_trivial(images, draw_trivial(len(images), generator))


def _sources(name: str, strength: Tensor, height: int, width: int) -> Tensor:
    """Return (m, 2, 3) float64 maps from a pixel's x, y and 1 to the x and y of its source; the corner is (0, 0)."""
    maps = torch.eye(2, 3, dtype=torch.float64).repeat(len(strength), 1, 1)
    if name == "ShearX":
        maps[:, 0, 1] = strength
    elif name == "ShearY":
        maps[:, 1, 0] = strength
    elif name == "TranslateX":
        maps[:, 0, 2] = -strength.trunc()
    elif name == "TranslateY":
        maps[:, 1, 2] = -strength.trunc()
    else:
        turn = strength * (math.pi / 180)
        cos, sin = turn.cos(), turn.sin()
        x, y = width / 2, height / 2
        maps[:, 0] = torch.stack([cos, -sin, x - cos * x + sin * y], dim=1)
        maps[:, 1] = torch.stack([sin, cos, y - sin * x - cos * y], dim=1)
    return maps


def _moved(images: Tensor, maps: Tensor) -> Tensor:
    """Take each pixel from the one nearest to its source; a source outside the image gives black."""
    m, channels, height, width = images.shape
    maps = maps.float().to(images.device, non_blocking=True)
    x = torch.arange(width, device=images.device) + 0.5
    y = torch.arange(height, device=images.device)[:, None] + 0.5
    across, down = (
        (row[:, 0, None, None] * x + row[:, 1, None, None] * y + row[:, 2, None, None] - 0.5)
        .add_(_HALF)
        .floor_()
        .long()
        for row in maps.unbind(1)
    )
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    source = torch.where(inside, down * width + across, 0).view(m, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, source).view_as(images).mul_(inside.unsqueeze(1))


def _by_factor(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def act(images: Tensor, strength: Tensor) -> Tensor:
        return operation(images.clone(), _on(images, 1 + strength))

    return act


def _on(images: Tensor, amount: Tensor) -> Tensor:
    """Return the amounts as (m, 1, 1, 1) float32 on the images' device."""
    return amount.float().to(images.device, non_blocking=True).view(-1, 1, 1, 1)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from a 3x3 mean, its middle weighted five times, in place; the outermost pixels do not change."""
    if min(images.shape[-2:]) <= 2:
        return images
    inner = images[..., 1:-1, 1:-1]
    mean = (functional.avg_pool2d(images, 3, stride=1) * 9 + inner * 4) / 13
    inner.add_((mean - inner) * (1 - factor))
    return images.clamp_(0, 1)


def _levels(images: Tensor) -> Tensor:
    return images.mul(_LEVELS).round_().long()


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    """Keep the highest bits of each level."""
    step = (2 ** (8 - strength)).long().to(images.device, non_blocking=True).view(-1, 1, 1, 1)
    levels = _levels(images)
    return (levels - levels % step).float().div_(_LEVELS)


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    """Invert values at or above the threshold; in float32, where a threshold at a whole level is exact."""
    return torch.where(_levels(images) >= _on(images, _LEVELS * strength), 1 - images, images)


def _autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]; a constant channel does not change."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    flat = low == high
    stretched = (images - torch.where(flat, 0, low)) / torch.where(flat, 1, high - low)
    return stretched.clamp_(0, 1)


def _equalize(images: Tensor, strength: Tensor) -> Tensor:
    """Equalize each channel by Pillow's rule: level v becomes (step // 2 + pixels below v) // step.

    The step is 1/255 of the number of pixels below the channel's highest level; a channel with a step of 0 does not
    change.
    """
    levels = _levels(images).flatten(2)
    # Counted by sorting, which is the same on every device and needs no table of pixels by levels.
    place = torch.arange(_LEVELS + 1, device=images.device).expand(*levels.shape[:2], -1).contiguous()
    below = torch.searchsorted(levels.sort(dim=2).values, place)
    step = below.gather(2, levels.amax(dim=2, keepdim=True)) // _LEVELS
    table = ((step // 2 + below) // step.clamp(min=1)).clamp_(max=_LEVELS)
    return torch.where(step == 0, levels, table.gather(2, levels)).float().div_(_LEVELS).view_as(images)


_ACTS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": _by_factor(brightness),
    "Color": _by_factor(saturation),
    "Contrast": _by_factor(contrast),
    "Sharpness": _by_factor(_sharpness),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}
