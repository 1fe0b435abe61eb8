"""Perspective distortion by Moebius maps, as in MPD (Chhipa et al., ECCV 2024) and its test set ImageNet-PD."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_gym.ssl_core.utils.registry import pick

DIRECTIONS: Mapping[str, complex] = {"left": -1, "right": 1, "top": -1j, "bottom": 1j}
"""Direction of c in the map z / (c z + 1); the plane's imaginary axis points down, like the rows."""
MAGNITUDES = (0.2, 0.3)
"""Range of |c|, drawn uniformly: MPD's range for supervised training, which is within its wider ones."""
MAGNITUDE_DEVIATION = (
    f"the strengths of the distortion are drawn from U({MAGNITUDES[0]:g}, {MAGNITUDES[1]:g}): those of ImageNet-PD "
    "are not known"
)
_POLE = 0.5**0.5
"""Least |c| / |d| at which the pole of z / (c z + d), |d / c| from the middle, may be within the image's corners."""


def draw_magnitudes(n: int, generator: torch.Generator) -> Tensor:
    """Draw |c| of n images from U(0.2, 0.3), (n,) float32 on the CPU."""
    low, high = MAGNITUDES
    return low + (high - low) * torch.rand(n, generator=generator)


def plane(height: int, width: int, like: Tensor) -> Tensor:
    """Return z = x + i y of the pixels on [-1, 1]^2, complex (height, width), corners aligned, as precise as `like`."""
    x = torch.linspace(-1, 1, width, dtype=like.real.dtype, device=like.device)
    y = torch.linspace(-1, 1, height, dtype=like.real.dtype, device=like.device)
    return torch.complex(x.expand(height, width), y[:, None].expand(height, width))


def moebius_grid(height: int, width: int, c: Tensor, d: float = 1.0) -> Tensor:
    """Return the source of each pixel of a distorted image: Phi(z) = z / (c z + d) on [-1, 1]^2, corners aligned.

    Args:
        height, width: size of the images, in pixels.
        c: (n,) complex, in any direction.
        d: real, not 0; where |c| / |d| is below 1/sqrt(2), the pole is outside the image.

    Returns:
        (n, height, width, 2), x and y, as `torch.nn.functional.grid_sample` takes them with align_corners=True.
    """
    z = plane(height, width, c)
    return torch.view_as_real(z / (c[:, None, None] * z + d))


def distort(images: Tensor, direction: str, padded: bool, magnitude: Tensor) -> Tensor:
    """Show images as seen from one side, by bilinear sampling.

    Args:
        images: float (n, 3, H, W) in [0, 1].
        direction: a name of `DIRECTIONS`.
        padded: whether the image is reflected at its borders; otherwise it is black beyond them.
        magnitude: (n,), |c| of each image, in [0, 0.7): at 1/sqrt(2) or more the map's pole may be within the image.

    Returns:
        New images of the same shape and type; a magnitude of 0 changes an image by rounding only.

    Raises:
        ValueError: if an argument is not as above.
    """
    if not images.is_floating_point() or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: expected float (n, 3, H, W) in [0, 1]")
    if magnitude.shape != images.shape[:1] or not magnitude.is_floating_point():
        got = f"{magnitude.dtype} {tuple(magnitude.shape)}"
        raise ValueError(f"magnitude is {got}: expected a float for each image, ({len(images)},)")
    if not bool(((magnitude >= 0) & (magnitude < _POLE)).all()):
        span = f"[{float(magnitude.min()):g}, {float(magnitude.max()):g}]"
        raise ValueError(f"magnitudes are in {span}: expected at least 0 and below {_POLE:.3g}")
    c = magnitude.to(images) * pick(direction, DIRECTIONS, "direction")
    grid = moebius_grid(images.shape[2], images.shape[3], c)
    mode = "reflection" if padded else "zeros"
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=mode, align_corners=True).clamp(0, 1)
