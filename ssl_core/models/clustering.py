"""k-means on an encoder's features: pseudo labels for training without labels."""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.finite import check_number

PIECE = 4096
"""Number of features whose distances `assign` holds in memory at a time."""


def encode_features(
    network: Callable[[Tensor, str], Encoded],
    images: Tensor,
    route: str,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the backbone features of images, without augmentation and without gradient.

    Args:
        network: function of (images, route) that gives `Encoded`: a `TargetNetwork` in eval mode, a `FoldedNetwork`, or
            the network that a method is given.
        images: (n, 3, h, w) uint8, n >= 1.
        route: batch-norm route.
        batch_size: number of images per forward pass, >= 1.
        device: the network's device; by default that of its parameters if it is a module, else that of the images.

    Returns:
        Features (n, d) on that device.

    Raises:
        ValueError: if the network is in train mode, where an image's features depend on its batch; if there are no
            images or the batch size is below 1.
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
    """Cluster features by k-means with Euclidean distances, for each of several numbers of clusters.

    Lloyd's iterations from k-means++ starts, in float64. The CPU uses scikit-learn's `KMeans` on one thread: the same
    features and generator give the same centroids bit for bit. A GPU uses `by_torch`, which draws the same numbers: its
    clusters differ only where rounding decides. AdvCL clusters into 2, 10, 50, 100 and 500; DynACL++ into 10, AIR++
    into the number of classes with a tolerance of 1e-5 (released code). With 50,000 features of dimension 512 an
    iteration for 500 clusters takes some seconds on a CPU.

    Args:
        features: (n, d), finite.
        counts: numbers of clusters K, each in 2..n; at least one.
        generator: source of one seed per K, in this order. The global generators keep their state.
        starts: number of runs per K; the one with the smallest sum of squared distances is kept.
        tolerance: bound on the centroids' squared shift, in mean variances of a feature; a run ends at or below it.
        max_iterations: largest number of iterations of a run.

    Returns:
        For each K, centroids (K, d): float64 for features of any type, so that `assign` finds exactly the clusters of
        the fit; on the features' device.

    Raises:
        ValueError: if shapes, values or numbers are out of range, or fewer than K of the features are distinct, as with
            a collapsed encoder.
    """
    _check_features(features)
    n = len(features)
    if not counts or not all(2 <= count <= n for count in counts):
        raise ValueError(
            f"numbers of clusters are {list(counts)}: expected each in 2..{n}, since there are {n} features"
        )
    check_number("starts", starts, 1, whole=True)
    check_number("max_iterations", max_iterations, 1, whole=True)
    check_number("tolerance", tolerance)
    points = features.detach().double()
    fit = by_scikit_learn if points.device.type == "cpu" else by_torch
    found = []
    for count in counts:
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
        centroids = fit(points, count, seed, starts, tolerance, max_iterations)
        if centroids is None:
            raise ValueError(
                f"fewer than {count} of the {n} features are distinct, so they make no {count} clusters: ask for "
                "fewer, or check that the encoder has not collapsed"
            )
        found.append(centroids)
    return found


def by_scikit_learn(
    points: Tensor, count: int, seed: int, starts: int, tolerance: float, max_iterations: int
) -> Tensor | None:
    """Return the centroids (count, d) of float64 points (n, d) on the CPU, by scikit-learn on one thread.

    The result is None if fewer points are distinct. The other arguments are those of `fit_clusters`.
    """
    # imported here, since the import takes a second, and only a few methods cluster
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    means = KMeans(count, n_init=starts, tol=tolerance, max_iter=max_iterations, random_state=seed)
    # with more threads the partial sums of a centroid are added in any order
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            means.fit(points.numpy())
        except ConvergenceWarning:
            return None
    return torch.from_numpy(means.cluster_centers_)


def by_torch(
    points: Tensor, count: int, seed: int, starts: int, tolerance: float, max_iterations: int
) -> Tensor | None:
    """Return what `by_scikit_learn` returns, up to rounding, on the points' device."""
    draws = np.random.RandomState(seed)
    origin = points.mean(dim=0)
    points = points - origin
    least = tolerance * float(points.var(dim=0, unbiased=False).mean())
    runs = [lloyd(points, spread_points(points, count, draws), least, max_iterations) for _ in range(starts)]
    centroids, labels, _ = min(runs, key=lambda run: run[2])
    return centroids + origin if len(labels.unique()) == count else None


def spread_points(points: Tensor, count: int, draws: np.random.RandomState) -> Tensor:
    """Choose starts (count, d) among float64 points (n, d) by greedy k-means++ (Arthur and Vassilvitskii 2007).

    Each start is the best of 2 + log(count) points, drawn in proportion to the squared distance to the nearest start so
    far. The draws are scikit-learn's.
    """
    n, trials = len(points), 2 + int(math.log(count))
    squares = points.square().sum(dim=1)

    def distances(rows: Tensor) -> Tensor:
        return (squares[rows, None] + squares - 2 * points[rows] @ points.T).clamp_(min=0)

    chosen = [torch.tensor([draws.choice(n, p=np.full(n, 1 / n))], device=points.device)]
    nearest = distances(chosen[0])
    for shares in draws.uniform(size=(count - 1, trials)):
        # on the host, since a GPU's cumulative sums differ from run to run
        heaps = nearest[0].cpu().numpy().cumsum()
        drawn = np.searchsorted(heaps, shares * float(nearest.sum())).clip(max=n - 1)
        rows = torch.from_numpy(drawn).to(points.device)
        tried = torch.minimum(nearest, distances(rows))
        best = tried.sum(dim=1).argmin()[None]
        chosen.append(rows[best])
        nearest = tried[best]
    return points[torch.cat(chosen)]


def lloyd(points: Tensor, start: Tensor, least: float, max_iterations: int) -> tuple[Tensor, Tensor, float]:
    """Run Lloyd's iterations in the same way as scikit-learn.

    Args:
        points: (n, d) float64.
        start: (K, d) float64, the first centroids, on the same device.
        least: squared shift of the centroids at which the iterations end; they also end when no point changes its
            cluster.
        max_iterations: largest number of iterations, >= 1.

    Returns:
        Centroids (K, d), the index of each point's nearest centroid (n,) int64, and the sum of squared distances to
        these.
    """
    centroids, labels = start, torch.full((len(points),), -1, device=points.device)
    for _ in range(max_iterations):
        before, labels = labels, _nearest(points, centroids)
        moved = _means(points, labels, centroids)
        shift = float((moved - centroids).square().sum())
        centroids = moved
        if shift <= least or torch.equal(labels, before):
            break
    labels = _nearest(points, centroids)
    return centroids, labels, float((points - centroids[labels]).square().sum())


def _means(points: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Return the mean of each cluster's points; an empty cluster gets the point farthest from its centroid."""
    sums, sizes = torch.zeros_like(centroids), torch.zeros_like(centroids[:, 0])
    clusters = torch.arange(len(centroids), device=points.device)
    for piece, own in zip(points.split(PIECE), labels.split(PIECE), strict=True):
        # products instead of scattered additions, which a GPU makes in any order
        members = (clusters[:, None] == own).to(points.dtype)
        sums += members @ piece
        sizes += members.sum(dim=1)
    empty = (sizes == 0).nonzero()[:, 0]
    if len(empty):
        far = (points - centroids[labels]).square().sum(dim=1).topk(len(empty)).indices
        for cluster, point in zip(empty.tolist(), far.tolist(), strict=True):
            sums[labels[point]] -= points[point]
            sizes[labels[point]] -= 1
            sums[cluster], sizes[cluster] = points[point], 1
    return sums / sizes.clamp(min=1)[:, None]


def assign(features: Tensor, centroids: Tensor) -> Tensor:
    """Return the nearest centroid of each feature by Euclidean distance, computed in float64.

    Args:
        features: (n, d), finite.
        centroids: (K, d), as `fit_clusters` gives them, on the same device.

    Returns:
        (n,) int64 in 0..K-1.

    Raises:
        ValueError: if the shapes do not fit, or on the CPU a feature is not finite.
    """
    # on a GPU the values are not checked, since that would wait for the device, and an update checks its loss
    _check_features(features, values=features.device.type == "cpu")
    if centroids.ndim != 2 or not len(centroids) or centroids.shape[1] != features.shape[1]:
        raise ValueError(
            f"centroids have shape {tuple(centroids.shape)}: expected (K, {features.shape[1]}), K >= 1, as the features"
        )
    return _nearest(features, centroids)


def _nearest(features: Tensor, centroids: Tensor) -> Tensor:
    targets = centroids.detach().double()
    # distances do not depend on the origin, but the rounding of the products does
    origin = targets.mean(dim=0)
    targets = targets - origin
    squares = targets.square().sum(dim=1)
    pieces = (piece.double() - origin for piece in features.detach().split(PIECE))
    return torch.cat([(squares - 2 * piece @ targets.T).argmin(dim=1) for piece in pieces])


def _check_features(features: Tensor, values: bool = True) -> None:
    if features.ndim != 2 or not features.numel() or not features.is_floating_point():
        raise ValueError(f"features are {features.dtype} {tuple(features.shape)}: expected floats (n, d), n and d >= 1")
    if values and not bool(features.isfinite().all()):
        raise ValueError("features hold values that are not finite: check the encoder's weights")
