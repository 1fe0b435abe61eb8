"""Augmentations of whole batches, on the images' device, from an explicit generator.

Every random parameter (crop boxes, factors, order of the color operations, coin flips) is drawn on the CPU by a CPU
generator; only the pixels are computed on the images' device. So a GPU run sees the same views as a CPU run up to
float32 rounding, and the host never waits for the device. `draw_*` and `apply_*` are separate, so that another library
can apply the same parameters for a comparison.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from astra_gym.ssl_core.transforms.blur import apply_filters, draw_filters
from astra_gym.ssl_core.transforms.color import color
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.registry import pick

_TRIES = 10


Kernel = Callable[[Tensor], Tensor]
"""A resampling kernel: the weight at a distance in pixels of the coarser grid."""


def _triangle(distance: Tensor) -> Tensor:
    return distance.neg_().add_(1).relu_()


def _keys_cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2, both pieces in one expression: u^2 (u-1) / 2 + p^2 (1-2p)."""
    u = (2 - distance).relu_()
    p = distance.neg_().add_(1).relu_()
    outer = u.square().mul_(u.sub_(1)).mul_(0.5)
    return outer.addcmul_(p.square(), p.mul_(-2).add_(1))


INTERPOLATIONS: Mapping[str, Kernel] = {"bilinear": _triangle, "bicubic": _keys_cubic}


@dataclass(frozen=True)
class ViewSettings:
    """Settings of strong and weak views; the defaults are ACL's.

    Args:
        strength: s of the strong augmentation A(s), in [0, 1]; 1 is ACL's and ASTrA's.
        flip: probability of a horizontal flip, in [0, 1], strong and weak.
        interpolation: resampling of the random crop, "bicubic" (ACL, ASTrA) or "bilinear" (DynACL's default).
        padding: zero pixels around the image before the weak random crop, at least 0.
        crop: least and greatest share of the area that the strong crop keeps, 0 < least <= greatest <= 1, at every
            strength; None: (1 - 0.9 s, 1). (.08, 1) is RoCL's and TARO's, (.2, 1) AdvCL's.
        ratio: least and greatest width / height of the strong crop, positive.
        jitter: largest change r of brightness, contrast and saturation, in [0, 1] (factors 1 - r to 1 + r), and of the
            hue, in [0, 1/2] turns, all times s. (.4, .4, .2, .1) is TARO's, (.8, .8, .8, .2) solo-learn's.
        jitter_probability: probability of the color jitter, in [0, 1], times s.
        gray_probability: probability of grayscale, in [0, 1], times s.
        blur_probability: probability of a Gaussian blur of each of two strong views, in [0, 1], times s; SimSiam's is
            .5. None is 0, except for EMP-SSL's multi-crop views, which have their own default.
        solarize_probability: probability of inverting values of 128/255 or more in the second of two strong views, in
            [0, 1], times s; BYOL's is .2. None as above.

    Raises:
        ValueError: if a value is outside its range, or the interpolation is unknown.
    """

    strength: float = 1.0
    flip: float = 0.5
    interpolation: str = "bicubic"
    padding: int = 4
    crop: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8
    gray_probability: float = 0.2
    blur_probability: float | None = None
    solarize_probability: float | None = None

    def __post_init__(self) -> None:
        shares = ("jitter_probability", "gray_probability", "blur_probability", "solarize_probability")
        for name in ("strength", "flip", *shares):
            if getattr(self, name) is not None:
                check_number(f"views: {name}", getattr(self, name), 0, 1)
        check_number("views: padding", self.padding, expected="a number of pixels, 0 or more", whole=True)
        pick(self.interpolation, INTERPOLATIONS, "interpolation")
        if self.crop is not None and not (len(self.crop) == 2 and 0 < self.crop[0] <= self.crop[1] <= 1):
            raise ValueError(
                f"views: crop is {self.crop}, expected two shares of the area, 0 < least <= greatest <= 1, or None"
            )
        if not (len(self.ratio) == 2 and 0 < self.ratio[0] <= self.ratio[1] < math.inf):
            raise ValueError(f"views: ratio is {self.ratio}, expected two positive numbers, the least first")
        limits = (1, 1, 1, 0.5)
        if len(self.jitter) != 4 or not all(0 <= r <= top for r, top in zip(self.jitter, limits, strict=True)):
            raise ValueError(f"views: jitter is {self.jitter}, expected three numbers in [0, 1] and one in [0, 0.5]")


