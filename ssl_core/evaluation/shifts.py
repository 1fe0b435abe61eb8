"""Accuracy under natural shifts of the images: common corruptions (CA) and perspective distortion (PA)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.data.official_shifts import Change, ShiftedImages
from astra_gym.ssl_core.distributed.helping import divided
from astra_gym.ssl_core.evaluation.corruptions import FAMILIES, corrupt, departures
from astra_gym.ssl_core.evaluation.results import Origin, Row
from astra_gym.ssl_core.evaluation.robustness import clean_accuracy, device_of
from astra_gym.ssl_core.evaluation.severities import SEVERITIES
from astra_gym.ssl_core.models.encoder import held
from astra_gym.ssl_core.transforms.moebius import DIRECTIONS, MAGNITUDE_DEVIATION, distort, draw_magnitudes
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.clock import Clock
from astra_gym.ssl_core.utils.device import ieee_fp32
from astra_gym.ssl_core.utils.rng import Streams

RESAMPLES = 2000
BACKGROUNDS: Mapping[str, bool] = {"black": False, "padded": True}
OFFICIAL_SUBSETS: Mapping[str, str] = {
    f"{name}/{background}": f"PD-{name[0].upper()}{end}"
    for background, end in (("black", ""), ("padded", "I"))
    for name in DIRECTIONS
}
"""Folders of ImageNet-PD by condition: PD-L, PD-LI (padded) and so on, as in its description; not seen here."""


@ieee_fp32()
def evaluate_corruptions(
    classifier: nn.Module,
    test: ImageSet,
    *,
    origin: Origin,
    severities: Sequence[int] = SEVERITIES,
    batch_size: int = 256,
    photographs: Sequence[Tensor] | None = None,
    official: ShiftedImages | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Measure CA under each of the 15 corruptions of ImageNet-C at each severity, and its means.

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes), in eval mode.
        test: labeled images.
        origin: origin of the rows. Its seed gives each corruption and severity a separate stream, so that a value
            depends neither on the other severities nor on `batch_size`.
        severities: severities from 1 to 5, all different; means over fewer than five are not standard.
        batch_size: images corrupted and classified together.
        photographs: photographs of frost from `corruptions.load_photographs`; None: a random texture, which is not
            standard.
        official: official images under each corruption and severity, in place of computed ones; they have their own
            labels and number.
        progress: called with the images done so far, over all corruptions and severities, and their total.

    Returns:
        A row for each corruption and severity (condition `fog/3`), then the means over the severities of each
        corruption (`fog`), over each family (`weather`) and over all (`corruptions`). The means have intervals from
        `bootstrap_intervals` and no seconds.

    Raises:
        ValueError: if `test` has no labels, or an argument is not as above.
        RuntimeError: if a logit is not finite.
    """
    severities = tuple(severities)
    if not severities or len(set(severities)) != len(severities) or not set(severities) <= set(SEVERITIES):
        raise ValueError(f"the severities are {list(severities)}: expected some of {list(SEVERITIES)}, each once")
    streams = Streams(origin.seed)
    height, width = test.images.shape[2:]
    conditions: dict[str, Change] = {}
    deviations: dict[str, tuple[str, ...]] = {}
    groups = {}
    for name in (name for names in FAMILIES.values() for name in names):
        groups[name] = [f"{name}/{severity}" for severity in severities]
        for severity, condition in zip(severities, groups[name], strict=True):
            deviations[condition] = departures(name, height, width, photographs=photographs is not None)
            stream = streams[f"corruptions/{condition}"]
            conditions[condition] = partial(_corrupted, classifier, test.images, name, severity, stream, photographs)
    if official is not None:
        conditions = dict(official.conditions)
        deviations = dict.fromkeys(conditions, official.deviations)
    groups |= {family: [one for name in names for one in groups[name]] for family, names in FAMILIES.items()}
    groups["corruptions"] = list(conditions)
    subset: tuple[str, ...] = ()
    if set(severities) != set(SEVERITIES):
        subset = (f"mean over severities {', '.join(map(str, sorted(severities)))} only",)
    labels = _labels(test, official)
    return _evaluate(classifier, labels, "CA", conditions, deviations, groups, subset, origin, batch_size, progress)


