"""Gradients of a loss over a whole batch, with forward and backward passes in chunks (GradCache)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from astra_gym.ssl_core.models.route_norm import Untracked
from astra_gym.ssl_core.models.target_network import Encoded, TargetNetwork


def chunk_sizes(images: int, chunks: int) -> list[int]:
    """Return the number of images in each chunk of a batch: as equal as possible, larger ones first.

    Raises:
        ValueError: if there are more chunks than images, or a chunk would have a single image: its two views are too
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
    """One call of the network: its inputs, and its result as leaves of the graph."""

    images: Tensor
    route: str
    leaves: Encoded


class ChunkedNetwork:
    """A network that holds the activations of one chunk at a time (GradCache, Gao et al. 2021).

    It is called like a `TargetNetwork`. A call encodes the chunks without gradient and returns the features and
    embeddings of the whole batch as leaves. The loss couples the whole batch and is differentiated down to these
    leaves. `backward` then encodes every chunk again, with gradient, and continues from the leaves' gradients (their
    section 3).

    In train mode every chunk is normalized by its own statistics: this is *ghost batch norm* (Hoffer et al. 2017), not
    training on the undivided batch. The running statistics are updated once for each chunk, in the first pass only. In
    eval mode the gradients equal those of the undivided batch up to rounding.

    Args:
        network: the target network.
        chunks: number of chunks.
        call: function that calls the network, if not the network itself.
    """

    def __init__(
        self, network: TargetNetwork, chunks: int, call: Callable[[Tensor, str], Encoded] | None = None
    ) -> None:
        self.network = network
        self._encode = call or network
        self.chunks = chunks
        self._calls: list[Call] = []

    def __call__(self, images: Tensor, route: str) -> Encoded:
        """Encode images (2N, 3, h, w) in [0, 1]; rows 2k and 2k+1 are the two views of image k.

        Raises:
            ValueError: if the rows are not pairs, cannot be divided (`chunk_sizes`) or require gradient.
        """
        if len(images) % 2:
            raise ValueError(f"there are {len(images)} views: expected pairs, rows 2k and 2k+1 the views of image k")
        if images.requires_grad:
            raise ValueError("the images require gradient, but in chunks only the parameters get one: detach them")
        with torch.no_grad():
            pieces = [self._encode(piece, route) for piece in self._split(images)]
            whole = Encoded(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))
        if torch.is_grad_enabled():
            whole = Encoded(*(part.requires_grad_() for part in whole))
            self._calls.append(Call(images, route, whole))
        return whole

    def backward(self) -> None:
        """Add to the parameters' gradients what follows from the leaves' gradients.

        Call it after the loss's own backward pass. It forgets the calls.
        """
        calls, self._calls = self._calls, []
        with Untracked(self.network):
            for images, route, leaves in calls:
                cached = {index: leaf.grad for index, leaf in enumerate(leaves) if leaf.grad is not None}
                if not cached:
                    continue
                gradients = zip(*map(self._split, cached.values()), strict=True)
                for piece, own in zip(self._split(images), gradients, strict=True):
                    encoded = self._encode(piece, route)
                    torch.autograd.backward([encoded[index] for index in cached], own)

    def _split(self, rows: Tensor) -> Sequence[Tensor]:
        return rows.split([2 * size for size in chunk_sizes(len(rows) // 2, self.chunks)])
