"""Losses as pure functions: contrastive losses of embeddings, TRADES of logits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.utils.finite import check_number

REDUCTIONS = ("mean", "sum", "none")
MIXED_READINGS = {"pairs": "one NT-Xent over all pairs, as coded", "views": "one NT-Xent a view, as drawn"}


def reduced(values: Tensor, reduction: str) -> Tensor:
    """Return the values ("none"), their mean or their sum; raise a ValueError for another reduction."""
    if reduction == "mean":
        return values.mean()
    if reduction == "sum":
        return values.sum()
    if reduction == "none":
        return values
    raise ValueError(f"reduction is {reduction!r}: expected one of {', '.join(REDUCTIONS)}")


def nt_xent(z: Tensor, temperature: float = 0.5, reduction: str = "mean") -> Tensor:
    """Normalized temperature-scaled cross entropy (SimCLR, Chen et al. 2020, equation 1; the same in ACL and ASTrA).

    `l_i = -log( exp(s_ip / t) / sum over j != i of exp(s_ij / t) )`, with `s` the cosine similarity and `p` the
    partner of `i`. No gradient is stopped.

    Args:
        z: embeddings (2N, d), not normalized; rows 2k and 2k+1 are the two views of image k.
        temperature: t > 0.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (2N,) for "none"; between 0 and log(2N - 1) + 2 / t.

    Raises:
        ValueError: if z is not (2N, d) with N >= 1, the temperature is not positive or the reduction is unknown.
    """
    if z.ndim != 2 or len(z) < 2 or len(z) % 2:
        raise ValueError(f"z has shape {tuple(z.shape)}: expected (2N, d), rows 2k and 2k+1 the two views of image k")
    check_number("temperature", temperature, above=True)
    z = F.normalize(z, dim=1)
    logits = z @ z.T / temperature
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    # the partner of an even row is the next one, of an odd row the one before
    partner = torch.arange(len(z), device=z.device) ^ 1
    return reduced(F.cross_entropy(logits, partner, reduction="none"), reduction)


def nearest_is_partner(z: Tensor) -> Tensor:
    """Whether the nearest other row of each row, by cosine, is its partner: (2N,) bool; a tie is a failure.

    Args:
        z: embeddings (2N, d), not normalized; rows 2k and 2k+1 are the two views of image k.
    """
    z = F.normalize(z, dim=1)
    partner = torch.arange(len(z), device=z.device) ^ 1
    own = (z * z[partner]).sum(dim=1)
    similarity = z @ z.T
    rows = torch.arange(len(z), device=z.device)
    similarity[rows, rows] = similarity[rows, partner] = -torch.inf
    return own > similarity.amax(dim=1)


def mixed_nt_xent(
    clean: Tensor, adversarial: Tensor, temperature: float = 0.5, reading: str = "pairs", reduction: str = "mean"
) -> Tensor:
    """ASTrA's mixed contrastive loss: a clean view and its own adversarial version are the positive pair.

    Args:
        clean: embeddings (2N, d) of the clean views, rows 2k and 2k+1 the two views of image k.
        adversarial: embeddings (2N, d) of the attacked views, in the same order.
        temperature: t > 0.
        reading: "pairs" follows the released code: one NT-Xent over all 4N vectors, in which the *other* view of an
            image is a negative. "views" follows the paper's figure and ICLR slide 7: the sum of one NT-Xent for the
            first views and one for the second, without such false negatives.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (2N,) for "none": a view's value is the mean over its clean and its adversarial row, doubled for
        "views" (a sum of two losses); the mean over all views is the loss.

    Raises:
        ValueError: if the shapes differ or are not (2N, d), or the reading is unknown.
    """
    if clean.shape != adversarial.shape or clean.ndim != 2 or len(clean) % 2:
        raise ValueError(
            f"clean is {tuple(clean.shape)} and adversarial {tuple(adversarial.shape)}: expected (2N, d) twice"
        )

    def pairs(first: Tensor, second: Tensor) -> Tensor:
        rows = torch.stack([first, second], dim=1).flatten(0, 1)
        return nt_xent(rows, temperature, reduction="none").view(-1, 2).mean(dim=1)

    if reading == "pairs":
        values = pairs(clean, adversarial)
    elif reading == "views":
        each = [2 * pairs(clean[view::2], adversarial[view::2]) for view in (0, 1)]
        values = torch.stack(each, dim=1).flatten()
    else:
        raise ValueError(f"reading is {reading!r}: expected 'pairs' or 'views'")
    return reduced(values, reduction)


def kl_divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(softmax(p_logits) || softmax(q_logits)) of each row, in nats.

    Args:
        p_logits, q_logits: (n, classes). No gradient is stopped.

    Returns:
        (n,), at least 0 up to rounding.

    Raises:
        ValueError: if the shapes differ or are not (n, classes).
    """
    if p_logits.shape != q_logits.shape or p_logits.ndim != 2:
        raise ValueError(
            f"logits have shapes {tuple(p_logits.shape)} and {tuple(q_logits.shape)}: expected (n, classes) twice"
        )
    log_p, log_q = F.log_softmax(p_logits, dim=1), F.log_softmax(q_logits, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def trades(
    clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, beta: float = 6.0, reduction: str = "mean"
) -> Tensor:
    """TRADES (Zhang et al. 2019, equation 5): cross entropy of the clean images plus the effect of an attack.

    `CE(clean, y) + beta * KL(softmax(clean) || softmax(adversarial))`; the gradient goes through both arguments of KL.

    Args:
        clean_logits, adversarial_logits: logits (n, classes) of the images and of their attacked versions.
        labels: (n,) int64.
        beta: weight of robustness, 0 or more (1 / lambda in the paper).
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (n,) for "none".

    Raises:
        ValueError: if the shapes do not fit together, beta is negative or the reduction is unknown.
    """
    check_number("beta", beta)
    robustness = kl_divergence(clean_logits, adversarial_logits)
    if labels.shape != robustness.shape:
        raise ValueError(f"labels have shape {tuple(labels.shape)}: expected {tuple(robustness.shape)}, as the logits")
    return reduced(F.cross_entropy(clean_logits, labels, reduction="none") + beta * robustness, reduction)
