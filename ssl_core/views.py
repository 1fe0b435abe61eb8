"""Augmentations of whole batches, on the images' device, from an explicit generator.

Every random parameter (crop boxes, factors, order of the colour operations, coin flips) is drawn on the CPU by a CPU
generator; only the pixels are worked on where the images lie. So a GPU run sees the same views as a CPU run up to
float32 rounding, and nothing here makes the host wait for the device. `draw_*` and `apply_*` are separate, so that
given parameters can be applied by another library and compared.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ssl_core.lookup import pick

_TRIES = 10
_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Kernel:
    """A resampling kernel: `weight(distance)` is zero from `support` (in pixels of the coarser grid) on."""

    weight: Callable[[Tensor], Tensor]
    support: int


def _triangle(distance: Tensor) -> Tensor:
    return distance.neg_().add_(1).relu_()


def _keys_cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2, both pieces in one expression: u^2 (u-1) / 2 + p^2 (1-2p)."""
    u = (2 - distance).relu_()
    p = distance.neg_().add_(1).relu_()
    outer = u.square().mul_(u.sub_(1)).mul_(0.5)
    return outer.addcmul_(p.square(), p.mul_(-2).add_(1))


INTERPOLATIONS: Mapping[str, Kernel] = {"bilinear": Kernel(_triangle, 1), "bicubic": Kernel(_keys_cubic, 2)}


@dataclass(frozen=True)
class ViewSettings:
    """How views are made.

    Args:
        strength: s of the strong augmentation A(s), in [0, 1]; 1 is ACL's and ASTrA's.
        flip: probability of a horizontal flip, in [0, 1], strong and weak.
        interpolation: resampling of the random crop, "bicubic" (ACL, ASTrA) or "bilinear" (DynACL's default).
        padding: zero pixels around the image before the weak random crop, at least 0.

    Raises:
        ValueError: a value outside its range, or an unknown interpolation.
    """

    strength: float = 1.0
    flip: float = 0.5
    interpolation: str = "bicubic"
    padding: int = 4

    def __post_init__(self) -> None:
        for name in ("strength", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"views: {name} is {getattr(self, name)}, expected a number in [0, 1]")
        if self.padding < 0:
            raise ValueError(f"views: padding is {self.padding}, expected a number of pixels, 0 or more")
        pick(self.interpolation, INTERPOLATIONS, "interpolation")


@dataclass(frozen=True, eq=False)
class StrongParameters:
    """Everything random in n strong views; all tensors on the CPU.

    Attributes:
        boxes: (n, 4) int64: top, left, height, width of the crop, in pixels.
        flip: (n,) bool.
        jitter: (n,) bool: whether the colour jitter is applied at all.
        order: (n, 4) int64: at each of the four positions, which column of `factors` is due.
        factors: (n, 4) float32: brightness, contrast, saturation (1 changes nothing), hue shift in turns (0 does).
        gray: (n,) bool.
    """

    boxes: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    gray: Tensor


@dataclass(frozen=True, eq=False)
class WeakParameters:
    """Everything random in n weak views; all tensors on the CPU.

    Attributes:
        corners: (n, 2) int64: top and left of the crop in the padded image.
        flip: (n,) bool.
    """

    corners: Tensor
    flip: Tensor


def as_float(images: Tensor) -> Tensor:
    """uint8 images of any shape as float32 in [0, 1]; any other dtype is a ValueError."""
    if images.dtype != torch.uint8:
        raise ValueError(f"as_float takes uint8 images, got {images.dtype}: float images are in [0, 1] already")
    return images.to(torch.float32).div_(255)


