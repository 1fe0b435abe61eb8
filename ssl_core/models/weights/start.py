"""The start of a network from an encoder's file: what was loaded of it, by which routes, and what was not."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from astra_gym.ssl_core.models.backbones.state_dicts import VIT_MARK
from astra_gym.ssl_core.models.checkpoint import checkpoint_at, load_network
from astra_gym.ssl_core.models.foreign import NO_PROJECTOR, ROUTES, Foreign, load_foreign
from astra_gym.ssl_core.models.target_network import NORMALIZATIONS, TargetNetwork
from astra_gym.ssl_core.models.weights.copying import BACKBONE, PROJECTOR, copy_parts, unlike, unlike_normalization
from astra_gym.ssl_core.models.weights.state_file import holds_network, read_content, read_state
from astra_gym.ssl_core.utils.files import expanded
from astra_gym.ssl_core.utils.hashing import file_digest


@dataclass(frozen=True)
class StartedFrom:
    """What a network has started from.

    Args:
        file: name of the file, with its run folder if it is a run's.
        sha256: digest of the file.
        routes: the file's route by the network's route.
        loaded: the network's parts that the file has filled: backbone, neck, projector.
        random: its other parts, whose weights stay random.
        notes: what of the file was left out or assumed, in sentences.
    """

    file: str
    sha256: str
    routes: Mapping[str, str]
    loaded: Sequence[str]
    random: Sequence[str]
    notes: Sequence[str]

    def record(self) -> dict[str, Any]:
        """Return everything as plain values, for a run's records."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """Return everything in words, for a terminal."""
        routes = ", ".join(f"{ours} from {theirs}" for ours, theirs in self.routes.items())
        kept = f"; not loaded, but random: {', '.join(self.random)}" if self.random else ""
        return [f"init_from {self.file}: loaded {', '.join(self.loaded)} (batch norm {routes}){kept}", *self.notes]


def start_network(path: str | Path, network: TargetNetwork) -> StartedFrom:
    """Start a network with the weights and batch-norm statistics of an encoder's file.

    The file is a run folder or a checkpoint of this project, an export of `export_encoder.py`, the state dict of a
    ResNet of torchvision or timm or of a ViT of timm, or a file released by ACL, DynACL or ASTrA; its content shows
    which.

    A network with one route gets the batch norms on which the file's encoder is evaluated ("pgd" where it has two). Of
    several routes, each gets those of the same name, or the evaluated ones if the file has none of its name. Neck and
    projector are loaded if the file has the same ones. Where the file does not say padding and input normalization, the
    network's own are assumed.

    Args:
        path: the file, or the folder of a run.
        network: the network; if an error is raised, it has not changed.

    Raises:
        ValueError: if the file cannot be read, or its encoder differs in architecture, width, stem, size of images or
            patches, input normalization, or the width of a neck that both have; shapes and values of both are named.
    """
    path = expanded(path)
    file = checkpoint_at(path)
    content = None if path.is_dir() else read_content(path)
    ours = content is None or holds_network(content)
    found = Foreign(*load_network(file), [], True, None) if ours else _read_foreign(file, content, network)
    source = found.network
    _check(path, source, network)
    several = len(network.routes) > 1
    routes = {own: own if several and own in source.routes else found.route for own in network.routes}
    here, there = _parts(network), _parts(source, found.projector)
    unfit: set[str] = set()
    if unlike(source, network, ("neck",)):
        # a projector follows the neck
        unfit = {"neck", "projector"}
    elif unlike(source, network, PROJECTOR):
        unfit = {"projector"}
    loaded = [part for part in here if part in there and part not in unfit]
    copy_parts(source, network, routes, loaded)
    notes = [note for note in found.notes if note != NO_PROJECTOR]
    notes += [f"left out: the {part} of the file" for part in there if part not in loaded]
    name = f"{path.resolve().name}/checkpoints/last.pt" if path.is_dir() else path.name
    return StartedFrom(name, file_digest(file), routes, loaded, [part for part in here if part not in loaded], notes)


def _parts(network: TargetNetwork, projector: bool = True) -> list[str]:
    """Return the parts that a network has; its projector counts only if `projector`."""
    neck = ["neck"] if network.neck is not None else []
    return ["backbone", *neck, *(["projector"] if projector and len(network.projector.linears) else [])]


def _read_foreign(file: Path, content: Any, network: TargetNetwork) -> Foreign:
    """Read an encoder of another project, or an export; the network says what the file may not."""
    state, said = read_state(file, content, [])
    names = set(state)
    family = any(".bn_list." in name or name.endswith("normalize.mean") for name in names)
    format = "timm" if VIT_MARK in names else "torchvision"
    if family:
        format = "dynacl" if any(name.startswith("encoder_k.") for name in names) else "acl"
    known = bool(said) or any(name.endswith("normalize.mean") for name in names)
    ours: dict[str, Any] = {}
    if not known:
        ours = {name: network.get_buffer(name).flatten().tolist() for name in ("mean", "std")}
    if not said and format == "torchvision":
        # a kernel of 7 is ImageNet's; the padding of a small one is the network's
        large = {value.shape[-1:] for name, value in state.items() if _first(name)} == {(7,)}
        stem = network.arguments.get("stem", "cifar")
        ours["stem"] = None if large else "cifar" if stem == "imagenet" else stem
    route = ROUTES[1] if any(".bn_list.1." in name for name in names) else None
    made = load_foreign(file, format=format, route=route, content=content, **ours)
    if not known:
        made.notes.append("input normalization: the network's, since the file does not say")
    return made


def _first(name: str) -> bool:
    """Whether an entry is the kernel of a network's first convolution."""
    return name.endswith("conv1.weight") and "layer" not in name


def _check(path: Path, source: TargetNetwork, network: TargetNetwork) -> None:
    """Raise a ValueError unless an encoder's backbone, neck and input normalization fit a network."""
    both, there, here = (source, network), source.arguments, network.arguments
    # the first convolution, of a ViT the one that makes its patches
    shapes = [next(tuple(value.shape) for value in each.backbone.parameters() if value.ndim == 4) for each in both]
    found: dict[str, Any] = {"conv1.weight": shapes} if shapes[0] != shapes[1] else {}
    fixed = ("arch", "stem", "image_size", "patch_size")
    found |= {name: [there.get(name), here.get(name)] for name in unlike(source, network, fixed)}
    if there["neck"] and here["neck"]:
        found |= {name: [there[name], here[name]] for name in unlike(source, network, ("neck",))}
    take = {name: there[name] for name in unlike(source, network, BACKBONE) if found and name in there}
    take |= {"neck": there["neck"]} if "neck" in found else {}
    if different := unlike_normalization(source, network):
        found |= {name: [_rounded(each, name) for each in (source, network)] for name in different}
        usual = [name for name in NORMALIZATIONS if _is_normalization(source, name)]
        take |= {"normalization": usual[0]} if usual else {}
    if found:
        said = "; ".join(f"{name} is {theirs} there and {ours} here" for name, (theirs, ours) in found.items())
        advice = ", ".join(f"{name} {value}" for name, value in take.items())
        raise ValueError(f"{path} does not fit the network: {said}: {f'take {advice}' if advice else 'they differ'}")


def _rounded(network: TargetNetwork, name: str) -> list[float]:
    return [round(value, 4) for value in network.get_buffer(name).flatten().tolist()]


def _is_normalization(network: TargetNetwork, name: str) -> bool:
    values = torch.tensor(NORMALIZATIONS[name])
    own = torch.stack([network.get_buffer(each).float().cpu().flatten() for each in ("mean", "std")])
    return torch.equal(values, own)
