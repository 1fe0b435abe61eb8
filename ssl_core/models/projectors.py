"""Projectors: small heads from a backbone's features to the embeddings that a loss takes."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional as F

from astra_gym.ssl_core.models.route_norm import RouteNorm


class HeadLayer(NamedTuple):
    """A linear layer of a head and what follows it.

    `size` is the width: the head's `hidden` or its `outputs`. The batch norm is one per route (`routed`), one that all
    routes share (`shared`), one per route without learned scale and shift (`plain`), or none. A bias before a batch
    norm changes nothing in train mode.
    """

    size: Literal["hidden", "outputs"]
    norm: Literal["routed", "shared", "plain"] | None = None
    rectify: bool = False
    bias: bool = False


_HIDDEN = HeadLayer("hidden", "routed", rectify=True)
_LAST = HeadLayer("outputs", bias=True)

PROJECTORS: Mapping[str, tuple[HeadLayer, ...]] = {
    # ACL, DynACL, AIR, RCS, ASTrA: three layers, each with batch norm, the first with a bias as in their code
    "acl": (_HIDDEN._replace(bias=True), HeadLayer("outputs", "routed", rectify=True), HeadLayer("outputs", "routed")),
    # RoCL; SimCLR in solo-learn and DAQ-SDP: no batch norm
    "rocl": (HeadLayer("hidden", rectify=True, bias=True), _LAST),
    # AdvCL: one batch norm for all routes
    "advcl": (HeadLayer("hidden", "shared", rectify=True), _LAST),
    # TARO, and SimSiam on small images, where the outputs are standardized too
    "simsiam-2": (_HIDDEN, HeadLayer("outputs", "plain")),
    # SimSiam
    "simsiam-3": (_HIDDEN, _HIDDEN, HeadLayer("outputs", "plain")),
    # BYOL; EMP-SSL behind its neck
    "mlp": (_HIDDEN, _LAST),
    # Barlow Twins, VICReg
    "mlp-3": (_HIDDEN, _HIDDEN, _LAST),
    # DeACL, DAQ-SDP: the embeddings are the features
    "none": (),
}
"""The layers of every kind of projector. None normalizes its outputs to unit length; losses that need this do it."""

NECK = (HeadLayer("outputs", "routed", rectify=True),)
"""EMP-SSL's "pre-feature": the layer after the backbone; its outputs are the features."""


class Projector(nn.Module):
    """A head of linear layers; without a layer it is the identity.

    Args:
        layers: the layers in order, such as an entry of `PROJECTORS`.
        inputs: dimension of the inputs.
        hidden, outputs: widths of the layers; each layer names one of the two.
        routes: names of the batch-norm routes.
    """

    def __init__(
        self, layers: Sequence[HeadLayer], inputs: int, hidden: int, outputs: int, routes: Sequence[str]
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        sizes = [inputs, *(hidden if layer.size == "hidden" else outputs for layer in layers)]
        self.linears = nn.ModuleList(
            nn.Linear(sizes[index], sizes[index + 1], bias=layer.bias) for index, layer in enumerate(layers)
        )
        self.norms = nn.ModuleList(_norm(layer, size, routes) for layer, size in zip(layers, sizes[1:], strict=True))
        self.outputs = sizes[-1]

    @property
    def parts(self) -> list[tuple[nn.Linear, RouteNorm | None, bool]]:
        """The linear map of each layer, its batch norm if any, and whether ReLU follows."""
        together = zip(self.linears, self.norms, self.layers, strict=True)
        return [
            (cast(nn.Linear, linear), norm if isinstance(norm, RouteNorm) else None, layer.rectify)
            for linear, norm, layer in together
        ]

    def forward(self, x: Tensor, route: str) -> Tensor:
        """Map (n, inputs) to (n, outputs), on a route."""
        for linear, norm, rectify in self.parts:
            x = linear(x)
            if norm is not None:
                x = norm(x, route)
            if rectify:
                x = F.relu(x, inplace=True)
        return x


def _norm(layer: HeadLayer, size: int, routes: Sequence[str]) -> nn.Module:
    if layer.norm is None:
        return nn.Identity()
    return RouteNorm(size, routes, spatial=False, affine=layer.norm != "plain", shared=layer.norm == "shared")
