"""Encoders of other projects: checkpoints of ACL, DynACL, ASTrA, torchvision and timm, loaded into our network.

Every entry of a file is used, or named in a note or an error. Where the stem of a small kernel, the route and the input
normalization follow neither from the state dict nor from the format, the caller must give them: nothing is guessed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.models.backbones.resnet import STEMS
from astra_gym.ssl_core.models.backbones.state_dicts import VIT_MARK, resnet_arch, vit_arguments
from astra_gym.ssl_core.models.checkpoint import WEIGHTS, is_dense
from astra_gym.ssl_core.models.export import DUAL_NORM, TIMM_VIT, TORCHVISION, Layout, foreign_names
from astra_gym.ssl_core.models.target_network import IMAGENET_MEAN, IMAGENET_STD, TargetNetwork
from astra_gym.ssl_core.models.weights.state_file import read_content, read_state
from astra_gym.ssl_core.utils.device import usable_device
from astra_gym.ssl_core.utils.messages import few, shown
from astra_gym.ssl_core.utils.registry import pick

FORMATS = {
    "acl": "ACL (NeurIPS 2020) and its fine-tuned networks: batch norms by route, projector in fc",
    "dynacl": "DynACL and DynACL++ (ICLR 2023): as acl; of two encoders the evaluated one, encoder_k",
    "astra": "ASTrA (ICLR 2025): as acl, with a wider projector",
    "torchvision": "a ResNet of torchvision's names, or an export of this project",
    "timm": "a ResNet of timm without a deep stem, with torchvision's names, or a plain vision transformer",
}
PREFIXES = {
    "acl": ("",),
    "dynacl": ("encoder_k.", ""),
    "astra": ("",),
    "torchvision": ("", "backbone.", "encoder."),
    "timm": ("",),
}
"""Possible prefixes of the encoder in a state dict, by format; other entries are then left out with a note."""
FAMILY = ("acl", "dynacl", "astra")
ROUTES = ("normal", "pgd")
"""Routes of the family's batch-norm lists, in order; its authors evaluate the second."""
ASSUMED = (
    "no state dict shows anti-aliased pooling, dilation, the activation, batch norm's epsilon, which convolution of a "
    "bottleneck has the stride, or the last pooling; assumed is a plain ResNet v1.5: none, none, ReLU, 1e-5, the 3x3 "
    "one, the global average. If the file's network differs (as timm's resnetaa, resnetblur and output_stride do, or "
    "torchvision's replace_stride_with_dilation), these are not its features"
)
"""Note on the file of an ordinary ResNet."""
NO_PROJECTOR = "no projector in the file: ours is all zeros, and so are its embeddings"
"""Note on a file without a projector that our network can hold."""


class Foreign(NamedTuple):
    """An encoder of another project.

    Args:
        network: the network, in eval mode, with all routes of the file.
        route: the route to evaluate.
        notes: assumptions, and what the file holds beside the encoder or lacks.
        projector: whether the file has a projector that our network can hold. If not, ours is all zeros, and so are its
            embeddings: they cannot be mistaken for the file's.
        head: the file's linear classifier `fc` on the features, frozen; None if it has none.
    """

    network: TargetNetwork
    route: str
    notes: list[str]
    projector: bool
    head: nn.Linear | None


