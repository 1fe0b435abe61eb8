"""What is asked of an encoder by whoever measures it, and what classifiers on a frozen one have in common."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

from torch import Tensor, nn

from astra_gym.ssl_core.models.folding import FoldedNetwork
from astra_gym.ssl_core.models.target_network import TargetNetwork

Features = Callable[[Tensor, str], Tensor]
"""(images, route) -> features (n, feature_dim)."""


class Encoder(Protocol):
    """A module that gives backbone features (n, feature_dim) of images (n, 3, H, W) in [0, 1]."""

    feature_dim: int

    def features(self, images: Tensor, route: str) -> Tensor: ...


def fast_features(encoder: nn.Module) -> Features:
    """An encoder's features in eval mode, by the fastest way there is, for as long as its weights do not change.

    A `TargetNetwork` is folded (`astra_gym.ssl_core.models.folding`), which moves the features by rounding. Any other
    module computes as it does, and so does one with hooks, which the folded one would not call.

    Raises:
        ValueError: if it is a `TargetNetwork` in train mode.
    """
    # a subclass may compute something else
    if type(encoder) is not TargetNetwork or any(map(_hooked, encoder.modules())):
        return cast(Encoder, encoder).features
    return FoldedNetwork(encoder).features


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks)


class FrozenEncoderClassifier(nn.Module):
    """A classifier on a frozen encoder.

    It stays in eval mode whatever `train()` is asked for, and no parameter takes gradients; the images may.

    Args:
        encoder: an `Encoder`.
        route: batch-norm route of its features.
    """

    def __init__(self, encoder: nn.Module, route: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.route = route
        self._fast: Features | None = None

    def train(self, mode: bool = True) -> "FrozenEncoderClassifier":
        """Stay in eval mode: batch statistics in a classifier would couple the images of a batch."""
        return super().train(False)

    def features(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [0, 1] to features (n, feature_dim); while `held`, by the fastest way there is."""
        features = cast(Encoder, self.encoder).features if self._fast is None else self._fast
        return features(images, self.route)

    def _apply(self, fn: Any, recurse: bool = True) -> "FrozenEncoderClassifier":
        # another type or device: what was folded is of the old one
        self._fast = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # a copy may be changed, and is not held
        return self.__dict__ | {"_fast": None}


@contextmanager
def held(classifier: nn.Module) -> Iterator[None]:
    """While entered, nobody changes a classifier's weights, so that the frozen encoders in it are `fast_features`.

    It is for whoever asks a classifier often, as an attack does; it may be nested. Copies that are made meanwhile, and
    classifiers that are brought to another type or device, compute as they always do.

    Args:
        classifier: in eval mode; a `FrozenEncoderClassifier` or a module that holds some. Any other is left alone.
    """
    parts = [part for part in classifier.modules() if isinstance(part, FrozenEncoderClassifier) and part._fast is None]
    try:
        for part in parts:
            part._fast = fast_features(part.encoder)
        yield
    finally:
        for part in parts:
            part._fast = None
