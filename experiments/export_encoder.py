"""Write the encoder of a run as a file that other programs load.

# for torchvision or timm, the robust route
python experiments/export_encoder.py runs/NAME --out FILE.pt
# one checkpoint of the run, the route of clean images
python experiments/export_encoder.py runs/NAME/checkpoints/best.pt --out FILE.pt --route normal
# for this project: all routes and the projector
python experiments/export_encoder.py runs/NAME --out FILE.pt --layout ours

The file holds plain tensors and values (it loads with weights_only=True): the weights and the input normalization. The
command prints code that turns images into features; it needs only torch and torchvision, or timm for its models.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

if not __package__:
    # for a script, put this checkout first, in place of this file's folder, whose files would shadow modules
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]
    # imported before all slow modules: from here on a signal ends this process with one line of text
    from astra_gym.ssl_core.utils import stopping  # noqa: F401

from astra_gym.experiments.config.argparser import CommandParser
from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.ssl_core.models.backbones.resnet import ARCHITECTURES, ResNet
from astra_gym.ssl_core.models.backbones.timm_vit import PREFIX, is_vit
from astra_gym.ssl_core.models.checkpoint import describe_network, load_network, save_checkpoint
from astra_gym.ssl_core.models.export import save_encoder
from astra_gym.ssl_core.models.projectors import Projector
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.safety.disk import disk_error
from astra_gym.ssl_core.settings.records import SWITCH, Notes, check_choices
from astra_gym.ssl_core.utils.files import check_target, resolved
from astra_gym.ssl_core.utils.hashing import digest

LAYOUTS = ("torchvision", "timm", "ours")
OTHERS = (".safetensors", ".onnx", ".pt2", ".ts", ".npz", ".npy", ".h5", ".msgpack", ".pb")
"""Endings by which other programs know formats that are not written here."""
THEIRS = """\
import torch
{imports}

