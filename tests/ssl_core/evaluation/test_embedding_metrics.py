import math

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.evaluation.embedding_metrics import (
    alignment,
    effective_rank,
    embedding_std,
    entropy_rank,
    normalized,
    resamples,
    singular_values,
    uniformity,
)


def cloud(n: int = 40, d: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.arange(1, d + 1) + 1


def circle(n: int) -> Tensor:
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_alignment_of_identical_opposite_and_orthogonal_pairs_and_by_hand() -> None:
    z = cloud()
    assert alignment(z, 3 * z).item() == pytest.approx(0, abs=1e-12)
    assert alignment(z, -z).item() == pytest.approx(4)
    assert alignment(torch.eye(4), torch.eye(4).roll(1, 0)).item() == pytest.approx(2)
    # one pair at 60 degrees, |difference| = 1; one at 90, |difference|^2 = 2
    z1 = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    z2 = torch.tensor([[0.5, math.sqrt(0.75)], [2.0, 0.0]])
    assert alignment(z1, z2).item() == pytest.approx(1.5)


def test_uniformity_of_a_simplex_a_circle_and_a_collapse() -> None:
    # an orthonormal simplex: every pair is at squared distance 2
    for t in (0.5, 2.0):
        assert uniformity(torch.eye(5), t).item() == pytest.approx(-2 * t)
    # a regular simplex around 0: 2 n / (n - 1)
    simplex = torch.eye(5) - 1 / 5
    assert uniformity(simplex).item() == pytest.approx(-2 * 2 * 5 / 4)
    assert uniformity(torch.ones(7, 3) * torch.arange(1, 8).view(-1, 1)).item() == pytest.approx(0, abs=1e-12)
    assert uniformity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])).item() == pytest.approx(-8)
    # on the whole circle the mean potential is exp(-2t) I_0(2t); n points lack the n pairs with themselves
    n, t = 1500, 2.0
    whole = math.exp(-2 * t) * float(np.i0(2 * t))
    assert uniformity(circle(n), t).item() == pytest.approx(math.log((n * whole - 1) / (n - 1)), abs=1e-9)


def test_figures_are_those_of_numpy() -> None:
    z1, z2 = cloud(seed=1), cloud(seed=2)
    a, b = (z.double().numpy() / np.linalg.norm(z.double().numpy(), axis=1, keepdims=True) for z in (z1, z2))
    assert alignment(z1, z2).item() == pytest.approx(float((np.linalg.norm(a - b, axis=1) ** 2).mean()), rel=1e-12)
    distances = [np.linalg.norm(a[i] - a[j]) ** 2 for i in range(len(a)) for j in range(i)]
    assert uniformity(z1, 3.0).item() == pytest.approx(
        float(np.log(np.exp(-3 * np.array(distances)).mean())), rel=1e-12
    )
    for centered, matrix in ((False, a), (True, a - a.mean(0))):
        np.testing.assert_allclose(singular_values(z1, centered), np.linalg.svd(matrix, compute_uv=False), rtol=1e-9)
    p = np.linalg.svd(a, compute_uv=False)
    p /= p.sum()
    assert effective_rank(z1).item() == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-12)
    assert embedding_std(z1).item() == pytest.approx(float(a.std(0).mean()), rel=1e-12)


def test_uniformity_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    z, weights = cloud(50), resamples(50, 3, torch.Generator().manual_seed(0))
    whole = uniformity(z), uniformity(z, weights=weights)
    monkeypatch.setattr("astra_gym.ssl_core.evaluation.embedding_metrics.CHUNK", 350)
    torch.testing.assert_close((uniformity(z), uniformity(z, weights=weights)), whole, rtol=1e-13, atol=1e-13)


def test_uniformity_stands_exponents_that_no_float_has() -> None:
    t = 1e4
    # exp(-2e4) is 0 in float64; the nearest pair alone counts
    assert uniformity(torch.eye(3), t).item() == pytest.approx(-2 * t)
    near = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)], [-1.0, 0.0]], dtype=torch.float64)
    assert uniformity(near, t).item() == pytest.approx(-t - math.log(3))


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank(torch.eye(6)).item() == pytest.approx(6)
    assert effective_rank(torch.ones(9, 4)).item() == pytest.approx(1)
    # three directions, one of them with four of the six rows: singular values 2, 1, 1
    rows = torch.eye(5)[[0, 0, 0, 0, 1, 2]]
    shares = np.array([0.5, 0.25, 0.25])
    assert effective_rank(rows).item() == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert entropy_rank(torch.tensor([3.0, 0.0, 3.0])).item() == pytest.approx(2)
    assert effective_rank(cloud()).item() == pytest.approx(effective_rank(100 * cloud()).item(), rel=1e-5)


