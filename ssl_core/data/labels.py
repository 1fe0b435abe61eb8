"""A share of the labels, for semi-supervised evaluations, and the labels of a set that must have them."""

import torch
from torch import Tensor

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.rng import Streams

PUBLISHED_FRACTIONS = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The shares of CIFAR-10's labels in ASTrA's semi-supervised table."""


def required_labels(data: ImageSet, purpose: str) -> Tensor:
    """Return the labels (N,) of `data`, checked.

    Args:
        data: the set.
        purpose: use of the labels, for the message, such as "a linear probe".

    Raises:
        ValueError: if there are no labels, or a label is no class of the set.
    """
    if data.labels is None:
        raise ValueError(
            f"data set {shown(data.name)} has no labels, and {purpose} needs them: put the images into one folder "
            "for each class, or leave the evaluation out"
        )
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= len(data.classes):
        raise ValueError(
            f"data set {shown(data.name)} has labels in {low}..{high}: expected 0..{len(data.classes) - 1}"
        )
    return data.labels


def labelled_fraction(data: ImageSet, fraction: float, seed: int) -> ImageSet:
    """Return the share of a labeled set for the training of a semi-supervised evaluation.

    Balanced: each class gives `round(fraction * its number of images)`, and at least one. Nested: for one seed, a
    smaller fraction gives a subset of a larger fraction's images.

    Args:
        data: labeled images.
        fraction: share in (0, 1]; `PUBLISHED_FRACTIONS` are the published ones.
        seed: seed of the choice.

    Returns:
        The chosen images in the order of `data`, in memory; for fraction 1, `data` itself.

    Raises:
        ValueError: if the fraction is out of its range, or `data` lacks labels.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the label fraction is {shown(fraction)}: expected a share in (0, 1], such as 0.1 for 10 %")
    labels = required_labels(data, "a share of them")
    if fraction == 1:
        return data
    order = torch.randperm(len(data), generator=Streams(seed)["labels/fraction"])
    chosen = []
    for label in labels.unique():
        members = order[labels[order] == label]
        chosen.append(members[: max(1, round(fraction * len(members)))])
    rows = torch.cat(chosen).sort().values
    name = f"{data.name}, {100 * fraction:g} % of the labels"
    return ImageSet(data.images[rows], labels[rows], data.classes, name)
