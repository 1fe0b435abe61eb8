"""Batch normalization by route."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_gym.ssl_core.distributed.batch_norm import normalized_over
from astra_gym.ssl_core.distributed.ranks import Ranks, current

SHARED = "shared"
"""Name in the state dict, in place of a route's, of a norm that all routes share."""


class Tracking(nn.Module):
    """A module whose passes in train mode also change its buffers: running statistics, a queue, a center."""

    def __init__(self) -> None:
        super().__init__()
        self.tracks = True
        """Whether train mode changes the buffers; `Untracked` turns this off."""


class RouteNorm(Tracking):
    """Batch normalization with its own parameters and statistics for each route (dual batch norm in ACL).

    Args:
        channels: number of channels of the input.
        routes: names of the routes.
        spatial: whether the input is (n, channels, h, w); otherwise (n, channels).
        affine: whether scale and shift are learned; without them the outputs keep mean 0 and variance 1.
        shared: whether all routes share one batch norm, as in AdvCL's head.
    """

    def __init__(
        self, channels: int, routes: Sequence[str], spatial: bool = True, affine: bool = True, shared: bool = False
    ) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if spatial else nn.BatchNorm1d
        self.shared = shared
        self.by_route = nn.ModuleDict(
            {route: norm(channels, affine=affine) for route in ([SHARED] if shared else routes)}
        )

    def norm(self, route: str) -> nn.BatchNorm2d:
        """Return the batch norm of a route; on vectors it is a `BatchNorm1d`, which has the same parts."""
        return cast(nn.BatchNorm2d, self.by_route[SHARED if self.shared else route])

    def forward(self, x: Tensor, route: str) -> Tensor:
        norm = self.norm(route)
        if norm.training and (ranks := current()).spreads:
            return self._over_ranks(x, norm, ranks)
        if self.tracks or not norm.training:
            return norm(x)
        # update copies, because without an update autograd would save fewer tensors than in the pass that is repeated,
        # which `checkpoint` refuses, and momentum 0 on the originals would turn an infinite variance into NaN
        mean, variance = cast(Tensor, norm.running_mean).clone(), cast(Tensor, norm.running_var).clone()
        return F.batch_norm(x, mean, variance, norm.weight, norm.bias, training=True, eps=norm.eps)

    def _over_ranks(self, x: Tensor, norm: nn.BatchNorm2d, ranks: Ranks) -> Tensor:
        """Normalize a rank's rows by the statistics of all ranks."""
        found = normalized_over(ranks, x, norm.weight, norm.bias, norm.eps)
        if self.tracks:
            with torch.no_grad():
                share = cast(float, norm.momentum)
                cast(Tensor, norm.num_batches_tracked).add_(1)
                cast(Tensor, norm.running_mean).lerp_(found.mean, share)
                unbiased = found.variance * (found.number / (found.number - 1))
                cast(Tensor, norm.running_var).lerp_(unbiased, share)
        return found.values


class Untracked:
    """A context in which a module's `Tracking` parts, above all its batch norms, keep their buffers in train mode.

    Use it for a forward pass that repeats an earlier one: the statistics are already updated. It may be nested and
    reused.

    Args:
        module: the owner of the parts.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parts = [part for part in module.modules() if isinstance(part, Tracking)]
        self._before: list[list[bool]] = []

    def __enter__(self) -> None:
        self._before.append([part.tracks for part in self._parts])
        for part in self._parts:
            part.tracks = False

    def __exit__(self, *_: object) -> None:
        for part, tracks in zip(self._parts, self._before.pop(), strict=True):
            part.tracks = tracks
