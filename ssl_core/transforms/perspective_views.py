"""Perspective distortion as an augmentation: MPD (Chhipa et al., ECCV 2024) and LCM (Chhipa et al., ACCV 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_gym.ssl_core.transforms.moebius import DIRECTIONS, moebius_grid, plane
from astra_gym.ssl_core.transforms.views import check_images, check_one_each
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.registry import pick

PERSPECTIVES: Mapping[str, str] = {
    "none": "the images as they are",
    "moebius": "MPD's Moebius maps, z / (c z + d)",
    "lcm": "log conformal maps, log(k z + 1): experimental, with ranges of our own",
}
PADDINGS: Mapping[str, str] = {
    "zeros": "black beyond the image, MPD's default",
    "reflection": "the image reflected at its borders, MPD's integrated padding",
    "border": "the border's pixels repeated, as MPD's package has it",
}
LCM_K = (0.6, 0.9)
"""Range of k in log(k z + 1), drawn uniformly. The range is ours: LCM's is not published."""
_NUMBERS = 4


@dataclass(frozen=True)
class PerspectiveSettings:
    """Settings of a perspective distortion; the numbers' defaults are those of MPD's DINO, which distorts crops.

    Here too a method's views are distorted after their crop. MPD's SimCLR has magnitude (.2, .4), d .75 and
    probability .8, its supervised training (.2, .3), 1 and .2; both distort the whole image before the crop.

    "lcm" is EXPERIMENTAL. The form log(k z + c) and the flips and rotations for its four views are published; the
    constants and the probability are not. Ours are c = 1, which does not move the middle, and a real k from U(.6, .9),
    which keeps k z + c away from 0 and from the logarithm's cut.

    Args:
        kind: a name of `PERSPECTIVES`; "none" draws nothing and changes nothing.
        probability: probability that an image is distorted, in [0, 1].
        magnitude: least and greatest |c| of "moebius", 0 <= least <= greatest < d / sqrt(2): a larger c that points to
            a corner could put the map's pole inside the image. Not used by "lcm".
        d: d of "moebius", positive; the image shrinks by it if it is below 1. Not used by "lcm".
        padding: a name of `PADDINGS`.

    Raises:
        ValueError: if a value is outside its range, or a name is unknown.
    """

    kind: str = "none"
    probability: float = 0.8
    magnitude: tuple[float, float] = (0.1, 0.3)
    d: float = 1.0
    padding: str = "zeros"

    def __post_init__(self) -> None:
        pick(self.kind, PERSPECTIVES, "kind of perspective")
        pick(self.padding, PADDINGS, "padding")
        check_number("perspective: probability", self.probability, 0, 1)
        check_number("perspective: d", self.d, above=True)
        limit = self.d * 0.5**0.5
        if len(self.magnitude) != 2 or not 0 <= self.magnitude[0] <= self.magnitude[1] < limit:
            raise ValueError(
                f"perspective: magnitude is {self.magnitude}, expected 0 <= least <= greatest < {limit:.3g} = d / "
                "sqrt(2): beyond, the map's pole could lie within the image"
            )


@dataclass(frozen=True, eq=False)
class PerspectiveParameters:
    """The distortion of each of n images; all tensors on the CPU.

    Attributes:
        kind: a name of `PERSPECTIVES`.
        applied: (n,) bool: whether the image is distorted.
        direction: (n,) complex64, a value of `moebius.DIRECTIONS`. For "moebius" it is the direction of c; for "lcm" it
            is that of the side that comes nearer. For "moebius" the side that comes nearer is at the conjugate of the
            direction: with MPD's "top", the lower one.
        amount: (n,) float32: |c| of "moebius", k of "lcm".
        d: d of "moebius".
        padding: a name of `PADDINGS`.
    """

    kind: str
    applied: Tensor
    direction: Tensor
    amount: Tensor
    d: float
    padding: str


