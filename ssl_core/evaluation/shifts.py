"""Accuracy under natural shifts of the images: common corruptions (CA) and perspective distortion (PA)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.data.official_shifts import Change, ShiftedImages
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
    streams, device = Streams(origin.seed), device_of(classifier)
    height, width = test.images.shape[2:]
    conditions: dict[str, Change] = {}
    deviations: dict[str, tuple[str, ...]] = {}
    groups = {}
    for name in (name for names in FAMILIES.values() for name in names):
        groups[name] = [f"{name}/{severity}" for severity in severities]
        for severity, condition in zip(severities, groups[name], strict=True):
            deviations[condition] = departures(name, height, width, photographs=photographs is not None)

            def change(rows: Tensor, name: str = name, severity: int = severity) -> Tensor:
                stream = streams[f"corruptions/{name}/{severity}"]
                return corrupt(test.images[rows].to(device), name, severity, stream, photographs=photographs)

            conditions[condition] = change
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
    streams, device = Streams(origin.seed), device_of(classifier)
    magnitudes = {name: draw_magnitudes(len(test), streams[f"perspective/{name}"]) for name in DIRECTIONS}
    conditions: dict[str, Change] = {}
    for background, padded in BACKGROUNDS.items():
        for name in DIRECTIONS:

            def change(rows: Tensor, name: str = name, padded: bool = padded) -> Tensor:
                moved = distort(as_float(test.images[rows].to(device)), name, padded, magnitudes[name][rows])
                return moved.mul_(255).round_().to(torch.uint8)

            conditions[f"{name}/{background}"] = change
    groups = {background: [f"{name}/{background}" for name in DIRECTIONS] for background in BACKGROUNDS}
    groups["perspective"] = list(conditions)
    deviations: dict[str, tuple[str, ...]] = dict.fromkeys(conditions, (MAGNITUDE_DEVIATION,))
    if official is not None:
        conditions = dict(official.conditions)
        deviations = dict.fromkeys(conditions, official.deviations)
    labels = _labels(test, official)
    return _evaluate(classifier, labels, "PA", conditions, deviations, groups, (), origin, batch_size, progress)


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
    with held(classifier):
        for condition, change in conditions.items():
            clock, flags = Clock(), []
            for batch in torch.arange(n).split(batch_size):
                with clock.running():
                    flags.append(clean_accuracy(classifier, change(batch), labels[batch], batch_size))
                if progress is not None:
                    progress(n * len(right) + int(batch[-1]) + 1, n * len(conditions))
            right[condition] = torch.cat(flags)
            what: dict[str, Any] = {
                "condition": condition,
                "deviations": deviations[condition],
                "seconds": clock.seconds,
            }
            rows.append(origin.accuracy(metric, int(right[condition].sum()), n, **what))
    by_image = torch.stack([torch.stack([right[one] for one in group]).double().mean(0) for group in groups.values()])
    intervals = bootstrap_intervals(100 * by_image, Streams(origin.seed)[f"bootstrap/{metric}"])
    for (name, group), values, interval in zip(groups.items(), by_image, intervals, strict=True):
        reasons = dict.fromkeys(reason for one in group for reason in deviations[one])
        what = {"interval": interval, "interval_method": "bootstrap", "deviations": (*reasons, *of_means)}
        rows.append(origin.figure(metric, 100 * float(values.mean()), n, condition=name, **what))
    return rows
