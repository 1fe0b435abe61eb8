"""Further parts of a classifier's evaluation: its accuracy on training images, and its loss along its weights."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import balanced_part, required_labels
from astra_gym.ssl_core.evaluation.attack_suite import Attack, evaluate
from astra_gym.ssl_core.evaluation.landscape import LossCurves, downstream_landscape
from astra_gym.ssl_core.evaluation.results import TRAIN, Origin, Row
from astra_gym.ssl_core.evaluation.robustness import device_of
from astra_gym.ssl_core.evaluation.sanity import STAGES
from astra_gym.ssl_core.transforms.views import as_float

LANDSCAPE_IMAGES = 256
"""Number of test images in the loss along the weights, which is computed 75 times, 21 times under attack."""
UNPUBLISHED = "the settings of the published figures of the downstream loss were not at hand"
LEFT_OUT = {
    "train": "no accuracy on training images, since each is its own nearest neighbor",
    "landscape": "no downstream loss, since nearest neighbors have no weights of their own",
}
"""Why a part is left out for the protocol `knn`."""
Update = Callable[[int, int], None]


def training_rows(
    classifier: nn.Module,
    train: ImageSet,
    images: int,
    attacks: Sequence[Attack],
    *,
    origin: Origin,
    batch_size: int,
    state_dir: Path,
    progress: Update,
) -> list[Row]:
    """Measure `train_SA` and `train_RA` on training images, under the attacks that the test images see.

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes), in eval mode.
        train: the images that the classifier was trained on.
        images: number of images that are drawn from them, the same share of each class; all, if there are fewer.
        attacks, origin, batch_size, state_dir, progress: as for `astra_gym.ssl_core.evaluation.attack_suite.evaluate`.
    """
    chosen = balanced_part(train, images, origin.seed)
    found = evaluate(
        classifier,
        chosen,
        attacks,
        origin=origin,
        batch_size=batch_size,
        state_dir=state_dir,
        progress=progress,
    )
    return [replace(row, metric=f"{TRAIN}{row.metric}") for row in found.rows if row.attack not in STAGES]


def landscape_rows(classifier: nn.Module, test: ImageSet, *, origin: Origin, progress: Update) -> list[Row]:
    """Measure the classifier's cross entropy along a direction in its weights, clean and attacked.

    Args:
        classifier: as for `training_rows`; it is copied.
        test: labeled test images; the first `LANDSCAPE_IMAGES` are used.
        origin: origin of the rows.
        progress: called with the number of losses and their total.
    """
    few = test.take(min(LANDSCAPE_IMAGES, len(test)))
    device = device_of(classifier)
    images, labels = as_float(few.images.to(device)), required_labels(few, "the downstream loss").to(device)
    curves = downstream_landscape(classifier, images, labels, seed=origin.seed, progress=progress)
    return [
        origin.figure("cross_entropy", loss, len(few), condition=f"moved {radius:g}{suffix}", deviations=(UNPUBLISHED,))
        for suffix, losses in (("", curves.clean), (", attacked", curves.attacked))
        for radius, loss in zip(curves.radii, losses, strict=True)
    ]


def curves_of(rows: Sequence[Row]) -> dict[str, dict[str, LossCurves]]:
    """Return the curves in the rows of an evaluation, by protocol and checkpoint."""
    points: dict[tuple[str, str], dict[str, dict[float, float]]] = {}
    for row in rows:
        if found := re.fullmatch(r"moved (\S+?)(, attacked)?", row.condition):
            name = row.protocol if row.label_fraction == 1 else f"{row.protocol} {100 * row.label_fraction:g} %"
            kinds = points.setdefault((name, row.checkpoint), {"clean": {}, "attacked": {}})
            kinds["attacked" if found[2] else "clean"][float(found[1])] = row.value
    made: dict[str, dict[str, LossCurves]] = {}
    for (protocol, checkpoint), kinds in points.items():
        radii = tuple(kinds["clean"])
        curves = (tuple(kinds[kind][radius] for radius in radii) for kind in ("clean", "attacked"))
        made.setdefault(protocol, {})[checkpoint] = LossCurves(radii, *curves)
    return made