def draw_strong(
    n: int, height: int, width: int, settings: ViewSettings, generator: torch.Generator
) -> StrongParameters:
    """Parameters of n views by ACL's strong augmentation A(s).

    RandomResizedCrop of scale (1 - 0.9 s, 1) and ratio (3/4, 4/3) by torchvision's rule (ten tries, then the largest
    central crop of a legal ratio), flip, ColorJitter(.4 s, .4 s, .4 s, .1 s) with probability .8 s in a random order of
    its own for every image, grayscale with probability .2 s. A draw takes 33 numbers per image whatever the settings
    are, so a strength that changes over training does not shift the stream.

    At s = 0 a ratio is still drawn, but on a square image the only crop of full area that fits is the whole image,
    which is the fallback too: the view is the image itself, or its mirror image. An image longer than 4:3 keeps its
    central 4:3 part, stretched to the whole, since that is torchvision's fallback.
    """
    s = settings.strength
    u = torch.rand(n, 2 * _TRIES + 13, generator=generator, dtype=torch.float64)
    areas, ratios, corner, coins, amounts, keys = u.split([_TRIES, _TRIES, 2, 3, 4, 4], dim=1)
    boxes = _crop_boxes(areas.mul(0.9 * s).add(1 - 0.9 * s), ratios, corner, height, width)
    # Brightness, contrast, saturation and hue, about the amounts that change nothing.
    reach, neutral = torch.tensor([0.4, 0.4, 0.4, 0.1], dtype=torch.float64) * s, torch.tensor([1.0, 1.0, 1.0, 0.0])
    chances = torch.tensor([settings.flip, 0.8 * s, 0.2 * s], dtype=torch.float64)
    flip, jitter, gray = (coins < chances).unbind(1)
    factors = ((2 * amounts - 1) * reach + neutral).float()
    return StrongParameters(boxes, flip, jitter, keys.argsort(dim=1), factors, gray)


