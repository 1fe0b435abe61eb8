"""Any folder of images as a data set: its files, their labels, and the held-out part."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from astra_gym.ssl_core.data.folder_layout import (
    ImageTree,
    check_classes,
    check_inner,
    check_listed,
    check_whole,
    counted,
    find_split,
    folders_in,
    named,
    scan,
)
from astra_gym.ssl_core.data.image_files import DividedFiles, decode_files, shuffled
from astra_gym.ssl_core.data.image_set import Split, stratified
from astra_gym.ssl_core.data.imagenet import ANNOTATIONS
from astra_gym.ssl_core.utils.files import expanded


def load_folder(
    data_dir: str | None,
    *,
    size: int,
    limit: int | None = None,
    test_limit: int | None = None,
    cache_dir: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    only: tuple[str, ...] = (),
) -> Split:
    """Load the images below `data_dir`, as under "folder" in `astra_gym.ssl_core.data.datasets.load_dataset`.

    Args:
        data_dir: the folder; None is refused.
        size: height and width, in pixels.
        limit: number of training images, the first in a fixed random order; the others are not read.
        test_limit: the same for the test images.
        cache_dir: folder for the decoded images (`decode_to_disk`); None to decode into memory.
        on_progress: called with the numbers of images decoded and to be decoded, for each of the two sets.
        only: names of the class folders that are read; empty: all.

    Raises:
        ValueError: if the folder is missing, cannot be read or divided, is ambiguous
            (`astra_gym.ssl_core.data.folder_layout.find_split`), has a class without images or a file that cannot be
            decoded; if a limit exceeds the number of images; if the images would take more than half of the available
            memory; if the cache folder cannot be used.
    """
    if data_dir is None:
        raise ValueError("the data set 'folder' needs to know which: give --data_dir DIR, a folder of images")
    root = expanded(data_dir)
    try:
        is_folder = root.is_dir()
    except OSError as error:
        raise ValueError(f"{root} cannot be read ({error.strerror}): make it readable, or move it") from error
    if not is_folder:
        raise ValueError(f"{root} is not a folder: give --data_dir an existing folder of images")
    if (root / "val" / ANNOTATIONS).is_file() and (root / "val" / "images").is_dir():
        raise ValueError(f"{root} has the layout of Tiny-ImageNet's archive: take the data set tiny-imagenet")
    halves = find_split(root)
    if halves is not None:
        trees = [scan(root / name, only) for name in halves]
        for tree in trees:
            check_inner(tree)
            check_classes(tree)
            check_listed(tree, only)
        train_labels, classes = _folder_labels(trees[0].paths, trees[0].root)
        test_labels = _test_labels(trees[1].paths, trees[1].root, classes)
        parts = shuffled(trees[0].paths, train_labels), shuffled(trees[1].paths, test_labels)
    else:
        trees = [scan(root, only)]
        check_whole(trees[0])
        check_classes(trees[0])
        check_listed(trees[0], only)
        paths = trees[0].paths
        if len(paths) < 2:
            raise ValueError(f"{root} holds a single image: at least two are needed, one to train on and one held out")
        labels, classes = _folder_labels(paths, root)
        strata = torch.zeros(len(paths), dtype=torch.int64) if labels is None else labels
        train, test = stratified(strata, max(1, round(0.2 * len(paths))))
        if not len(test):
            raise ValueError(f"{root} has one image per class, so none can be held out: add images, or a test folder")
        parts = shuffled(paths, labels, train), shuffled(paths, labels, test)
    files = DividedFiles(root, *parts[0], *parts[1], classes, _notes(root, halves, trees, classes))
    return decode_files(
        files, size=size, limit=limit, test_limit=test_limit, cache_dir=cache_dir, on_progress=on_progress
    )


def _notes(
    root: Path, halves: tuple[str, str] | None, trees: Sequence[ImageTree], classes: Sequence[str]
) -> tuple[str, ...]:
    """Return notes on how the folder was divided, and what was left out."""
    notes = []
    if halves is None:
        notes.append("a fifth is held out")
    else:
        notes.append(f"divided by {halves[0]}/ and {halves[1]}/")
        if unread := [name for name in folders_in(root) if name not in halves]:
            notes.append(f"not read: {named(unread)}")
    if not classes:
        notes.append(f"no labels, since {_why_unlabeled(trees[0])}")
    skipped = Counter[str]()
    for tree in trees:
        skipped.update(tree.skipped)
    if skipped:
        total = sum(skipped.values())
        notes.append(f"skipped {total:,} file{'s' if total > 1 else ''} ({counted(skipped)})")
    return tuple(notes)


def _why_unlabeled(tree: ImageTree) -> str:
    tops = tree.below[()]
    if not tops:
        return "there are no class folders"
    if tree.root not in tree.folders:
        return f"all images lie in one folder ({named(tops)})"
    outside = [path for path in tree.paths if path.parent == tree.root]
    where = "image lies" if len(outside) == 1 else "images lie"
    return f"{len(outside):,} {where} in no class folder ({named((path.name for path in outside), '')})"


def _class_name(path: Path, root: Path) -> str | None:
    return path.relative_to(root).parts[0] if path.parent != root else None


def _folder_labels(paths: Sequence[Path], root: Path) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return labels and class names: none for a single class, or with an image outside the class folders."""
    names = [_class_name(path, root) for path in paths]
    classes = tuple(sorted({name for name in names if name is not None}))
    if None in names or len(classes) < 2:
        return None, ()
    return _positions(names, classes), classes


def _positions(names: Sequence[str | None], classes: Sequence[str]) -> Tensor:
    positions = {name: position for position, name in enumerate(classes)}
    return torch.tensor([positions[name] for name in names if name is not None])


def _test_labels(paths: Sequence[Path], root: Path, classes: tuple[str, ...]) -> Tensor | None:
    if not classes:
        return None
    names, known = [_class_name(path, root) for path in paths], set(classes)
    for name, path in zip(names, paths, strict=True):
        if name not in known:
            what = "in no class folder" if name is None else f"of the class {name!r}"
            raise ValueError(
                f"{path} is {what}, but the classes of the training images are {named(classes, '')}: move it away"
            )
    return _positions(names, classes)
