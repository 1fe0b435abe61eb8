"""What an evaluation's command line asks for: flags, and what they come to for one encoder."""

import argparse
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from astra_gym.experiments.config.argparser import OneLineParser, path_argument
from astra_gym.experiments.config.commands import program, typed
from astra_gym.experiments.config.settings import PROGRESS, Settings
from astra_gym.experiments.config.trust import only_named
from astra_gym.experiments.console import Decoding
from astra_gym.experiments.evaluation import encoders
from astra_gym.experiments.evaluation.data_identity import FOLDER, folder_name, is_own_folder
from astra_gym.experiments.evaluation.encoders import Subject
from astra_gym.experiments.evaluation.protocol_runner import SHIFTS, EvaluationPlan, protocols_known
from astra_gym.experiments.evaluation.protocols import Changes
from astra_gym.ssl_core.data.datasets import DATASETS, find_dataset, load_dataset
from astra_gym.ssl_core.data.image_set import ImageSet, Split
from astra_gym.ssl_core.data.labels import PUBLISHED_FRACTIONS
from astra_gym.ssl_core.evaluation.attack_suite import Attack
from astra_gym.ssl_core.evaluation.corruptions import load_photographs
from astra_gym.ssl_core.evaluation.results import NORMS
from astra_gym.ssl_core.models.checkpoint import CheckpointError
from astra_gym.ssl_core.models.foreign import FORMATS
from astra_gym.ssl_core.models.target_network import STEMS
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.paths import check_folder

PROTOCOLS = ("slf", "alf", "aff", "knn")
ATTACKS = ("pgd20", "autoattack")
ATTACKS_KNOWN = ("fgsm", "pgd20", "autoattack", "autoattack-quick")
LONG_ATTACKS = ("autoattack", "autoattack-quick")
EPSILONS = (4 / 255, 8 / 255, 12 / 255, 16 / 255)
STANDARD_EPSILON = {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0}
"""AutoAttack's radii on RobustBench's tables (L1: of its authors' own)."""


def _radius(text: str) -> float:
    """8/255 or 0.031 as a float."""
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a radius such as 8/255, got {shown(text)}") from None


def _switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {shown(text)}")
    return text == "true"


