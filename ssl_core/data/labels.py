"""A share of the labels, for semi-supervised evaluations; a validation part; labels of sets that must have them."""

import torch
from torch import Tensor

from astra_gym.ssl_core.data.image_set import ImageSet, Split, class_quotas, first_of_each
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.rng import Streams

PUBLISHED_FRACTIONS = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The shares of CIFAR-10's labels in ASTrA's semi-supervised table."""

SHARE, MOST = 0.2, 512
"""The share of the training images in the validation part, and the largest number of them."""


def required_labels(data: ImageSet, purpose: str) -> Tensor:
    """Return the labels (N,) of `data`.

    Args:
        data: the set.
        purpose: use of the labels, for the message, such as "a linear probe".

    Raises:
        ValueError: if there are no labels.
    """
    if data.labels is None:
        raise ValueError(
            f"data set {shown(data.name)} has no labels, and {purpose} needs them: put the images into one folder "
            "for each class, or take a data set with labels"
        )
    return data.labels


def labeled_fraction(data: ImageSet, fraction: float, seed: int) -> ImageSet:
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
    check_number("the label fraction", fraction, 0, 1, "a share in (0, 1], such as 0.1 for 10 %", above=True)
    labels = required_labels(data, "a share of them")
    if fraction == 1:
        return data
    order = torch.randperm(len(data), generator=Streams(seed)["labels/fraction"])
    quotas = [max(1, round(fraction * count)) for count in torch.bincount(labels).tolist()]
    rows = first_of_each(labels, order, quotas).sort().values
    name = f"{data.name}, {100 * fraction:g} % of the labels"
    return ImageSet(data.images[rows], labels[rows], data.classes, name)


def balanced_part(data: ImageSet, n: int, seed: int) -> ImageSet:
    """Return exactly `n` images of a labeled set, in its order, with each class's share by largest remainder; all, if
    it has no more.

    Raises:
        ValueError: if `n` is below 1, or `data` lacks labels.
    """
    labels = required_labels(data, "a part of each class")
    check_number("n", n, 1, expected="1 image or more", whole=True)
    if n >= len(data):
        return data
    order = torch.randperm(len(data), generator=Streams(seed)["labels/fraction"])
    quotas = class_quotas(torch.bincount(labels), n).tolist()
    rows = first_of_each(labels, order, quotas).sort().values
    return data.rows(rows, f"{n} images")


def divided(train: ImageSet) -> Split:
    """Divide labeled training images into those that are trained on and a validation part, which is the `test` of the
    returned split. The division does not depend on a run's seed.

    Raises:
        ValueError: if there are no labels, or fewer than 10 images.
    """
    required_labels(train, "a validation part")
    if len(train) < 10:
        raise ValueError(f"{train.name} has {len(train)} images: a validation part needs 10 or more")
    order = torch.randperm(len(train), generator=Streams(0)["tuning/rows"])
    count = measured_images(len(train))
    return Split(train.rows(order[count:], "trained on"), train.rows(order[:count], "validation"))


def measured_images(images: int) -> int:
    """Return how many of so many training images are in the validation part."""
    return min(round(SHARE * images), MOST)
