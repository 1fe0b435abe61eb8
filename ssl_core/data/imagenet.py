"""Layouts of ImageNet and its kin: a part of the classes by a list, and Tiny-ImageNet as it is published."""

from pathlib import Path

import torch

from astra_gym.ssl_core.data.folder_layout import check_classes, check_listed, folders_in, named, scan
from astra_gym.ssl_core.data.image_files import DividedFiles, shuffled
from astra_gym.ssl_core.utils.files import expanded

ANNOTATIONS = "val_annotations.txt"
"""Tiny-ImageNet's file with a line for each validation image: its name, its class, and a box, separated by tabs."""


def read_classes(path: str) -> tuple[str, ...]:
    """Read the names of class folders: the first word of each line that is not empty and does not begin with #.

    So lists of ImageNet-100 with the classes' English names behind their folders' names are read, too.

    Args:
        path: the file.

    Returns:
        The names, sorted.

    Raises:
        ValueError: if the file cannot be read, names fewer than two classes, or names one twice.
    """
    file = expanded(path)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(
            f"classes: {file} cannot be read ({reason}): expected a text file, on each line the name of a class folder"
        ) from error
    names = [line.split()[0] for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"classes: {file} names {named(repeated, '')} twice: expected each class once")
    if len(names) < 2:
        raise ValueError(f"classes: {file} names {names[0] if names else 'no class'}: expected two or more, one a line")
    return tuple(sorted(names))


def tiny_imagenet(data_dir: str | None, only: tuple[str, ...] = ()) -> DividedFiles:
    """Find the files of Tiny-ImageNet: `train/CLASS/images/*.JPEG` and `val/images/*.JPEG` with `val_annotations.txt`.

    The unlabeled images of `test/` are not read.

    Args:
        data_dir: the unpacked archive; None is refused.
        only: names of the classes that are read; empty: all.

    Raises:
        ValueError: if the layout is another one, an image has no annotation, or a class is missing.
    """
    if data_dir is None:
        raise ValueError("tiny-imagenet is read from a folder: give --data_dir DIR, the unpacked tiny-imagenet-200")
    root = expanded(data_dir)
    annotations = root / "val" / ANNOTATIONS
    if not (root / "train").is_dir() or not annotations.is_file():
        raise ValueError(
            f"{root} has not the layout of tiny-imagenet-200: expected train/CLASS/images/ and val/images/ with "
            f"val/{ANNOTATIONS}; for val/CLASS/IMAGE take the data set folder"
        )
    train = scan(root / "train", only)
    check_classes(train)
    check_listed(train, only)
    names = tuple(sorted(train.below[()]))
    places = {name: place for place, name in enumerate(names)}
    of_image = _annotated(annotations)
    tested, labels = [], []
    for path in scan(root / "val").paths:
        name = of_image.get(path.name)
        if name is None or (not only and name not in places):
            what = "no line" if name is None else f"the class {name!r}, which train/ lacks"
            raise ValueError(f"{path} has {what} in {ANNOTATIONS}: unpack the archive anew")
        if name in places:
            tested.append(path)
            labels.append(places[name])
    if not tested:
        raise ValueError(f"{root / 'val'} has no image of the classes of train/: unpack the archive anew")
    unread = [name for name in folders_in(root) if name not in ("train", "val")]
    notes = [f"divided by train/ and val/, labels of val/ from {ANNOTATIONS}"]
    if unread:
        notes.append(f"not read: {named(unread)}")
    trained = torch.tensor([places[path.relative_to(train.root).parts[0]] for path in train.paths])
    return DividedFiles(
        root,
        *shuffled(train.paths, trained),
        *shuffled(tested, torch.tensor(labels)),
        names,
        tuple(notes),
    )


def _annotated(file: Path) -> dict[str, str]:
    """Return the class of each validation image by its name."""
    found = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split("\t")
        if len(parts) < 2:
            raise ValueError(f"{file}, line {number}: expected an image, its class and a box, separated by tabs")
        found[parts[0]] = parts[1]
    return found
