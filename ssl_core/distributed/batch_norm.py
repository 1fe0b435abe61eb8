"""Batch normalization in train mode by the statistics of all ranks' rows, on any device."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astra_gym.ssl_core.distributed.ranks import Ranks

_eval_backward = torch.ops.aten.native_batch_norm_backward


class Normalized(NamedTuple):
    """A batch-normalized tensor, and what it was normalized by.

    Args:
        values: of the shape of the inputs.
        mean, variance: (channels,), over the rows (and places) of all ranks; the variance is the biased one.
        number: scalar, the number of values in each channel on all ranks.
    """

    values: Tensor
    mean: Tensor
    variance: Tensor
    number: Tensor


def normalized_over(ranks: Ranks, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Normalized:
    """Normalize each channel by its mean and variance over the rows of all ranks.

    The values and the gradient of x are those of one process with all rows. Numbers of rows may differ, and may be 0.
    The gradients of weight and bias are the part of this rank's rows; their sum over the ranks is the whole.

    Statistics take two passes: of each rank's rows, then of the ranks' means and sums of squares about them (Chan et
    al. 1979). The mean of squares minus the square of the mean would lose digits.

    Args:
        ranks: the ranks.
        x: (n, channels) or (n, channels, h, w), this rank's rows.
        weight, bias: (channels,), or None.
        eps: added to the variance.
    """
    return Normalized(*_BatchNorm.apply(x, weight, bias, eps, ranks))


def _moments(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance (channels,) over all ranks, and the count, all float64."""
    channels = x.shape[1]
    own = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
    if len(x):
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        mean, variance = torch.batch_norm_update_stats(wide, None, None, 0.0)
        count = x.numel() // channels
        own[:channels], own[channels:-1], own[-1] = mean, variance.double() * count, count
    means, squares, counts = ranks.gather(own).split([channels, channels, 1], dim=1)
    count = counts.sum()
    mean = (counts * means).sum(dim=0) / count
    variance = (squares + counts * (means - mean).square()).sum(dim=0) / count
    return mean, variance, count


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kind = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
        found = _moments(x, ranks)
        mean, variance, count = (value.to(kind) for value in found)
        # in eval mode torch normalizes by given statistics
        values = torch.nn.functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, variance, found[2])
        ctx.eps, ctx.ranks = eps, ranks
        ctx.mark_non_differentiable(mean, variance, count)
        return values, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        x, weight, mean, variance, count = ctx.saved_tensors
        channels = x.shape[1]
        if len(x):
            none = mean.new_empty(0)
            passed, of_weight, of_bias = _eval_backward(
                slope, x, weight, mean, variance, none, none, False, ctx.eps, [True, True, True]
            )
        else:
            passed, of_weight, of_bias = torch.zeros_like(x), torch.zeros_like(mean), torch.zeros_like(mean)
        sums = ctx.ranks.sum(torch.cat([of_weight, of_bias]).double())
        # dx = scale * (dy - mean of dy - x_hat * mean of (dy * x_hat)); the first part is that of given statistics
        deviation = (variance.double() + ctx.eps).sqrt()
        scale = (1.0 if weight is None else weight.double()) / deviation / count
        shape = (1, channels, *[1] * (x.ndim - 2))
        turned, shifted = (
            (-scale * part).to(mean.dtype).view(shape) for part in (sums[:channels] / deviation, sums[channels:])
        )
        passed = passed + ((x - mean.view(shape)).mul_(turned).add_(shifted)).to(passed.dtype)
        if weight is None:
            return passed, None, None, None, None
        return passed, of_weight, of_bias, None, None
