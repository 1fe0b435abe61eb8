import math

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.losses.multiview import coding_rate, emp_ssl, multi_view_nt_xent, supcon
from tests.helpers.draws import embeddings


def by_hand(z: np.ndarray, views: int, t: float) -> list[list[float]]:
    """-log of the share of every positive of every row, from the definition."""
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    terms = []
    for i in range(len(z)):
        total = sum(np.exp(unit[i] @ unit[j] / t) for j in range(len(z)) if j != i)
        image = range(i // views * views, i // views * views + views)
        terms.append([-np.log(np.exp(unit[i] @ unit[p] / t) / total) for p in image if p != i])
    return terms


@pytest.mark.parametrize("views", [2, 3, 4])
def test_contrastive_losses_against_numpy(views: int) -> None:
    z = embeddings(n=12)
    terms = by_hand(z.numpy(), views, 0.3)
    sums, means = [sum(row) for row in terms], [np.mean(row) for row in terms]
    np.testing.assert_allclose(multi_view_nt_xent(z, views, 0.3, reduction="none"), sums, rtol=1e-10)
    np.testing.assert_allclose(supcon(z, views, 0.3, 0.07, "none"), 0.3 / 0.07 * np.array(means), rtol=1e-10)
    assert multi_view_nt_xent(z, views, 0.3).item() == pytest.approx(np.mean(sums))


def test_with_two_views_it_is_nt_xent() -> None:
    z = embeddings(n=12).requires_grad_()
    ours, theirs = multi_view_nt_xent(z, 2, 0.2, stop=False), nt_xent(z, 0.2)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z))
    torch.testing.assert_close(supcon(z, 2, 0.2, 0.2), theirs)


def test_closed_forms() -> None:
    # versions that are the same, images that are orthogonal: every share is 1 / (2 + 6 exp(-1/t))
    z = torch.eye(3, dtype=torch.float64).repeat_interleave(3, dim=0)
    expected = 2 * math.log(2 + 6 * math.exp(-2))
    assert multi_view_nt_xent(z, 3, 0.5).item() == pytest.approx(expected)
    # everything alike, or a high temperature: all shares are 1 / 8
    assert multi_view_nt_xent(torch.ones(9, 2), 3, 0.5).item() == pytest.approx(2 * math.log(8))
    assert supcon(embeddings(n=9), 3, 1e6, 1e6).item() == pytest.approx(math.log(8), rel=1e-5)


def test_the_order_of_images_and_of_versions_does_not_matter() -> None:
    z = embeddings(n=12)
    order = torch.tensor([5, 3, 4, 9, 11, 10, 0, 1, 2, 7, 6, 8])
    for loss in (multi_view_nt_xent, supcon):
        torch.testing.assert_close(loss(z[order], 3, reduction="none"), loss(z, 3, reduction="none")[order])


