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
"""k of log(k z + 1) is drawn uniformly from here. The range is ours: LCM's is not published."""
_NUMBERS = 4


@dataclass(frozen=True)
class PerspectiveSettings:
    """How images are seen from one side; the defaults of the numbers are those of MPD's DINO, which distorts crops.

    That is what is done with a method's views here. MPD's SimCLR has magnitude (.2, .4), d .75 and probability .8, its
    supervised training (.2, .3), 1 and .2; both distort the whole image, before it is cropped.

    "lcm" is EXPERIMENTAL. Published are the form log(k z + c) and how its four views come from one by flips and
    rotations, not the constants nor how often it is applied. Ours are c = 1, which keeps the middle where it is, and a
    real k from U(.6, .9), which keeps k z + c clear of 0 and of the logarithm's cut.

    Args:
        kind: a name of `PERSPECTIVES`; "none" draws nothing and changes nothing.
        probability: that an image is distorted, in [0, 1].
        magnitude: least and greatest |c| of "moebius", 0 <= least <= greatest < d / sqrt(2): from there on the map's
            pole could lie within the image, were c to point to a corner. Not used by "lcm".
        d: of "moebius", positive; below 1 the image shrinks by it. Not used by "lcm".
        padding: a name of `PADDINGS`.

    Raises:
        ValueError: a value outside its range, or an unknown name.
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
    """How each of n images is distorted; all tensors on the CPU.

    Attributes:
        kind: a name of `PERSPECTIVES`.
        applied: (n,) bool.
        direction: (n,) complex64, a value of `moebius.DIRECTIONS`: of "moebius" where c points to, of "lcm" where
            the side that comes nearer lies, which in "moebius" is the direction's conjugate: MPD's "top" has the lower
            side come nearer.
        amount: (n,) float32: |c| of "moebius", k of "lcm".
        d: of "moebius".
        padding: a name of `PADDINGS`.
    """

    kind: str
    applied: Tensor
    direction: Tensor
    amount: Tensor
    d: float
    padding: str


def draw_perspective(n: int, settings: PerspectiveSettings, generator: torch.Generator) -> PerspectiveParameters:
    """Parameters of n images: with the probability a distortion along one axis, of random sign and uniform strength.

    A draw takes 4 numbers per image whatever they are and whatever the settings are, but none at all for "none".
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
    """Apply given parameters by looking each pixel up, bilinearly, corners on corners.

    Args:
        images: (n, 3, H, W) float32 in [0, 1], any device.
        parameters: of n images.

    Returns:
        (n, 3, H, W) float32 in [0, 1]: `images` itself for "none", else a new tensor, in which the images that are not
        distorted are what they were, to the last bit.

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
        # Autocast would have the images and the grid of one type.
        with torch.autocast(images.device.type, enabled=False):
            seen = F.grid_sample(images[rows], grid, "bilinear", parameters.padding, align_corners=True)
        views.index_copy_(0, rows, seen.clamp_(0, 1))
    return views


def lcm_grid(height: int, width: int, k: Tensor, direction: Tensor) -> Tensor:
    """Where each pixel of an image is looked up: u log(k z / u + 1) on [-1, 1]^2, u the direction; EXPERIMENTAL.

    For u = 1, log(k z + 1), the right side comes nearer. The other three views are this one between a flip or a quarter
    turn and its inverse, as LCM has them; a turn of the plane is the multiplication by u, and a flip too, since k is
    real.

    Args:
        height, width: of the images.
        k: (n,) float, in (0, 1).
        direction: (n,) complex, of unit length: where the side that comes nearer lies.

    Returns:
        (n, height, width, 2), as `moebius.moebius_grid`.
    """
    u = direction[:, None, None]
    inner = k[:, None, None] * plane(height, width, direction) * u.conj() + 1
    # The complex logarithm by its parts, since not every device has it: k z / u + 1 lies in the right half-plane.
    logarithm = torch.complex(torch.hypot(inner.real, inner.imag).log(), torch.atan2(inner.imag, inner.real))
    return torch.view_as_real(u * logarithm)


def perspective_views(images: Tensor, settings: PerspectiveSettings, generator: torch.Generator) -> Tensor:
    """One view of each image, (n, 3, H, W) float32 in [0, 1]: `draw_perspective`, then `apply_perspective`.

    With kind "none" nothing is drawn, and the images themselves come back.
    """
    check_images(images)
    return apply_perspective(images, draw_perspective(len(images), settings, generator))