def make_parser(description: str) -> OneLineParser:
    """The parser of `evaluate_encoder.py`."""
    raw = argparse.RawDescriptionHelpFormatter
    usage = "%(prog)s [RUN | CHECKPOINT | --model PATH] [--FLAG VALUE ...]"
    parser = OneLineParser(
        prog=program("evaluate"), usage=usage, description=description, formatter_class=raw, allow_abbrev=False
    )
    what = parser.add_argument_group("what is evaluated")
    what.add_argument("encoder", nargs="?", type=path_argument, help="a run folder, or a checkpoint")
    what.add_argument(
        "--model",
        metavar="PATH",
        help="an nn.Module of your own, or a function that returns one, by its "
        "dotted path: its outputs are features, or logits with --protocols classifier",
    )
    what.add_argument("--format", choices=FORMATS, help="of a checkpoint of another project")
    what.add_argument("--stem", choices=STEMS, help="of its network, where the file does not tell")
    what.add_argument("--route", metavar="NAME", help="its batch-norm route, where it has several: normal or pgd")
    what.add_argument("--mean", nargs=3, type=float, metavar="X", help="its input normalisation, a figure a channel")
    what.add_argument("--std", nargs=3, type=float, metavar="X")
    how = parser.add_argument_group("protocols and attacks")
    how.add_argument("--protocols", nargs="+", choices=protocols_known(), help=f"by default {' '.join(PROTOCOLS)}")
    how.add_argument(
        "--labels",
        nargs="+",
        type=float,
        metavar="SHARE",
        default=[1.0],
        help=f"of the training labels, in (0, 1]; published: {' '.join(map(str, PUBLISHED_FRACTIONS))}",
    )
    how.add_argument("--attacks", nargs="+", choices=(*ATTACKS_KNOWN, "none"), help=f"by default {' '.join(ATTACKS)}")
    how.add_argument(
        "--epsilons",
        nargs="+",
        type=_radius,
        metavar="E",
        help="radii of fgsm and pgd20; by default 4/255 8/255 12/255 16/255",
    )
    how.add_argument("--norm", choices=NORMS, default="Linf", help="of autoattack; by default Linf")
    how.add_argument(
        "--autoattack_epsilons",
        nargs="+",
        type=_radius,
        metavar="E",
        help="radii of autoattack; by default 8/255 (L2: 0.5, L1: 12)",
    )
    how.add_argument("--restarts", type=int, metavar="N", default=1, help="random starts of pgd20; by default 1")
    how.add_argument("--shifts", nargs="+", choices=SHIFTS, default=[], help="beyond adversaries")
    how.add_argument("--severities", nargs="+", type=int, choices=range(1, 6), default=[1, 2, 3, 4, 5])
    how.add_argument(
        "--frost_photographs",
        type=path_argument,
        metavar="DIR",
        help="with frost1.png ... as published; without them frost is a texture like them, and marked",
    )
    how.add_argument("--health", action="store_true", help="numbers and figures of the features themselves")
    how.add_argument(
        "--everything", action="store_true", help="all protocols, fgsm, pgd20 and autoattack, all shifts, and health"
    )
    how.add_argument(
        "--every",
        type=int,
        metavar="N",
        help="evaluate along the run: the encoders of every N-th epoch that --keep_every kept "
        "(by default slf and pgd20 at 8/255)",
    )
    change = parser.add_argument_group("departures from the published protocols, which are marked")
    change.add_argument("--epochs", type=int, metavar="N", help="of every training")
    change.add_argument("--batch_size", type=int, metavar="N", help="of every training")
    change.add_argument("--lr", type=float, metavar="X", help="of linear heads")
    change.add_argument("--aff_lr", type=float, metavar="X", help="of full fine-tuning")
    change.add_argument(
        "--aff_noise",
        type=_radius,
        metavar="X",
        help="noise from which its attack starts: by default 0 with two routes, as published, and 0.001 with one; "
        "version 0.1 had 0.001",
    )
    change.add_argument("--augment", type=_switch, metavar="BOOL", help="whether linear heads see crops and flips")
    change.add_argument("--flip", type=float, metavar="P", help="probability of a horizontal flip")
    change.add_argument("--neighbours", type=int, metavar="K", help="of knn")
    data = parser.add_argument_group("data, by default the run's own")
    data.add_argument(
        "--dataset",
        metavar="NAME",
        help="another one than the run's: transfer; of stl10 the 5,000 labelled images are trained on",
    )
    data.add_argument("--data_dir", metavar="DIR")
    data.add_argument("--image_size", type=int, metavar="N", help="side in pixels to which images are resized")
    data.add_argument("--limit", type=int, metavar="N", help="training images; 0: all")
    data.add_argument("--test_limit", type=int, metavar="N", help="test images; 0: all")
    data.add_argument("--download", type=_switch, metavar="BOOL", default=True)
    run = parser.add_argument_group("the rest")
    run.add_argument("--out", type=path_argument, metavar="DIR", help="by default RUN/evaluation, or evaluations/NAME")
    run.add_argument("--seed", type=int, default=0, metavar="N")
    run.add_argument(
        "--attack_batch_size",
        type=int,
        default=256,
        metavar="N",
        help="of fgsm and pgd20, by default 256; autoattack takes at most 100 of it",
    )
    run.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    run.add_argument("--progress", choices=PROGRESS, default="auto")
    return parser


@dataclass(frozen=True)
class LabelledData:
    """A data set for an evaluation.

    Args:
        name: of the data set.
        split: its labelled training and test images.
        deviations: in what it departs from the published protocol.
        seen: its test images at the size of those that the encoder's run was trained on.
        place: what an evaluation's folder is called after it; empty where the data are the run's own.
    """

    name: str
    split: Split
    deviations: tuple[str, ...]
    seen: ImageSet
    place: str = ""


