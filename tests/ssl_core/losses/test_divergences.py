import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from astra_gym.ssl_core.losses.divergences import DIVERGENCES, FORMS, representational_divergence


def features(n: int = 6, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distribution(row: np.ndarray) -> np.ndarray:
    extent = row.max() - row.min()
    unit = (row - row.min()) / extent if extent else 0 * row
    return np.exp(unit) / np.exp(unit).sum()


def numpy_kl(p: np.ndarray, q: np.ndarray) -> float:
    return sum(float(a) * math.log(a / b) for a, b in zip(p, q, strict=True))


def numpy_rows(clean: np.ndarray, adversarial: np.ndarray, kind: str) -> np.ndarray:
    """The form "softmax"."""
    values = []
    for a, b in zip(clean, adversarial, strict=True):
        p, q = distribution(a), distribution(b)
        m = (p + q) / 2
        values.append(numpy_kl(p, q) if kind == "kl" else (numpy_kl(p, m) + numpy_kl(q, m)) / 2)
    return np.array(values)


def numpy_transport(a: np.ndarray, b: np.ndarray, regularization: float) -> float:
    """Cost of the entropic plan, by Sinkhorn's scaling of the kernel until it stands: <P, C> + reg KL(P || uniform)."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    cost, n = 1 - a @ b.T, len(a)
    kernel = np.exp(-cost / regularization) / n**2
    u, v = np.ones(n), np.ones(n)
    for _ in range(3000):
        v = 1 / n / (kernel.T @ u)
        u = 1 / n / (kernel @ v)
    plan = u[:, None] * kernel * v
    return float((plan * cost).sum() + regularization * (plan * np.log(plan * n**2)).sum())


def released_rows(clean: np.ndarray, adversarial: np.ndarray, kind: str) -> np.ndarray:
    """RCS's code: sum of q log(q / p) over values scaled to [0, 1] plus 1e-8; of "js" KL(m || p)/2 + KL(m || q)/2."""
    values = []
    for a, b in zip(clean, adversarial, strict=True):
        if kind == "kl":
            p, q = ((row - row.min()) / (row.max() - row.min()) + 1e-8 for row in (a, b))
            values.append(numpy_kl(q, p))
        else:
            p, q = (np.exp(row) / np.exp(row).sum() for row in (a, b))
            m = (p + q) / 2
            values.append((numpy_kl(m, p) + numpy_kl(m, q)) / 2)
    return np.array(values)


@pytest.mark.parametrize("kind", ["kl", "js"])
@pytest.mark.parametrize(("form", "by_numpy"), [("released", released_rows), ("softmax", numpy_rows)])
def test_rows_equal_numpy(kind: str, form: str, by_numpy: Callable[..., np.ndarray]) -> None:
    clean, adversarial = features(), features(seed=1)
    expected = torch.from_numpy(by_numpy(clean.numpy(), adversarial.numpy(), kind))
    for reduction, value in (("none", expected), ("mean", expected.mean()), ("sum", expected.sum())):
        got = representational_divergence(clean, adversarial, kind, reduction, form=form)
        torch.testing.assert_close(got, value)
    assert kind == "kl" or (expected > 0).all()


def test_the_released_kl_by_hand() -> None:
    # scaled: (0, 1, 1/2) and (1/2, 0, 1). Of the attacked row: 1/2 log(.5 / 1e-8) + 0 + 1 log(1 / .5)
    clean, attacked = torch.tensor([[1.0, 3.0, 2.0]]).double(), torch.tensor([[2.0, 0.0, 4.0]]).double()
    expected = 0.5 * (math.log(0.5) + 8 * math.log(10)) + math.log(2)
    assert expected == pytest.approx(9.55691, abs=1e-5)
    assert representational_divergence(clean, attacked).item() == pytest.approx(expected, abs=1e-6)
    # and the other way round: 1 log(1 / 1e-8) + 1/2 log(.5 / 1)
    back = 8 * math.log(10) + 0.5 * math.log(0.5)
    assert representational_divergence(attacked, clean).item() == pytest.approx(back, abs=1e-6)
    # what is scaled does not sum to 1: (0, 1/4, 1) against (0, 1/2, 1) is 1/4 log(1/2), below 0
    rows = torch.tensor([[0.0, 2.0, 4.0]]), torch.tensor([[0.0, 1.0, 4.0]])
    assert representational_divergence(*rows).item() == pytest.approx(-0.25 * math.log(2), abs=1e-6)


def test_the_released_js_by_hand() -> None:
    # softmax: (1/4, 3/4) and (1/2, 1/2), so that m is (3/8, 5/8)
    clean, attacked = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    to_p = 3 / 8 * math.log(3 / 2) + 5 / 8 * math.log(5 / 6)
    to_q = 3 / 8 * math.log(3 / 4) + 5 / 8 * math.log(5 / 4)
    got = representational_divergence(clean, attacked, "js")
    assert got.item() == pytest.approx((to_p + to_q) / 2, abs=1e-7)
    # rows are not scaled, and there is no bound: of (0, 1) and (1/2, 1/2) it is the mean of two, one without end
    assert representational_divergence(9 * clean, attacked, "js").item() > math.log(2)
    far = (1000 * clean).requires_grad_()
    value = representational_divergence(far, attacked, "js")
    # m is (1/4, 3/4), and the logarithms of p are (-1000 log 3, 0)
    to_p = 0.25 * (math.log(0.25) + 1000 * math.log(3)) + 0.75 * math.log(0.75)
    assert value.item() == pytest.approx((to_p + 0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2, rel=1e-5)
    assert bool(torch.autograd.grad(value, far)[0].isfinite().all())


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_released_gradients_are_those_of_torchs_own_loss(kind: str) -> None:
    """As the released code has it: `KLDivLoss(log of the clean, attacked)`, and of JS `KLDivLoss(log of either, m)`."""
    clean, attacked = features().requires_grad_(), features(seed=1).requires_grad_()
    if kind == "kl":
        p, q = (row - row.min(1, keepdim=True).values for row in (clean, attacked))
        p, q = (row / row.max(1, keepdim=True).values + 1e-8 for row in (p, q))
        loss = torch.nn.KLDivLoss(reduction="sum")(p.log(), q)
    else:
        p, q = clean.softmax(1), attacked.softmax(1)
        halves = (torch.nn.KLDivLoss(reduction="sum")(row.log(), (p + q) / 2) for row in (p, q))
        loss = sum(halves, start=torch.zeros((), dtype=torch.float64)) / 2
    expected = torch.autograd.grad(loss, [clean, attacked])
    got = torch.autograd.grad(representational_divergence(clean, attacked, kind, "sum"), [clean, attacked])
    for mine, theirs in zip(got, expected, strict=True):
        # the slope of 1e8 at the least place cancels there up to rounding
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_the_gradient_of_the_released_kl_is_exact_in_float32() -> None:
    clean, attacked = (features(64, 16, seed=seed).requires_grad_() for seed in (2, 3))
    exact = torch.autograd.grad(representational_divergence(clean, attacked), [clean, attacked])
    single = [row.detach().float().requires_grad_() for row in (clean, attacked)]
    for got, expected in zip(torch.autograd.grad(representational_divergence(*single), single), exact, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_the_forms_may_rank_pairs_in_opposite_orders(kind: str) -> None:
    clean = torch.tensor([[0.0, 1.0, 4.0]] * 2)
    # a little of the least place is a lot of the released kl, and a large scale a lot of the released js
    attacked = {"kl": [[0.5, 0.0, 4.0], [0.0, 4.0, 1.0]], "js": [[0.0, 1.2, 3.0], [0.0, 10.0, 40.0]]}[kind]
    first, second = (
        representational_divergence(clean, torch.tensor(attacked), kind, "none", form=form).diff().sign().item()
        for form in ("released", "softmax")
    )
    assert first == -second != 0


def test_the_released_kl_is_the_default() -> None:
    clean, adversarial = features(), features(seed=1)
    expected = representational_divergence(clean, adversarial, "kl", "mean", form="released")
    assert representational_divergence(clean, adversarial) == expected


def test_transport_equals_numpy() -> None:
    clean, adversarial = features(), features(seed=1)
    a, b = clean.numpy(), adversarial.numpy()
    expected = numpy_transport(a, b, 0.3) - (numpy_transport(a, a, 0.3) + numpy_transport(b, b, 0.3)) / 2
    got = representational_divergence(clean, adversarial, "ot", regularization=0.3, iterations=500)
    assert got.item() == pytest.approx(expected, rel=1e-6) and expected > 0
    total = representational_divergence(clean, adversarial, "ot", "sum", regularization=0.3, iterations=500)
    torch.testing.assert_close(total, 6 * got)


def test_transport_with_little_entropy_is_the_best_assignment() -> None:
    clean, adversarial = features(), features(seed=1)
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (clean, adversarial))
    cost = (1 - a @ b.T).numpy()
    best = cost[linear_sum_assignment(cost)].mean()
    got = representational_divergence(clean, adversarial, "ot", regularization=1e-3, iterations=4000)
    assert got.item() == pytest.approx(best, abs=1e-3)


def test_one_row_costs_one_less_the_cosine() -> None:
    clean, adversarial = features(1), features(1, seed=1)
    cosine = torch.cosine_similarity(clean, adversarial).item()
    assert representational_divergence(clean, adversarial, "ot").item() == pytest.approx(1 - cosine)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_identical_features_do_not_diverge(kind: str, form: str) -> None:
    clean = features()
    assert representational_divergence(clean, clean.clone(), kind, form=form).item() == pytest.approx(0, abs=1e-12)
    scaled = representational_divergence(clean, 3 * clean, kind, form=form).item()
    assert (scaled == pytest.approx(0, abs=1e-12)) == ((kind, form) != ("js", "released"))


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_images_may_come_in_any_order(kind: str) -> None:
    clean, adversarial, order = features(), features(seed=1), torch.tensor([3, 0, 5, 1, 4, 2])
    value = representational_divergence(clean, adversarial, kind, iterations=300)
    torch.testing.assert_close(
        representational_divergence(clean[order], adversarial[order], kind, iterations=300), value
    )
    alone = representational_divergence(clean, adversarial[order], kind, iterations=300)
    assert (alone.item() == pytest.approx(value.item(), abs=1e-6)) == (kind == "ot")


@pytest.mark.parametrize("form", FORMS)
def test_kl_has_a_direction_and_js_none(form: str) -> None:
    clean, adversarial = features(), features(seed=1)
    forth, back = (
        [representational_divergence(*pair, kind, form=form).item() for kind in ("kl", "js")]
        for pair in ((clean, adversarial), (adversarial, clean))
    )
    assert forth[0] != pytest.approx(back[0], rel=1e-3)
    assert forth[1] == pytest.approx(back[1])


@pytest.mark.parametrize(("kind", "form"), [("kl", "released"), ("kl", "softmax"), ("js", "softmax")])
def test_offset_and_scale_of_a_row_do_not_count_but_its_sign_does(kind: str, form: str) -> None:
    clean, adversarial = features(), features(seed=1)
    value = representational_divergence(clean, adversarial, kind, form=form)
    moved = representational_divergence(7 * clean - 2, adversarial / 9 + 4, kind, form=form)
    torch.testing.assert_close(moved, value)
    assert representational_divergence(clean, -clean, kind, form=form) > 0.01
    if kind == "js":
        assert representational_divergence(clean, adversarial, kind, "none", form=form).max() <= math.log(2)


def test_an_offset_does_not_count_in_the_released_js() -> None:
    clean, adversarial = features(), features(seed=1)
    value = representational_divergence(clean, adversarial, "js")
    torch.testing.assert_close(representational_divergence(clean - 2, adversarial + 4, "js"), value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["kl", "js"])
def test_constant_rows_do_not_diverge_and_have_finite_gradients(kind: str, form: str) -> None:
    clean, adversarial = torch.full((2, 4), 3.0, requires_grad=True), torch.zeros(2, 4, requires_grad=True)
    value = representational_divergence(clean, adversarial, kind, form=form)
    assert value.item() == pytest.approx(0, abs=1e-7)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(value, [clean, adversarial]))
    other = representational_divergence(clean, features(2, 4).float(), kind, form=form)
    (gradient,) = torch.autograd.grad(other, clean)
    assert bool(other.isfinite()) and bool(gradient.isfinite().all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradients_by_finite_differences(kind: str, form: str) -> None:
    clean, adversarial = features(4, 5).requires_grad_(), features(4, 5, seed=1).requires_grad_()
    reductions = ("mean", "sum") if kind == "ot" else ("mean", "sum", "none")
    for reduction in reductions:
        assert torch.autograd.gradcheck(
            lambda a, b, r=reduction: representational_divergence(
                a, b, kind, r, form=form, regularization=0.2, iterations=8
            ),
            (clean, adversarial),
        )


def test_what_does_not_fit_is_refused() -> None:
    z = features()
    with pytest.raises(ValueError, match=r"unknown divergence 'tv': choose from kl, js, ot"):
        representational_divergence(z, z, "tv")
    with pytest.raises(ValueError, match=r"unknown form of a divergence 'soft': .*released, softmax"):
        representational_divergence(z, z, form="soft")
    with pytest.raises(ValueError, match="reduction is 'median'"):
        representational_divergence(z, z, reduction="median")
    with pytest.raises(ValueError, match="no value for a row"):
        representational_divergence(z, z, "ot", "none")
    for a, b in ((z, z[:3]), (z[0], z[0]), (z[:0], z[:0]), (z[:, :1], z[:, :1])):
        with pytest.raises(ValueError, match=r"expected \(n, d\) twice"):
            representational_divergence(a, b)
    for arguments in ({"regularization": 0.0}, {"iterations": 0}):
        with pytest.raises(ValueError, match="expected above 0, and 1 or more"):
            representational_divergence(z, z, "ot", **arguments)
