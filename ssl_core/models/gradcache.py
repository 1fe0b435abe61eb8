"""Gradients of a loss over a whole batch whose forward and backward passes run in chunks (GradCache)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from astra_gym.ssl_core.models.route_norm import Untracked
from astra_gym.ssl_core.models.target_network import Encoded, TargetNetwork


def chunk_sizes(images: int, chunks: int) -> list[int]:
    """How many images each of the chunks of a batch has: as equal as possible, the larger ones first.

    Raises:
        ValueError: if there are more chunks than images, or a chunk would have a single image, whose two views are too
            few for batch norm.
    """
    if chunks > images:
        raise ValueError(f"update_chunks is {chunks}: more than the batch's {images} images")
    if images < 2 * chunks and chunks > 1:
        raise ValueError(
            f"update_chunks is {chunks}: of a batch of {images} images that leaves a chunk with 1, too few for batch "
            f"norm, which takes its statistics over a chunk: expected at most {images // 2}"
        )
    size, larger = divmod(images, chunks)
    return [size + 1] * larger + [size] * (chunks - larger)


class Call(NamedTuple):
    """One call of the network: what went in, and the leaves that its result was handed out as."""

    images: Tensor
    route: str
    leaves: Encoded


class ChunkedNetwork:
    """A network called as usual that holds the activations of one chunk at a time (GradCache, Gao et al. 2021).

    A call encodes the chunks without gradient and hands out the whole batch's features and embeddings as leaves. The
    loss, which couples the whole batch, is differentiated down to these. `backward` then encodes every chunk again,
    with gradient, and carries on from what the leaves got (their section 3).

    In train mode every chunk is normalised by its own statistics: this is *ghost batch norm* (Hoffer et al. 2017), not
    the undivided batch's training. The running statistics follow once for each chunk, in the first pass only. With
    frozen statistics (eval mode) the gradients are the undivided batch's, to rounding.

    Args:
        network: the target network.
        chunks: how many.
    """

    def __init__(self, network: TargetNetwork, chunks: int) -> None:
        self.network = network
        self.chunks = chunks
        self._calls: list[Call] = []

    def __call__(self, images: Tensor, route: str) -> Encoded:
        """Images (2N, 3, h, w) in [0, 1], rows 2k and 2k+1 the two views of image k, to features and embeddings.

        Raises:
            ValueError: if the rows are no pairs, cannot be divided (`chunk_sizes`) or require gradient.
        """
        if len(images) % 2:
            raise ValueError(f"there are {len(images)} views: expected pairs, rows 2k and 2k+1 the views of image k")
        if images.requires_grad:
            raise ValueError("the images require gradient, but in chunks only the parameters get one: detach them")
        with torch.no_grad():
            pieces = [self.network(piece, route) for piece in self._split(images)]
            whole = Encoded(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))
        if torch.is_grad_enabled():
            whole = Encoded(*(part.requires_grad_() for part in whole))
            self._calls.append(Call(images, route, whole))
        return whole

    def backward(self) -> None:
        """Adds to the parameters' gradients what follows from the leaves', after the loss's own backward pass.

        The calls are forgotten then.
        """
        calls, self._calls = self._calls, []
        with Untracked(self.network):
            for images, route, leaves in calls:
                cached = {index: leaf.grad for index, leaf in enumerate(leaves) if leaf.grad is not None}
                if not cached:
                    continue
                gradients = zip(*map(self._split, cached.values()), strict=True)
                for piece, own in zip(self._split(images), gradients, strict=True):
                    encoded = self.network(piece, route)
                    torch.autograd.backward([encoded[index] for index in cached], own)

    def _split(self, rows: Tensor) -> Sequence[Tensor]:
        return rows.split([2 * size for size in chunk_sizes(len(rows) // 2, self.chunks)])
