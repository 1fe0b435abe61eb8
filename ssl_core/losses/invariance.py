"""AIR's regularisers (Xu et al., NeurIPS 2023): what views say of the originals stays the same, clean and attacked."""

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
    """Standard invariant regulariser: both views share the batch alike with the originals.

    `p_i = softmax over the batch of <z_i, z_o> / t`, a distribution over the images of the batch made of each image's
    own similarity, p_j likewise; SIR compares p_j with p_i.

    Args:
        first, second: embeddings (B, d) of the two clean views of each image, not normalised.
        original: those of the images without augmentation.
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
    """Adversarial invariant regulariser: both attacked views relate alike to the originals and to their clean views.

    `q_i = softmax(<z'_i, z_o> / t) * softmax(<z'_i, z_i> / t)`, each softmax over the batch; the products are not
    normalised, and so the "kl" form may be negative here.

    Args:
        adversarial_first, adversarial_second: embeddings (B, d) of the attacked views, not normalised.
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
    """log of softmax over the batch of the similarity of each row with the same row of `other`, (B,).

    Raises:
        ValueError: if the shapes differ or are not (B, d), or the temperature is not positive.
    """
    if view.shape != other.shape or view.ndim != 2 or len(view) == 0:
        raise ValueError(f"embeddings are {tuple(view.shape)} and {tuple(other.shape)}: expected (B, d) twice")
    check_number("temperature", temperature, above=True)
    return F.log_softmax(F.cosine_similarity(view, other, dim=1) / temperature, dim=0)


def divergence(log_p: Tensor, log_q: Tensor, form: str) -> Tensor:
    """How far the second of two positive vectors, given as logarithms (B,), is from the first; see `FORMS`."""
    pick(form, FORMS, "form of the divergence")
    q = log_q.exp()
    return torch.sum(q * (log_q - (log_p.exp() if form == "released" else log_p)))
