"""The encoder, data, plan and folder that an evaluation's flags ask for."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from astra_gym.experiments.config.commands import typed
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.config.trust import only_named
from astra_gym.experiments.console import Decoding
from astra_gym.experiments.evaluation import encoders
from astra_gym.experiments.evaluation.data_identity import FOLDER, folder_name, is_own_folder
from astra_gym.experiments.evaluation.encoders import Subject
from astra_gym.experiments.evaluation.flags import ATTACKS, LONG_ATTACKS, PROTOCOLS, EvaluationFlags
from astra_gym.experiments.evaluation.plan import CORRUPTIONS, PERSPECTIVE, SHIFTS, EvaluationPlan, protocols_known
from astra_gym.ssl_core.data.datasets import DATASETS, find_dataset, load_dataset
from astra_gym.ssl_core.data.image_set import ImageSet, Split
from astra_gym.ssl_core.data.settings import DataSection
from astra_gym.ssl_core.evaluation.attack_suite import Attack
from astra_gym.ssl_core.evaluation.corruptions import load_photographs
from astra_gym.ssl_core.models.checkpoint import CheckpointError
from astra_gym.ssl_core.models.foreign import FORMATS
from astra_gym.ssl_core.utils.messages import plural
from astra_gym.ssl_core.utils.paths import check_folder

EPSILONS = (4 / 255, 8 / 255, 12 / 255, 16 / 255)
STANDARD_EPSILON = {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0}
"""AutoAttack's radii in RobustBench's tables (L1: the radius of AutoAttack's authors)."""


@dataclass(frozen=True)
class LabeledData:
    """A data set for an evaluation.

    Args:
        name: name of the data set.
        split: labeled training and test images.
        deviations: departures of the data from the published protocol, in words.
        seen: the test images at the size of the encoder's training images.
        place: suffix of the evaluation's folder; empty if the data are the run's own.
    """

    name: str
    split: Split
    deviations: tuple[str, ...]
    seen: ImageSet
    place: str = ""


def subject_of(given: EvaluationFlags, device: torch.device) -> Subject:
    """Load the encoder that the command line names.

    Raises:
        ValueError, CheckpointError: if there is none, or it cannot be read.
    """
    source = given.source
    if source.model is not None:
        size = given.data.image_size or (find_dataset(given.data.dataset).image_size if given.data.dataset else None)
        if size is None:
            raise ValueError("--model: say by --image_size N which images the model is going to see")
        return encoders.module(source.model, size, device, "classifier" in (given.measures.protocols or ()))
    if source.encoder is None or not source.encoder.exists():
        raise ValueError(f"{source.encoder} does not exist: expected a run folder, or a checkpoint")
    if source.format is not None:
        return encoders.foreign(
            source.encoder,
            device,
            format=source.format,
            stem=source.stem,
            route=source.route,
            mean=source.mean,
            std=source.std,
            classifier="classifier" in (given.measures.protocols or ()),
        )
    try:
        return encoders.own(source.encoder, device)
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise ValueError(f"{error}; a checkpoint of another project needs --format {'/'.join(FORMATS)}") from error


def plan_of(given: EvaluationFlags) -> EvaluationPlan:
    """Plan what is evaluated.

    Raises:
        ValueError: if an attack's radius is out of its range, or photographs of frost are missing.
    """
    asked = given.measures
    along = asked.every is not None
    protocols: tuple[str, ...] = PROTOCOLS[:1] if along else PROTOCOLS
    names: tuple[str, ...] = ATTACKS[:1] if along else ATTACKS
    shifts = asked.shifts
    if asked.everything:
        protocols = tuple(name for name in protocols_known() if name != "classifier")
        names, shifts = ("fgsm", *ATTACKS), tuple(SHIFTS)
    names = asked.attacks or names
    attacks = []
    for name in names if names != ("none",) else ():
        if name in LONG_ATTACKS:
            radii = asked.autoattack_epsilons or (STANDARD_EPSILON[asked.norm],)
            attacks += [Attack(name, epsilon, asked.norm) for epsilon in radii]
        else:
            radii = asked.epsilons or ((STANDARD_EPSILON["Linf"],) if along else EPSILONS)
            attacks += [Attack(name, epsilon, restarts=asked.restarts if name == "pgd20" else 1) for epsilon in radii]
    official = {CORRUPTIONS: asked.corruptions_dir, PERSPECTIVE: asked.perspective_dir}
    return EvaluationPlan(
        protocols=asked.protocols or protocols,
        attacks=tuple(attacks),
        labels=asked.labels,
        shifts=shifts,
        severities=asked.severities,
        photographs=None if asked.frost_photographs is None else load_photographs(asked.frost_photographs),
        official={shift: folder for shift, folder in official.items() if folder is not None},
        seed=given.work.seed,
        batch_size=given.work.attack_batch_size,
        train_images=asked.train_images,
        landscape=asked.landscape,
    )


def data_of(given: EvaluationFlags, subject: Subject, decoding: Decoding) -> LabeledData:
    """Load the labeled images that the command line names; by default those of the encoder's run.

    A folder is the run's if it holds the images that the run was trained on, whatever its path. Any other folder is a
    different data set with its own name, even if it has the run's path.

    Raises:
        ValueError: if no data set is named, or it cannot be read.
    """
    settings = subject.settings
    name = given.data.dataset or (settings.data.dataset if settings else None)
    if name is None:
        raise ValueError(
            f"say by --dataset on which data ({', '.join(DATASETS)}): this encoder comes from no run of ours"
        )
    with only_named((given.data.dataset,), typed("evaluate", str(given.source.encoder), "--dataset", name)):
        spec = find_dataset(name)
        if spec.evaluated:
            name, spec = spec.evaluated, find_dataset(spec.evaluated)
    own = _own_data(settings, name)

    def chosen(flag: int | None, value: int | None) -> int | None:
        return value if flag is None else (flag or None)

    # a run's encoder sees any data set at the run's image size
    size = given.data.image_size or (settings.data.image_size if settings else None)
    data_dir = given.data.data_dir or (own.data_dir if own else None)
    classes = given.data.classes or (own.classes if own else None)

    def load(limits: DataSection | None, side: int | None) -> Split:
        return load_dataset(
            name,
            data_dir=data_dir,
            image_size=side,
            limit=chosen(given.data.limit, limits.limit if limits else None),
            test_limit=chosen(given.data.test_limit, limits.test_limit if limits else None),
            download=given.data.download,
            cache_dir=own.cache_dir if own else None,
            on_progress=decoding.update,
            classes=classes,
        )

    # test images are compared with a run's training images at the run's image size
    seen_size = settings.data.image_size if settings is not None and subject.trained is not None else size

    def pair(limits: DataSection | None) -> tuple[Split, Split]:
        split = load(limits, size)
        return split, split if seen_size == size else load(limits, seen_size)

    limits, mine = own, own is not None
    if name == FOLDER and own is not None:
        limited = (own.limit, own.test_limit) != (None, None) and given.data.data_dir is not None
        try:
            split, seen = pair(own)
            mine = is_own_folder(subject, seen.train, given.data.data_dir)
        except ValueError:
            if not limited:
                raise
            mine = False
        if limited and not mine:
            # the limits are for the run's own folder; another folder may hold fewer images
            limits = None
            split, seen = pair(None)
    else:
        split, seen = pair(own)
    deviations = []
    sizes = spec.sizes or (None, None)
    for limit, part, full, what in (
        (chosen(given.data.limit, limits.limit if limits else None), split.train, sizes[0], "training"),
        (chosen(given.data.test_limit, limits.test_limit if limits else None), split.test, sizes[1], "test"),
    ):
        if limit is not None and len(part) != full:
            deviations.append(f"{len(part):,} {what} {plural('image', len(part))} only")
    if classes is not None and spec.sizes is not None:
        deviations.append(f"{len(split.train.classes)} listed classes only")
    if spec.image_size is not None and size not in (None, spec.image_size):
        deviations.append(f"images resized to {size} pixels")
    if settings is not None and not mine:
        deviations.append(f"encoder pre-trained on {'another folder' if own else settings.data.dataset}")
    label, place = name, name.replace(":", "-") if settings is not None and not mine else ""
    if name == FOLDER and not mine and data_dir is not None:
        label, place = folder_name(data_dir)
    return LabeledData(label, split, tuple(deviations), seen.test, place)


def _own_data(settings: Settings | None, name: str) -> DataSection | None:
    """Return the settings of a run's data for a data set; None if the run was trained on another one.

    For a run on unlabeled images they are those of the labeled part, without the limit of training images.
    """
    if settings is None:
        return None
    if settings.data.dataset == name:
        return settings.data
    trained = DATASETS.get(settings.data.dataset)
    return replace(settings.data, dataset=name, limit=None) if trained and trained.evaluated == name else None


def default_folder(given: EvaluationFlags, subject: Subject, data: LabeledData) -> Path:
    """Return the evaluation's folder: in the encoder's run, or `evaluations/NAME`.

    Raises:
        ValueError: if the run has a link at that path.
    """
    place = f"-{data.place}" if data.place else ""
    if subject.settings is None:
        return Path("evaluations") / f"{subject.name}{place}"
    encoder = given.source.encoder or Path()
    if encoder.is_dir():
        path = encoder / f"evaluation{place}"
    else:
        path = encoder.parent.parent / f"evaluation-{subject.checkpoint}{place}"
    check_folder(path)
    return path
