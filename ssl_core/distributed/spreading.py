"""A network whose passes are divided among the ranks, and which gives each rank all rows."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astra_gym.ssl_core.distributed.ranks import Ranks

E = TypeVar("E", bound=tuple[Tensor, ...])


def spread(network: Callable[[Tensor, str], E], ranks: Ranks) -> Callable[[Tensor, str], E]:
    """Divide the passes of a network among the ranks; alone, it is the network itself.

    The result is called like the network, by all ranks with the same images (n, 3, h, w), and gives each of them the
    values of all n rows. In between each rank computes its own part of the rows, with batch-norm statistics over all.

    Around the network everything is the same on all ranks: a loss of the whole batch, whatever rows it couples, and its
    gradient. The gradient of the images is whole on every rank. That of the network's weights is the part of a rank's
    own rows, and their *sum* over the ranks is that of one process (`Ranks.add_up`): each rank computes the whole loss,
    so nothing is divided by their number.

    Every pass divides its own rows anew. In an attack, where images need different numbers of steps, no rank is done
    before the others.
    """
    if ranks.alone:
        return network

    def whole(images: Tensor, route: str) -> E:
        n = len(images)
        divided = torch.is_grad_enabled() and images.requires_grad
        own = _Divide.apply(images, ranks) if divided else images[ranks.share(n)]
        with ranks.spreading():
            found = network(own, route)
        sizes = [part.shape[1] for part in found]
        rows = _Join.apply(torch.cat(found, dim=1), ranks, n)
        return type(found)(*rows.split(sizes, dim=1))

    return whole


class _Divide(torch.autograd.Function):
    """The own rows of all; backward, the gradients of all rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.n = ranks, len(rows)
        return rows[ranks.share(len(rows))].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.gather_rows(slope, ctx.n), None


class _Join(torch.autograd.Function):
    """All rows, from the own ones; backward, the gradient of the own rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks, n: int) -> Tensor:
        ctx.share = ranks.share(n)
        return ranks.gather_rows(own, n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        return slope[ctx.share], None, None
