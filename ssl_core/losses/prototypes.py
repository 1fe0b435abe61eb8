"""Losses of assignments to prototypes: DINO's and SwAV's cross-entropy, and SwAV's codes by Sinkhorn and Knopp."""

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.losses.contrastive import reduced
from astra_gym.ssl_core.losses.cosine import partners
from astra_gym.ssl_core.utils.finite import check_number


def soft_cross_entropy(probabilities: Tensor, logits: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy `-sum_k p_k log softmax(logits)_k` of each row.

    Args:
        probabilities: p, (n, K).
        logits: (n, K).
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (n,) for "none"; 0 or more.

    Raises:
        ValueError: if the shapes differ or are not (n, K), or the reduction is unknown.
    """
    if probabilities.shape != logits.shape or logits.ndim != 2:
        raise ValueError(
            f"probabilities are {tuple(probabilities.shape)} and logits {tuple(logits.shape)}: expected (n, K) twice"
        )
    return reduced(-(probabilities * F.log_softmax(logits, dim=1)).sum(dim=1), reduction)


def swapped_cross_entropy(probabilities: Tensor, logits: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of each view's logits with its partner's probabilities (SwAV, DINO with two views).

    Args and raises: as `soft_cross_entropy`; rows 2k and 2k+1 are the two views of image k.
    """
    return soft_cross_entropy(partners(probabilities), logits, reduction)


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Codes of images: soft assignments that use all prototypes equally (SwAV, Caron et al. 2020, equation 5).

    `Q = exp(scores / epsilon)`, over its sum; then `iterations` times each prototype is scaled to a total of 1 / K, and
    each image to 1 / B.

    Args:
        scores: (B, K), of images and prototypes.
        epsilon: smoothness, positive.
        iterations: 1 or more.

    Returns:
        (B, K) without gradient, at least 0; each image's code sums to 1.

    Raises:
        ValueError: if the scores are not (B, K), or a value is out of its range.
    """
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores are {tuple(scores.shape)}: expected (B, K), images and prototypes")
    check_number("epsilon", epsilon, above=True)
    check_number("iterations", iterations, 1, expected="1 or more", whole=True)
    # a constant factor cancels, and without this one large scores overflow
    q = ((scores - scores.max()) / epsilon).exp()
    for _ in range(iterations):
        q = q / q.sum(dim=0, keepdim=True)
        q = q / q.sum(dim=1, keepdim=True)
    return q