def load_foreign(
    path: str | Path,
    *,
    format: str,
    stem: str | None = None,
    route: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
    content: Any = None,
) -> Foreign:
    """Load a state dict, or a dict that holds one, without running code from the file.

    Architecture and width follow from the shapes. So does the stem where it is certain: 7x7 is ImageNet's (stride 2,
    max-pooling); 3x3 is CIFAR's (stride 1, padding 1, no pooling) in the ACL family, by its code. Any other 3x3 needs
    `stem`, since strides, padding and pooling are in no state dict (`cifar-padded` for DeACL and DAQ-SDP, which pad by
    2). The family keeps its input normalization in the file. A file of `save_encoder` holds all of this, and its `fc`
    (a vision transformer's `head`) is the neck.

    What the state dict of an ordinary ResNet cannot show is assumed, and a note names it (`ASSUMED`). Visible
    contradictions are refused: a name (`arch`, `model`) or an option beside the state dict, the convolutions of a
    segmentation network's head, blur filters among the entries.

    Args:
        path: the file.
        format: a name of `FORMATS`.
        stem: a name of `STEMS`.
        route: "normal" or "pgd", needed if the file has both; the family's authors evaluate "pgd". The only route of
            an ordinary ResNet is called "normal".
        mean, std: input normalization per channel, for pixels in [0, 1]; needed if neither the file nor the format
            gives it (torchvision and timm: ImageNet's, if the stem is ImageNet's; a vision transformer has no usual).
        device: device for the network. The network refuses images that are not float32 (n, 3, h, w) in [0, 1].
        content: what `read_content` has read from the file; None: it is read.

    Raises:
        ValueError: if the file is missing, needs code to be loaded, holds no such network or a variant of one, or has
            unknown entries; if a needed argument is missing, or an argument contradicts the file; if there is no such
            device.
    """
    pick(format, FORMATS, "format")
    notes: list[str] = []
    content = read_content(Path(path)) if content is None else content
    state, said = read_state(Path(path), content, notes)
    if format == "timm" and VIT_MARK in state:
        _check_kinds(state)
        if stem is not None:
            raise ValueError(f"stem is {shown(stem)}, but the file's network is a vision transformer: leave it out")
        arguments = vit_arguments(state, said, notes)
        mean, std = _normalization(_said_normalization(state, said), mean, std, False, notes)
        only = (said.get("route", ROUTES[0]),)
        arguments |= {"routes": only, "mean": mean, "std": std}
        notes.append(NO_PROJECTOR)
        return _made(arguments, TIMM_VIT, False, state, _chosen(route, only, format), notes, device)
    state = _encoder(state, format, notes)
    _check_kinds(state)
    if format not in FAMILY and not said:
        notes.append(ASSUMED)
    dual = any(".bn_list." in name for name in state)
    if not dual and format in FAMILY and "normalize.mean" not in state:
        raise ValueError(
            f"{path}: neither lists of batch norms (bn_list) nor the family's normalize.mean: is this the format "
            f"torchvision instead of {format}?"
        )
    routes = _routes(state) if dual else (said.get("route", ROUTES[0]),)
    chosen = _chosen(route, routes, format)
    stem = _stem(state["conv1.weight"], format, stem, said.get("stem"), notes)
    usual = format in FAMILY or stem == "imagenet"
    mean, std = _normalization(_said_normalization(state, said), mean, std, usual, notes)
    # a file of `save_encoder` has no projector, and a neck in its place
    neck = state.get("fc.0.weight", torch.empty(0)).shape[:1].numel() if said else 0
    head = _classifier(state)
    sizes = _projector({} if said else state, notes)
    arguments = {"arch": resnet_arch(state), "width": len(state["conv1.weight"]), "stem": stem}
    arguments |= {"routes": routes, "mean": mean, "std": std, "neck": neck, **(sizes or {})}
    layout = DUAL_NORM if dual else TORCHVISION
    return _made(arguments, layout, sizes is not None, state, chosen, notes, device, head)


def _made(
    arguments: Mapping[str, Any],
    layout: Layout,
    projector: bool,
    state: Mapping[str, Tensor],
    route: str,
    notes: list[str],
    device: torch.device | str,
    head: nn.Linear | None = None,
) -> Foreign:
    """Build the network and fill it; without a projector in the file, ours is all zeros."""
    with torch.random.fork_rng(devices=[]):
        network = TargetNetwork(**arguments)
    for parameter in network.projector.parameters():
        nn.init.zeros_(parameter)
    _fill(network, foreign_names(network, layout, projector), state, notes)
    network.to(usable_device(device)).eval().checks_images = True
    head = head.to(usable_device(device)) if head is not None and head.in_features == network.feature_dim else None
    return Foreign(network, route, notes, projector, head)


def _encoder(state: dict[str, Tensor], format: str, notes: list[str]) -> dict[str, Tensor]:
    """Return the encoder's part of a state dict."""
    places = [prefix for prefix in PREFIXES[format] if f"{prefix}conv1.weight" in state]
    if len(places) != 1:
        deep = "; conv1.0.weight is a deep stem of several convolutions, which our networks have not"
        found = f"several encoders, at {', '.join(places)}" if places else f"{few(state)}"
        hint = deep if any(name.endswith("conv1.0.weight") for name in state) else _place(state)
        raise ValueError(f"expected one conv1.weight for the format {format}; the state dict holds {found}{hint}")
    [prefix] = places
    dense = [name for name, value in state.items() if name.startswith("classifier.") and value.ndim == 4]
    if prefix and dense:
        raise ValueError(
            f"{dense[0]} is a convolution, so this is a segmentation network; torchvision dilates the last stages of "
            "its encoder, which our networks cannot"
        )
    others = {name.split(".")[0] for name in state if not name.startswith(prefix)}
    if others:
        notes.append(f"the encoder is {prefix[:-1]}; left out beside it: {few(sorted(others))}")
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _place(state: Mapping[str, Tensor]) -> str:
    """Say under which prefixes a state dict has encoders, and what to do; empty if there is none."""
    marks = ("layer1.0.conv1.weight", VIT_MARK)
    places = sorted(name.removesuffix(mark) for name in state for mark in marks if name.endswith(f".{mark}"))
    if not places:
        return ""
    return f"; save the entries of one encoder ({few(places)}) alone, without this prefix"


