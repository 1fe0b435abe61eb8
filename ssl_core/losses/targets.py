"""Whom a targeted attack pulls an image towards (TARO, Kim et al., NeurIPS 2023)."""

from torch import Tensor
from torch.nn import functional as F


def similarity_entropy_scores(
    features: Tensor, logits: Tensor, similarity_weight: float = 1.0, entropy_weight: float = 1.0
) -> Tensor:
    """Score of every image j as a target of image i: similar to it, and uncertain.

    `score_ij = a1 * S_ij / |S_i| + a2 * E_j / |E|`, with `S_ij = (cos(f_i, f_j) + 1) / 2`, its diagonal replaced by
    0.5, and `E_j = H_j / min H`, the entropy of softmax(p_j) over the smallest of the batch; |.| is the 2-norm of a
    row. The division by the smallest entropy cancels in the norm, and is left out: it could be one by zero.

    Args:
        features: (n, f) of the backbone.
        logits: (n, d), the predictor's outputs.
        similarity_weight, entropy_weight: a1 and a2.

    Returns:
        (n, n). Entropies that are all 0 count for nothing.

    Raises:
        ValueError: if there are no two images, or the numbers of rows differ.
    """
    n = len(features)
    if features.ndim != 2 or logits.ndim != 2 or len(logits) != n or n < 2:
        raise ValueError(
            f"features are {tuple(features.shape)} and logits {tuple(logits.shape)}: expected (n, f) and (n, d), n >= 2"
        )
    unit = F.normalize(features, dim=1)
    similarity = ((unit @ unit.T + 1) / 2).fill_diagonal_(0.5)
    logs = F.log_softmax(logits, dim=1)
    entropy = -(logs.exp() * logs).sum(dim=1)
    # as in the release no row has its own norm for the entropy: it is the same row for every image
    return similarity_weight * F.normalize(similarity, dim=1) + entropy_weight * F.normalize(entropy, dim=0)


def select_targets(
    features: Tensor, logits: Tensor, similarity_weight: float = 1.0, entropy_weight: float = 1.0
) -> Tensor:
    """The target of each image: the one with the highest score, (n,) int64.

    An image may be its own target, as in the released code, where only the similarity's diagonal is lowered: its attack
    then pulls it to its own clean embedding.

    Args and raises: as `similarity_entropy_scores`.
    """
    return similarity_entropy_scores(features, logits, similarity_weight, entropy_weight).argmax(dim=1)


def targeted_similarity(p: Tensor, z: Tensor, p_target: Tensor, z_target: Tensor, stop: bool = True) -> Tensor:
    """cos(p, z_target) + cos(p_target, z) of each row, which TARO's attack maximises.

    Args:
        p, z: predictions and projections (n, d) of the attacked images.
        p_target, z_target: those of their targets.
        stop: whether no gradient goes to z_target and z, as in SimSiam; with it the second term has none at all.

    Returns:
        (n,), in [-2, 2].

    Raises:
        ValueError: if the shapes differ or are not (n, d).
    """
    shapes = {tuple(each.shape) for each in (p, z, p_target, z_target)}
    if len(shapes) != 1 or p.ndim != 2:
        raise ValueError(f"the shapes are {sorted(shapes)}: expected (n, d) four times")
    if stop:
        z, z_target = z.detach(), z_target.detach()
    return F.cosine_similarity(p, z_target, dim=1) + F.cosine_similarity(p_target, z, dim=1)
