"""SciPy's image filters in torch, in float64 on any device: Gaussian smoothing and sampling between pixels."""

import numpy as np
import torch
from torch import Tensor


def folded(places: Tensor, n: int, mode: str) -> Tensor:
    """Map positions, which may be outside a line of n pixels, to pixels 0..n-1.

    Args:
        places: integers.
        n: number of pixels, 1 or more.
        mode: border mode by SciPy's name: `nearest` (aaa|abc|ccc), `mirror` (cb|abc|ba) or `reflect` (ba|abc|cb).
    """
    if mode == "nearest" or n == 1:
        return places.clamp(0, n - 1)
    last = 2 * n - 2 if mode == "mirror" else 2 * n - 1
    places = places.remainder(2 * n - 2 if mode == "mirror" else 2 * n)
    return torch.minimum(places, last - places)


def extended(x: Tensor, dim: int, by: int, mode: str) -> Tensor:
    """Extend x by `by` entries at both ends of a dimension, see `folded`."""
    n = x.shape[dim]
    return x.index_select(dim, folded(torch.arange(-by, n + by, device=x.device), n, mode))


def smoothed(x: Tensor, sigma: float, mode: str, truncate: float = 4.0) -> Tensor:
    """`scipy.ndimage.gaussian_filter` over the last two dimensions, in SciPy's order of additions.

    Args:
        x: float64 (..., h, w).
        sigma: standard deviation in pixels, 0 or more.
        mode: border mode, see `folded`.
        truncate: the filter's radius, in standard deviations.
    """
    if sigma < 1e-15:  # as in SciPy
        return x
    radius = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 / (sigma * sigma) * np.arange(-radius, radius + 1) ** 2)
    weights /= weights.sum()
    for dim in (-2, -1):
        n, line = x.shape[dim], extended(x, dim, radius, mode)
        x = line.narrow(dim, radius, n) * float(weights[radius])
        for tap in range(radius):
            both = line.narrow(dim, tap, n) + line.narrow(dim, 2 * radius - tap, n)
            x += both.mul_(float(weights[tap]))
    return x


def sampled(x: Tensor, rows: Tensor, columns: Tensor, mode: str) -> Tensor:
    """`scipy.ndimage.map_coordinates` of order 1, at the same positions for all channels of an image.

    Args:
        x: float64 (n, channels, h, w).
        rows, columns: positions in pixels, float64 (n, k).
        mode: border mode, see `folded`.

    Returns:
        float64 (n, channels, k).
    """
    height, width = x.shape[2:]
    flat, (top, left) = x.flatten(2), (rows.floor(), columns.floor())
    down, right = rows - top, columns - left
    found = torch.zeros_like(flat[:, :, :1])
    for row, of_row in ((top, 1 - down), (top + 1, down)):
        for column, of_column in ((left, 1 - right), (left + 1, right)):
            place = folded(row.long(), height, mode) * width + folded(column.long(), width, mode)
            corner = flat.gather(2, place[:, None].expand(-1, x.shape[1], -1))
            found = found + corner * of_row[:, None] * of_column[:, None]
    return found
