"""Barlow Twins and VICReg against NumPy, closed forms, and brute force for what a single view changes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.losses.redundancy import barlow_twins, barlow_twins_marginal, vicreg, vicreg_marginal
from tests.helpers.draws import generator

N, D, LAMBDA, SCALE = 6, 4, 0.3, 0.1


def z(seed: int, spread: float = 1.0) -> Tensor:
    # deviations on both sides of VICReg's 1
    return spread * torch.randn(2 * N, D, generator=generator(seed), dtype=torch.float64) + torch.arange(D)


def standard(view: np.ndarray) -> np.ndarray:
    return (view - view.mean(0)) / np.sqrt(view.var(0) + 1e-5)


def barlow_of(a: np.ndarray, b: np.ndarray) -> float:
    c = a.T @ b / N
    return SCALE * sum((1 - c[i, j]) ** 2 if i == j else LAMBDA * c[i, j] ** 2 for i in range(D) for j in range(D))


def vicreg_of(first: np.ndarray, second: np.ndarray) -> float:
    total = 25 * ((first - second) ** 2).mean()
    for view in (first, second):
        c = np.cov(view.T)
        total += 25 * np.maximum(0, 1 - np.sqrt(np.diag(c) + 1e-4)).mean()
        total += (c**2).sum() / D - (np.diag(c) ** 2).sum() / D
    return total


def numpy_barlow(both: np.ndarray) -> float:
    return barlow_of(standard(both[0::2]), standard(both[1::2]))


def numpy_vicreg(both: np.ndarray) -> float:
    return vicreg_of(both[0::2], both[1::2])


def barlow(both: Tensor, reduction: str = "mean") -> Tensor:
    return barlow_twins(both, LAMBDA, SCALE, reduction)


def vic(both: Tensor, reduction: str = "mean") -> Tensor:
    return vicreg(both, reduction=reduction)


BOTH = pytest.mark.parametrize(("loss", "by_numpy"), [(barlow, numpy_barlow), (vic, numpy_vicreg)])


@BOTH
def test_the_rows_mean_is_the_loss_and_has_its_gradient(
    loss: Callable[..., Tensor], by_numpy: Callable[[np.ndarray], float]
) -> None:
    for spread in (0.2, 1.0, 3.0):
        x = z(0, spread).requires_grad_()
        rows = loss(x, "none")
        assert rows.mean().item() == pytest.approx(by_numpy(x.detach().numpy()), rel=1e-9)
        (slope,) = torch.autograd.grad(rows.mean(), x)
        way = z(5)
        sides = [by_numpy((x + sign * 1e-6 * way).detach().numpy()) for sign in (1, -1)]
        assert float((slope * way).sum()) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5, abs=1e-7)
    order = torch.tensor([4, 0, 5, 1, 3, 2])
    moved = x.unflatten(0, (N, 2))[order].flatten(0, 1)
    torch.testing.assert_close(loss(moved, "none"), rows.unflatten(0, (N, 2))[order].flatten())
    assert torch.autograd.gradcheck(loss, (z(1).requires_grad_(),))


def test_closed_forms() -> None:
    # two views alike with uncorrelated columns: Barlow's least value; opposite ones: 4 for each dimension
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double() * 3
    alike, opposite = (torch.stack([x, sign * x], dim=1).flatten(0, 1) for sign in (1, -1))
    assert barlow_twins(alike, scale=1.0).item() == pytest.approx(0, abs=1e-5)
    assert barlow_twins(opposite, scale=1.0).item() == pytest.approx(8, rel=1e-5)
    # unbiased deviation 2 sqrt(3) > 1, no covariance: invariance alone, 25 * 6^2
    assert vicreg(opposite).item() == pytest.approx(900) and vicreg(alike).item() == pytest.approx(0, abs=1e-12)
    # all embeddings alike: both deviations are sqrt(eps)
    assert vicreg(torch.ones(8, 3)).item() == pytest.approx(2 * 25 * (1 - 0.01), rel=1e-5)
    # one direction twice: a correlation of 1 beside the diagonal too
    doubled = torch.stack([x[:, :1]] * 2, dim=1).flatten(0, 1).repeat(1, 2)
    assert barlow_twins(doubled, 0.25, 1.0).item() == pytest.approx(0.5, rel=1e-5)


def test_a_marginal_change_is_what_replacing_one_view_alone_does() -> None:
    for clean, moved in ((z(0), z(1)), (z(2, 0.2), z(3, 0.2))):
        before, after = clean.numpy(), moved.numpy()
        rows = [standard(before[0::2]), standard(before[1::2])], [standard(after[0::2]), standard(after[1::2])]
        barlows, vics = [], []
        for v in range(2 * N):
            replaced = [rows[0][0].copy(), rows[0][1].copy()]
            replaced[v % 2][v // 2] = rows[1][v % 2][v // 2]
            barlows.append(2 * N * (barlow_of(*replaced) - barlow_of(*rows[0])))
            plain = before.copy()
            plain[v] = after[v]
            vics.append(2 * N * (numpy_vicreg(plain) - numpy_vicreg(before)))
        np.testing.assert_allclose(barlow_twins_marginal(clean, moved, LAMBDA, SCALE).numpy(), barlows, rtol=1e-8)
        np.testing.assert_allclose(vicreg_marginal(clean, moved).numpy(), vics, rtol=1e-8)
    # for small changes their mean is the change of the loss
    step = clean + 1e-6 * z(4)
    change = vicreg(step) - vicreg(clean)
    torch.testing.assert_close(vicreg_marginal(clean, step).mean(), change, rtol=1e-4, atol=0)
    for marginal in (barlow_twins_marginal, vicreg_marginal):
        assert marginal(clean, clean).abs().max() < 1e-12


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (4,)])
def test_bad_shapes_are_refused(shape: tuple[int, ...]) -> None:
    for loss in (barlow_twins, vicreg):
        with pytest.raises(ValueError, match="expected \\(2N, d\\)"):
            loss(torch.zeros(shape))
    with pytest.raises(ValueError, match="N >= 2"):
        vicreg(torch.zeros(2, 4))
