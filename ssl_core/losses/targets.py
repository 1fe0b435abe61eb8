"""Targets of a targeted attack: the images that it pulls each image toward (TARO, Kim et al., NeurIPS 2023)."""

from torch import Tensor
from torch.nn import functional as F


def similarity_entropy_scores(
    features: Tensor, logits: Tensor, similarity_weight: float = 1.0, entropy_weight: float = 1.0
) -> Tensor:
    """Score every image j as a target of image i: high if it is similar and uncertain.

    `score_ij = a1 * S_ij / |S_i| + a2 * E_j / |E|`, with `S_ij = (cos(f_i, f_j) + 1) / 2`, its diagonal replaced by
    0.5, and `E_j = H_j / min H`, the entropy of softmax(p_j) over the smallest of the batch; |.| is the 2-norm of a
    row. The division by the smallest entropy cancels in the norm and is left out: it could be a division by zero.

    Args:
        features: features (n, f) of the backbone.
        logits: (n, d), the predictor's outputs.
        similarity_weight, entropy_weight: a1 and a2.

    Returns:
        Scores (n, n). Entropies that are all 0 add nothing.

    Raises:
        ValueError: if there are fewer than two images, or the numbers of rows differ.
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
    # as in the released code the entropies' norm is over the batch: it is the same row for every image
    return similarity_weight * F.normalize(similarity, dim=1) + entropy_weight * F.normalize(entropy, dim=0)


def select_targets(
    features: Tensor, logits: Tensor, similarity_weight: float = 1.0, entropy_weight: float = 1.0
) -> Tensor:
    """Return the target of each image: the one with the highest score, (n,) int64.

    An image may be its own target, as in the released code: only the similarity's diagonal is lowered. Its attack then
    pulls it to its clean embedding.

    Args and raises: as `similarity_entropy_scores`.
    """
    return similarity_entropy_scores(features, logits, similarity_weight, entropy_weight).argmax(dim=1)


def targeted_similarity(p: Tensor, z: Tensor, p_target: Tensor, z_target: Tensor, stop: bool = True) -> Tensor:
    """cos(p, z_target) + cos(p_target, z) of each row, which TARO's attack maximizes.

    Args:
        p, z: predictions and projections (n, d) of the attacked images.
        p_target, z_target: predictions and projections (n, d) of their targets.
        stop: whether no gradient goes to z_target and z, as in SimSiam; the second term then has no gradient.

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