def test_the_second_operand_is_detached() -> None:
    z = embeddings(n=6).requires_grad_()
    torch.autograd.gradcheck(lambda x: multi_view_nt_xent(x, 3, stop=False, reduction="none"), z)
    torch.autograd.gradcheck(lambda x: supcon(x, 3, reduction="none"), z)
    stopped = torch.autograd.grad(multi_view_nt_xent(z, 3, 0.5), z)[0]
    unit = torch.nn.functional.normalize(z.detach(), dim=1)

    def rows(x: Tensor) -> Tensor:
        logits = torch.nn.functional.normalize(x, dim=1) @ unit.T / 0.5
        logits = logits.masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf).log_softmax(dim=1)
        return -torch.stack([logits[i, j] for i in range(6) for j in range(6) if i // 3 == j // 3 and i != j]).sum() / 6

    torch.testing.assert_close(stopped, torch.autograd.grad(rows(z), z)[0])


def test_the_coding_rate_against_numpy_and_its_bounds() -> None:
    z = torch.nn.functional.normalize(embeddings(n=8).view(2, 4, 5), dim=2)
    for wide in (z, z.mT.contiguous() / z.mT.norm(dim=2, keepdim=True)):
        b, d = wide.shape[1:]
        expected = [0.5 * np.linalg.slogdet(np.eye(d) + d / (b * 0.2) * each.T @ each)[1] for each in wide.numpy()]
        np.testing.assert_allclose(coding_rate(wide), expected, rtol=1e-10)
    assert coding_rate(torch.eye(4, dtype=torch.float64)).item() == pytest.approx(2 * math.log(1 + 1 / 0.2))
    # all rows alike: one direction only
    assert coding_rate(torch.eye(4)[[0, 0, 0]]).item() == pytest.approx(0.5 * math.log(1 + 4 / 0.2), rel=1e-6)
    torch.autograd.gradcheck(coding_rate, embeddings(n=4).requires_grad_())


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 6, 4)])
def test_embeddings_that_are_not_a_number_give_a_rate_that_is_none(shape: tuple[int, int, int]) -> None:
    z = torch.nn.functional.normalize(embeddings(n=12, d=6).view(shape), dim=2)
    whole = coding_rate(z)
    z[1, 2, 3] = torch.nan
    assert coding_rate(z).isnan().tolist() == [False, True, False]
    assert torch.equal(coding_rate(z)[[0, 2]], whole[[0, 2]])
    assert emp_ssl(z.flatten(0, 1), 3).isnan()


def test_emp_ssl_against_numpy() -> None:
    z, crops = embeddings(n=12), 3
    unit = (z / z.norm(dim=1, keepdim=True)).numpy().reshape(4, crops, 5)
    center = unit.mean(axis=1)
    cosines = [[row @ c / np.linalg.norm(c) for row in image] for image, c in zip(unit, center, strict=True)]
    rates = [0.5 * np.linalg.slogdet(np.eye(5) + 5 / (4 * 0.2) * unit[:, i].T @ unit[:, i])[1] for i in range(crops)]
    expected = -200 * np.mean(cosines) - np.mean(rates)
    assert emp_ssl(z, crops).item() == pytest.approx(expected, rel=1e-10)
    each = np.array([[-200 * c - rate for c, rate in zip(image, rates, strict=True)] for image in cosines])
    np.testing.assert_allclose(emp_ssl(z, crops, reduction="none"), each.ravel(), rtol=1e-10)
    torch.autograd.gradcheck(lambda x: emp_ssl(x, 2, 2.0, reduction="none"), embeddings(n=4).requires_grad_())


def test_emp_ssl_of_crops_that_agree_is_the_weight_and_the_rate() -> None:
    alike = torch.eye(4, dtype=torch.float64).repeat_interleave(3, dim=0)
    assert emp_ssl(alike, 3).item() == pytest.approx(-200 - 2 * math.log(1 + 1 / 0.2))
    z, order = embeddings(n=12), torch.tensor([9, 10, 11, 0, 1, 2, 6, 7, 8, 3, 4, 5])
    torch.testing.assert_close(emp_ssl(z[order], 3, reduction="none"), emp_ssl(z, 3, reduction="none")[order])


def test_bad_arguments_are_refused() -> None:
    z = embeddings(n=12)
    for call, message in (
        (lambda: multi_view_nt_xent(z, 1), "views is 1"),
        (lambda: multi_view_nt_xent(z, 5), r"expected \(5N, d\)"),
        (lambda: supcon(z, 3, 0.0), "temperature is 0.0"),
        (lambda: supcon(z, 3, 0.5, 0.0), "base_temperature is 0.0"),
        (lambda: coding_rate(z[0]), r"expected \(..., b, d\)"),
        (lambda: coding_rate(z, 0.0), "epsilon is 0.0"),
        (lambda: emp_ssl(z, 1), "crops is 1"),
        (lambda: emp_ssl(z, 5), r"expected \(5N, d\)"),
        (lambda: emp_ssl(z, 3, -1.0), "invariance is -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
