"""Losses over more than two versions of an image: RoCL's three-way NT-Xent, AdvCL's SupCon, EMP-SSL's coding rate."""

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.losses.contrastive import reduced
from astra_gym.ssl_core.utils.finite import check_number


def multi_view_nt_xent(
    z: Tensor, views: int, temperature: float = 0.5, stop: bool = True, reduction: str = "mean"
) -> Tensor:
    """NT-Xent with several positives per row (RoCL, Kim et al. 2020: equation 5 and released code).

    `l_i = sum over positives p of -log( exp(s_ip / t) / sum over j != i of exp(s_ij / t) )`, with `s_ij` the cosine
    similarity of z_i and (if `stop`) a detached z_j. The positives are *added*: with three versions of an image, a row
    has two terms. With two views and without the stop it is `astra_gym.ssl_core.losses.contrastive.nt_xent`.

    Args:
        z: embeddings (views * N, d), not normalized; rows views * k to views * k + views - 1 are the versions of image
            k.
        views: versions of an image, 2 or more.
        temperature: t > 0.
        stop: whether no gradient goes to the second operand of a similarity.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (views * N,) for "none".

    Raises:
        ValueError: if the shape does not fit, the temperature is not positive or the reduction is unknown.
    """
    logarithms, positive = _log_shares(z, views, temperature, stop)
    return reduced(-logarithms.masked_fill(~positive, 0.0).sum(dim=1), reduction)


def supcon(
    z: Tensor, views: int, temperature: float = 0.5, base_temperature: float = 0.07, reduction: str = "mean"
) -> Tensor:
    """Supervised contrastive loss where each image is a class of its own (Khosla et al. 2020, equation 2; as in AdvCL).

    `l_i = -(t / t_base) * mean over positives p of log( exp(s_ip / t) / sum over j != i of exp(s_ij / t) )`. The factor
    t / t_base (7.14 in AdvCL) matters when other losses are added. No gradient is stopped.

    Args:
        z: as `multi_view_nt_xent`.
        views: versions of an image, 2 or more.
        temperature: t > 0.
        base_temperature: t_base > 0.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (views * N,) for "none".

    Raises:
        ValueError: as `multi_view_nt_xent`.
    """
    check_number("base_temperature", base_temperature, above=True)
    logarithms, positive = _log_shares(z, views, temperature, stop=False)
    mean = logarithms.masked_fill(~positive, 0.0).sum(dim=1) / (views - 1)
    return reduced(-temperature / base_temperature * mean, reduction)


def _log_shares(z: Tensor, views: int, temperature: float, stop: bool) -> tuple[Tensor, Tensor]:
    """Return each row's log softmax over all other rows, and a mask of its positives, (n, n) each."""
    if views < 2:
        raise ValueError(f"views is {views}: expected two or more versions of an image, since each needs a positive")
    if z.ndim != 2 or len(z) == 0 or len(z) % views:
        raise ValueError(f"z has shape {tuple(z.shape)}: expected ({views}N, d), an image's versions in a row")
    check_number("temperature", temperature, above=True)
    z = F.normalize(z, dim=1)
    logits = z @ (z.detach() if stop else z).T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    image = torch.arange(len(z), device=z.device) // views
    return F.log_softmax(logits.masked_fill(itself, -torch.inf), dim=1), (image[:, None] == image) & ~itself


def coding_rate(z: Tensor, epsilon: float = 0.2) -> Tensor:
    """Total coding rate R(Z) = 1/2 log det(I + d / (b * epsilon) * Z^T Z) (EMP-SSL, Tong et al. 2023, equation 1).

    As in the released code `epsilon` is not squared. The smaller of Z^T Z and Z Z^T is used (Sylvester's identity).

    Args:
        z: (..., b, d), rows of length 1.
        epsilon: precision of the code of the rows, positive.

    Returns:
        (...,), between 0 and min(b, d) / 2 * log(1 + d / (min(b, d) * epsilon)); NaN where z has a NaN.

    Raises:
        ValueError: if z has less than two dimensions, or epsilon is not positive.
    """
    if z.ndim < 2:
        raise ValueError(f"z has shape {tuple(z.shape)}: expected (..., b, d)")
    check_number("epsilon", epsilon, above=True)
    b, d = z.shape[-2:]
    gram = z.mT @ z if d <= b else z @ z.mT
    identity = torch.eye(gram.shape[-1], dtype=z.dtype, device=z.device)
    # positive definite: the product of the factor's diagonal is the determinant's root. Only NaN makes the
    # factorization fail; it is returned as in other losses, so that the learner reports that training has diverged
    factor, failed = torch.linalg.cholesky_ex(identity + d / (b * epsilon) * gram)
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1).masked_fill(failed != 0, torch.nan)


def emp_ssl(z: Tensor, crops: int, invariance: float = 200.0, epsilon: float = 0.2, reduction: str = "mean") -> Tensor:
    """EMP-SSL's loss (Tong et al. 2023, equation 4): crops of an image agree, and the crops of all images spread out.

    `L = -invariance * mean over crops of cos(z_ki, mean over the image's crops) - mean over i of R(Z_i)`, with Z_i the
    i-th crops of all images. A row's value is -invariance times its cosine minus R of its Z_i, so that the mean over
    the rows is L.

    Args:
        z: embeddings (crops * N, d), not normalized; rows crops * k to crops * k + crops - 1 are the crops of image k.
        crops: number of crops of an image, 2 or more.
        invariance: weight of the agreement (200).
        epsilon: precision, see `coding_rate`.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (crops * N,) for "none"; at least -invariance - max R.

    Raises:
        ValueError: if the shape does not fit, a value is out of its range or the reduction is unknown.
    """
    if crops < 2:
        raise ValueError(f"crops is {crops}: expected two or more of an image, since they are compared with their mean")
    if z.ndim != 2 or len(z) == 0 or len(z) % crops:
        raise ValueError(f"z has shape {tuple(z.shape)}: expected ({crops}N, d), an image's crops in a row")
    check_number("invariance", invariance)
    by_image = F.normalize(z, dim=1).unflatten(0, (-1, crops))
    agreement = F.cosine_similarity(by_image, by_image.mean(dim=1, keepdim=True), dim=2)
    rate = coding_rate(by_image.transpose(0, 1), epsilon)
    return reduced((-invariance * agreement - rate).flatten(), reduction)
