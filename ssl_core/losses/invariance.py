"""AIR's regularizers (Xu et al., NeurIPS 2023): the views' similarities to the originals agree, clean and attacked."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.registry import pick

FORMS: Mapping[str, str] = {
    "released": "sum of p_j * (log p_j - p_i): the released code hands probabilities over where logarithms belong",
    "kl": "the Kullback-Leibler divergence KL(p_j || p_i) that the paper writes",
}


def sir(first: Tensor, second: Tensor, original: Tensor, temperature: float = 0.5, form: str = "released") -> Tensor:
    """Standard invariant regularizer: both views have the same distribution of similarities to the originals.

    `p_i = softmax over the batch of <z_i, z_o> / t`, where each image has its own similarity, is a distribution over
    the images of the batch; p_j likewise. SIR compares p_j with p_i.

    Args:
        first, second: embeddings (B, d) of the two clean views of each image, not normalized.
        original: embeddings (B, d) of the images without augmentation.
        temperature: t > 0.
        form: a name of `FORMS`.

    Returns:
        A scalar; with "kl" at least 0, with "released" at least -1 - log(B).

    Raises:
        ValueError: if the shapes differ or are not (B, d), the temperature is not positive or the form is unknown.
    """
    p, q = (log_share(view, original, temperature) for view in (first, second))
    return divergence(p, q, form)


def air(
    adversarial_first: Tensor,
    adversarial_second: Tensor,
    first: Tensor,
    second: Tensor,
    original: Tensor,
    temperature: float = 0.5,
    form: str = "released",
) -> Tensor:
    """Adversarial invariant regularizer: both attacked views relate in the same way to originals and clean views.

    `q_i = softmax(<z'_i, z_o> / t) * softmax(<z'_i, z_i> / t)`, each softmax over the batch; the products are not
    normalized, so the "kl" form may be negative.

    Args:
        adversarial_first, adversarial_second: embeddings (B, d) of the attacked views, not normalized.
        first, second, original, temperature, form: as `sir`.

    Returns:
        A scalar.

    Raises:
        ValueError: as `sir`.
    """
    p, q = (
        log_share(attacked, original, temperature) + log_share(attacked, clean, temperature)
        for attacked, clean in ((adversarial_first, first), (adversarial_second, second))
    )
    return divergence(p, q, form)


def log_share(view: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Return the log softmax over the batch of the similarity of each row with the same row of `other`, (B,).

    Raises:
        ValueError: if the shapes differ or are not (B, d), or the temperature is not positive.
    """
    if view.shape != other.shape or view.ndim != 2 or len(view) == 0:
        raise ValueError(f"embeddings are {tuple(view.shape)} and {tuple(other.shape)}: expected (B, d) twice")
    check_number("temperature", temperature, above=True)
    return F.log_softmax(F.cosine_similarity(view, other, dim=1) / temperature, dim=0)


def divergence(log_p: Tensor, log_q: Tensor, form: str) -> Tensor:
    """Return the divergence of the second of two positive vectors from the first, given as logarithms (B,)."""
    pick(form, FORMS, "form of the divergence")
    q = log_q.exp()
    return torch.sum(q * (log_q - (log_p.exp() if form == "released" else log_p)))
