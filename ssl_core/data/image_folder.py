"""Any folder of images as a data set: which files there are, what their labels are, which are held out."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from astra_gym.ssl_core.data.decoding import decode, decode_to_disk
from astra_gym.ssl_core.data.image_set import ImageSet, Split, fixed_generator, limited, stratified
from astra_gym.ssl_core.utils.files import expanded
from astra_gym.ssl_core.utils.memory import available

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def load_folder(
    data_dir: str | None,
    *,
    size: int,
    limit: int | None = None,
    test_limit: int | None = None,
    cache_dir: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Split:
    """The images below `data_dir`, as `astra_gym.ssl_core.data.datasets.load_dataset` describes them under "folder".

    Args:
        data_dir: the folder; None is refused.
        size: height and width, in pixels.
        limit: train on the first so many of a fixed random order; the others are not read.
        test_limit: the same for the test.
        cache_dir: where the decoded images are kept (`decode_to_disk`); None to decode them into memory.
        on_progress: called with the numbers of images decoded and to be decoded, for each of the two sets.

    Raises:
        ValueError: a folder that is missing, cannot be divided or holds what is no image, a limit above what there is,
            images that would take more than half of the available memory, a cache folder that cannot be used.
    """
    if data_dir is None:
        raise ValueError("the data set 'folder' needs to know which: give --data_dir DIR, a folder of images")
    root = expanded(data_dir)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder: give --data_dir an existing folder of images")
    train_dir = root / "train"
    test_dir = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if train_dir.is_dir() and test_dir is not None:
        train_paths, test_paths = _image_paths(train_dir), _image_paths(test_dir)
        train_labels, classes = _folder_labels(train_paths, train_dir)
        test_labels = _test_labels(test_paths, test_dir, classes)
        train, test = (torch.randperm(len(paths), generator=fixed_generator()) for paths in (train_paths, test_paths))
    else:
        train_paths = test_paths = _image_paths(root)
        if len(train_paths) < 2:
            raise ValueError(f"{root} holds a single image: at least two are needed, one to train on and one held out")
        if all(train_dir in path.parents for path in train_paths):
            raise ValueError(f"{root} has train/, but neither test/ nor val/: add one, or give --data_dir {train_dir}")
        train_labels, classes = _folder_labels(train_paths, root)
        test_labels = train_labels
        strata = torch.zeros(len(train_paths), dtype=torch.int64) if train_labels is None else train_labels
        train, test = stratified(strata, max(1, round(0.2 * len(train_paths))))
        if not len(test):
            raise ValueError(f"{root} has one image per class, so none can be held out: add images, or a test folder")
    train = limited(train, limit, f"{root} train")
    test = limited(test, test_limit, f"{root} test")
    if cache_dir is None:
        _check_memory(root, len(train) + len(test), size)

    def chosen(paths: Sequence[Path], labels: Tensor | None, rows: Tensor, what: str) -> ImageSet:
        file, paths = None, [paths[row] for row in rows.tolist()]
        if cache_dir is None:
            images = decode(paths, size, on_progress)
        else:
            images, file = decode_to_disk(paths, size, cache_dir, root=root, on_progress=on_progress)
        return ImageSet(images, None if labels is None else labels[rows], classes, f"{root} {what}", file)

    return Split(
        chosen(train_paths, train_labels, train, "train"),
        chosen(test_paths, test_labels, test, "test"),
    )


def _check_memory(root: Path, n: int, size: int) -> None:
    """ValueError where the decoded images would leave training less than half of the memory that is available."""
    needed, free = n * 3 * size**2, available("cpu")
    if free is not None and needed > free / 2:
        raise ValueError(
            f"{root}: decoded to {size} x {size} pixels, {n} images take {needed / 1e9:.1f} GB, more than half of the "
            f"{free / 1e9:.1f} GB of memory that are available: keep them on disk by --cache_dir DIR, or lower --limit "
            "or --image_size"
        )


def _image_paths(root: Path) -> list[Path]:
    """All images below root but hidden ones, in an order that does not depend on the file system."""
    paths, walked = list[Path](), set[str]()
    for folder, inner, names in os.walk(root, followlinks=True):
        walked.add(os.path.realpath(folder))
        shown = sorted(name for name in inner if not name.startswith("."))
        inner[:] = [name for name in shown if os.path.realpath(os.path.join(folder, name)) not in walked]
        paths += [
            Path(folder, name) for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    if paths:
        return sorted(paths)
    raise ValueError(f"{root} holds no image: expected {', '.join(IMAGE_SUFFIXES)} files in it or below")


def _class_name(path: Path, root: Path) -> str | None:
    return path.relative_to(root).parts[0] if path.parent != root else None


def _folder_labels(paths: Sequence[Path], root: Path) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels and class names. A single class, or an image outside the class folders, means that there are none."""
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
    names = [_class_name(path, root) for path in paths]
    for name, path in zip(names, paths, strict=True):
        if name not in classes:
            what = "in no class folder" if name is None else f"of the class {name!r}"
            raise ValueError(f"{path} is {what}, but the classes of the training images are {', '.join(classes)}")
    return _positions(names, classes)