def _crop_boxes(shares: Tensor, ratios: Tensor, corner: Tensor, height: int, width: int) -> Tensor:
    """torchvision's RandomResizedCrop.get_params, for a batch.

    `shares` of the area (n, tries); `ratios` (n, tries) and `corner` (n, 2) uniform in [0, 1).
    """
    n = len(shares)
    log_ratio = math.log(_RATIO[0]) + ratios * math.log(_RATIO[1] / _RATIO[0])
    area, ratio = shares * (height * width), log_ratio.exp()
    sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=2).round().long()
    limits = torch.tensor([height, width])
    fits = ((sizes > 0) & (sizes <= limits)).all(dim=2)
    size = sizes[torch.arange(n), fits.int().argmax(dim=1)]
    # Rounding as Python's round(), half to even, as torch.round does above.
    central = torch.tensor([min(height, round(width / _RATIO[0])), min(width, round(height * _RATIO[1]))])
    found = fits.any(dim=1, keepdim=True)
    size = torch.where(found, size, central)
    room = limits - size
    start = torch.where(found, torch.minimum((corner * (room + 1)).long(), room), room // 2)
    return torch.cat([start, size], dim=1)


def apply_strong(images: Tensor, parameters: StrongParameters, interpolation: str = "bicubic") -> Tensor:
    """Apply given parameters: crop and resize to the images' own size, clamp, flip, colour jitter, grayscale.

    Args:
        images: (n, 3, H, W) float32 in [0, 1], any device.
        parameters: n of them.
        interpolation: a key of `INTERPOLATIONS`; with antialiasing, which matters only where a size shrinks.

    Returns:
        (n, 3, H, W) float32 in [0, 1], a new tensor.

    Raises:
        ValueError: images of another shape, dtype or range (the range is looked at on the CPU only: on a GPU that would
            make the host wait), or another number of parameters than of images.
    """
    _check(images)
    _check_number(images, parameters.flip)
    height, width = images.shape[-2:]
    return _colour(resized_crop(images, parameters.boxes, parameters.flip, (height, width), interpolation), parameters)


def resized_crop(images: Tensor, boxes: Tensor, flip: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Each image's own box, resampled with antialiasing to one size, mirrored where `flip`, clamped to [0, 1].

    Resampling is separable and linear, so the whole batch is two batched matrix products; mirroring is an order of the
    rows of one matrix. Equal to torchvision's `resized_crop(antialias=True)` up to float32 rounding (on a GPU, up to
    TF32's, where the caller has set matrix products to that).

    Args:
        images: (n, C, H, W) float32.
        boxes: (n, 4) int64 on the CPU: top, left, height, width.
        flip: (n,) bool on the CPU.
        size: height and width of the result.
        interpolation: a key of `INTERPOLATIONS`.

    Returns:
        (n, C, *size) float32 in [0, 1].
    """
    kernel = pick(interpolation, INTERPOLATIONS, "interpolation")
    n, channels, height, width = images.shape
    spans = boxes.float().to(images.device, non_blocking=True)
    mirrored = flip.to(images.device, non_blocking=True)
    down = _resampling(spans[:, 0], spans[:, 2], height, size[0], kernel)
    across = _resampling(spans[:, 1], spans[:, 3], width, size[1], kernel, mirrored)
    # Autocast would round the pixels to bfloat16 here.
    with torch.autocast(images.device.type, enabled=False):
        wide = torch.bmm(images.reshape(n, channels * height, width), across.transpose(1, 2))
        return torch.matmul(down.unsqueeze(1), wide.view(n, channels, height, size[1])).clamp_(0, 1)


def _resampling(
    start: Tensor, length: Tensor, size_in: int, size_out: int, kernel: Kernel, mirrored: Tensor | None = None
) -> Tensor:
    """(n, size_out, size_in) matrices that resample [start, start + length); each row sums to one."""
    pixel = torch.arange(size_in, device=start.device, dtype=start.dtype)
    place = torch.arange(size_out, device=start.device, dtype=start.dtype).expand(len(start), -1)
    if mirrored is not None:
        place = torch.where(mirrored.unsqueeze(1), size_out - 1 - place, place)
    step = (length / size_out).unsqueeze(1)
    centre = (place + 0.5) * step + (start.unsqueeze(1) - 0.5)
    # Where the grid gets coarser, the kernel widens with it: that is the antialiasing.
    zoom = step.clamp(min=1).reciprocal()
    weights = kernel.weight(((pixel - centre.unsqueeze(2)) * zoom.unsqueeze(2)).abs_())
    inside = (pixel >= start.unsqueeze(1)) & (pixel < (start + length).unsqueeze(1))
    weights.mul_(inside.unsqueeze(1))
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _luma(images: Tensor) -> Tensor:
    """(n, 1, H, W): ITU-R 601-2 luma with torchvision's coefficients."""
    red, green, blue = images.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return images.mul_(factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _luma(images).mean(dim=(1, 2, 3), keepdim=True)
    return images.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    luma = _luma(images)
    return images.mul_(factor).add_(luma.mul_(1 - factor)).clamp_(0, 1)


def _hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue, at constant value and chroma, in sixths of a turn.

    The hue is copysign(1 + (green + blue - red - min) / chroma, green - blue), in [-3, 3], which is HSV's definition
    without its branches. A channel falls short of the value by chroma * clamp(d - 1, 0, 1), d the distance round the
    circle from the hue to the channel's own (red 0, green 2, blue -2).
    """
    red, green, blue = images.unbind(1)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    value = torch.maximum(red, green)
    torch.maximum(value, blue, out=value)
    chroma = value - low
    hue = torch.add(green, blue).sub_(red).sub_(low)
    # A grey pixel has chroma 0, and 0 / tiny is 0: it stays grey whatever its hue is.
    hue.div_(chroma.clamp(min=torch.finfo(chroma.dtype).tiny)).add_(1).copysign_(green - blue)
    hue.add_(factor.view(-1, 1, 1), alpha=6)
    hue.sub_(hue.div(6).round_(), alpha=6)
    centres = torch.tensor([0.0, 2.0, -2.0]).to(images.device, non_blocking=True).view(1, 3, 1, 1)
    # |hue - centre| is at most 5, so d = 3 - ||hue - centre| - 3|; this is -clamp(d - 1, 0, 1).
    short = torch.sub(hue.unsqueeze(1), centres).abs_().sub_(3).abs_().sub_(2).clamp_(-1, 0)
    return torch.addcmul(value.unsqueeze(1), chroma.unsqueeze(1), short, out=images)


def _grayscale(images: Tensor, factor: Tensor) -> Tensor:
    return images.copy_(_luma(images).expand_as(images))


# In place, on (m, 3, H, W) and factors (m, 1, 1, 1); the first four in the order of StrongParameters.factors.
_COLOUR_OPERATIONS = (_brightness, _contrast, _saturation, _hue, _grayscale)
_NONE_DUE = len(_COLOUR_OPERATIONS)


def _colour(views: Tensor, parameters: StrongParameters) -> Tensor:
    """Colour jitter, then grayscale. Overwrites `views`; returns the result.

    Before each of the five stages the batch is sorted by the operation that is due, so that each operation works in
    place on a slice: one copy a stage, instead of a gather and a scatter for every operation.
    """
    jitter = torch.where(parameters.jitter.unsqueeze(1), parameters.order, _NONE_DUE)
    gray = torch.where(parameters.gray, _COLOUR_OPERATIONS.index(_grayscale), _NONE_DUE)
    due = torch.cat([jitter, gray.unsqueeze(1)], dim=1).t()
    images = torch.arange(len(views)).expand(1, -1)
    orders = torch.cat([images, due.argsort(dim=1, stable=True), images])
    # Where an image lay in the order before: the source of each copy. The last one restores the given order.
    sources = orders.argsort(dim=1)[:-1].gather(1, orders[1:])
    stages, factors = orders[1:-1], functional.pad(parameters.factors, (0, 2))
    # The host knows every length, so the pixels need no more of it than these two transfers.
    lengths = [torch.bincount(stage, minlength=_NONE_DUE + 1).tolist() for stage in due]
    amounts = factors[stages, due.gather(1, stages)].to(views.device, non_blocking=True)
    spare = torch.empty_like(views)
    *gathers, restore = sources.to(views.device, non_blocking=True)
    for gather, amount, length in zip(gathers, amounts, lengths, strict=True):
        # Two buffers take turns: fresh memory for every stage costs the CPU more than the copy itself.
        views, spare = torch.index_select(views, 0, gather, out=spare), views
        parts = zip(_COLOUR_OPERATIONS, views.split(length), amount.view(-1, 1, 1, 1).split(length), strict=False)
        for operation, part, factor in parts:
            if len(part):
                operation(part, factor)
    return torch.index_select(views, 0, restore, out=spare)


def strong_views(images: Tensor, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """One strong view of each image, (B, 3, H, W) float32 in [0, 1]: `draw_strong`, then `apply_strong`."""
    _check(images)
    height, width = images.shape[-2:]
    parameters = draw_strong(len(images), height, width, settings, generator)
    return apply_strong(images, parameters, settings.interpolation)


def two_views(images: Tensor, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """Two independent strong views of each image: (2B, 3, H, W), rows 2k and 2k + 1 the views of image k."""
    _check(images)
    return strong_views(images.repeat_interleave(2, dim=0), settings, generator)


def draw_weak(n: int, settings: ViewSettings, generator: torch.Generator) -> WeakParameters:
    """Parameters of n weak views: a crop of the image's own size anywhere in the padded image, and a flip."""
    corners = torch.randint(2 * settings.padding + 1, (n, 2), generator=generator)
    return WeakParameters(corners, torch.rand(n, generator=generator) < settings.flip)


def apply_weak(images: Tensor, parameters: WeakParameters, padding: int) -> Tensor:
    """Zero padding, crop to the images' own size (n, 3, H, W), flip, with given parameters; a new tensor.

    Raises:
        ValueError: as `apply_strong`.
    """
    _check(images)
    _check_number(images, parameters.flip)
    n, channels, height, width = images.shape
    corners = parameters.corners.to(images.device, non_blocking=True)
    mirrored = parameters.flip.to(images.device, non_blocking=True).unsqueeze(1)
    down = torch.arange(height, device=images.device) + corners[:, :1]
    across = torch.arange(width, device=images.device).expand(n, -1)
    across = torch.where(mirrored, width - 1 - across, across) + corners[:, 1:]
    padded = functional.pad(images, [padding] * 4)
    image = torch.arange(n, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[image, channel, down[:, None, :, None], across[:, None, None, :]]


def weak_views(images: Tensor, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """One weak view of each image, (B, 3, H, W) float32 in [0, 1]: `draw_weak`, then `apply_weak`."""
    _check(images)
    return apply_weak(images, draw_weak(len(images), settings, generator), settings.padding)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.float32:
        raise ValueError(
            f"views take float32 images of shape (n, 3, height, width), got {images.dtype} of shape "
            f"{tuple(images.shape)}: uint8 images go through as_float first"
        )
    if images.device.type == "cpu" and images.numel():
        low, high = (float(bound) for bound in images.aminmax())
        # Written so that a NaN, which fails every comparison, is refused too.
        if not (low >= 0 and high <= 1):
            raise ValueError(f"views take images in [0, 1], got values from {low} to {high}")


def _check_number(images: Tensor, parameter: Tensor) -> None:
    if len(images) != len(parameter):
        raise ValueError(f"{len(images)} images but parameters for {len(parameter)} views: give one set per image")
