"""The interface of an encoder for evaluation, and the base of classifiers on a frozen encoder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

from torch import Tensor, nn

from astra_gym.ssl_core.models.folding import FoldedNetwork
from astra_gym.ssl_core.models.target_network import TargetNetwork

Features = Callable[[Tensor, str], Tensor]
"""(images, route) -> features (n, feature_dim)."""
MANY = 100
"""Number of passes with the same weights for which every preparation of them is worth its time."""


class Encoder(Protocol):
    """A module that gives backbone features (n, feature_dim) of images (n, 3, H, W) in [0, 1]."""

    feature_dim: int

    def features(self, images: Tensor, route: str) -> Tensor:
        """Return the features of images, by a batch-norm route."""
        ...


def fast_features(encoder: nn.Module, passes: int = MANY) -> Features:
    """Return the fastest function for an encoder's features in eval mode, valid while its weights do not change.

    A `TargetNetwork` is folded (`astra_gym.ssl_core.models.folding`), which changes a ResNet's features by rounding
    only. Any other module keeps its own `features`. So does a network with hooks, because a folded one would not call
    them.

    Args:
        encoder: the encoder.
        passes: as in `FoldedNetwork`.

    Raises:
        ValueError: if the encoder is a `TargetNetwork` in train mode.
    """
    # a subclass may compute something else
    if type(encoder) is not TargetNetwork or any(map(_hooked, encoder.modules())):
        return cast(Encoder, encoder).features
    return FoldedNetwork(encoder, passes).features


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks)


class FrozenEncoderClassifier(nn.Module):
    """A classifier on a frozen encoder.

    It stays in eval mode whatever `train()` is given. No parameter takes gradients; the images may.

    Args:
        encoder: an `Encoder`.
        route: batch-norm route of the features.
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
        """Encode images (n, 3, H, W) in [0, 1] to features (n, feature_dim); inside `held`, in the fastest way."""
        features = cast(Encoder, self.encoder).features if self._fast is None else self._fast
        return features(images, self.route)

    def _apply(self, fn: Any, recurse: bool = True) -> "FrozenEncoderClassifier":
        # the folded network has the old type or device
        self._fast = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # a copy may be changed and is outside `held`
        return self.__dict__ | {"_fast": None}


@contextmanager
def held(classifier: nn.Module) -> Iterator[None]:
    """Use `fast_features` for the frozen encoders of a classifier inside this context.

    The caller must not change the weights inside. Use it for many calls, such as an attack's; it may be nested. Copies
    made inside, and classifiers moved to another type or device, compute as they do outside.

    Args:
        classifier: a `FrozenEncoderClassifier`, or a module that holds some, in eval mode; any other is not changed.
    """
    parts = [part for part in classifier.modules() if isinstance(part, FrozenEncoderClassifier) and part._fast is None]
    try:
        for part in parts:
            part._fast = fast_features(part.encoder)
        yield
    finally:
        for part in parts:
            part._fast = None
