"""SciPy's image filters in torch, in float64 on any device: Gaussian smoothing and sampling between pixels."""

import numpy as np
import torch
from torch import Tensor


def folded(places: Tensor, n: int, mode: str) -> Tensor:
    """The pixels 0..n-1 that stand at places, which may lie beyond a line of n pixels.

    Args:
        places: whole numbers.
        n: 1 or more.
        mode: SciPy's names: `nearest` (aaa|abc|ccc), `mirror` (cb|abc|ba) or `reflect` (ba|abc|cb).
    """
    if mode == "nearest" or n == 1:
        return places.clamp(0, n - 1)
    last = 2 * n - 2 if mode == "mirror" else 2 * n - 1
    places = places.remainder(2 * n - 2 if mode == "mirror" else 2 * n)
    return torch.minimum(places, last - places)


def extended(x: Tensor, dim: int, by: int, mode: str) -> Tensor:
    """x with `by` more entries at both ends of a dimension, see `folded`."""
    n = x.shape[dim]
    return x.index_select(dim, folded(torch.arange(-by, n + by, device=x.device), n, mode))


def smoothed(x: Tensor, sigma: float, mode: str, truncate: float = 4.0) -> Tensor:
    """`scipy.ndimage.gaussian_filter` over the last two dimensions of x (..., h, w), in its order of additions.

    Args:
        x: float64.
        sigma: standard deviation in pixels, 0 or more.
        mode: of the borders, see `folded`.
        truncate: the filter's radius, in standard deviations.
    """
    if sigma < 1e-15:  # as SciPy has it
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
    """`scipy.ndimage.map_coordinates` of order 1, for all channels of an image at the same places.

    Args:
        x: (n, channels, h, w) float64.
        rows, columns: (n, k) float64, in pixels.
        mode: what lies beyond the borders, see `folded`.

    Returns:
        (n, channels, k).
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