def check(given: argparse.Namespace) -> None:
    """Raises a ValueError where flags contradict each other or a figure is out of its range."""
    sources = [name for name in ("encoder", "model") if getattr(given, name) is not None]
    if len(sources) != 1:
        raise ValueError("say what to evaluate: a run folder, a checkpoint, or --model my_module:build, one of them")
    foreign = [name for name in ("stem", "route", "mean", "std") if getattr(given, name) is not None]
    if foreign and given.format is None:
        raise ValueError(f"--{foreign[0]} is for checkpoints of other projects: give --format as well, or leave it out")
    if given.format is not None and given.model is not None:
        raise ValueError("--format is of a checkpoint, and --model is none: leave one of them out")
    protocols = given.protocols or []
    if "classifier" in protocols and (given.model is None or len(protocols) > 1):
        raise ValueError("--protocols classifier takes the outputs of a --model as logits, and goes with no other")
    if "classifier" in protocols and (given.health or given.everything):
        raise ValueError("a classifier has no features to look at: leave --health and --everything out")
    if given.everything and (given.protocols or given.attacks or given.shifts):
        raise ValueError("--everything says it all: leave --protocols, --attacks and --shifts out")
    if given.attacks and "none" in given.attacks and len(given.attacks) > 1:
        raise ValueError("--attacks none goes with no other attack")
    if given.norm != "Linf" and not set(given.attacks or ATTACKS) & set(LONG_ATTACKS):
        raise ValueError(f"--norm {given.norm} is of autoattack, which is not among the attacks")
    for name in ("epochs", "batch_size", "neighbours", "restarts", "attack_batch_size", "image_size", "every"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}: expected 1 or more, got {value}")
    for name in ("limit", "test_limit"):
        value = getattr(given, name)
        if value is not None and value < 0:
            raise ValueError(f"--{name}: expected a number of images, or 0 for all, got {value}")
    for fraction in given.labels:
        if not 0 < fraction <= 1:
            raise ValueError(f"--labels: expected shares in (0, 1], such as 0.1 for 10 %, got {fraction:g}")
    for name in ("labels", "epsilons", "autoattack_epsilons", "protocols", "attacks", "severities"):
        values = getattr(given, name) or []
        if len(set(values)) != len(values):
            raise ValueError(f"--{name} names one thing twice")


def subject_of(given: argparse.Namespace, device: torch.device) -> Subject:
    """The encoder that the command line names.

    Raises:
        ValueError, CheckpointError: if there is none, or it cannot be read.
    """
    if given.model is not None:
        size = given.image_size or (find_dataset(given.dataset).image_size if given.dataset else None)
        if size is None:
            raise ValueError("--model: say by --image_size N which images the model is going to see")
        return encoders.module(given.model, size, device, "classifier" in (given.protocols or []))
    if not given.encoder.exists():
        raise ValueError(f"{given.encoder} does not exist: expected a run folder, or a checkpoint")
    if given.format is not None:
        return encoders.foreign(
            given.encoder,
            device,
            format=given.format,
            stem=given.stem,
            route=given.route,
            mean=given.mean,
            std=given.std,
        )
    try:
        return encoders.own(given.encoder, device)
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise ValueError(f"{error}; a checkpoint of another project needs --format {'/'.join(FORMATS)}") from error


def plan_of(given: argparse.Namespace) -> EvaluationPlan:
    """What is to be evaluated.

    Raises:
        ValueError: if an attack's radius is out of its range, or photographs of frost are missing.
    """
    along = given.every is not None
    protocols: tuple[str, ...] = PROTOCOLS[:1] if along else PROTOCOLS
    names: tuple[str, ...] = ATTACKS[:1] if along else ATTACKS
    shifts = tuple(given.shifts)
    if given.everything:
        protocols = tuple(name for name in protocols_known() if name != "classifier")
        names, shifts = ("fgsm", *ATTACKS), tuple(SHIFTS)
    protocols = tuple(given.protocols or protocols)
    names = tuple(given.attacks or names)
    attacks = []
    for name in names if names != ("none",) else ():
        if name in LONG_ATTACKS:
            radii = given.autoattack_epsilons or [STANDARD_EPSILON[given.norm]]
            attacks += [Attack(name, epsilon, given.norm) for epsilon in radii]
        else:
            radii = given.epsilons or ([STANDARD_EPSILON["Linf"]] if along else EPSILONS)
            attacks += [Attack(name, epsilon, restarts=given.restarts if name == "pgd20" else 1) for epsilon in radii]
    return EvaluationPlan(
        protocols=protocols,
        attacks=tuple(attacks),
        labels=tuple(given.labels),
        shifts=shifts,
        severities=tuple(given.severities),
        photographs=None if given.frost_photographs is None else load_photographs(given.frost_photographs),
        seed=given.seed,
        batch_size=given.attack_batch_size,
    )


