"""Losses of frameworks without negatives: cosine similarity of predictions and targets (BYOL, SimSiam, ...)."""

from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.losses.contrastive import reduced


def partners(z: Tensor) -> Tensor:
    """Swap rows 2k and 2k+1, the two views of image k, so that each row becomes its partner's.

    Args:
        z: (2N, ...).

    Raises:
        ValueError: if there are no pairs.
    """
    if len(z) == 0 or len(z) % 2:
        raise ValueError(f"there are {len(z)} rows: expected pairs, rows 2k and 2k+1 the two views of image k")
    return z.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def negative_cosine(p: Tensor, z: Tensor, stop: bool = True, reduction: str = "mean") -> Tensor:
    """-cos(p, z) of each row (SimSiam, Chen and He 2021, equation 1).

    Args:
        p: predictions (n, d), not normalized.
        z: targets (n, d), not normalized.
        stop: whether no gradient goes to z (their equation 3).
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (n,) for "none"; in [-1, 1].

    Raises:
        ValueError: if the shapes differ or are not (n, d), or the reduction is unknown.
    """
    if p.shape != z.shape or p.ndim != 2:
        raise ValueError(f"p is {tuple(p.shape)} and z {tuple(z.shape)}: expected (n, d) twice")
    return reduced(-F.cosine_similarity(p, z.detach() if stop else z, dim=1), reduction)


def byol(p: Tensor, z: Tensor, stop: bool = True, reduction: str = "mean") -> Tensor:
    """2 - 2 cos(p, z) of each row: the squared distance on the unit sphere (BYOL, Grill et al. 2020, equation 2).

    Args and raises: as `negative_cosine`.

    Returns:
        A scalar, or (n,) for "none"; in [0, 4].
    """
    return reduced(2 + 2 * negative_cosine(p, z, stop, "none"), reduction)


def symmetric_negative_cosine(p: Tensor, z: Tensor, stop: bool = True, reduction: str = "mean") -> Tensor:
    """-cos(p_i, z_partner(i)) of each view; its mean is SimSiam's symmetrized loss (their equation 4).

    Args:
        p, z: predictions and targets (2N, d); rows 2k and 2k+1 belong to image k.
        stop, reduction: as `negative_cosine`.

    Returns:
        A scalar, or (2N,) for "none"; in [-1, 1].

    Raises:
        ValueError: as `negative_cosine`, or if there are no pairs.
    """
    return negative_cosine(p, partners(z), stop, reduction)


def symmetric_byol(p: Tensor, z: Tensor, stop: bool = True, reduction: str = "mean") -> Tensor:
    """2 - 2 cos(p_i, z_partner(i)) of each view; its mean is half of BYOL's symmetrized loss, a sum over both views.

    Args and raises: as `symmetric_negative_cosine`.

    Returns:
        A scalar, or (2N,) for "none"; in [0, 4].
    """
    return byol(p, partners(z), stop, reduction)