def _check_kinds(state: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless all entries are dense tensors of floats or integers."""
    odd = [
        name
        for name, value in state.items()
        if not is_dense(value) or (value.dtype not in WEIGHTS and (value.is_floating_point() or value.is_complex()))
    ]
    if odd:
        raise ValueError(
            f"{few(odd)}: sparse, quantized, complex, of 8 bits or without values: expected dense tensors of float32, "
            "float64, float16 or bfloat16, which model.float().state_dict() has"
        )


def _routes(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    indices = {int(index) for name in state for index in re.findall(r"\.bn_list\.(\d+)\.", name)}
    if indices not in ({0}, {0, 1}):
        raise ValueError(
            f"lists of batch norms with the places {sorted(indices)}: expected 0 (normal), or 0 and 1 (pgd)"
        )
    return ROUTES[: len(indices)]


def _chosen(route: str | None, routes: Sequence[str], format: str) -> str:
    if route is None and len(routes) > 1:
        raise ValueError(
            f"the file has the routes {' and '.join(routes)}: say which one (route); the authors of {format} evaluate "
            f"{ROUTES[1]!r}"
        )
    if route is not None and route not in routes:
        raise ValueError(f"the file has no route {shown(route)}: it has {', '.join(routes)}")
    return routes[0] if route is None else route


def _stem(kernel: Tensor, format: str, given: str | None, said: str | None, notes: list[str]) -> str:
    fits = {(3, 3, 3): "cifar", (3, 7, 7): "imagenet"}.get(cast(tuple[int, int, int], tuple(kernel.shape[1:])))
    if fits == "cifar" and (given or said) == "cifar-padded":
        fits = "cifar-padded"  # a state dict does not hold the padding
    if fits is None:
        raise ValueError(f"conv1.weight is {tuple(kernel.shape)}: expected (width, 3, 3, 3) or (width, 3, 7, 7)")
    if given is not None:
        pick(given, STEMS, "stem")
        if said not in (None, given):
            raise ValueError(f"stem is given as {given}, but the file says {shown(said)}: leave it out")
    for stem in (given, said):
        if stem is not None and stem != fits:
            raise ValueError(f"stem {stem} ({STEMS[stem]}) is asked for, but the first convolution is {fits}'s")
    if given is None and said is None:
        if fits == "cifar" and format not in FAMILY:
            raise ValueError(
                "the first convolution is 3x3, and no state dict holds its stride, its padding or whether a pooling "
                "follows: if it has stride 1 and no pooling follows, say that the stem is cifar (padding 1) or "
                "cifar-padded (padding 2); others cannot be read"
            )
        why = "as in its authors' code" if format in FAMILY else "as in torchvision"
        notes.append(f"stem {fits}, from the size of the first convolution: {STEMS[fits]}, {why}")
    return fits


def _said_normalization(state: dict[str, Tensor], said: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the file's input normalization, removed from the state dict; empty if it has none."""
    buffers = ("normalize.mean", "normalize.std")
    if all(name in state for name in buffers):
        return {name.split(".")[1]: state.pop(name).double().flatten().tolist() for name in buffers}
    return {name: list(said[name]) for name in ("mean", "std") if name in said}


def _normalization(
    known: Mapping[str, list[float]],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    usual: bool,
    notes: list[str],
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation: the file's, the given ones, or ImageNet's if those are usual."""
    if mean is not None and std is not None:
        given = {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}
    elif mean is None and std is None:
        given = {}
    else:
        raise ValueError("only one of mean and std is given: give both or neither")
    if known:
        notes.append("input normalization: the file's own")
        for name, values in given.items():
            if not _near(values, known[name]):
                raise ValueError(f"{name} is given as {values}, but the file says {known[name]}: leave it out")
    elif not given:
        if not usual:
            raise ValueError(
                "no state dict holds the input normalization, and with this network none is usual: give mean and std "
                "(three numbers each, for pixels in [0, 1]; 0, 0, 0 and 1, 1, 1 for none)"
            )
        known = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
        notes.append("input normalization: ImageNet's, the usual one; the file does not say")
    found = known or given
    for name, values in found.items():
        if (
            len(values) != 3
            or not all(math.isfinite(value) for value in values)
            or (name == "std" and min(values) <= 0)
        ):
            raise ValueError(f"{name} is {values}: expected three finite numbers{' above 0' * (name == 'std')}")
    return found["mean"], found["std"]


def _near(one: Sequence[float], other: Sequence[float]) -> bool:
    # a file's values are rounded to its precision
    return len(one) == len(other) and all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(one, other, strict=True))


def _classifier(state: Mapping[str, Tensor]) -> nn.Linear | None:
    """Return a state dict's linear layer `fc`, in float32; None if there is none with finite weights."""
    weight, bias = state.get("fc.weight"), state.get("fc.bias")
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        return None
    if not all(value.is_floating_point() and bool(value.float().isfinite().all()) for value in (weight, bias)):
        return None
    head = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    return head.requires_grad_(False)


def _projector(state: dict[str, Tensor], notes: list[str]) -> dict[str, int] | None:
    """Return the sizes of a projector like ours; remove anything else in `fc` from the state dict, with a note."""
    head = {name.removeprefix("fc."): value for name, value in state.items() if name.startswith("fc.")}
    linears = {name for name in head if name.startswith("fc")}
    if linears == {"fc1.weight", "fc1.bias", "fc2.weight", "fc3.weight"}:
        last = tuple(head["fc3.weight"].shape)
        if last == (len(head["fc2.weight"]),) * 2:
            return {"projector_hidden": len(head["fc1.weight"]), "projector_dim": last[0]}
    for name in head:
        del state[f"fc.{name}"]
    if set(head) == {"weight", "bias"} and head["weight"].ndim == 2:
        notes.append(f"fc, a classifier of {len(head['weight'])} classes, is no part of the encoder")
    elif head:
        notes.append(
            f"left out: a head that is not our projector of three layers: {few(f'fc.{name}' for name in head)}"
        )
    notes.append(NO_PROJECTOR)
    return None


def _fill(network: TargetNetwork, names: Mapping[str, str], state: Mapping[str, Tensor], notes: list[str]) -> None:
    """Load the state dict into the network; `names` maps our names to the file's, and all entries must match."""
    own = network.state_dict()
    counters = {theirs for theirs in names.values() if theirs.endswith(".num_batches_tracked")}
    strange = sorted(set(state) - set(names.values()))
    absent = sorted(set(names.values()) - set(state) - counters)
    misfits = [
        f"{theirs} {tuple(state[theirs].shape)} instead of {tuple(own[ours].shape)}"
        for ours, theirs in names.items()
        if theirs in state and state[theirs].shape != own[ours].shape
    ]
    floats = [theirs for ours, theirs in names.items() if own[ours].is_floating_point() and theirs in state]
    typed = [theirs for theirs in floats if not state[theirs].is_floating_point()]
    broken, negative = list[str](), list[str]()
    if not (strange or misfits):
        # a finite number of float64 may be infinite in float32
        broken = [name for name, value in state.items() if not bool(value.float().isfinite().all())]
        negative = [name for name in floats if name.endswith(".running_var") and bool((state[name] < 0).any())]
    faults = {
        "not understood": strange,
        "missing": absent,
        "of another shape": misfits,
        "integers": typed,
        "not finite": broken,
        "negative variances": negative,
    }
    if any(faults.values()):
        most = 1 if sum(map(bool, faults.values())) > 1 else 3
        said = "; ".join(f"{what}: {few(which, most=most)}" for what, which in faults.items() if which)
        raise ValueError(f"the file is no {network.arguments['arch']} of this format: {said}")
    network.load_state_dict(own | {ours: state[theirs] for ours, theirs in names.items() if theirs in state})
    kinds = {str(value.dtype).removeprefix("torch.") for value in state.values() if value.is_floating_point()}
    if kinds != {"float32"}:
        notes.append(f"weights of {', '.join(sorted(kinds))} became float32")
    if counters - set(state):
        notes.append(f"no counters num_batches_tracked in the file, of {len(counters - set(state))} batch norms: 0")
    unused = [name for name in counters & set(state) if not int(cast(int, state[name]))]
    if 0 < len(unused) < len(counters & set(state)):
        notes.append(f"batch norms that saw no batch in training: {few(sorted(unused))}")
