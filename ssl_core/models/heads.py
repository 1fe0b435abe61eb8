"""Modules beside the target network: a predictor, classifiers, prototypes, and memories of earlier batches."""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_gym.ssl_core.models.init import Drawn, initialize
from astra_gym.ssl_core.models.projectors import PROJECTORS, Projector
from astra_gym.ssl_core.models.route_norm import Tracking
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.rng import Streams


class Predictor(Projector):
    """A head that predicts one view's embedding from another's: linear, batch norm, ReLU, linear (BYOL, SimSiam, TARO).

    Args:
        inputs: dimension of the embeddings.
        hidden: width of the hidden layer (512 in TARO, 4096 in BYOL on CIFAR).
        outputs: dimension of the predictions, usually that of the embeddings.
        routes: names of the batch-norm routes.
        bias: whether the last layer has a bias; MoCo v3's has none.

    Raises:
        ValueError: if a size is not positive.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, routes: Sequence[str], bias: bool = True) -> None:
        for size in (inputs, hidden, outputs):
            check_number("a predictor's size", size, 1, whole=True)
        first, last = PROJECTORS["mlp"]
        with torch.random.fork_rng(devices=[]):
            super().__init__((first, last._replace(bias=bias)), inputs, hidden, outputs, routes)


class Classifiers(nn.Module):
    """Linear classifiers side by side on the same features, one for each number of classes (AdvCL's pseudo labels).

    Args:
        inputs: dimension of the features.
        counts: numbers of classes; (2, 10, 50, 100, 500) in AdvCL.

    Raises:
        ValueError: if there is no classifier, or a number is not positive.
    """

    def __init__(self, inputs: int, counts: Sequence[int]) -> None:
        super().__init__()
        self.counts = tuple(counts)
        if min((inputs, *self.counts)) < 1 or not self.counts:
            raise ValueError(f"classifiers of {inputs} inputs have {self.counts} classes: expected positive numbers")
        with torch.random.fork_rng(devices=[]):
            self.linears = nn.ModuleList(nn.Linear(inputs, count) for count in self.counts)

    def forward(self, features: Tensor, route: str) -> Tensor:
        """Map features (n, inputs) to the logits of all classifiers, (n, sum(counts)); the route has no effect."""
        return torch.cat([linear(features) for linear in self.linears], dim=1)

    def split(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Split the logits (n, sum(counts)) of `forward` into those of each classifier, (n, count)."""
        return logits.split(self.counts, dim=1)


class Bottleneck(nn.Module, Drawn):
    """Three linear layers with GELU between them, without batch norm (DINO's head, before its prototypes).

    Weights are drawn from a normal distribution of deviation .02 for 2048 hidden units, and in proportion to 1 /
    sqrt(hidden) for fewer: else the first updates of the biases would outweigh all images. Biases start at 0.

    Args:
        inputs: dimension of the embeddings.
        hidden: width of both hidden layers (2048).
        outputs: dimension of the outputs (256).
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            sizes = ((inputs, hidden), (hidden, hidden), (hidden, outputs))
            self.linears = nn.ModuleList(nn.Linear(*size) for size in sizes)

    def draw(self, generator: torch.Generator) -> None:
        """Draw the weights anew."""
        deviation = 0.02 * math.sqrt(2048 / cast(nn.Linear, self.linears[0]).out_features)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=deviation, generator=generator)

    def forward(self, z: Tensor, route: str) -> Tensor:
        """Map embeddings (n, inputs) to (n, outputs); the route has no effect."""
        first, second, last = self.linears
        return last(F.gelu(second(F.gelu(first(z)))))


class Prototypes(nn.Module):
    """Cosines to learned directions: a linear layer without bias, whose inputs and rows are scaled to unit length.

    SwAV's prototypes, and DINO's last layer with the length of its weight norm fixed at 1.

    Args:
        inputs: dimension of the embeddings.
        count: number K of prototypes.
    """

    def __init__(self, inputs: int, count: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.linear = nn.Linear(inputs, count, bias=False)

    def forward(self, z: Tensor, route: str) -> Tensor:
        """Map embeddings (n, inputs), not normalized, to cosines (n, K); the route has no effect."""
        return F.normalize(z, dim=1) @ F.normalize(self.linear.weight, dim=1).T


class KeyQueue(Tracking, Drawn):
    """The last embeddings of first and of second views, first in, first out (MoCo, SwAV).

    Args:
        size: number of embeddings kept of each kind of view.
        dim: dimension of the embeddings.
        random: whether it starts full of random unit vectors (MoCo), or of zeros (SwAV).
    """

    kept: Tensor
    oldest: Tensor

    def __init__(self, size: int, dim: int, random: bool) -> None:
        super().__init__()
        self.random = random
        self.register_buffer("kept", torch.zeros(2, size, dim))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))

    def draw(self, generator: torch.Generator) -> None:
        """Fill the queue anew."""
        self.oldest.zero_()
        self.kept.zero_()
        if self.random:
            self.kept.copy_(F.normalize(torch.randn(self.kept.shape, generator=generator), dim=2))

    def forward(self, z: Tensor, route: str) -> Tensor:
        """Return a copy of what is kept, (2, size, dim); in train mode z then takes the place of the oldest.

        Args:
            z: (2n, dim), rows 2k and 2k+1 those of image k; of more than `size` images, the last ones are kept. In eval
                mode it is not looked at.
            route: not used.
        """
        before = self.kept.clone()
        if self.training and self.tracks:
            new = z.detach().unflatten(0, (-1, 2)).transpose(0, 1)[:, -self.kept.shape[1] :]
            places = torch.arange(new.shape[1], device=self.kept.device).add_(self.oldest).remainder_(before.shape[1])
            self.kept.index_copy_(1, places, new.to(self.kept.dtype))
            self.oldest.add_(new.shape[1]).remainder_(before.shape[1])
        return before


class Center(Tracking):
    """A moving average of each route's outputs, which is subtracted from them (DINO).

    Args:
        size: dimension of the outputs.
        routes: names of the routes, each with an average that starts at 0.
        momentum: share of an average that stays, in [0, 1].
    """

    def __init__(self, size: int, routes: Sequence[str], momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        for route in routes:
            self.register_buffer(f"center_{route}", torch.zeros(size))

    def forward(self, outputs: Tensor, route: str) -> Tensor:
        """Return outputs (n, size) minus the route's average, which in train mode then moves toward their mean."""
        center = self.get_buffer(f"center_{route}")
        centered = outputs - center
        if self.training and self.tracks:
            center.lerp_(outputs.detach().mean(dim=0), 1 - self.momentum)
        return centered


def build_heads(streams: Streams, heads: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Draw the heads' weights anew from the stream "heads" and move them to the streams' device.

    Args:
        streams: random streams of the world; without a head the stream is not used.
        heads: the heads by name; their weights are drawn in the order of the names.

    Raises:
        ValueError: if `initialize` knows no initialization for a part of a head.
    """
    for name in sorted(heads):
        initialize(heads[name], streams["heads"])
    return {name: head.to(streams.device) for name, head in heads.items()}
