"""Contrast of queries with keys that get no gradient: MoCo's of a queue, MoCo v3's of the batch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.losses.contrastive import reduced
from astra_gym.ssl_core.losses.cosine import partners
from astra_gym.ssl_core.utils.finite import check_number


def moco(q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.2, reduction: str = "mean") -> Tensor:
    """InfoNCE of each view's query with its partner's key and a queue of negatives (MoCo, He et al. 2020, equation 1).

    `l_i = -log( exp(q_i k_p / t) / (exp(q_i k_p / t) + sum over n in the queue of exp(q_i n / t)) )`, with the key of
    the partner p and the queue of the keys of the partner's kind of view, first or second. The mean is MoCo v2+'s
    symmetrized loss.

    Args:
        q: queries (2N, d), not normalized; rows 2k and 2k+1 are the two views of image k.
        k: keys (2N, d) of the same views, not normalized.
        queue: (2, K, d), normalized keys of first and of second views.
        temperature: t > 0.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (2N,) for "none"; between 0 and log(K + 1) + 2 / t.

    Raises:
        ValueError: if the shapes do not fit, the temperature is not positive or the reduction is unknown.
    """
    _check(q, k, temperature)
    if queue.ndim != 3 or len(queue) != 2 or queue.shape[2] != q.shape[1]:
        raise ValueError(f"the queue is {tuple(queue.shape)} and q {tuple(q.shape)}: expected (2, K, d) and (2N, d)")
    q = F.normalize(q, dim=1)
    positive = (q * partners(F.normalize(k, dim=1))).sum(dim=1, keepdim=True)
    negative = torch.einsum("nvd,vkd->nvk", q.unflatten(0, (-1, 2)), queue.flip(0)).flatten(0, 1)
    logits = torch.cat([positive, negative], dim=1) / temperature
    return reduced(logits.logsumexp(dim=1) - logits[:, 0], reduction)


def moco_v3(q: Tensor, k: Tensor, temperature: float = 0.2, reduction: str = "mean") -> Tensor:
    """InfoNCE of each view's query with the keys of all images' other views, times 2t (MoCo v3, Chen et al. 2021).

    `l_i = -2t log( exp(q_i k_p / t) / sum over j of exp(q_i k_j / t) )`, with j over the N views of the partner's kind,
    first or second. The authors' loss is a sum over both views: twice the mean.

    Args:
        q, k, temperature, reduction: as in `moco`.

    Returns:
        A scalar, or (2N,) for "none"; between 0 and 2t log(N) + 4.

    Raises:
        ValueError: as `moco`.
    """
    _check(q, k, temperature)
    q, k = (F.normalize(each, dim=1).unflatten(0, (-1, 2)).transpose(0, 1) for each in (q, k))
    logits = q @ k.flip(0).mT / temperature
    rows = 2 * temperature * (logits.logsumexp(dim=2) - logits.diagonal(dim1=1, dim2=2))
    return reduced(rows.T.flatten(), reduction)


def _check(q: Tensor, k: Tensor, temperature: float) -> None:
    if q.shape != k.shape or q.ndim != 2 or len(q) == 0 or len(q) % 2:
        raise ValueError(f"q is {tuple(q.shape)} and k {tuple(k.shape)}: expected (2N, d) twice, views in pairs")
    check_number("temperature", temperature, above=True)
