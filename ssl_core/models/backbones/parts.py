"""The base of all backbones: parts in a row, which a training pass may compute again or compile."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from astra_gym.ssl_core.distributed.ranks import current
from astra_gym.ssl_core.models.route_norm import Untracked

BACKEND = "inductor"
"""`torch.compile`'s backend for `Backbone(compiled=True)`."""
Part = Callable[[Tensor, str], Tensor]
"""The stem or a block of a `Backbone`: a function of its input and a route."""


class Backbone(nn.Module):
    """A network from images to features, made of parts: a stem and blocks.

    Args:
        recompute: whether a training pass keeps only the inputs of the stem and of every block, and computes the rest
            again in the backward pass (Chen et al. 2016, "Training deep nets with sublinear memory cost"); the result
            is the same.
        compiled: whether a training pass compiles the stem and every block by `torch.compile`, which merges their
            elementwise layers; the result is the same up to rounding.
    """

    feature_dim: int
    """Dimension of the features."""

    def __init__(self, recompute: bool = False, compiled: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.compiled = compiled

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The stem and the blocks, in the order in which images pass through them; none draws random numbers."""

    @abstractmethod
    def pooled(self, x: Tensor) -> Tensor:
        """Map the last part's output to features (n, feature_dim)."""

    def forward(self, x: Tensor, route: str) -> Tensor:
        """Encode images (n, 3, h, w), normalized by the caller, to features (n, feature_dim)."""
        trains = self.training and torch.is_grad_enabled()
        apply = compiled_part(BACKEND) if self.compiled and trains else _applied
        if self.recompute and trains:
            norms, spreads = Untracked(self), current().spreads
            # no part draws random numbers, so no generator's state is restored; `checkpoint` restores autocast
            repeated = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
            for part in self.parts:
                x = repeated(apply, part, x, route, context_fn=lambda: (nullcontext(), _again(norms, spreads)))
        else:
            for part in self.parts:
                x = apply(part, x, route)
        return self.pooled(x)


@contextmanager
def _again(norms: Untracked, spreads: bool) -> Iterator[None]:
    """Surround a pass that is repeated in the backward pass."""
    with norms, current().spreading(spreads):
        yield


def _applied(part: Part, x: Tensor, route: str) -> Tensor:
    return part(x, route)


@cache
def compiled_part(backend: str) -> Callable[[Part, Tensor, str], Tensor]:
    """Return the function that applies a part of a `Backbone` to its input and a route, compiled by a backend."""
    from torch._dynamo import config  # slow, and seldom needed

    # blocks of one shape share a graph; every other shape, route and precision has its own, more than torch expects
    return config.patch(recompile_limit=64)(torch.compile(_applied, backend=backend, dynamic=False))