def changes_of(given: argparse.Namespace) -> Changes:
    """What the command line changes of the protocols."""
    return Changes(
        epochs=given.epochs,
        batch_size=given.batch_size,
        lr=given.lr,
        aff_lr=given.aff_lr,
        aff_noise=given.aff_noise,
        augment=given.augment,
        flip=given.flip,
        neighbours=given.neighbours,
    )


def data_of(given: argparse.Namespace, subject: Subject, decoding: Decoding) -> LabelledData:
    """The labelled images: those of the encoder's run, with what the command line changes; else what it names.

    A folder is the run's if it holds the images that the run was trained on, wherever it lies. Any other is another
    data set, with a name of its own, also where it lies at the run's place.

    Raises:
        ValueError: if no data set is named, or it cannot be read.
    """
    settings = subject.settings
    name = given.dataset or (settings.dataset if settings else None)
    if name is None:
        raise ValueError(
            f"say by --dataset on which data ({', '.join(DATASETS)}): this encoder comes from no run of ours"
        )
    with only_named((given.dataset,), typed("evaluate", str(given.encoder), "--dataset", name)):
        spec = find_dataset(name)
    own = settings if settings is not None and settings.dataset == name else None

    def chosen(flag: int | None, value: int | None) -> int | None:
        return value if flag is None else (flag or None)

    # an encoder of a run sees another data set at its own size
    size = given.image_size or (settings.image_size if settings else None)
    data_dir = given.data_dir or (own.data_dir if own else None)

    def load(limits: Settings | None, side: int | None) -> Split:
        return load_dataset(
            name,
            data_dir=data_dir,
            image_size=side,
            limit=chosen(given.limit, limits.limit if limits else None),
            test_limit=chosen(given.test_limit, limits.test_limit if limits else None),
            download=given.download,
            cache_dir=own.cache_dir if own else None,
            on_progress=decoding.update,
        )

    # test images are told from those that a run was trained on at the size of that run
    seen_size = settings.image_size if settings is not None and subject.trained is not None else size

    def pair(limits: Settings | None) -> tuple[Split, Split]:
        split = load(limits, size)
        return split, split if seen_size == size else load(limits, seen_size)

    limits, mine = own, own is not None
    if name == FOLDER and own is not None:
        limited = (own.limit, own.test_limit) != (None, None) and given.data_dir is not None
        try:
            split, seen = pair(own)
            mine = is_own_folder(subject, seen.train, given.data_dir)
        except ValueError:
            if not limited:
                raise
            mine = False
        if limited and not mine:
            # the limits are of the run's own folder: another one may hold fewer images
            limits = None
            split, seen = pair(None)
    else:
        split, seen = pair(own)
    deviations = []
    sizes = spec.sizes or (None, None)
    for limit, part, full, what in (
        (chosen(given.limit, limits.limit if limits else None), split.train, sizes[0], "training"),
        (chosen(given.test_limit, limits.test_limit if limits else None), split.test, sizes[1], "test"),
    ):
        if limit is not None and len(part) != full:
            deviations.append(f"{len(part):,} {what} images only")
    if spec.image_size is not None and size not in (None, spec.image_size):
        deviations.append(f"images resized to {size} pixels")
    if settings is not None and not mine:
        deviations.append(f"encoder pre-trained on {'another folder' if own else settings.dataset}")
    label, place = name, name.replace(":", "-") if settings is not None and not mine else ""
    if name == FOLDER and not mine and data_dir is not None:
        label, place = folder_name(data_dir)
    return LabelledData(label, split, tuple(deviations), seen.test, place)


def default_folder(given: argparse.Namespace, subject: Subject, data: LabelledData) -> Path:
    """Where an evaluation is kept: in the encoder's run, or in `evaluations/NAME`.

    Raises:
        ValueError: if the run has a link in that place.
    """
    place = f"-{data.place}" if data.place else ""
    if subject.settings is None:
        return Path("evaluations") / f"{subject.name}{place}"
    if given.encoder.is_dir():
        path = given.encoder / f"evaluation{place}"
    else:
        path = given.encoder.parent.parent / f"evaluation-{subject.checkpoint}{place}"
    check_folder(path)
    return path
