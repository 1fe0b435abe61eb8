"""The section of the settings on the target network."""

import math
from dataclasses import asdict, dataclass
from typing import Annotated

import torch

from astra_gym.ssl_core.models.target_network import (
    ARCHITECTURES,
    NORMALIZATIONS,
    PROJECTORS,
    STEMS,
    TargetNetwork,
    build_network,
)
from astra_gym.ssl_core.settings.records import Notes, check_choices
from astra_gym.ssl_core.utils.finite import check_number


@dataclass(frozen=True, kw_only=True)
class NetworkSection:
    """The target network.

    Args:
        arch: the backbone.
        width: channels of the first stage (64 in the paper).
        stem: the backbone's first layers: cifar (3x3, stride 1), cifar-padded (the same with 2 pixels of padding:
            DeACL) or imagenet (7x7, stride 2, max-pool).
        projector: kind of the projector, named after the method that uses it.
        projector_hidden: width of the projector's second layer (2048 in ASTrA, 512 in ACL).
        projector_dim: dimension of the embeddings.
        neck: width of a further layer behind the backbone, whose outputs are the features (EMP-SSL); 0: none.
        normalization: normalization of the input, in the network; imagenet: as in ACL, DynACL, AIR, RCS and ASTrA.

    Raises:
        ValueError: if a name is unknown or a value is out of its range.
    """

    arch: Annotated[str, Notes(choices=ARCHITECTURES, what="architecture")] = "resnet10"
    width: Annotated[int, Notes(unit="CHANNELS")] = 16
    stem: Annotated[str, Notes(choices=STEMS, what="stem")] = "cifar"
    projector: Annotated[str, Notes(choices=PROJECTORS, what="projector")] = "acl"
    projector_hidden: Annotated[int, Notes(unit="UNITS")] = 128
    projector_dim: Annotated[int, Notes(unit="UNITS")] = 128
    neck: Annotated[int, Notes(unit="UNITS")] = 0
    normalization: Annotated[str, Notes(choices=NORMALIZATIONS, what="normalization")] = "imagenet"

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("width", "projector_hidden", "projector_dim"):
            check_number(name, getattr(self, name), 1, math.inf, "a positive integer", whole=True)
        check_number("neck", self.neck, 0, math.inf, "0 for none, or a positive width", whole=True)

    def build(self, generator: torch.Generator, routes: tuple[str, ...], **computed: object) -> TargetNetwork:
        """Build the network with weights from the generator.

        Args:
            generator: generator of the weights.
            routes: names of the batch-norm routes.
            computed: how the network computes: `precision`, `recompute` and `compiled` of `TargetNetwork`.
        """
        own = asdict(self)
        own["mean"], own["std"] = NORMALIZATIONS[own.pop("normalization")]
        return build_network(generator, routes=routes, **computed, **own)