def draw_perspective(n: int, settings: PerspectiveSettings, generator: torch.Generator) -> PerspectiveParameters:
    """Draw for each of n images whether it is distorted, along one axis, with random sign and uniform strength.

    A draw always takes 4 numbers per image for any settings, but none for "none".
    """
    if settings.kind == "none":
        nothing = torch.zeros(n)
        one = torch.ones(n, dtype=torch.complex64)
        return PerspectiveParameters("none", nothing.bool(), one, nothing, settings.d, settings.padding)
    coin, axis, sign, strength = torch.rand(n, _NUMBERS, generator=generator, dtype=torch.float64).unbind(1)
    along = torch.where(axis < 0.5, DIRECTIONS["right"], DIRECTIONS["bottom"])
    direction = torch.where(sign < 0.5, -along, along).to(torch.complex64)
    low, high = settings.magnitude if settings.kind == "moebius" else LCM_K
    amount = (low + (high - low) * strength).float()
    applied = coin < settings.probability
    return PerspectiveParameters(settings.kind, applied, direction, amount, settings.d, settings.padding)


def apply_perspective(images: Tensor, parameters: PerspectiveParameters) -> Tensor:
    """Apply given parameters by bilinear sampling, corners aligned.

    Args:
        images: (n, 3, H, W) float32 in [0, 1], any device.
        parameters: parameters of n images.

    Returns:
        (n, 3, H, W) float32 in [0, 1]: `images` itself for "none", else a new tensor, in which images that are not
        distorted are the same to the last bit.

    Raises:
        ValueError: as `views.apply_strong`.
    """
    check_images(images)
    check_one_each(images, parameters.applied)
    if parameters.kind == "none":
        return images
    views = images.clone()
    chosen = parameters.applied.nonzero()[:, 0]
    if len(chosen):
        rows = chosen.to(images.device, non_blocking=True)
        direction = parameters.direction[chosen].to(images.device, non_blocking=True)
        amount = parameters.amount[chosen].to(images.device, non_blocking=True)
        height, width = images.shape[-2:]
        if parameters.kind == "moebius":
            grid = moebius_grid(height, width, amount * direction, parameters.d)
        else:
            grid = lcm_grid(height, width, amount, direction)
        # Autocast would need images and grid of one type.
        with torch.autocast(images.device.type, enabled=False):
            seen = F.grid_sample(images[rows], grid, "bilinear", parameters.padding, align_corners=True)
        views.index_copy_(0, rows, seen.clamp_(0, 1))
    return views


def lcm_grid(height: int, width: int, k: Tensor, direction: Tensor) -> Tensor:
    """Return the source of each pixel: u log(k z / u + 1) on [-1, 1]^2, u the direction; EXPERIMENTAL.

    For u = 1, log(k z + 1), the right side comes nearer. As in LCM, the other three views flip or turn the image, apply
    this map, and undo the flip or turn. The quarter turns are multiplications of the plane by u; the flip gives the
    same as u = -1, since k is real.

    Args:
        height, width: size of the images, in pixels.
        k: (n,) float, in (0, 1).
        direction: (n,) complex, of unit length: direction of the side that comes nearer.

    Returns:
        (n, height, width, 2), as `moebius.moebius_grid`.
    """
    u = direction[:, None, None]
    inner = k[:, None, None] * plane(height, width, direction) * u.conj() + 1
    # The complex logarithm by its parts, since not every device has it: k z / u + 1 is in the right half-plane.
    logarithm = torch.complex(torch.hypot(inner.real, inner.imag).log(), torch.atan2(inner.imag, inner.real))
    return torch.view_as_real(u * logarithm)


def perspective_views(images: Tensor, settings: PerspectiveSettings, generator: torch.Generator) -> Tensor:
    """Return one view of each image, (n, 3, H, W) float32 in [0, 1]: `draw_perspective`, then `apply_perspective`.

    With kind "none" nothing is drawn, and the images themselves are returned.
    """
    check_images(images)
    return apply_perspective(images, draw_perspective(len(images), settings, generator))
