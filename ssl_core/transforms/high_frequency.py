"""Views computed in the frequency domain."""

import torch
from torch import Tensor


def high_frequency(images: Tensor, radius: float = 8.0) -> Tensor:
    """Return the high-frequency part of images, AdvCL's fourth view (Fan et al., NeurIPS 2021, and its released code).

    Each channel loses every frequency less than `radius` from the center of its spectrum, its mean included. As in the
    released code nothing is clamped: the pixels are centered on 0, half of them negative, not in [0, 1]. Give the
    result to a network, not to an attack.

    Args:
        images: (n, channels, H, W) float32 or float64, any device.
        radius: radius in waves across the image, at least 0; 0 keeps all. The default is AdvCL's for 32 pixels: it
            keeps waves of 4 pixels and shorter. It is not scaled with the size: for other sizes take a quarter of the
            side; 8 leaves nearly nothing of 16 pixels.

    Returns:
        A new tensor (n, channels, H, W), about in [-1, 1].

    Raises:
        ValueError: if an argument is not as above.
    """
    if images.ndim != 4 or images.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"high_frequency takes float32 or float64 images (n, channels, H, W), got {images.dtype} of shape "
            f"{tuple(images.shape)}: uint8 images go through views.as_float first"
        )
    if not radius >= 0:
        raise ValueError(f"high_frequency: radius is {radius}, expected a number of waves across the image, 0 or more")
    height, width = images.shape[-2:]
    down = (torch.arange(height, device=images.device) + height // 2) % height - height // 2
    # The spectrum of a real image is symmetric about its center, and so is the disc, so half of it is enough.
    across = torch.arange(width // 2 + 1, device=images.device)
    kept = down[:, None] ** 2 + across**2 >= radius**2
    with torch.autocast(images.device.type, enabled=False):
        return torch.fft.irfft2(torch.fft.rfft2(images) * kept, s=(height, width))
