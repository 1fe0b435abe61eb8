"""Losses of the batch's covariances: Barlow Twins and VICReg, and what a single view adds to them.

Neither is a sum over views. A *row* here is a view's share: the rows' mean is the loss, and so is its gradient. But a
share also moves when other views change. A *marginal* change is what one view alone does: 2N times the change of the
loss when this view is replaced and all others stay. To first order the mean of the marginal changes is the change of
the loss when all views are replaced.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.losses.contrastive import reduced


def barlow_twins(z: Tensor, lambda_param: float = 0.0051, scale: float = 0.1, reduction: str = "mean") -> Tensor:
    """Barlow Twins (Zbontar et al. 2021, equations 1 and 2), times a scale.

    `L = scale * [sum_i (1 - C_ii)^2 + lambda * sum_{i != j} C_ij^2]` with `C = A^T B / N`, the correlation of first
    and second views, both standardized over the batch (biased variance, no learned scale). With `M = W * (C - I)`, W
    being 1 on the diagonal and lambda beside it, the row of both views of image n is `scale * (a_n^T M b_n - tr M)`.

    Args:
        z: embeddings (2N, d); rows 2k and 2k+1 are the two views of image k.
        lambda_param: weight beside the diagonal, 0 or more. The sum there grows with d^2: it belongs to a d (.0051 to
            2048 or more).
        scale: factor of the loss (.1 in solo-learn's CIFAR settings, 1 in the authors' code).
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or the rows (2N,), which may be negative; their mean is in [0, scale * d * (4 + lambda * (d - 1))].

    Raises:
        ValueError: if z is not (2N, d), or the reduction is unknown.
    """
    a, b = (_standardized(each) for each in _views(z))
    excess = _excess(a, b, lambda_param)
    rows = ((a @ excess) * b).sum(dim=1) - excess.diagonal().sum()
    return reduced(scale * rows.repeat_interleave(2), reduction)


def barlow_twins_marginal(clean: Tensor, moved: Tensor, lambda_param: float = 0.0051, scale: float = 0.1) -> Tensor:
    """Marginal change of `barlow_twins` of each view, (2N,): its standardized row alone is replaced.

    Args:
        clean: embeddings (2N, d) of the batch in which a view is replaced.
        moved: embeddings (2N, d) that replace them; both batches are standardized by their own statistics.
        lambda_param, scale: as in `barlow_twins`.
    """
    a, b = (_standardized(each) for each in _views(clean))
    changes = [_standardized(new) - old for new, old in zip(_views(moved), (a, b), strict=True)]
    excess = _excess(a, b, lambda_param)
    found = []
    for change, partner, slope in zip(changes, (b, a), (b @ excess.T, a @ excess), strict=True):
        # C changes by the outer product of change and partner, over N
        own, other = change.square(), partner.square()
        square = (1 - lambda_param) * (own * other).sum(dim=1) + lambda_param * own.sum(dim=1) * other.sum(dim=1)
        found.append(4 * (change * slope).sum(dim=1) + 2 / len(a) * square)
    return scale * torch.stack(found, dim=1).flatten()


def vicreg(
    z: Tensor,
    sim_coeff: float = 25.0,
    std_coeff: float = 25.0,
    cov_coeff: float = 1.0,
    eps: float = 1e-4,
    reduction: str = "mean",
) -> Tensor:
    """VICReg (Bardes et al. 2022, equations 1 to 6) as in solo-learn.

    `L = sim * mean (z1 - z2)^2 + sum over both views of [std * mean_d relu(1 - s_d) + cov / d * sum_{i != j} C_ij^2]`,
    with C the unbiased covariance over the batch and `s_d = sqrt(C_dd + eps)`. The authors' code takes the mean of both
    views' variance terms: its std of 25 is 12.5 here.

    The row of view n is `sim * |z1_n - z2_n|^2 / d + 2 * (std * var_n + cov * cov_n)`, where var_n and cov_n have the
    view's variance and covariance term as their mean over the images.

    Args:
        z: embeddings (2N, d); rows 2k and 2k+1 are the two views of image k. N is 2 or more.
        sim_coeff, std_coeff, cov_coeff: weights of invariance, variance and covariance, 0 or more.
        eps: added to a variance, positive.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, 0 or more, or the rows (2N,), which may be negative.

    Raises:
        ValueError: if z is not (2N, d) with N >= 2, or the reduction is unknown.
    """
    first, second = _views(z, least=2)
    n, d = first.shape
    invariance = (first - second).square().sum(dim=1) / d
    rows = []
    for view in (first, second):
        centered = view - view.mean(dim=0)
        covariance = centered.T @ centered / (n - 1)
        deviation = (covariance.diagonal() + eps).sqrt()
        shares = 1 - (n / (n - 1) * centered.square() + eps) / deviation
        variances = (shares * (deviation < 1)).sum(dim=1) / d
        covariances = n / (d * (n - 1)) * ((centered @ _beside(covariance)) * centered).sum(dim=1)
        rows.append(sim_coeff * invariance + 2 * (std_coeff * variances + cov_coeff * covariances))
    return reduced(torch.stack(rows, dim=1).flatten(), reduction)


def vicreg_marginal(
    clean: Tensor,
    moved: Tensor,
    sim_coeff: float = 25.0,
    std_coeff: float = 25.0,
    cov_coeff: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """Marginal change of `vicreg` of each view, (2N,): its embedding alone is replaced.

    Args:
        clean: embeddings (2N, d) of the batch in which a view is replaced.
        moved: embeddings (2N, d) that replace them.
        sim_coeff, std_coeff, cov_coeff, eps: as in `vicreg`.
    """
    before, after = _views(clean, least=2), _views(moved, least=2)
    n, d = before[0].shape
    found = []
    for view, new, partner in zip(before, after, reversed(before), strict=True):
        u = view - view.mean(dim=0)
        covariance = u.T @ u / (n - 1)
        # without the old row the mean is u / (n - 1) lower; the new row's distance to that
        w = new - view.mean(dim=0) + u / (n - 1)
        out, into = n / (n - 1) ** 2, 1 / n
        variance = covariance.diagonal() - out * u.square() + into * w.square()
        spread = F.relu(1 - (variance + eps).sqrt()) - F.relu(1 - (covariance.diagonal() + eps).sqrt())
        # C becomes C - out * u u^T + into * w w^T: what that adds to the squares beside its diagonal
        beside = _beside(covariance)
        squares = 2 * (into * ((w @ beside) * w).sum(dim=1) - out * ((u @ beside) * u).sum(dim=1))
        squares = squares + out**2 * _products(u, u) + into**2 * _products(w, w) - 2 * out * into * _products(u, w)
        distance = (new - partner).square().sum(dim=1) - (view - partner).square().sum(dim=1)
        change = sim_coeff * distance / (n * d) + std_coeff * spread.mean(dim=1) + cov_coeff * squares / d
        found.append(2 * n * change)
    return torch.stack(found, dim=1).flatten()


def _views(z: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    if z.ndim != 2 or len(z) < 2 * least or len(z) % 2:
        raise ValueError(
            f"z has shape {tuple(z.shape)}: expected (2N, d) with N >= {least}, rows 2k and 2k+1 the two views of "
            "image k"
        )
    return z[0::2], z[1::2]


def _standardized(z: Tensor) -> Tensor:
    # as a batch norm without scale and shift
    return (z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + 1e-5).sqrt()


def _excess(a: Tensor, b: Tensor, lambda_param: float) -> Tensor:
    """Return M = W * (C - I), (d, d)."""
    correlation = a.T @ b / len(a)
    identity = torch.eye(len(correlation), dtype=a.dtype, device=a.device)
    return (correlation - identity) * (lambda_param + (1 - lambda_param) * identity)


def _beside(matrix: Tensor) -> Tensor:
    return matrix - matrix.diagonal().diag()


def _products(u: Tensor, w: Tensor) -> Tensor:
    """Return the sum over i != j of u_i w_i u_j w_j in each row, (n,)."""
    return (u * w).sum(dim=1).square() - (u * w).square().sum(dim=1)
