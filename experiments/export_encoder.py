"""Write the encoder of a run as a file that other programs load.

python experiments/export_encoder.py runs/NAME --out FILE.pt                # torchvision's names, the robust route
python experiments/export_encoder.py runs/NAME/checkpoints/best.pt --out FILE.pt --route normal
python experiments/export_encoder.py runs/NAME --out FILE.pt --layout ours  # all routes and the projector

The file holds plain tensors and values (it loads with weights_only=True), the input normalisation beside the weights.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

if not __package__:
    # run as a script: this checkout comes first, and what lies beside this file (entry 0) hides nobody's module
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]
    # before the imports that take seconds: from here on a signal ends this process with a line
    from astra_gym.ssl_core.utils import stopping  # noqa: F401

from astra_gym.experiments.config.argparser import OneLineParser, path_argument
from astra_gym.experiments.config.commands import help_text, program
from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.ssl_core.models.checkpoint import describe_network, load_network, save_checkpoint
from astra_gym.ssl_core.models.foreign import save_encoder
from astra_gym.ssl_core.models.target_network import ARCHITECTURES, TargetNetwork
from astra_gym.ssl_core.safety.disk import disk_error
from astra_gym.ssl_core.utils.files import check_target, resolved
from astra_gym.ssl_core.utils.hashing import digest

LAYOUTS = {
    "torchvision": "names and shapes of torchvision's ResNets, one route, no projector",
    "ours": "the whole network as this project's commands read it, without the rest of the run",
}
CONV1 = "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)\nmodel.maxpool = torch.nn.Identity()\n"
WITH_TORCHVISION = """\
import torch
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

saved = torch.load({path!r}, weights_only=True)
model = ResNet({block}, {counts})
{stem}model.fc = torch.nn.Identity()
model.load_state_dict(saved["state_dict"])
model.eval()
mean, std = (torch.tensor(saved[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
# images (n, 3, h, w) in [0, 1]
features = model((images - mean) / std)
"""
WITHOUT = """\
# torchvision has no ResNet of width {width}: this project reads it
from astra_gym.ssl_core.models.foreign import load_foreign

encoder = load_foreign({path!r}, format="torchvision")
# images (n, 3, h, w) in [0, 1]
features = encoder.network.features(images, encoder.route)
"""
OURS = """\
from astra_gym.ssl_core.models.checkpoint import load_network

network, route = load_network({path!r})
# images (n, 3, h, w) in [0, 1]
features = network.features(images, route)
"""


def export(source: Path, out: Path, route: str | None, layout: str, force: bool) -> tuple[TargetNetwork, str]:
    """Writes the file; returns the network that it holds and the route that it is for.

    Args:
        source: a run folder or a checkpoint of one.
        out: the file; folders are made.
        route: by default the one that the run is evaluated on.
        layout: a name of `LAYOUTS`.
        force: whether a file that is there is replaced.

    Raises:
        ValueError: if the source is no run, the network has no such route, or the file is there already, is a
            checkpoint of the run, a link or a device.
        OSError: if it cannot be written.
    """
    network, evaluated = load_network(source)
    route = route or evaluated
    if route not in network.routes:
        raise ValueError(f"the network has no route {route!r}: it has {', '.join(network.routes)}")
    checkpoints = source / "checkpoints" if source.is_dir() else source.parent
    if any(out.exists() and file.exists() and out.samefile(file) for file in (source, checkpoints / "last.pt")):
        raise ValueError(f"{out} is what is exported: name another file")
    if out.exists() and checkpoints.name == "checkpoints" and resolved(out.parent) == resolved(checkpoints):
        raise ValueError(f"{out} is a checkpoint of the run: name another file")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file")
    check_target(out)
    if out.exists() and not force:
        raise ValueError(f"{out} is there already: --force replaces it")
    out.parent.mkdir(parents=True, exist_ok=True)
    if layout == "torchvision":
        save_encoder(out, network, route)
    else:
        whole = {"network": describe_network(network), "evaluation_route": route, "source_digest": digest(network)}
        save_checkpoint(out, "run", whole)
    return network, route


def recipe(network: TargetNetwork, out: Path, layout: str) -> str:
    """Python that loads the file and turns `images` into `features`."""
    if layout == "ours":
        return OURS.format(path=str(out))
    width, stem = network.arguments["width"], network.arguments["stem"]
    if width != 64:
        return WITHOUT.format(path=str(out), width=width)
    kind, counts = ARCHITECTURES[cast(str, network.arguments["arch"])]
    block = {"basic": "BasicBlock", "bottleneck": "Bottleneck"}[kind]
    changes = CONV1 if stem == "cifar" else ""
    return WITH_TORCHVISION.format(path=str(out), block=block, counts=list(counts), stem=changes)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status, 0, or 128 + N stopped by signal N. Bad input ends the process with status 2
    and one line."""
    return framed("export", argv, _main)


def _main(argv: list[str], ending: Ending) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(
        prog=program("export"), description=help_text(__doc__), formatter_class=raw, allow_abbrev=False
    )
    parser.add_argument("source", type=path_argument, metavar="RUN", help="a run folder, or a checkpoint in one")
    parser.add_argument("--out", type=path_argument, required=True, metavar="FILE", help="where to write")
    parser.add_argument("--route", help="batch-norm route; by default the one that the run is evaluated on")
    described = "; ".join(f"{name}: {what}" for name, what in LAYOUTS.items())
    parser.add_argument("--layout", choices=LAYOUTS, default="torchvision", help=described)
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
    given = parser.parse_args(argv)
    ending.place = given.out.parent
    try:
        network, route = export(given.source, given.out, given.route, given.layout, given.force)
    except (ValueError, OSError) as error:
        if disk_error(error):
            raise
        parser.error(str(error))
    built = network.arguments
    print(f"encoder: {given.out}: {built['arch']}, width {built['width']}, stem {built['stem']}, route {route}\n")
    print(recipe(network, given.out, given.layout), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
