"""k-means on an encoder's features: pseudo labels for training without labels."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.transforms.views import as_float

PIECE = 4096
"""Features whose distances `assign` holds at once."""


def encode_features(
    network: Callable[[Tensor, str], Encoded],
    images: Tensor,
    route: str,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Tensor:
    """Backbone features of images as they are, without augmentation and without gradient.

    Args:
        network: `network(images, route)` gives `Encoded`: a `TargetNetwork` in eval mode, a `FoldedNetwork`, or what a
            method is given.
        images: (n, 3, h, w) uint8, n >= 1.
        route: batch-norm route.
        batch_size: images encoded at once.
        device: of the network; by default that of its parameters if it is a module, else that of the images.

    Returns:
        (n, d) on that device.

    Raises:
        ValueError: if the network is in train mode, where an image's features depend on its batch, or there are no
            images or none to a batch.
    """
    if isinstance(network, nn.Module):
        if network.training:
            raise ValueError("the network is in train mode, where batch norm couples the images: call eval() first")
        device = device or next((parameter.device for parameter in network.parameters()), None)
    if not len(images) or batch_size < 1:
        raise ValueError(f"{len(images)} images in batches of {batch_size}: expected 1 or more of both")
    with torch.no_grad():
        parts = [network(as_float(part.to(device or part.device)), route).features for part in images.split(batch_size)]
    return torch.cat(parts)


def fit_clusters(
    features: Tensor,
    counts: Sequence[int],
    generator: torch.Generator,
    *,
    starts: int = 1,
    tolerance: float = 1e-5,
    max_iterations: int = 300,
) -> list[Tensor]:
    """k-means with Euclidean distances, for each of several numbers of clusters.

    scikit-learn's `KMeans` (Lloyd's iterations from k-means++ starts) in float64 and on one thread, so that the same
    features and generator give the same centroids bit for bit. AdvCL clusters into 2, 10, 50, 100 and 500; DynACL++
    into 10, AIR++ into the number of classes with a tolerance of 1e-5 (released code). On 50,000 features of dimension
    512 an iteration for 500 clusters takes some seconds.

    Args:
        features: (n, d), finite.
        counts: numbers of clusters K, each in 2..n; at least one.
        generator: each K draws one seed from it, in this order. The global generators are left alone.
        starts: runs for each K, of which that with the smallest sum of squared distances is kept.
        tolerance: a run ends when the centroids' squared shift is at most this times the mean variance of a feature.
        max_iterations: a run ends at the latest then.

    Returns:
        For each K, centroids (K, d): float64 whatever the features are, so that `assign` finds the very clusters of the
        fit; on the features' device.

    Raises:
        ValueError: if shapes, values or numbers are out of range, or fewer than K of the features are distinct, as
            those of a collapsed encoder.
    """
    _check_features(features)
    n = len(features)
    if not counts or not all(2 <= count <= n for count in counts):
        raise ValueError(
            f"numbers of clusters are {list(counts)}: expected each in 2..{n}, since there are {n} features"
        )
    if starts < 1 or max_iterations < 1 or not tolerance >= 0:
        raise ValueError(
            f"starts is {starts}, max_iterations {max_iterations}, tolerance {tolerance}: expected at least 1, 1 and 0"
        )
    # imported here: it takes a second, and only a few methods cluster
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    points = features.detach().cpu().double().numpy()
    found = []
    for count in counts:
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
        means = KMeans(count, n_init=starts, tol=tolerance, max_iter=max_iterations, random_state=seed)
        # with more threads the partial sums of a centroid are added in any order
        with threadpool_limits(limits=1), warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                means.fit(points)
            except ConvergenceWarning as error:
                raise ValueError(
                    f"fewer than {count} of the {n} features are distinct, so they make no {count} clusters: ask for "
                    "fewer, or check that the encoder has not collapsed"
                ) from error
        found.append(torch.from_numpy(means.cluster_centers_).to(features.device))
    return found


def assign(features: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid of each feature by Euclidean distance, computed in float64.

    Args:
        features: (n, d), finite.
        centroids: (K, d), as `fit_clusters` gives them, on the same device.

    Returns:
        (n,) int64 in 0..K-1.

    Raises:
        ValueError: if the shapes do not fit or a feature is not finite.
    """
    _check_features(features)
    if centroids.ndim != 2 or not len(centroids) or centroids.shape[1] != features.shape[1]:
        raise ValueError(
            f"centroids have shape {tuple(centroids.shape)}: expected (K, {features.shape[1]}), K >= 1, as the features"
        )
    targets = centroids.detach().double()
    # distances do not depend on the origin, but the rounding of the products does
    origin = targets.mean(dim=0)
    targets = targets - origin
    squares = targets.square().sum(dim=1)
    pieces = (piece.double() - origin for piece in features.detach().split(PIECE))
    return torch.cat([(squares - 2 * piece @ targets.T).argmin(dim=1) for piece in pieces])


def _check_features(features: Tensor) -> None:
    if features.ndim != 2 or not features.numel() or not features.is_floating_point():
        raise ValueError(f"features are {features.dtype} {tuple(features.shape)}: expected floats (n, d), n and d >= 1")
    if not bool(features.isfinite().all()):
        raise ValueError("features hold values that are not finite: check the encoder's weights")
