"""Modules trained together with the target network: a predictor, and linear classifiers."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.models.init import build_module, initialise
from astra_gym.ssl_core.models.projectors import PROJECTORS, Projector
from astra_gym.ssl_core.utils.rng import Streams

M = TypeVar("M", bound=nn.Module)


class Predictor(Projector):
    """A head that predicts one view's embedding from another's: linear, batch norm, ReLU, linear (BYOL, SimSiam, TARO).

    Args:
        inputs: dimension of the embeddings.
        hidden: width of the hidden layer (512 in TARO, 4096 in BYOL on CIFAR).
        outputs: dimension of the predictions, usually that of the embeddings.
        routes: names of the batch-norm routes.

    Raises:
        ValueError: if a size is not positive.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, routes: Sequence[str]) -> None:
        if min(inputs, hidden, outputs) < 1:
            raise ValueError(f"a predictor's sizes are {inputs}, {hidden} and {outputs}: expected positive numbers")
        with torch.random.fork_rng(devices=[]):
            super().__init__(PROJECTORS["mlp"], inputs, hidden, outputs, routes)


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


def build_head(generator: torch.Generator, factory: Callable[[], M]) -> M:
    """Build the factory's head with weights from the generator; torch's global generator keeps its state."""
    return build_module(generator, factory)


def build_heads(streams: Streams, heads: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Draw the heads' weights anew from the stream "heads" and move them to the streams' device.

    Args:
        streams: random streams of the world; without a head the stream is not used.
        heads: the heads by name; their weights are drawn in the order of the names.

    Raises:
        ValueError: if `initialise` knows no initialization for a part of a head.
    """
    for name in sorted(heads):
        initialise(heads[name], streams["heads"])
    return {name: head.to(streams.device) for name, head in heads.items()}
