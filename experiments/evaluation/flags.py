"""The flags of an evaluation: typed records, one for each section of the help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from astra_gym.experiments.config.argparser import CommandParser
from astra_gym.experiments.config.sections import PROGRESS
from astra_gym.experiments.evaluation.plan import SHIFTS, protocols_known
from astra_gym.experiments.evaluation.protocols import Changes
from astra_gym.ssl_core.data.datasets import DATASETS
from astra_gym.ssl_core.evaluation.results import NORMS, check_radii
from astra_gym.ssl_core.models.backbones.resnet import STEMS
from astra_gym.ssl_core.models.foreign import FORMATS, ROUTES
from astra_gym.ssl_core.settings.records import SWITCH, Notes, check_choices
from astra_gym.ssl_core.utils.finite import check_number

PROTOCOLS = ("slf", "alf", "aff", "knn")
ATTACKS = ("pgd20", "autoattack")
ATTACKS_KNOWN = ("fgsm", "pgd20", "autoattack", "autoattack-quick")
RADIUS = "radius such as 8/255"
LONG_ATTACKS = ("autoattack", "autoattack-quick")
MOST_CURVES = 4
"""Encoders in a figure of the downstream loss."""


@dataclass(frozen=True, kw_only=True)
class SourceFlags:
    """The encoder.

    Args:
        encoders: a run folder, or a checkpoint; several are evaluated in turn, each in its own folder, and have one
            table.
        model: dotted path of a custom nn.Module, or of a function that returns one; its outputs are features, or logits
            with --protocols classifier.
        format: format of another project's checkpoint: that of ACL, DynACL or ASTrA, or the names of torchvision's or
            timm's ResNets and of timm's ViTs; with several encoders that of each one that is no run folder.
        stem: first layers of such a checkpoint's ResNet, if the file does not name them.
        route: batch-norm route of such a checkpoint, if it has several: normal (clean images) or pgd (attacked ones).
        mean: mean of such a checkpoint's input normalization, one value per channel.
        std: standard deviation of the same, one value per channel.
    """

    encoders: Annotated[tuple[Path, ...], Notes(positional=True, nargs="*", unit="ENCODER")] = ()
    model: Annotated[str | None, Notes(unit="PATH")] = None
    format: Annotated[str | None, Notes(choices=FORMATS, what="format")] = None
    stem: Annotated[str | None, Notes(choices=STEMS, what="stem")] = None
    route: Annotated[str | None, Notes(choices=ROUTES, what="route")] = None
    mean: Annotated[tuple[float, ...] | None, Notes(nargs=3, unit="X")] = None
    std: Annotated[tuple[float, ...] | None, Notes(nargs=3, unit="X")] = None

    def __post_init__(self) -> None:
        check_choices(self)
        if bool(self.encoders) == (self.model is not None):
            raise ValueError(
                "say what to evaluate: run folders and checkpoints, or --model my_module:build, one of them"
            )
        if twice := [path for path in self.encoders if self.encoders.count(path) > 1]:
            raise ValueError(f"{twice[0]} is given twice: name each encoder once")
        foreign = [name for name in ("stem", "route", "mean", "std") if getattr(self, name) is not None]
        if foreign and self.format is None:
            raise ValueError(
                f"--{foreign[0]} is for checkpoints of other projects: give --format as well, or leave it out"
            )
        if self.format is not None and self.model is not None:
            raise ValueError("--format is of a checkpoint, and --model is none: leave one of them out")

    @property
    def encoder(self) -> Path | None:
        """The only encoder; None for a `model`."""
        return self.encoders[0] if len(self.encoders) == 1 else None


@dataclass(frozen=True, kw_only=True)
class MeasureFlags:
    """Protocols and attacks.

    Args:
        protocols: how the encoder becomes a classifier: slf (a linear head), alf (the same, trained on attacked
            images), aff (head and encoder fine-tuned on attacked images), lp-aff (a linear head first, then aff), knn
            (nearest neighbors), ridge (a linear head in closed form, for screening), classifier (the logits of --model
            or --format); by default slf, alf, aff and knn.
        labels: shares of the training labels, in (0, 1]; published: 0.01 0.1 0.2 0.3 0.4 0.5.
        attacks: attacks to run; autoattack-quick: AutoAttack's first two, never comparable with all of it; none: clean
            images alone; by default pgd20 and autoattack.
        epsilons: radii of fgsm and pgd20; by default 4/255 8/255 12/255 16/255.
        norm: norm of autoattack.
        autoattack_epsilons: radii of autoattack; by default 8/255 (L2: 0.5, L1: 12).
        restarts: random starts of pgd20.
        shifts: further tests: corruptions (the 15 of ImageNet-C), perspective (Moebius views as in ImageNet-PD).
        severities: severities of the corruptions, 1 to 5.
        corruptions_dir: folder of official corrupted images, which --shifts corruptions takes in place of its own:
            CIFAR-10-C (NAME.npy, labels.npy) or ImageNet-C (NAME/SEVERITY/CLASS).
        perspective_dir: folder of ImageNet-PD (PD-L/CLASS and so on), which --shifts perspective takes in place of its
            own.
        frost_photographs: a folder with the published frost1.png ...; without them frost is a similar texture, and its
            results are marked.
        train_images: measure accuracy on so many training images too (all that the classifier has, if it has fewer),
            clean and under the same attacks: what robust accuracy loses from training to test images (not for knn).
        landscape: draw the downstream loss, clean and attacked, along a direction in the classifier's weights; several
            encoders in one figure (not for knn).
        health: report values and figures of the features themselves.
        everything: all protocols, fgsm, pgd20 and autoattack, all shifts, and health.
        every: evaluate along the run: the encoders that --keep_every kept, so many epochs apart (by default slf and
            pgd20 at 8/255).
    """

    protocols: Annotated[tuple[str, ...] | None, Notes(nargs="+", choices=protocols_known(), what="protocol")] = None
    labels: Annotated[tuple[float, ...], Notes(nargs="+", unit="SHARE")] = (1.0,)
    attacks: Annotated[tuple[str, ...] | None, Notes(nargs="+", choices=(*ATTACKS_KNOWN, "none"), what="attack")] = None
    epsilons: Annotated[tuple[float, ...] | None, Notes(nargs="+", unit="RADIUS", what=RADIUS)] = None
    norm: Annotated[str, Notes(choices=NORMS, what="norm")] = "Linf"
    autoattack_epsilons: Annotated[tuple[float, ...] | None, Notes(nargs="+", unit="RADIUS", what=RADIUS)] = None
    restarts: int = 1
    shifts: Annotated[tuple[str, ...], Notes(nargs="+", choices=SHIFTS, what="shift")] = ()
    severities: Annotated[tuple[int, ...], Notes(nargs="+")] = (1, 2, 3, 4, 5)
    corruptions_dir: Annotated[Path | None, Notes(unit="DIR")] = None
    perspective_dir: Annotated[Path | None, Notes(unit="DIR")] = None
    frost_photographs: Annotated[Path | None, Notes(unit="DIR")] = None
    train_images: Annotated[int | None, Notes(unit="IMAGES")] = None
    landscape: Annotated[bool, SWITCH] = False
    health: Annotated[bool, SWITCH] = False
    everything: Annotated[bool, SWITCH] = False
    every: Annotated[int | None, Notes(unit="EPOCHS")] = None

    def __post_init__(self) -> None:
        check_choices(self)
        _check_counts(self, "restarts", "every", "train_images")
        if self.landscape and self.every is not None:
            raise ValueError(
                f"--landscape overlays up to {MOST_CURVES} encoders: leave --every out, and give files of checkpoints/"
            )
        if "classifier" in (self.protocols or ()) and (self.health or self.everything):
            raise ValueError("a classifier has no features to look at: leave --health and --everything out")
        for shift in SHIFTS:
            if getattr(self, f"{shift}_dir") is not None and shift not in self.shifts and not self.everything:
                raise ValueError(f"--{shift}_dir is for --shifts {shift}: give both, or leave it out")
        if self.everything and (self.protocols or self.attacks or self.shifts):
            raise ValueError("--everything says it all: leave --protocols, --attacks and --shifts out")
        if self.attacks and "none" in self.attacks and len(self.attacks) > 1:
            raise ValueError("--attacks none goes with no other attack")
        if self.norm != "Linf" and not set(self.attacks or ATTACKS) & set(LONG_ATTACKS):
            raise ValueError(f"--norm {self.norm} is of autoattack, which is not among the attacks")
        for fraction in self.labels:
            check_number("--labels", fraction, 0, 1, "shares in (0, 1], such as 0.1 for 10 %", above=True)
        for severity in self.severities:
            check_number("--severities", severity, 1, 5, whole=True)
        for name in ("labels", "epsilons", "autoattack_epsilons", "protocols", "attacks", "severities"):
            values = getattr(self, name) or ()
            if len(set(values)) != len(values):
                raise ValueError(f"--{name} names one thing twice")
        check_radii("--epsilons", self.epsilons or ())
        check_radii("--autoattack_epsilons", self.autoattack_epsilons or (), self.norm)


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """The images.

    Args:
        dataset: another data set than the run's (transfer), or the dotted path of a custom DatasetSpec,
            my_module:MY_DATA; stl10 trains on its 5,000 labeled images.
        data_dir: folder of the data set.
        classes: text file with the names of the class folders that are read, one a line; by default the run's.
        image_size: side in pixels to which images are resized.
        limit: number of training images; 0: all.
        test_limit: number of test images; 0: all.
        download: whether the data set may be downloaded.
    """

    dataset: Annotated[str | None, Notes(choices=DATASETS, what="data set", custom=True)] = None
    data_dir: Annotated[str | None, Notes(unit="DIR")] = None
    classes: Annotated[str | None, Notes(unit="FILE")] = None
    image_size: Annotated[int | None, Notes(unit="PIXELS")] = None
    limit: Annotated[int | None, Notes(unit="IMAGES")] = None
    test_limit: Annotated[int | None, Notes(unit="IMAGES")] = None
    download: bool = True

    def __post_init__(self) -> None:
        check_choices(self)
        _check_counts(self, "image_size")
        for name in ("limit", "test_limit"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"--{name}: expected a number of images, or 0 for all, got {value}")


@dataclass(frozen=True, kw_only=True)
class WorkFlags:
    """How the evaluation runs.

    Args:
        out: the evaluation's folder; by default RUN/evaluation, or evaluations/NAME. Of several encoders: the folder of
            their common table; by default evaluations/NAME-and-NAME.
        seed: seed of everything random.
        attack_batch_size: batch size of fgsm and pgd20; autoattack uses at most 100.
        device: where it runs: auto (a GPU where there is one), cpu, cuda or cuda:N.
        progress: how progress is shown; auto: live in a terminal, else lines.
    """

    out: Annotated[Path | None, Notes(unit="DIR")] = None
    seed: int = 0
    attack_batch_size: Annotated[int, Notes(unit="IMAGES")] = 256
    device: str = "auto"
    progress: Annotated[str, Notes(choices=PROGRESS, what="kind of progress")] = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        _check_counts(self, "attack_batch_size")


@dataclass(frozen=True, kw_only=True)
class EvaluationFlags:
    """What a command line asks for.

    Args:
        source: what is evaluated.
        measures: protocols and attacks.
        changes: marked departures from the published protocols; by default none.
        data: the images, by default the run's own.
        work: folder, seed, device, progress.
    """

    source: SourceFlags
    measures: MeasureFlags
    changes: Changes
    data: DataFlags
    work: WorkFlags

    def __post_init__(self) -> None:
        _check_counts(self.changes, "epochs", "batch_size", "neighbors")
        several = len(self.source.encoders)
        if several > 1 and self.measures.every is not None:
            raise ValueError("--every looks along one run: give its folder alone")
        if several > MOST_CURVES and self.measures.landscape:
            raise ValueError(f"--landscape overlays at most {MOST_CURVES} encoders, not {several}")
        protocols = self.measures.protocols or ()
        own = self.source.model is not None or self.source.format is not None
        if "classifier" in protocols and (not own or len(protocols) > 1):
            raise ValueError(
                "--protocols classifier takes the outputs of a --model as logits, or the classifier of another "
                "project's checkpoint (--format), and goes with no other"
            )


def evaluation_parser(about: str | None) -> CommandParser[EvaluationFlags]:
    """Make the parser of `evaluate_encoder.py`."""
    return CommandParser("evaluate", EvaluationFlags, about, "[ENCODER ... | --model PATH] [--FLAG VALUE ...]")


def _check_counts(record: Any, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}: expected 1 or more, got {value}")
