"""Batch norm over ranks, here over one, against torch's own; over four in `test_spreading`."""

import pytest
import torch
from torch.nn import functional as F

from astra_gym.ssl_core.distributed.batch_norm import normalized_over
from astra_gym.ssl_core.distributed.ranks import Ranks
from tests.helpers.draws import generator


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (5, 4, 3, 2)])
def test_over_one_rank_it_is_torchs_batch_norm(shape: tuple[int, ...], affine: bool) -> None:
    x = (torch.randn(shape, generator=generator(0), dtype=torch.float64) + 30).requires_grad_()
    weight, bias = (torch.rand(4, generator=generator(seed), dtype=torch.float64).requires_grad_() for seed in (1, 2))
    slope, own = (
        torch.randn(shape, generator=generator(3), dtype=torch.float64),
        (weight, bias) if affine else (None, None),
    )
    inputs = [x, weight, bias] if affine else [x]
    found = normalized_over(Ranks(), x, *own, 1e-5)
    expected = F.batch_norm(x, None, None, *own, training=True, eps=1e-5)
    torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-12)
    rows = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close((found.mean, found.variance), (rows.mean(1), rows.var(1, unbiased=False)))
    assert found.number == rows.shape[1]
    mine, theirs = (torch.autograd.grad(values, inputs, slope) for values in (found.values, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_float32_keeps_its_digits_far_from_zero() -> None:
    """The mean of squares minus the square of the mean has no digit left here."""
    x = 1e4 + torch.randn(64, 3, generator=generator(5))
    wide = normalized_over(Ranks(), x.double(), None, None, 1e-5)
    torch.testing.assert_close(
        normalized_over(Ranks(), x, None, None, 1e-5).variance, wide.variance.float(), rtol=1e-3, atol=0
    )


def test_half_precision_is_normalized_by_float32_statistics() -> None:
    x = torch.randn(8, 3, 4, 4, generator=generator(6)).bfloat16().requires_grad_()
    found = normalized_over(Ranks(), x, torch.ones(3), torch.zeros(3), 1e-5)
    assert found.values.dtype == torch.bfloat16 and found.mean.dtype == torch.float32
    (gradient,) = torch.autograd.grad(found.values.float().square().sum(), x)
    assert gradient.dtype == torch.bfloat16 and float(gradient.float().abs().max()) < 0.1
