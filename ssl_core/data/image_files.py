"""Image files, divided and labeled, and their decoding into sets."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from astra_gym.ssl_core.data.decoding import decode, decode_to_disk
from astra_gym.ssl_core.data.image_set import ImageSet, Split, fixed_generator, limited
from astra_gym.ssl_core.utils.memory import available


class DividedFiles(NamedTuple):
    """The image files of a folder, each part in the order in which a limit takes them.

    Args:
        root: the folder.
        train_paths, test_paths: the files.
        train_labels, test_labels: (n,) int64, positions in `classes`; None without labels.
        classes: names of the classes; empty without labels.
        notes: how they were divided and what was left out, a few words each.
    """

    root: Path
    train_paths: Sequence[Path]
    train_labels: Tensor | None
    test_paths: Sequence[Path]
    test_labels: Tensor | None
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def shuffled(
    paths: Sequence[Path], labels: Tensor | None, rows: Tensor | None = None
) -> tuple[list[Path], Tensor | None]:
    """Return paths and labels (n,) in a fixed random order, or in the order of `rows`."""
    if rows is None:
        rows = torch.randperm(len(paths), generator=fixed_generator())
    return [paths[row] for row in rows.tolist()], None if labels is None else labels[rows]


def decode_files(
    files: DividedFiles,
    *,
    size: int,
    limit: int | None,
    test_limit: int | None,
    cache_dir: str | None,
    on_progress: Callable[[int, int], None] | None,
) -> Split:
    """Decode the first images of each part.

    Args:
        files: the files.
        size: height and width, in pixels.
        limit, test_limit: numbers of images; None: all.
        cache_dir: folder for the decoded images (`decode_to_disk`); None to decode into memory.
        on_progress: called with the numbers of images decoded and to be decoded, for each of the two sets.

    Raises:
        ValueError: if a limit exceeds the number of images, a file cannot be decoded, or the images would take more
            than half of the available memory; if the cache folder cannot be used.
    """
    root = files.root
    train = limited(torch.arange(len(files.train_paths)), limit, f"{root} train")
    test = limited(torch.arange(len(files.test_paths)), test_limit, f"{root} test")
    if cache_dir is None:
        _check_memory(root, len(train) + len(test), size)

    def decoded(paths: Sequence[Path], labels: Tensor | None, n: int, what: str) -> ImageSet:
        file, paths = None, paths[:n]
        if cache_dir is None:
            images = decode(paths, size, on_progress)
        else:
            images, file = decode_to_disk(paths, size, cache_dir, root=root, on_progress=on_progress)
        kept = None if labels is None else labels[:n]
        return ImageSet(images, kept, files.classes, f"{root} {what}", file, tuple(paths))

    return Split(
        decoded(files.train_paths, files.train_labels, len(train), "train"),
        decoded(files.test_paths, files.test_labels, len(test), "test"),
        files.notes,
    )


def _check_memory(root: Path, n: int, size: int) -> None:
    """Raise a ValueError if the decoded images would take more than half of the available memory."""
    needed, free = n * 3 * size**2, available("cpu")
    if free is not None and needed > free / 2:
        raise ValueError(
            f"{root}: decoded to {size} x {size} pixels, {n} images take {needed / 1e9:.1f} GB, more than half of the "
            f"{free / 1e9:.1f} GB of memory that are available: keep them on disk by --cache_dir DIR, or lower --limit "
            "or --image_size"
        )
