"""Sets of images, uint8 in memory or in a mapped file, and their division into training and test sets.

The division and the order never depend on a run's seed: two runs with the same settings see the same data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_gym.ssl_core.data.decoding import map_images
from astra_gym.ssl_core.utils.messages import amount, shown

_SPLIT_SEED = 20250424


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, in memory or in a mapped file.

    Attributes:
        images: (N, 3, H, W) uint8; mapped images must not be written to.
        labels: (N,) int64, positions in `classes`; None without labels.
        classes: names of the classes; empty without labels.
        name: name for messages, e.g. "cifar10 test".
        file: the file that begins with the mapped images; None for images in memory.
        paths: the N files that the images were decoded from, for messages; empty if there are none.

    Raises:
        ValueError: if images or labels have another dtype or shape, or a label is no position in `classes`.
    """

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    name: str
    file: Path | None = None
    paths: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            got = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise ValueError(f"{self.name}: images are {got}, expected uint8 of shape (N, 3, H, W)")
        if self.labels is not None and (self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]):
            got = f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            raise ValueError(f"{self.name}: labels are {got}, expected int64 of shape ({len(self)},)")
        if self.labels is not None and len(self.labels):
            low, high = (int(end) for end in torch.aminmax(self.labels))
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"{self.name}: labels are in {low}..{high}, expected 0..{len(self.classes) - 1}, positions in its "
                    f"{amount(len(self.classes), 'class name')}"
                )

    def __len__(self) -> int:
        return len(self.images)

    def __getstate__(self) -> dict[str, Any]:
        # images in a file are mapped again on unpickling, since a copy of them would have to fit in memory
        return self.__dict__ | ({} if self.file is None else {"images": tuple(self.images.shape)})

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["file"] is not None:
            state = state | {"images": map_images(state["file"], state["images"])}
        self.__dict__.update(state)

    def take(self, n: int) -> "ImageSet":
        """Return the first n images; raise a ValueError unless 1 <= n <= len(self)."""
        images = limited(self.images, n, self.name)
        labels = None if self.labels is None else self.labels[:n]
        return ImageSet(images, labels, self.classes, self.name, self.file, self.paths[:n])

    def rows(self, rows: Tensor, what: str) -> "ImageSet":
        """Return a copy of some of the images, named after this set.

        Args:
            rows: (n,) int64, positions.
            what: description of the part, for messages.
        """
        labels = None if self.labels is None else self.labels[rows]
        paths = tuple(self.paths[row] for row in rows.tolist()) if self.paths else ()
        return ImageSet(self.images[rows], labels, self.classes, f"{self.name}, {what}", None, paths)


@dataclass(frozen=True, eq=False)
class Split:
    """A training set and a held-out test set.

    Attributes:
        train, test: the images.
        notes: notes of a few words on how they were found and what was left out; empty if nothing needs a note.
        probed: labeled training images for probes, if those of `train` have no labels; None: those of `train`.

    Raises:
        ValueError: if a part is empty, or labeled parts differ in their classes.
    """

    train: ImageSet
    test: ImageSet
    notes: tuple[str, ...] = ()
    probed: ImageSet | None = None

    def __post_init__(self) -> None:
        for name, part in (("train", self.train), ("test", self.test), ("probed", self.probe_train)):
            if not len(part):
                raise ValueError(f"the split's part {name} ({part.name}) has no images: expected 1 or more")
            if part.labels is not None and self.test.labels is not None and part.classes != self.test.classes:
                pairs = zip_longest(part.classes, self.test.classes)
                own, other = next((own, other) for own, other in pairs if own != other)
                raise ValueError(
                    f"the split's part {name} ({part.name}) has the class {shown(own)} where its test images have "
                    f"{shown(other)}: expected the same classes in the same order"
                )

    @property
    def probe_train(self) -> ImageSet:
        """Training images of a probe; without labels if the data set has none."""
        return self.train if self.probed is None else self.probed


def limited(rows: Tensor, limit: int | None, what: str) -> Tensor:
    """Return the first `limit` rows, or all if it is None; raise a ValueError unless 1 <= limit <= len(rows)."""
    if limit is not None and not 1 <= limit <= len(rows):
        raise ValueError(f"{what}: {limit} images were asked for, expected 1 to {len(rows)}, all there are")
    return rows[:limit]


def fixed_generator() -> torch.Generator:
    """Return a CPU generator for draws that must not depend on a run's seed."""
    return torch.Generator().manual_seed(_SPLIT_SEED)


def class_quotas(counts: Tensor, n: int, left: int = 0) -> Tensor:
    """Return how many images each class gives to a part of `n`, by largest remainder.

    Args:
        counts: (classes,) int64, images of each class.
        n: images of the part; it gets fewer if the classes have too few.
        left: images of a class that no quota is raised to take.
    """
    shares = counts * n / counts.sum()
    quotas = shares.long()
    by_remainder = (shares - quotas).argsort(descending=True, stable=True)
    spare = by_remainder[quotas[by_remainder] + left < counts[by_remainder]]
    quotas[spare[: n - int(quotas.sum())]] += 1
    return quotas


def stratified(labels: Tensor, n_test: int) -> tuple[Tensor, Tensor]:
    """Return training and test rows, each in a fixed random order, with class quotas by largest remainder.

    The training set keeps at least one image of every class.

    Args:
        labels: (N,) int64.
        n_test: number of images to hold out; fewer are if the classes have too few.
    """
    order = torch.randperm(len(labels), generator=fixed_generator())
    counts = torch.bincount(labels)
    quotas = class_quotas(counts, n_test, left=1)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[first_of_each(labels, order, quotas.tolist())] = True
    return order[~held_out[order]], order[held_out[order]]


def first_of_each(labels: Tensor, order: Tensor, quotas: Sequence[int]) -> Tensor:
    """Return the first rows of each class in an order, class after class.

    Args:
        labels: (N,) int64.
        order: (N,) int64, a permutation of the rows.
        quotas: number of rows of each class from 0 to the largest label; all of a class that has fewer.
    """
    # sorted once: a search for every class would take classes times images
    by_class = order[labels[order].argsort(stable=True)].split(torch.bincount(labels).tolist())
    return torch.cat([rows[:quota] for rows, quota in zip(by_class, quotas, strict=True)])
