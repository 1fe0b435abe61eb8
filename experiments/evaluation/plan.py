"""The content of an evaluation, and its shifts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.official_shifts import ShiftedImages, corrupted_images, distorted_images
from astra_gym.ssl_core.evaluation.attack_suite import Attack
from astra_gym.ssl_core.evaluation.corruptions import FAMILIES
from astra_gym.ssl_core.evaluation.results import PROTOCOLS, Origin, Row
from astra_gym.ssl_core.evaluation.shifts import OFFICIAL_SUBSETS, evaluate_corruptions, evaluate_perspective
from astra_gym.ssl_core.utils.hashing import tensor_digest

CORRUPTIONS, PERSPECTIVE = "corruptions", "perspective"
SHIFTS: Mapping[str, str] = {
    CORRUPTIONS: "the 15 common corruptions of ImageNet-C",
    PERSPECTIVE: "Moebius views in the eight directions of ImageNet-PD",
}


@dataclass(frozen=True)
class EvaluationPlan:
    """The content of an evaluation.

    Args:
        protocols: names of `astra_gym.ssl_core.evaluation.results.PROTOCOLS`.
        attacks: attacks on every classifier; its clean accuracy is measured in any case.
        labels: shares of the training labels, in (0, 1].
        shifts: names of `SHIFTS`.
        severities: severities of the corruptions, in 1..5.
        photographs: photographs of frost, from `astra_gym.ssl_core.evaluation.corruptions.load_photographs`; None for a
            texture like them.
        official: folders of official images, by shift; the images of other shifts are computed.
        seed: seed of everything random.
        batch_size: images that are attacked together.
        train_images: number of training images on which accuracy is measured too; None: none.
        landscape: whether the downstream loss is measured along a direction in the weights.
    """

    protocols: tuple[str, ...]
    attacks: tuple[Attack, ...]
    labels: tuple[float, ...] = (1.0,)
    shifts: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    photographs: tuple[Tensor, ...] | None = None
    official: Mapping[str, Path] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 256
    train_images: int | None = None
    landscape: bool = False


def shifted_images(plan: EvaluationPlan, shift: str, test: ImageSet) -> ShiftedImages | None:
    """Return the official images of a shift, None if the plan names no folder of them.

    Raises:
        ValueError: as `astra_gym.ssl_core.data.official_shifts.corrupted_images`.
    """
    folder = plan.official.get(shift)
    if folder is None:
        return None
    if shift == PERSPECTIVE:
        return distorted_images(folder, OFFICIAL_SUBSETS, test)
    names = [name for family in FAMILIES.values() for name in family]
    return corrupted_images(folder, names, plan.severities, test)


def shift_key(plan: EvaluationPlan, shift: str, images: ShiftedImages | None) -> dict[str, Any]:
    """Return what the result of a shift depends on beside the classifier and the test images."""
    key: dict[str, Any] = {} if images is None else {"official": images.identity}
    if shift == CORRUPTIONS:
        key["severities"] = list(plan.severities)
        key["photographs"] = plan.photographs and tensor_digest(*plan.photographs)
    return key


def shift_rows(
    plan: EvaluationPlan,
    shift: str,
    images: ShiftedImages | None,
    classifier: nn.Module,
    test: ImageSet,
    *,
    origin: Origin,
    progress: Callable[[int, int], None],
) -> list[Row]:
    """Measure accuracy under a shift of the plan, on official images if there are any."""
    if shift == PERSPECTIVE:
        return evaluate_perspective(classifier, test, origin=origin, official=images, progress=progress)
    return evaluate_corruptions(
        classifier,
        test,
        origin=origin,
        severities=plan.severities,
        photographs=plan.photographs,
        official=images,
        progress=progress,
    )


def protocols_known() -> list[str]:
    """Return the protocols that give a classifier."""
    return [name for name in PROTOCOLS if name != "features"]