def test_embedding_std_is_zero_in_a_collapse_and_largest_for_a_uniform_sphere() -> None:
    assert embedding_std(torch.ones(9, 4)).item() == 0
    assert embedding_std(circle(360)).item() == pytest.approx(1 / math.sqrt(2))
    gaussian = torch.randn(20000, 16, generator=torch.Generator().manual_seed(0))
    assert embedding_std(gaussian).item() == pytest.approx(0.25, rel=2e-3)
    assert embedding_std(cloud()).item() < 1 / math.sqrt(6)
    # a collapse with a little noise is no zero, and no noise of rounding
    almost = torch.ones(9, 4, dtype=torch.float64) + 1e-9 * cloud(9, 4).double()
    assert embedding_std(almost).item() == pytest.approx(
        embedding_std(torch.ones(9, 4).double() + 2e-9 * cloud(9, 4).double()).item() / 2, rel=1e-4
    )


def test_weights_of_one_each_change_nothing_and_resamples_are_what_numpy_resamples() -> None:
    z1, z2 = cloud(seed=1), cloud(seed=2)
    ones = torch.ones(1, len(z1))
    assert alignment(z1, z2, ones).tolist() == pytest.approx([alignment(z1, z2).item()])
    assert uniformity(z1, weights=ones).tolist() == pytest.approx([uniformity(z1).item()])
    weights = resamples(len(z1), 4, torch.Generator().manual_seed(0))
    assert weights.sum(1).tolist() == [40] * 4
    assert not torch.equal(weights[0], weights[1])
    a = z1.double().numpy() / np.linalg.norm(z1.double().numpy(), axis=1, keepdims=True)
    for index, weight in enumerate(weights):
        rows = np.repeat(np.arange(40), weight.int().numpy())
        assert alignment(z1, z2, weights)[index].item() == pytest.approx(alignment(z1[rows], z2[rows]).item())
        found = embedding_std(z1, weights)[index].item()
        assert found == pytest.approx(float(a[rows].std(0).mean()))
        pairs = [np.exp(-2 * ((a[i] - a[j]) ** 2).sum()) for i in rows for j in rows if i != j]
        assert uniformity(z1, weights=weights)[index].item() == pytest.approx(float(np.log(np.mean(pairs))))


def test_no_image_of_a_resample_is_a_pair_with_itself() -> None:
    """With such pairs uniformity would be above the data's by far more than its spread."""
    z = torch.randn(60, 32, generator=torch.Generator().manual_seed(0))
    weights = resamples(60, 2000, torch.Generator().manual_seed(1))
    values = uniformity(z, weights=weights)
    assert abs(values.mean() - uniformity(z)) < 0.5 * values.std()
    assert torch.equal(weights, resamples(60, 2000, torch.Generator().manual_seed(1)))


def test_input_may_be_of_any_floating_type_and_size_and_is_left_as_it_is() -> None:
    z = cloud()
    before = z.clone()
    for scale in (1e-200, 1e200):
        torch.testing.assert_close(normalized(scale * z.double()), normalized(z))
    torch.testing.assert_close(normalized(z).norm(dim=1), torch.ones(40).double())
    assert uniformity(z.requires_grad_()).dtype == torch.float64
    assert not uniformity(z).requires_grad
    assert torch.equal(z, before)
    assert effective_rank(z.half()).item() == pytest.approx(effective_rank(z).item(), rel=1e-2)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.ones(1, 3), "at least two"),
        (torch.ones(4), r"expected floats \(n, d\)"),
        (torch.ones(4, 3, dtype=torch.int64), "int64"),
        (torch.ones(4, 0), "expected floats"),
        (torch.tensor([[1.0, math.nan], [1.0, 0.0]]), "1 of 2 embeddings are not finite"),
        (torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), "2 of 3 embeddings are zero"),
    ],
)
def test_bad_embeddings_are_refused(z: Tensor, message: str) -> None:
    for figure in (uniformity, effective_rank, embedding_std, singular_values, lambda z: alignment(z, z)):
        with pytest.raises(ValueError, match=message):
            figure(z)


def test_other_bad_input_is_refused() -> None:
    z = cloud()
    with pytest.raises(ValueError, match=r"z1 is \(40, 6\) and z2 \(39, 6\)"):
        alignment(z, z[1:])
    for t in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            uniformity(z, t)
    for weights in (torch.ones(3, 39), torch.ones(40)):
        with pytest.raises(ValueError, match=r"expected \(b, 40\)"):
            embedding_std(z, weights)
    for value in (-1.0, 0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="negative, not finite or all zero"):
            alignment(z, z, torch.full((1, 40), value))
    with pytest.raises(ValueError, match="two different images"):
        uniformity(z, weights=40.0 * torch.eye(40)[:1])