@ieee_fp32()
def evaluate_perspective(
    classifier: nn.Module,
    test: ImageSet,
    *,
    origin: Origin,
    batch_size: int = 256,
    official: ShiftedImages | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Measure PA on the eight views of ImageNet-PD: four directions, on a black and on a reflected background.

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes), in eval mode.
        test: labeled images.
        origin: origin of the rows. Its seed gives each direction a separate stream of distortion strengths, the same
            for both backgrounds.
        batch_size: images distorted and classified together.
        official: the images of ImageNet-PD by view, in place of computed ones.
        progress: called with the images done so far, over all eight views, and their total.

    Returns:
        A row for each view (condition `left/black`), then the means over the directions (`black`, `padded`) and over
        all (`perspective`), as in `evaluate_corruptions`. The images are rounded to 8 bits, as stored images are.

    Raises:
        ValueError: if `test` has no labels, or an argument is not as above.
        RuntimeError: if a logit is not finite.
    """
    streams = Streams(origin.seed)
    magnitudes = {name: draw_magnitudes(len(test), streams[f"perspective/{name}"]) for name in DIRECTIONS}
    conditions: dict[str, Change] = {}
    for background, padded in BACKGROUNDS.items():
        for name in DIRECTIONS:
            conditions[f"{name}/{background}"] = partial(
                _distorted, classifier, test.images, name, padded, magnitudes[name]
            )
    groups = {background: [f"{name}/{background}" for name in DIRECTIONS] for background in BACKGROUNDS}
    groups["perspective"] = list(conditions)
    deviations: dict[str, tuple[str, ...]] = dict.fromkeys(conditions, (MAGNITUDE_DEVIATION,))
    if official is not None:
        conditions = dict(official.conditions)
        deviations = dict.fromkeys(conditions, official.deviations)
    labels = _labels(test, official)
    return _evaluate(classifier, labels, "PA", conditions, deviations, groups, (), origin, batch_size, progress)


def _corrupted(
    classifier: nn.Module,
    images: Tensor,
    name: str,
    severity: int,
    stream: torch.Generator,
    photographs: Sequence[Tensor] | None,
    rows: Tensor,
) -> Tensor:
    return corrupt(images[rows].to(device_of(classifier)), name, severity, stream, photographs=photographs)


def _distorted(
    classifier: nn.Module, images: Tensor, name: str, padded: bool, magnitudes: Tensor, rows: Tensor
) -> Tensor:
    moved = distort(as_float(images[rows].to(device_of(classifier))), name, padded, magnitudes[rows])
    return moved.mul_(255).round_().to(torch.uint8)


class _Conditions:
    """Which of n images are right under a condition, bool (n,), and the seconds that this took.

    Args:
        changes: the images of each condition.
        labels: (n,), on the CPU.
        batch_size: images changed and classified together.
        told: called with the number of images after each batch; not sent to other ranks.
    """

    def __init__(
        self,
        classifier: nn.Module,
        changes: Mapping[str, Change],
        labels: Tensor,
        batch_size: int,
        told: Callable[[int], None],
    ) -> None:
        self.classifier, self.changes, self.labels = classifier, changes, labels
        self.batch_size, self.told = batch_size, told

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"told": _tell_nobody}

    def __call__(self, condition: str) -> tuple[Tensor, float]:
        clock, flags = Clock(), []
        with clock.running(), held(self.classifier):
            for batch in torch.arange(len(self.labels)).split(self.batch_size):
                changed = self.changes[condition](batch)
                flags.append(clean_accuracy(self.classifier, changed, self.labels[batch], self.batch_size))
                self.told(len(batch))
        return torch.cat(flags), clock.seconds


def _tell_nobody(images: int) -> None:
    pass


def bootstrap_intervals(
    values: Tensor, generator: torch.Generator, resamples: int = RESAMPLES
) -> list[tuple[float, float]]:
    """95 % percentile bootstrap intervals (Efron 1979) of means over images, from the same resamples for all.

    Images are resampled, since the results of one image under several conditions are not independent.

    Args:
        values: float (k, n), k values for each of n images.
        generator: random generator on the CPU.
        resamples: number of draws of n images with replacement.
    """
    n = values.shape[1]
    values = values.double()
    means = torch.empty(resamples, len(values), dtype=torch.float64)
    for index in range(resamples):
        drawn = torch.randint(n, (n,), generator=generator)
        means[index] = values @ torch.bincount(drawn, minlength=n).double() / n
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).tolist()
    return list(zip(low, high, strict=True))


def _labels(test: ImageSet, official: ShiftedImages | None) -> Tensor:
    own = required_labels(test, "accuracy")
    return (own if official is None else official.labels).cpu()


def _evaluate(
    classifier: nn.Module,
    labels: Tensor,
    metric: str,
    conditions: Mapping[str, Change],
    deviations: Mapping[str, tuple[str, ...]],
    groups: Mapping[str, Sequence[str]],
    of_means: tuple[str, ...],
    origin: Origin,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> list[Row]:
    """Make the rows of all conditions, functions from positions to changed uint8 images, and of the groups' means."""
    n, rows = len(labels), []
    right: dict[str, Tensor] = {}
    done = 0

    def told(images: int) -> None:
        nonlocal done
        # of a condition that another rank measures only the end is known
        before, done = done, max(done + images, n * len(right))
        if progress is not None and done > before:
            progress(done, n * len(conditions))

    with held(classifier):
        outcomes = divided(_Conditions(classifier, conditions, labels, batch_size, told), conditions)
        for condition, (flags, seconds) in zip(conditions, outcomes, strict=True):
            right[condition] = flags
            told(0)
            what: dict[str, Any] = {"condition": condition, "deviations": deviations[condition], "seconds": seconds}
            rows.append(origin.accuracy(metric, int(flags.sum()), n, **what))
    by_image = torch.stack([torch.stack([right[one] for one in group]).double().mean(0) for group in groups.values()])
    intervals = bootstrap_intervals(100 * by_image, Streams(origin.seed)[f"bootstrap/{metric}"])
    for (name, group), values, interval in zip(groups.items(), by_image, intervals, strict=True):
        reasons = dict.fromkeys(reason for one in group for reason in deviations[one])
        what = {"interval": interval, "interval_method": "bootstrap", "deviations": (*reasons, *of_means)}
        rows.append(origin.figure(metric, 100 * float(values.mean()), n, condition=name, **what))
    return rows
