"""Divergence of adversarial from clean features, without labels: the measure that RCS selects a coreset by."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.losses.contrastive import REDUCTIONS, kl_divergence
from astra_gym.ssl_core.utils.registry import pick

DIVERGENCES = {
    "kl": "Kullback-Leibler divergence of each row, RCS's default",
    "js": "Jensen-Shannon divergence of each row",
    "ot": "optimal transport between the two sets of rows, by Sinkhorn's iterations",
}
FORMS = {
    "released": "as in RCS's code: kl of scaled values without a softmax, js with its arguments reversed",
    "softmax": "kl and js of the softmax of scaled values, as in version 0.1",
}
"""How "kl" and "js" turn rows into distributions; "ot" is the same in both."""
FLOOR = 1e-8
"""Value that the released "kl" adds to every scaled value."""


def representational_divergence(
    clean: Tensor,
    adversarial: Tensor,
    kind: str = "kl",
    reduction: str = "mean",
    *,
    form: str = "released",
    regularization: float = 0.05,
    iterations: int = 50,
) -> Tensor:
    """Representational divergence of RCS (Xu et al., NeurIPS 2023) between features of the same images.

    Let p belong to the clean row and q to the adversarial one, m = (p + q) / 2, KL(a || b) = sum of a (log a - log b).

    The form "released" follows RCS's code (its `kl_loss` and `JS_loss`). "kl" is KL(q || p). p and q are the rows
    scaled to [0, 1] by their least and greatest value, plus 1e-8: no softmax, so neither sums to 1, and the value may
    be below 0. A row's offset and positive scale do not matter. A constant row is all 1e-8 here and NaN in RCS's code.
    The gradient leaves out the least entry of a row, with the scaled value 0 for every row; in RCS's code its gradient
    is the rounding error of a slope of up to 1e8. "js" is half KL(m || p) plus half KL(m || q), p and q the softmax of
    the unscaled rows: offsets do not matter, scales do. It has no bound, and stays finite where the probabilities
    underflow, unlike RCS's code.

    The form "softmax" is ours, and was the only one in version 0.1. p and q are the softmax of the rows scaled to
    [0, 1]; "kl" is KL(p || q), and "js" half KL(p || m) plus half KL(q || m), at most log 2. Offset and positive scale
    do not matter; a constant row is uniform. The two forms may rank the same pairs in opposite orders.

    "ot" is ours. The rows are scaled to length 1, and moving one to another costs 1 - cosine. OT(A, B) is the cost of
    the entropy-regularized optimal plan between the two sets of equal weights, as its dual value after a fixed number
    of Sinkhorn's iterations. The divergence is OT(A, B) - OT(A, A)/2 - OT(B, B)/2 (Genevay et al. 2018), 0 for equal
    sets. It compares sets: the pairing of adversarial and clean rows does not matter. It holds some (n, n) matrices.

    Args:
        clean, adversarial: (n, d), n >= 1; "kl" and "js" need d >= 2. No gradient is stopped.
        kind: a name of `DIVERGENCES`.
        reduction: "mean", "sum" or "none". For "ot", "mean" is the divergence and "sum" n times it. RCS's mean is over
            the d entries too: 1/d of "mean" here.
        form: a name of `FORMS`, for "kl" and "js".
        regularization: for "ot", the entropy's weight in units of the cost, above 0.
        iterations: for "ot", the number of Sinkhorn's iterations, at least 1.

    Returns:
        A scalar, or (n,) for "none", in nats for "kl" and "js"; at least 0 up to rounding ("ot": up to convergence),
        except for the released "kl".

    Raises:
        ValueError: if the shapes do not fit, a value is out of its range, a name is unknown, or "ot" has the reduction
            "none".
    """
    pick(kind, DIVERGENCES, "divergence")
    pick(form, FORMS, "form of a divergence")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}: expected one of {', '.join(REDUCTIONS)}")
    least = 1 if kind == "ot" else 2
    if clean.shape != adversarial.shape or clean.ndim != 2 or not len(clean) or clean.shape[1] < least:
        raise ValueError(
            f"features have shapes {tuple(clean.shape)} and {tuple(adversarial.shape)}: expected (n, d) twice, "
            f"n >= 1 and d >= {least}"
        )
    if kind == "ot":
        if reduction == "none":
            raise ValueError("optimal transport is between sets and has no value for a row: expected 'mean' or 'sum'")
        if not regularization > 0 or iterations < 1:
            raise ValueError(
                f"regularization is {regularization} and iterations {iterations}: expected above 0, and 1 or more"
            )
        return _transport(clean, adversarial, regularization, iterations) * (len(clean) if reduction == "sum" else 1)
    if form == "released":
        values = _released_kl(clean, adversarial) if kind == "kl" else _released_js(clean, adversarial)
    else:
        p, q = _unit_range(clean), _unit_range(adversarial)
        values = kl_divergence(p, q) if kind == "kl" else _jensen_shannon(p, q)
    return values.mean() if reduction == "mean" else values.sum() if reduction == "sum" else values


def _unit_range(features: Tensor) -> Tensor:
    """Shift and scale each row to [0, 1]; a constant one becomes 0."""
    low, high = features.amin(dim=1, keepdim=True), features.amax(dim=1, keepdim=True)
    extent = high - low
    return (features - low) / torch.where(extent > 0, extent, torch.ones_like(extent))


def _released_kl(clean: Tensor, adversarial: Tensor) -> Tensor:
    p, q = _unit_range(clean), _unit_range(adversarial)
    log_p, log_q = (torch.where(row > 0, row, row.detach()).add(FLOOR).log() for row in (p, q))
    return ((q + FLOOR) * (log_q - log_p)).sum(dim=1)


def _released_js(clean: Tensor, adversarial: Tensor) -> Tensor:
    log_p, log_q = (F.log_softmax(row, dim=1) for row in (clean, adversarial))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_m.exp() * (log_m - (log_p + log_q) / 2)).sum(dim=1)


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    mixture = ((F.softmax(p, dim=1) + F.softmax(q, dim=1)) / 2).log()
    return (kl_divergence(p, mixture) + kl_divergence(q, mixture)) / 2


def _transport(clean: Tensor, adversarial: Tensor, regularization: float, iterations: int) -> Tensor:
    a, b = F.normalize(clean, dim=1), F.normalize(adversarial, dim=1)
    across, first, second = (_sinkhorn(x, y, regularization, iterations) for x, y in ((a, b), (a, a), (b, b)))
    return across - (first + second) / 2


def _sinkhorn(a: Tensor, b: Tensor, regularization: float, iterations: int) -> Tensor:
    """Return the dual value of entropy-regularized transport between equal numbers of unit rows, in the log domain."""
    cost = 1 - a @ b.T
    weight = -cost.new_tensor(len(a)).log()

    def soft_minimum(values: Tensor) -> Tensor:
        return -regularization * torch.logsumexp(weight - values / regularization, dim=1)

    f = cost.new_zeros(len(a))
    for _ in range(iterations):
        g = soft_minimum((cost - f[:, None]).T)
        f = soft_minimum(cost - g)
    # after a step in f the plan's mass is 1, and the dual's penalty 0
    return f.mean() + g.mean()
