import random
import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from astra_gym.ssl_core.models.clustering import (
    assign,
    by_scikit_learn,
    by_torch,
    encode_features,
    fit_clusters,
    lloyd,
)
from astra_gym.ssl_core.models.folding import FoldedNetwork
from astra_gym.ssl_core.transforms.views import as_float
from tests.helpers.draws import generator
from tests.helpers.tiny_networks import tiny_network


def points(n: int = 120, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=generator(seed))


def blobs() -> tuple[Tensor, Tensor]:
    """Three heaps far from each other, and which one a point is of."""
    owners = torch.arange(60) % 3
    corners = torch.tensor([[10.0, 0.0], [0.0, 10.0], [-10.0, -10.0]])
    return corners[owners] + 0.3 * points(60, 2), owners


def images(n: int = 11) -> Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), generator=generator(1)).to(torch.uint8)


def test_separate_heaps_are_found() -> None:
    features, owners = blobs()
    (centroids,) = fit_clusters(features, [3], generator())
    found = assign(features, centroids)
    assert len({(int(a), int(b)) for a, b in zip(found, owners, strict=True)}) == 3
    for cluster in range(3):
        torch.testing.assert_close(centroids[cluster], features[found == cluster].double().mean(dim=0))


def test_assignment_is_the_nearest_centroid_in_numpy() -> None:
    # far from the origin, where |x|^2 - 2xc + |c|^2 in float32 would decide by rounding
    features, centroids = points(5000, 4) + 1000, points(7, 4, seed=1) + 1000
    distances = ((features.double().numpy()[:, None] - centroids.double().numpy()[None]) ** 2).sum(axis=2)
    assert np.array_equal(assign(features, centroids).numpy(), distances.argmin(axis=1))
    assert assign(features, centroids).dtype == torch.int64


@pytest.mark.parametrize("count", [2, 10, 40])
def test_assignment_agrees_with_the_fit(count: int) -> None:
    features = points(400, 8) + 50
    (centroids,) = fit_clusters(features, [count], generator(3), starts=2)
    seed = int(torch.randint(2**31 - 1, (), generator=generator(3)))
    fitted = KMeans(count, n_init=2, tol=1e-5, random_state=seed).fit(features.double().numpy())
    assert np.array_equal(assign(features, centroids).numpy(), fitted.labels_)
    assert centroids.shape == (count, 8) and centroids.dtype == torch.float64
    assert len(assign(features, centroids).unique()) == count


def test_several_counts_at_once_each_with_a_seed_of_its_own() -> None:
    features = points()
    first, second, again = fit_clusters(features, [2, 10, 10], generator())
    assert (len(first), len(second)) == (2, 10)
    assert not torch.equal(second, again)


def test_more_starts_do_not_give_a_worse_fit() -> None:
    features = points(300, 3)

    def spread(starts: int, seed: int) -> float:
        (centroids,) = fit_clusters(features, [12], generator(seed), starts=starts)
        return float((features.double() - centroids[assign(features, centroids)]).square().sum())

    assert spread(20, 0) <= min(spread(1, seed) for seed in range(3)) * 1.01
    assert len({spread(1, seed) for seed in range(3)}) > 1


def test_it_repeats_bit_for_bit_and_leaves_global_generators_alone() -> None:
    features = points()
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()  # type: ignore[index]
    first = fit_clusters(features, [5, 9], generator(2))
    again = fit_clusters(features.clone(), [5, 9], generator(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert torch.equal(torch.random.get_rng_state(), before[2])


def test_a_gpu_s_iterations_are_scikit_learn_s_from_the_same_start() -> None:
    features = points(400, 6).double()
    # the last two centroids are nobody's nearest: they move to the points that lie farthest from theirs
    start = torch.cat([features[:8], torch.full((2, 6), 50.0, dtype=torch.float64)])
    centroids, labels, spread = lloyd(features, start, 0.0, 300)
    expected = KMeans(10, init=start.numpy(), n_init=1, tol=0, max_iter=300).fit(features.numpy())
    torch.testing.assert_close(centroids, torch.from_numpy(expected.cluster_centers_), rtol=0, atol=1e-12)
    assert np.array_equal(labels.numpy(), expected.labels_) and spread == pytest.approx(expected.inertia_, rel=1e-12)


@pytest.mark.parametrize(("count", "starts"), [(2, 1), (12, 5)])
def test_a_gpu_s_clusters_are_the_cpu_s_from_the_same_seed(count: int, starts: int) -> None:
    given = points(300, 4).double() + 50, count, 3, starts, 1e-5, 300
    torch.testing.assert_close(by_torch(*given), by_scikit_learn(*given), rtol=0, atol=1e-9)
    assert by_torch(torch.ones(20, 4).double(), *given[1:]) is None


@pytest.mark.parametrize("counts", [[], [1], [5, 121], [0], [-3]])
def test_numbers_of_clusters_out_of_range_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected each in 2\.\.120, since there are 120 features"):
        fit_clusters(points(), counts, generator())


def test_a_collapsed_encoder_is_an_error_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="fewer than 3 of the 20 features are distinct"):
            fit_clusters(torch.ones(20, 4), [3], generator())


def test_what_does_not_fit_is_refused() -> None:
    for wrong in (torch.zeros(4), torch.zeros(0, 3), torch.zeros(4, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"expected floats \(n, d\)"):
            fit_clusters(wrong, [2], generator())
        with pytest.raises(ValueError, match=r"expected floats \(n, d\)"):
            assign(wrong, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="not finite"):
        fit_clusters(torch.full((4, 2), torch.nan), [2], generator())
    with pytest.raises(ValueError, match="starts is 0"):
        fit_clusters(points(), [2], generator(), starts=0)
    with pytest.raises(ValueError, match=r"expected \(K, 5\)"):
        assign(points(), torch.zeros(2, 4))


def test_features_are_those_of_the_images_as_they_are() -> None:
    target = tiny_network().eval()
    features = encode_features(target, images(), "pgd", batch_size=4)
    with torch.no_grad():
        expected = target.features(as_float(images()), "pgd")
    torch.testing.assert_close(features, expected)
    assert not features.requires_grad and features.shape == (11, target.feature_dim)
    folded = encode_features(FoldedNetwork(target), images(), "pgd")
    torch.testing.assert_close(folded, expected, rtol=1e-3, atol=1e-4)


def test_a_network_in_train_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="train mode"):
        encode_features(tiny_network(), images(), "pgd")
    with pytest.raises(ValueError, match="11 images in batches of 0"):
        encode_features(tiny_network().eval(), images(), "pgd", batch_size=0)
    with pytest.raises(ValueError, match="no route 'fast'"):
        encode_features(tiny_network().eval(), images(), "fast")
