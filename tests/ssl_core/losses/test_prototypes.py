"""Codes and cross-entropies of prototypes against NumPy and closed forms."""

import numpy as np
import pytest
import torch

from astra_gym.ssl_core.losses.prototypes import sinkhorn, soft_cross_entropy, swapped_cross_entropy
from tests.helpers.draws import generator

SCORES = torch.rand(6, 4, generator=generator(0), dtype=torch.float64) * 2 - 1


def by_numpy(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """As in the paper's appendix: prototypes are rows."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * k
        q /= q.sum(axis=0, keepdims=True) * b
    return (q * b).T


@pytest.mark.parametrize("iterations", [1, 3])
def test_codes_are_those_of_numpy(iterations: int) -> None:
    found = sinkhorn(SCORES, 0.1, iterations)
    np.testing.assert_allclose(found.numpy(), by_numpy(SCORES.numpy(), 0.1, iterations), rtol=1e-10)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(6).double())


def test_codes_use_all_prototypes_equally_and_do_not_overflow() -> None:
    many = sinkhorn(SCORES, 0.5, 200)
    torch.testing.assert_close(many.sum(dim=0), torch.full((4,), 1.5).double())
    torch.testing.assert_close(sinkhorn(torch.zeros(6, 4)), torch.full((6, 4), 0.25))
    assert bool(sinkhorn(1000 * SCORES.float(), 10.0).isfinite().all())
    assert not sinkhorn(SCORES.clone().requires_grad_()).requires_grad


def test_cross_entropies() -> None:
    logits = torch.randn(4, 3, generator=generator(1), dtype=torch.float64)
    p = torch.rand(4, 3, generator=generator(2), dtype=torch.float64)
    logs = logits.numpy() - np.log(np.exp(logits.numpy()).sum(axis=1, keepdims=True))
    expected = -(p.numpy() * logs).sum(axis=1)
    np.testing.assert_allclose(soft_cross_entropy(p, logits, "none").numpy(), expected)
    swapped = -(p.numpy()[[1, 0, 3, 2]] * logs).sum(axis=1)
    np.testing.assert_allclose(swapped_cross_entropy(p, logits, "none").numpy(), swapped)
    assert torch.autograd.gradcheck(soft_cross_entropy, (p.requires_grad_(), logits.requires_grad_()))
    with pytest.raises(ValueError, match="expected \\(n, K\\) twice"):
        soft_cross_entropy(p, logits[:2])
    with pytest.raises(ValueError, match="images and prototypes"):
        sinkhorn(torch.zeros(0, 3))
