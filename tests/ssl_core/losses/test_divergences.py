import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from astra_gym.ssl_core.losses.divergences import DIVERGENCES, representational_divergence


def features(n: int = 6, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distribution(row: np.ndarray) -> np.ndarray:
    extent = row.max() - row.min()
    unit = (row - row.min()) / extent if extent else 0 * row
    return np.exp(unit) / np.exp(unit).sum()


def numpy_kl(p: np.ndarray, q: np.ndarray) -> float:
    return sum(float(a) * math.log(a / b) for a, b in zip(p, q, strict=True))


def numpy_rows(clean: np.ndarray, adversarial: np.ndarray, kind: str) -> np.ndarray:
    values = []
    for a, b in zip(clean, adversarial, strict=True):
        p, q = distribution(a), distribution(b)
        m = (p + q) / 2
        values.append(numpy_kl(p, q) if kind == "kl" else (numpy_kl(p, m) + numpy_kl(q, m)) / 2)
    return np.array(values)


def numpy_transport(a: np.ndarray, b: np.ndarray, regularisation: float) -> float:
    """Cost of the entropic plan, by Sinkhorn's scaling of the kernel until it stands: <P, C> + reg KL(P || uniform)."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    cost, n = 1 - a @ b.T, len(a)
    kernel = np.exp(-cost / regularisation) / n**2
    u, v = np.ones(n), np.ones(n)
    for _ in range(3000):
        v = 1 / n / (kernel.T @ u)
        u = 1 / n / (kernel @ v)
    plan = u[:, None] * kernel * v
    return float((plan * cost).sum() + regularisation * (plan * np.log(plan * n**2)).sum())


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_rows_equal_numpy(kind: str) -> None:
    clean, adversarial = features(), features(seed=1)
    expected = torch.from_numpy(numpy_rows(clean.numpy(), adversarial.numpy(), kind))
    torch.testing.assert_close(representational_divergence(clean, adversarial, kind, "none"), expected)
    torch.testing.assert_close(representational_divergence(clean, adversarial, kind), expected.mean())
    torch.testing.assert_close(representational_divergence(clean, adversarial, kind, "sum"), expected.sum())
    assert (expected > 0).all()


def test_kl_is_the_default() -> None:
    clean, adversarial = features(), features(seed=1)
    assert representational_divergence(clean, adversarial) == representational_divergence(clean, adversarial, "kl")


def test_transport_equals_numpy() -> None:
    clean, adversarial = features(), features(seed=1)
    a, b = clean.numpy(), adversarial.numpy()
    expected = numpy_transport(a, b, 0.3) - (numpy_transport(a, a, 0.3) + numpy_transport(b, b, 0.3)) / 2
    got = representational_divergence(clean, adversarial, "ot", regularisation=0.3, iterations=500)
    assert got.item() == pytest.approx(expected, rel=1e-6) and expected > 0
    total = representational_divergence(clean, adversarial, "ot", "sum", regularisation=0.3, iterations=500)
    torch.testing.assert_close(total, 6 * got)


def test_transport_with_little_entropy_is_the_best_assignment() -> None:
    clean, adversarial = features(), features(seed=1)
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (clean, adversarial))
    cost = (1 - a @ b.T).numpy()
    best = cost[linear_sum_assignment(cost)].mean()
    got = representational_divergence(clean, adversarial, "ot", regularisation=1e-3, iterations=4000)
    assert got.item() == pytest.approx(best, abs=1e-3)


def test_one_row_costs_one_less_the_cosine() -> None:
    clean, adversarial = features(1), features(1, seed=1)
    cosine = torch.cosine_similarity(clean, adversarial).item()
    assert representational_divergence(clean, adversarial, "ot").item() == pytest.approx(1 - cosine)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_identical_features_do_not_diverge(kind: str) -> None:
    clean = features()
    assert representational_divergence(clean, clean.clone(), kind).item() == pytest.approx(0, abs=1e-12)
    assert representational_divergence(clean, 3 * clean, kind).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_images_may_come_in_any_order(kind: str) -> None:
    clean, adversarial, order = features(), features(seed=1), torch.tensor([3, 0, 5, 1, 4, 2])
    value = representational_divergence(clean, adversarial, kind, iterations=300)
    torch.testing.assert_close(
        representational_divergence(clean[order], adversarial[order], kind, iterations=300), value
    )
    alone = representational_divergence(clean, adversarial[order], kind, iterations=300)
    assert (alone.item() == pytest.approx(value.item(), abs=1e-6)) == (kind == "ot")


def test_kl_has_a_direction_and_js_none() -> None:
    clean, adversarial = features(), features(seed=1)
    forth, back = (
        [representational_divergence(*pair, kind).item() for kind in ("kl", "js")]
        for pair in ((clean, adversarial), (adversarial, clean))
    )
    assert forth[0] != pytest.approx(back[0], rel=1e-3)
    assert forth[1] == pytest.approx(back[1])


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_offset_and_scale_of_a_row_do_not_count_but_its_sign_does(kind: str) -> None:
    clean, adversarial = features(), features(seed=1)
    value = representational_divergence(clean, adversarial, kind)
    torch.testing.assert_close(representational_divergence(7 * clean - 2, adversarial / 9 + 4, kind), value)
    assert representational_divergence(clean, -clean, kind) > 0.01
    if kind == "js":
        assert representational_divergence(clean, adversarial, kind, "none").max() <= math.log(2)


def test_constant_rows_are_uniform_and_have_finite_gradients() -> None:
    clean, adversarial = torch.full((2, 4), 3.0, requires_grad=True), torch.zeros(2, 4, requires_grad=True)
    value = representational_divergence(clean, adversarial)
    assert value.item() == pytest.approx(0, abs=1e-7)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(value, [clean, adversarial]))


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradients_by_finite_differences(kind: str) -> None:
    clean, adversarial = features(4, 5).requires_grad_(), features(4, 5, seed=1).requires_grad_()
    reductions = ("mean", "sum") if kind == "ot" else ("mean", "sum", "none")
    for reduction in reductions:
        assert torch.autograd.gradcheck(
            lambda a, b, r=reduction: representational_divergence(a, b, kind, r, regularisation=0.2, iterations=8),
            (clean, adversarial),
        )


def test_what_does_not_fit_is_refused() -> None:
    z = features()
    with pytest.raises(ValueError, match=r"unknown divergence 'tv': choose from kl, js, ot"):
        representational_divergence(z, z, "tv")
    with pytest.raises(ValueError, match="reduction is 'median'"):
        representational_divergence(z, z, reduction="median")
    with pytest.raises(ValueError, match="no value for a row"):
        representational_divergence(z, z, "ot", "none")
    for a, b in ((z, z[:3]), (z[0], z[0]), (z[:0], z[:0]), (z[:, :1], z[:, :1])):
        with pytest.raises(ValueError, match=r"expected \(n, d\) twice"):
            representational_divergence(a, b)
    for arguments in ({"regularisation": 0.0}, {"iterations": 0}):
        with pytest.raises(ValueError, match="expected above 0, and 1 or more"):
            representational_divergence(z, z, "ot", **arguments)