saved = torch.load({path!r}, weights_only=True)
{model}
model.load_state_dict(saved["state_dict"])
model.eval()
mean, std = (torch.tensor(saved[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
# images: float32 (n, 3, h, w) in [0, 1]; features: (n, {features})
features = model((images - mean) / std)
"""
OURS = """\
# with this project installed
from astra_gym.ssl_core.models.checkpoint import load_network

network, route = load_network({path!r})
# images (n, 3, h, w) in [0, 1]
features = network.features(images, route)
"""


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """What is exported, and where to.

    Args:
        source: a run folder, or a checkpoint in one.
        out: the file to write.
        route: batch-norm route, such as normal (clean images) or pgd (attacked ones); by default the one that the run
            is evaluated on.
        layout: torchvision: names and shapes of torchvision's ResNets, with one route, a neck as fc, and no projector;
            timm: the same for a model of timm, a neck as head; ours: the whole network as this project's commands read
            it, without the rest of the run; by default torchvision, or timm for its models.
        force: replace the file if it exists.
    """

    source: Annotated[Path, Notes(positional=True, unit="RUN")]
    out: Annotated[Path, Notes(unit="FILE")]
    route: str | None = None
    layout: Annotated[str | None, Notes(choices=LAYOUTS, what="layout")] = None
    force: Annotated[bool, SWITCH] = False

    def __post_init__(self) -> None:
        check_choices(self)


def export(
    source: Path, out: Path, route: str | None, layout: str | None, force: bool
) -> tuple[TargetNetwork, str, str]:
    """Write the file; return the network in it, its batch-norm route and its layout.

    Args:
        source: a run folder or a checkpoint of one.
        out: the file; folders are made.
        route: batch-norm route; by default the one that the run is evaluated on.
        layout: a name of `LAYOUTS`; None: that of the network's library.
        force: whether an existing file is replaced.

    Raises:
        ValueError: if the source is no run, the network has no such route or layout, or the file is there already, is
            a checkpoint of the run, a link or a device, or its name is of another format (`OTHERS`).
        OSError: if it cannot be written.
    """
    network, evaluated = load_network(source)
    route = route or evaluated
    network.check_route(route)
    theirs = "timm" if is_vit(network.arguments["arch"]) else "torchvision"
    layout = layout or theirs
    if layout not in (theirs, "ours"):
        raise ValueError(f"{network.arguments['arch']} has no layout {layout}: take --layout {theirs} or ours")
    checkpoints = source / "checkpoints" if source.is_dir() else source.parent
    if any(out.exists() and file.exists() and out.samefile(file) for file in (source, checkpoints / "last.pt")):
        raise ValueError(f"{out} is what is exported: name another file")
    if out.exists() and checkpoints.name == "checkpoints" and resolved(out.parent) == resolved(checkpoints):
        raise ValueError(f"{out} is a checkpoint of the run: name another file")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file")
    if out.suffix.lower() in OTHERS:
        raise ValueError(
            f"{out} would not be a file of {out.suffix.lower()}: name it FILE.pt; the printed code builds the model "
            "for torch.onnx, torch.export or safetensors"
        )
    check_target(out)
    if out.exists() and not force:
        raise ValueError(f"{out} is there already: --force replaces it")
    out.parent.mkdir(parents=True, exist_ok=True)
    if layout == theirs:
        save_encoder(out, network, route)
    else:
        whole = {"network": describe_network(network), "evaluation_route": route, "source_digest": digest(network)}
        save_checkpoint(out, "run", whole)
    return network, route, layout


def recipe(network: TargetNetwork, out: Path, layout: str) -> str:
    """Return Python code that loads the file and turns `images` into `features`, by torchvision or timm or, for the
    layout `ours`, by this project."""
    if layout == "ours":
        return OURS.format(path=str(out))
    if layout == "timm":
        imports, lines = "import timm\nfrom torch import nn", _vit(network)
    else:
        kind, counts = ARCHITECTURES[network.arguments["arch"]]
        block = {"basic": "BasicBlock", "bottleneck": "Bottleneck"}[kind]
        imports = f"from torch import nn\nfrom torchvision.models.resnet import {block}, ResNet"
        lines = _resnet(network, block, counts)
    return THEIRS.format(path=str(out), imports=imports, model="\n".join(lines), features=network.feature_dim)


def _vit(network: TargetNetwork) -> Iterator[str]:
    """Yield lines that build timm's model of the network's sizes."""
    built = network.arguments
    name, image, patch = built["arch"].removeprefix(PREFIX), built["image_size"], built["patch_size"]
    yield f'model = timm.create_model("{name}", num_classes=0, img_size={image}, patch_size={patch})'
    if network.neck is not None:
        yield f"model.head = {_neck(network.neck)}"


def _neck(neck: Projector) -> str:
    return f"nn.Sequential(nn.{neck.linears[0]}, nn.BatchNorm1d({neck.outputs}), nn.ReLU())"


def _resnet(network: TargetNetwork, block: str, counts: Sequence[int]) -> Iterator[str]:
    """Yield lines that build torchvision's ResNet and replace the layers in which this network differs from it."""
    width, backbone = network.arguments["width"], cast(ResNet, network.backbone)
    yield f"model = ResNet({block}, {list(counts)})"
    if width != 64 or backbone.pool is None:
        yield f"model.conv1 = nn.{backbone.conv}"
    if backbone.pool is None:
        yield "model.maxpool = nn.Identity()"
    if width != 64:
        yield f"model.bn1 = nn.BatchNorm2d({width})"
        yield f"model.inplanes = {width}"
        for stage, count in enumerate(counts):
            stride = ", stride=2" if stage else ""
            yield f"model.layer{stage + 1} = model._make_layer({block}, {width * 2**stage}, {count}{stride})"
    yield f"model.fc = {'nn.Identity()' if network.neck is None else _neck(network.neck)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 128 + N if signal N stopped it. Bad input ends the process with
    status 2 and one line."""
    return framed("export", argv, _main)


def _main(argv: list[str], ending: Ending) -> int:
    parser = CommandParser("export", ExportFlags, __doc__, "RUN --out FILE [--FLAG VALUE ...]")
    given = parser.read(argv)
    ending.place = given.out.parent
    try:
        network, route, layout = export(given.source, given.out, given.route, given.layout, given.force)
    except (ValueError, OSError) as error:
        if disk_error(error):
            raise
        parser.error(str(error))
    built = network.arguments
    names = ("width", "stem", "image_size", "patch_size")
    sizes = ", ".join(f"{name} {built[name]}" for name in names if name in built)
    print(f"encoder: {given.out}: {built['arch']}, {sizes}, route {route}\n")
    print(recipe(network, given.out, layout), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
