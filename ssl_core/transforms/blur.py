"""Blur and solarization of whole batches, with a separate draw for each image."""

from dataclasses import dataclass

import torch
from torch import Tensor

SIGMAS = (0.1, 2.0)
"""Range of the blur's standard deviation, drawn uniformly, in pixels: EMP-SSL's and solo-learn's."""
_BLUR_RADIUS = 6
_SOLARIZE_FROM = 128 / 255


@dataclass(frozen=True, eq=False)
class FilterParameters:
    """Random parameters of the filters of n images; all tensors on the CPU.

    Attributes:
        blur: (n,) bool: whether the image is blurred.
        sigma: (n,) float32: standard deviation of the blur, in pixels.
        solarize: (n,) bool: whether values of 128/255 or more are inverted.
    """

    blur: Tensor
    sigma: Tensor
    solarize: Tensor


def draw_filters(
    n: int, blur: float | Tensor, solarize: float | Tensor, generator: torch.Generator
) -> FilterParameters:
    """Draw the parameters of the filters of n images: always 3 numbers per image.

    Args:
        n: number of images.
        blur, solarize: probabilities in [0, 1], one for all images or (n,).
        generator: CPU generator.
    """
    blurred, width, inverted = torch.rand(n, 3, generator=generator, dtype=torch.float64).unbind(1)
    low, high = SIGMAS
    return FilterParameters(blurred < blur, (low + (high - low) * width).float(), inverted < solarize)


def apply_filters(images: Tensor, parameters: FilterParameters) -> Tensor:
    """Blur, then solarize, with given parameters.

    Args:
        images: (n, channels, H, W) float32 in [0, 1], any device; blurred images are overwritten.
        parameters: parameters of n images.

    Returns:
        (n, channels, H, W) float32 in [0, 1], a new tensor.
    """
    chosen = parameters.blur.nonzero()[:, 0]
    if len(chosen):
        rows = chosen.to(images.device, non_blocking=True)
        images.index_copy_(0, rows, gaussian_blur(images.index_select(0, rows), parameters.sigma[chosen]))
    inverted = parameters.solarize.to(images.device, non_blocking=True).view(-1, 1, 1, 1) & (images >= _SOLARIZE_FROM)
    return torch.where(inverted, 1 - images, images)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own width, reflected at the borders.

    The kernel's radius is 6 pixels (three times the greatest of `SIGMAS`). In images of fewer than 7 pixels it is the
    shorter side less one, the limit of reflection. Equal to torchvision's `gaussian_blur` with a `kernel_size` of 13,
    up to rounding. EMP-SSL and solo-learn blur with Pillow, which approximates a Gaussian by boxes.

    Args:
        images: (n, channels, H, W) float32.
        sigma: (n,) float32 on the CPU, positive, in pixels.

    Returns:
        New images of the same shape, in [0, 1].
    """
    height, width = images.shape[-2:]
    radius = min(_BLUR_RADIUS, height - 1, width - 1)
    distance = torch.arange(-radius, radius + 1, dtype=sigma.dtype)
    kernels = (-0.5 * (distance / sigma[:, None]).square()).exp()
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).to(images.device, non_blocking=True)
    with torch.autocast(images.device.type, enabled=False):
        down, across = (_blurring(kernels, size, radius) for size in (height, width))
        # Rows of weights sum to one only up to rounding.
        return (down.unsqueeze(1) @ images @ across.mT.unsqueeze(1)).clamp_(0, 1)


def _blurring(kernels: Tensor, size: int, radius: int) -> Tensor:
    """Return (n, size, size) matrices that convolve with kernels (n, 2 radius + 1), reflected at both ends."""
    place = torch.arange(size, device=kernels.device)
    source = place[:, None] + torch.arange(-radius, radius + 1, device=kernels.device)
    source = (size - 1) - ((size - 1) - source.abs()).abs()
    # Each weight goes to the place of its source; weights with the same source add up.
    spread = (source.unsqueeze(2) == place).to(kernels.dtype)
    return torch.einsum("nk,pks->nps", kernels, spread)