@dataclass(frozen=True, eq=False)
class StrongParameters:
    """Random parameters of n strong views; all tensors on the CPU.

    Attributes:
        boxes: (n, 4) int64: top, left, height, width of the crop, in pixels.
        flip: (n,) bool.
        jitter: (n,) bool: whether the color jitter is applied.
        order: (n, 4) int64: the column of `factors` to apply at each of four positions.
        factors: (n, 4) float32: brightness, contrast, saturation (neutral at 1), hue shift in turns (neutral at 0).
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
    """Random parameters of n weak views; all tensors on the CPU.

    Attributes:
        corners: (n, 2) int64: top and left of the crop in the padded image.
        flip: (n,) bool.
    """

    corners: Tensor
    flip: Tensor


def as_float(images: Tensor) -> Tensor:
    """Convert uint8 images of any shape to float32 in [0, 1]; raise a ValueError for any other dtype."""
    if images.dtype != torch.uint8:
        raise ValueError(f"as_float takes uint8 images, got {images.dtype}: float images are in [0, 1] already")
    return images.to(torch.float32).div_(255)


def draw_strong(
    n: int, height: int, width: int, settings: ViewSettings, generator: torch.Generator
) -> StrongParameters:
    """Draw the parameters of n views by ACL's strong augmentation A(s), changed by the settings.

    RandomResizedCrop of scale (1 - 0.9 s, 1) and ratio (3/4, 4/3) by torchvision's rule (ten tries, then the largest
    central crop of a legal ratio), flip, ColorJitter(.4 s, .4 s, .4 s, .1 s) with probability .8 s in a separate random
    order for every image, grayscale with probability .2 s. A draw takes 33 numbers per image for any settings, so a
    strength that changes over training does not shift the stream.

    At s = 0 a ratio is still drawn, but on a square image only the whole image fits, which is the fallback too: the
    view is the image or its mirror image. An image longer than 4:3 keeps its central 4:3 part, stretched to the whole,
    which is torchvision's fallback.
    """
    s = settings.strength
    u = torch.rand(n, 2 * _TRIES + 13, generator=generator, dtype=torch.float64)
    areas, ratios, corner, coins, amounts, keys = u.split([_TRIES, _TRIES, 2, 3, 4, 4], dim=1)
    # The difference of two ends would be 0.9 s only up to rounding, which would change the draws.
    crop = settings.crop
    span, least = (0.9 * s, 1 - 0.9 * s) if crop is None else (crop[1] - crop[0], crop[0])
    boxes = _crop_boxes(areas.mul(span).add(least), ratios, settings.ratio, corner, height, width)
    # Brightness, contrast, saturation and hue, centered on the amounts that change nothing.
    reach, neutral = torch.tensor(settings.jitter, dtype=torch.float64) * s, torch.tensor([1.0, 1.0, 1.0, 0.0])
    chances = torch.tensor(
        [settings.flip, settings.jitter_probability * s, settings.gray_probability * s], dtype=torch.float64
    )
    flip, jitter, gray = (coins < chances).unbind(1)
    factors = ((2 * amounts - 1) * reach + neutral).float()
    return StrongParameters(boxes, flip, jitter, keys.argsort(dim=1), factors, gray)


def _crop_boxes(
    shares: Tensor, ratios: Tensor, legal: tuple[float, float], corner: Tensor, height: int, width: int
) -> Tensor:
    """Draw crop boxes as torchvision's RandomResizedCrop.get_params does, for a batch.

    `shares` of the area (n, tries); `ratios` (n, tries) and `corner` (n, 2) uniform in [0, 1); ratios within `legal`.
    """
    n = len(shares)
    log_ratio = math.log(legal[0]) + ratios * math.log(legal[1] / legal[0])
    area, ratio = shares * (height * width), log_ratio.exp()
    sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=2).round().long()
    limits = torch.tensor([height, width])
    fits = ((sizes > 0) & (sizes <= limits)).all(dim=2)
    size = sizes[torch.arange(n), fits.int().argmax(dim=1)]
    # Python's round() rounds half to even, like torch.round above.
    central = torch.tensor([min(height, round(width / legal[0])), min(width, round(height * legal[1]))])
    found = fits.any(dim=1, keepdim=True)
    size = torch.where(found, size, central)
    room = limits - size
    start = torch.where(found, torch.minimum((corner * (room + 1)).long(), room), room // 2)
    return torch.cat([start, size], dim=1)


def apply_strong(images: Tensor, parameters: StrongParameters, interpolation: str = "bicubic") -> Tensor:
    """Apply given parameters: crop and resize to the images' size, clamp, flip, color jitter, grayscale.

    Args:
        images: (n, 3, H, W) float32 in [0, 1], any device.
        parameters: parameters of n views.
        interpolation: a key of `INTERPOLATIONS`; with antialiasing, which matters only where a size shrinks.

    Returns:
        (n, 3, H, W) float32 in [0, 1], a new tensor.

    Raises:
        ValueError: if images have another shape, dtype or range (the range is checked on the CPU only: on a GPU the
            host would wait), or the numbers of parameters and images differ.
    """
    check_images(images)
    check_one_each(images, parameters.flip)
    height, width = images.shape[-2:]
    crops = resized_crop(images, parameters.boxes, parameters.flip, (height, width), interpolation)
    return color(crops, parameters.jitter, parameters.order, parameters.factors, parameters.gray)


def resized_crop(images: Tensor, boxes: Tensor, flip: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resample one box per image with antialiasing to one size, mirror it where `flip`, and clamp to [0, 1].

    Resampling is separable and linear, so the whole batch is two batched matrix products; mirroring reorders the rows
    of one matrix. Equal to torchvision's `resized_crop(antialias=True)` up to float32 rounding (up to TF32's on a GPU,
    if the caller has set matrix products to that).

    Args:
        images: (n, C, H, W) float32.
        boxes: (n, 4) int64 on the CPU: top, left, height, width.
        flip: (n,) bool on the CPU.
        size: height and width of the result.
        interpolation: a key of `INTERPOLATIONS`.

    Returns:
        (n, C, height, width) float32 in [0, 1], of the given size.
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
    """Return (n, size_out, size_in) matrices that resample [start, start + length); each row sums to one."""
    pixel = torch.arange(size_in, device=start.device, dtype=start.dtype)
    place = torch.arange(size_out, device=start.device, dtype=start.dtype).expand(len(start), -1)
    if mirrored is not None:
        place = torch.where(mirrored.unsqueeze(1), size_out - 1 - place, place)
    step = (length / size_out).unsqueeze(1)
    center = (place + 0.5) * step + (start.unsqueeze(1) - 0.5)
    # Where the grid gets coarser, the kernel widens with it, which is the antialiasing.
    zoom = step.clamp(min=1).reciprocal()
    weights = kernel(((pixel - center.unsqueeze(2)) * zoom.unsqueeze(2)).abs_())
    inside = (pixel >= start.unsqueeze(1)) & (pixel < (start + length).unsqueeze(1))
    weights.mul_(inside.unsqueeze(1))
    return weights.div_(weights.sum(dim=2, keepdim=True))


def strong_views(images: Tensor, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """Return one strong view of each image, (B, 3, H, W) float32 in [0, 1]: `draw_strong`, then `apply_strong`."""
    check_images(images)
    height, width = images.shape[-2:]
    parameters = draw_strong(len(images), height, width, settings, generator)
    return apply_strong(images, parameters, settings.interpolation)


def two_views(images: Tensor, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """Return two independent strong views of each image, with blur and solarization if the settings have them.

    Returns:
        (2B, 3, H, W), rows 2k and 2k + 1 the views of image k.
    """
    check_images(images)
    views = strong_views(images.repeat_interleave(2, dim=0), settings, generator)
    blur, solarize = settings.blur_probability or 0.0, settings.solarize_probability or 0.0
    if not (blur or solarize):
        # nothing is drawn for filters that are off
        return views
    chances = settings.strength * blur, settings.strength * solarize * (torch.arange(len(views)) % 2)
    return apply_filters(views, draw_filters(len(views), *chances, generator))


def draw_weak(n: int, settings: ViewSettings, generator: torch.Generator) -> WeakParameters:
    """Draw the parameters of n weak views: a crop of the image's size anywhere in the padded image, and a flip."""
    corners = torch.randint(2 * settings.padding + 1, (n, 2), generator=generator)
    return WeakParameters(corners, torch.rand(n, generator=generator) < settings.flip)


