"""A network's weights under the names of other libraries and of the ACL family."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

from torch import Tensor

from astra_gym.ssl_core.models.backbones.resnet import ARCHITECTURES
from astra_gym.ssl_core.models.backbones.timm_vit import is_vit
from astra_gym.ssl_core.models.checkpoint import save_checkpoint
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.models.weights.state_file import ENCODER
from astra_gym.ssl_core.utils.finite import not_finite
from astra_gym.ssl_core.utils.hashing import digest
from astra_gym.ssl_core.utils.messages import few

OURS_ALONE = ("mean", "std")
"""Buffers of a `TargetNetwork` without a name in any layout: the input normalization."""


class Layout(NamedTuple):
    """Names of the parts of a network in a family of checkpoints.

    Args:
        shortcut: names of the shortcut's convolution and batch norm, after `downsample.`.
        norm: suffix of a batch norm's name; `{index}` is the route's place among the network's routes.
        head: name of the place where a classifier would be.
    """

    shortcut: tuple[str, str]
    norm: str
    head: str = "fc"


TORCHVISION = Layout(("0", "1"), "")
TIMM_VIT = Layout(("", ""), "", "head")
DUAL_NORM = Layout(("conv", "bn"), ".bn_list.{index}")
"""Layout of ACL, DynACL and ASTrA: a list of batch norms, `normal` first and `pgd` second."""


def foreign_names(network: TargetNetwork, layout: Layout, projector: bool = True) -> dict[str, str]:
    """Return the layout's name for each entry of the network's state dict, except the input normalization.

    Without `projector` its entries are left out too. The ACL family keeps its projector where a classifier would be, in
    `fc` (`fc.fc1`, `fc.bn1` and so on). A neck gets the names of `Sequential(Linear, BatchNorm1d, ReLU)`, there too. In
    a layout without routes, the batch norms of all routes get the same name.
    """
    arch = cast(str, network.arguments["arch"])
    counts = () if is_vit(arch) else ARCHITECTURES[arch][1]
    places = [f"layer{stage}.{index}" for stage, count in enumerate(counts, 1) for index in range(count)]
    names = [name for name in network.state_dict() if name not in OURS_ALONE]
    if not projector:
        names = [name for name in names if not name.startswith("projector.")]
    return {name: _translated(name, layout, network.routes, places) for name in names}


def _translated(name: str, layout: Layout, routes: Sequence[str], places: Sequence[str]) -> str:
    match name.split("."):
        case ["backbone", "model", *theirs]:
            return ".".join(theirs)
        case ["backbone", "conv", leaf]:
            return f"conv1.{leaf}"
        case ["backbone", "blocks", block, "convs", part, leaf]:
            return f"{places[int(block)]}.conv{int(part) + 1}.{leaf}"
        case ["backbone", "blocks", block, "shortcut", "conv", leaf]:
            return f"{places[int(block)]}.downsample.{layout.shortcut[0]}.{leaf}"
        case ["neck", "linears", "0", leaf]:
            return f"{layout.head}.0.{leaf}"
        case ["projector", "linears", part, leaf]:
            return f"fc.fc{int(part) + 1}.{leaf}"
        case [*owner, "by_route", route, leaf]:
            norm = layout.norm.format(index=routes.index(route))
            return f"{_norm(owner, layout, places)}{norm}.{leaf}"
    raise ValueError(f"no other layout has a name for {name}")


def _norm(owner: Sequence[str], layout: Layout, places: Sequence[str]) -> str:
    match owner:
        case ["backbone", "norm"]:
            return "bn1"
        case ["backbone", "blocks", block, "norms", part]:
            return f"{places[int(block)]}.bn{int(part) + 1}"
        case ["backbone", "blocks", block, "shortcut", "norm"]:
            return f"{places[int(block)]}.downsample.{layout.shortcut[1]}"
        case ["neck", "norms", "0"]:
            return f"{layout.head}.1"
        case ["projector", "norms", part]:
            return f"fc.bn{int(part) + 1}"
    raise ValueError(f"no other layout has a name for {'.'.join(owner)}")


def torchvision_state(network: TargetNetwork, route: str) -> dict[str, Tensor]:
    """Return the encoder's weights, with the batch norms of one route, under the names of torchvision's ResNets.

    A `torchvision.models.ResNet` of the same layers loads it with `strict=True`; its `fc` is the neck if there is one,
    else `Identity`. `export_encoder.py` prints the code that builds it. The model gives the same features from images
    normalized by the network's mean and standard deviation. A state dict does not hold these two: keep them beside it.
    The projector is left out.

    Returns:
        Copies of the tensors, on the CPU.

    Raises:
        ValueError: if the network has no such route, its weights are not finite, or it is a ViT.
    """
    if is_vit(network.arguments["arch"]):
        raise ValueError(f"torchvision has no names for {network.arguments['arch']}: timm has")
    return _state(network, route, TORCHVISION)


def timm_state(network: TargetNetwork, route: str) -> dict[str, Tensor]:
    """Return a ViT's weights under timm's names, like `torchvision_state`; a neck is at `head`.

    Raises:
        ValueError: if the network has no such route, its weights are not finite, or it is no ViT.
    """
    if not is_vit(network.arguments["arch"]):
        raise ValueError(f"{network.arguments['arch']} is no ViT: torchvision's names are timm's too")
    return _state(network, route, TIMM_VIT)


def _state(network: TargetNetwork, route: str, layout: Layout) -> dict[str, Tensor]:
    network.check_route(route)
    state = network.state_dict()
    if bad := not_finite(state):
        raise ValueError(f"the network's weights are not finite ({few(bad)}): there is nothing to export")
    return {
        theirs: state[ours].detach().cpu().clone()
        for ours, theirs in foreign_names(network, layout, projector=False).items()
        if ".by_route." not in ours or f".by_route.{route}." in ours
    }


def save_encoder(path: str | Path, network: TargetNetwork, route: str) -> Path:
    """Write `torchvision_state`, of a ViT `timm_state`, and what a state dict cannot hold, atomically, for
    `astra_gym.ssl_core.models.foreign.load_foreign`.

    The file is a dict: `state_dict`, `arch`, `width` and `stem` (of a ViT `image_size` and `patch_size`), `mean`,
    `std`, `precision` (of training; the loaded network computes in float32), `route`, `feature_dim` and
    `source_digest`, the SHA-256 of the whole original network (`astra_gym.ssl_core.utils.hashing.digest`).

    Raises:
        ValueError: if the network has no such route, or its weights are not finite.
    """
    known = ("arch", "width", "stem", "image_size", "patch_size", "mean", "std", "precision")
    built = {name: network.arguments[name] for name in known if name in network.arguments}
    made = {"route": route, "feature_dim": network.feature_dim, "source_digest": digest(network)}
    state = timm_state(network, route) if is_vit(built["arch"]) else torchvision_state(network, route)
    return save_checkpoint(path, ENCODER, {"state_dict": state, **built, **made})
