"""Metrics of embeddings without labels: alignment, uniformity, effective rank, and signs of collapse.

Every function takes embeddings (n, d) of any floating type, divides each by its length and works in float64. `weights`
(b, n) are the counts of each image in each of b resamples. With them a function returns b values instead of one: a
bootstrap over images without a loop.
"""

import torch
from torch import Tensor

from astra_gym.ssl_core.utils.finite import check_number

CHUNK = 2**24
"""Number of pairs of embeddings compared together, 128 MiB of float64."""


def normalized(z: Tensor, name: str = "z") -> Tensor:
    """Project embeddings (n, d) to the unit sphere, in float64.

    Raises:
        ValueError: if z is not a floating (n, d) tensor with n >= 2 and d >= 1, or has a value that is not finite, or a
            row of zeros, which has no direction.
    """
    if z.ndim != 2 or len(z) < 2 or z.shape[1] < 1 or not z.is_floating_point():
        raise ValueError(f"{name} is {z.dtype} {tuple(z.shape)}: expected floats (n, d), at least two embeddings")
    z = z.detach().double()
    if bad := int((~z.isfinite().all(dim=1)).sum()):
        raise ValueError(f"{name}: {bad} of {len(z)} embeddings are not finite: the encoder has diverged")
    # divide by the largest entry first, since squares of entries beyond 1e154 or below 1e-162 do not fit a float64
    largest = z.abs().amax(dim=1, keepdim=True)
    if zero := int((largest == 0).sum()):
        raise ValueError(f"{name}: {zero} of {len(z)} embeddings are zero and have no direction: units of it are dead")
    z = z / largest
    return z / z.norm(dim=1, keepdim=True)


def resamples(n: int, number: int, generator: torch.Generator) -> Tensor:
    """Draw bootstrap weights (number, n), float64: the counts of n images in n draws with replacement."""
    drawn = torch.randint(n, (number, n), generator=generator)
    return torch.zeros(number, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape).double())


def alignment(z1: Tensor, z2: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared distance of positive pairs (Wang and Isola 2020, section 4.1, with alpha = 2); lower is closer.

    Args:
        z1, z2: (n, d); row i of both is a positive pair.
        weights: (b, n) resamples, see above.

    Returns:
        A scalar, or (b,), in [0, 4]: the mean of 2 - 2 cos(z1, z2).

    Raises:
        ValueError: if the shapes differ, or as `normalized`.
    """
    if z1.shape != z2.shape:
        raise ValueError(f"z1 is {tuple(z1.shape)} and z2 {tuple(z2.shape)}: expected (n, d) twice, a pair in each row")
    distances = (normalized(z1, "z1") - normalized(z2, "z2")).square().sum(dim=1).clamp(max=4)
    weight = _weights(weights, distances)
    return _one_or_many(weight @ distances / weight.sum(dim=1), weights)


def uniformity(z: Tensor, t: float = 2.0, weights: Tensor | None = None) -> Tensor:
    """Log of the mean Gaussian potential of pairs (Wang and Isola 2020, section 4.1); lower is more uniform.

    `log( mean over i < j of exp(-t |z_i - z_j|^2) )`. An image that occurs twice in a resample does not form a pair
    with itself: the data have no such distance of zero.

    Args:
        z: (n, d).
        t: factor of the squared distance, t > 0; 2 in the paper.
        weights: (b, n) resamples, see above; each must have two different images.

    Returns:
        A scalar, or (b,), in [-4t, 0]; 0 if all embeddings are equal.

    Raises:
        ValueError: if t is not positive, or as `normalized`.
    """
    check_number("t", t, above=True)
    z = normalized(z)
    weight = _weights(weights, z)
    pairs = weight.sum(dim=1).square() - weight.square().sum(dim=1)
    if not bool((pairs > 0).all()):
        raise ValueError("a row of weights has fewer than two different images: expected a pair in each")
    parts = torch.arange(len(z), device=z.device).split(max(1, CHUNK // len(z)))

    def exponents(rows: Tensor) -> Tensor:
        found = -t * (2 - 2 * (z[rows] @ z.T)).clamp_(0, 4)
        found[torch.arange(len(rows), device=z.device), rows] = -torch.inf
        return found

    # logarithm of a sum of exponentials, scaled so that for any t the largest term is 1
    largest = torch.stack([exponents(rows).amax() for rows in parts]).amax()
    total = torch.zeros_like(pairs)
    for rows in parts:
        total += ((weight @ (exponents(rows) - largest).exp_().T) * weight[:, rows]).sum(dim=1)
    return _one_or_many((largest + (total / pairs).log()).clamp(-4 * t, 0), weights)


def singular_values(z: Tensor, centered: bool = False) -> Tensor:
    """Singular values (min(n, d),) of the normalized embeddings, in falling order.

    Args:
        z: (n, d).
        centered: whether to subtract the mean embedding first; the squares are then n times the eigenvalues of the
            covariance matrix.
    """
    z = normalized(z)
    return torch.linalg.svdvals(z - z.mean(dim=0) if centered else z)


def effective_rank(z: Tensor) -> Tensor:
    """Effective rank (Roy and Vetterli 2007, definition 1): the number of directions that the embeddings use.

    exp of the entropy of the singular values divided by their sum. Not centered, as in the definition, so it is 1 if
    all embeddings are equal. It takes no resamples: these leave out a third of the images, which lowers the rank.

    Returns:
        A scalar in [1, min(n, d)].

    Raises:
        ValueError: as `normalized`.
    """
    return entropy_rank(singular_values(z))


def entropy_rank(values: Tensor) -> Tensor:
    """Effective rank of a matrix from its singular values (k,), not negative and not all zero."""
    share = values / values.sum()
    return torch.special.entr(share).sum().exp().clamp(1, len(values))


def embedding_std(z: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean standard deviation over dimensions of the normalized embeddings (Chen and He 2021, section 4.1).

    0 is a collapse to one point. 1/sqrt(d) is the maximum, and the value of a uniform distribution on the sphere: the
    variances (divisor n) sum to 1 minus the squared length of the mean.

    Args:
        z: (n, d).
        weights: (b, n) resamples, see above.

    Returns:
        A scalar in [0, 1/sqrt(d)], or (b,).

    Raises:
        ValueError: as `normalized`.
    """
    z = normalized(z)
    weight = _weights(weights, z)
    weight = weight / weight.sum(dim=1, keepdim=True)
    # moments around the data's mean, so that a collapsed dimension does not lose digits
    z = z - z.mean(dim=0)
    variance = (weight @ z.square() - (weight @ z).square()).clamp(min=0)
    return _one_or_many(variance.sqrt().mean(dim=1), weights)


def _weights(weights: Tensor | None, like: Tensor) -> Tensor:
    if weights is None:
        return torch.ones(1, len(like), dtype=torch.float64, device=like.device)
    if weights.ndim != 2 or weights.shape[1] != len(like):
        raise ValueError(f"weights are {tuple(weights.shape)}: expected (b, {len(like)}), one for each embedding")
    weights = weights.to(like)
    if not bool(((weights >= 0).all(dim=1) & (weights.sum(dim=1) > 0) & weights.isfinite().all(dim=1)).all()):
        raise ValueError("weights are negative, not finite or all zero in a row: expected counts of images")
    return weights


def _one_or_many(values: Tensor, weights: Tensor | None) -> Tensor:
    return values[0] if weights is None else values