def apply_weak(images: Tensor, parameters: WeakParameters, padding: int) -> Tensor:
    """Pad with zeros, crop to the images' size and flip, with given parameters; return a new tensor (n, 3, H, W).

    Raises:
        ValueError: as `apply_strong`.
    """
    check_images(images)
    check_one_each(images, parameters.flip)
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
    """Return one weak view of each image, (B, 3, H, W) float32 in [0, 1]: `draw_weak`, then `apply_weak`."""
    check_images(images)
    return apply_weak(images, draw_weak(len(images), settings, generator), settings.padding)


def check_images(images: Tensor) -> None:
    """Raise a ValueError unless images are (n, 3, H, W) float32 in [0, 1]; the range is checked on the CPU only."""
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.float32:
        raise ValueError(
            f"views take float32 images of shape (n, 3, height, width), got {images.dtype} of shape "
            f"{tuple(images.shape)}: uint8 images go through as_float first"
        )
    if images.device.type == "cpu" and images.numel():
        low, high = (float(bound) for bound in images.aminmax())
        # In this form it also refuses NaN, which fails every comparison.
        if not (low >= 0 and high <= 1):
            raise ValueError(f"views take images in [0, 1], got values from {low} to {high}")


def check_one_each(images: Tensor, parameter: Tensor) -> None:
    """Raise a ValueError unless there is one set of parameters per image."""
    if len(images) != len(parameter):
        raise ValueError(f"{len(images)} images but parameters for {len(parameter)} views: give one set per image")
