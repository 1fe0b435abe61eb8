"""Official sets of shifted test images in their published folders: CIFAR-10-C, ImageNet-C, ImageNet-PD."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from astra_gym.ssl_core.data.archives import resized
from astra_gym.ssl_core.data.decoding import decode
from astra_gym.ssl_core.data.folder_layout import check_listed, folders_in, named, scan
from astra_gym.ssl_core.data.image_set import ImageSet, fixed_generator
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.utils.files import expanded

LABELS = "labels.npy"
Change = Callable[[Tensor], Tensor]
"""Maps positions (k,) to images (k, 3, H, W), uint8; it can be pickled."""


@dataclass(frozen=True, eq=False)
class ShiftedImages:
    """The same test images under several conditions.

    Attributes:
        labels: (n,) int64, positions in the classes of the test set.
        conditions: the images, by condition such as `fog/3` or `left/black`.
        identity: a digest of the files' names, sizes and times of modification, and of the labels.
        deviations: departures from the published evaluation, in words.
    """

    labels: Tensor
    conditions: Mapping[str, Change]
    identity: str
    deviations: tuple[str, ...] = ()


def corrupted_images(folder: Path, names: Sequence[str], severities: Sequence[int], test: ImageSet) -> ShiftedImages:
    """Read official corrupted images: CIFAR-10-C or CIFAR-100-C, or ImageNet-C.

    CIFAR's are `NAME.npy` (uint8 (5 n, 32, 32, 3), the n test images at severity 1, then at 2, and so on) with
    `labels.npy`. ImageNet's are files NAME/SEVERITY/CLASS/IMAGE.

    Args:
        folder: the folder.
        names: names of the corruptions.
        severities: severities from 1 to 5.
        test: labeled test images, which the folder's correspond to.

    Raises:
        ValueError: if a file is missing or damaged, or the folder does not fit the test images.
    """
    root = _existing(folder)
    if (root / LABELS).is_file():
        return _cifar_c(root, names, severities, test)
    places = {f"{name}/{severity}": root / name / str(severity) for name in names for severity in severities}
    if not any(place.is_dir() for place in places.values()):
        raise ValueError(
            f"{root} holds neither {LABELS} and NAME.npy (CIFAR-10-C) nor NAME/SEVERITY/CLASS/IMAGE (ImageNet-C): it "
            f"has {named(folders_in(root)) or 'no folder'}"
        )
    return _from_folders(root, places, test)


def distorted_images(folder: Path, subsets: Mapping[str, str], test: ImageSet) -> ShiftedImages:
    """Read ImageNet-PD: files SUBSET/CLASS/IMAGE.

    Args:
        folder: the folder.
        subsets: names of the subsets' folders, by condition.
        test: labeled test images, of the same classes.

    Raises:
        ValueError: as `corrupted_images`.
    """
    root = _existing(folder)
    return _from_folders(root, {condition: root / name for condition, name in subsets.items()}, test)


def _existing(folder: Path) -> Path:
    root = expanded(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder: expected the unpacked official images")
    return root


def _cifar_c(root: Path, names: Sequence[str], severities: Sequence[int], test: ImageSet) -> ShiftedImages:
    given = _array(root / LABELS)
    own = required_labels(test, "accuracy on corrupted images").cpu()
    per_severity, n = len(given) // 5, len(test)
    if len(given) % 5 or given.ndim != 1 or n > per_severity or given[:n].tolist() != own.tolist():
        raise ValueError(
            f"{root / LABELS} does not begin with the labels of {test.name} ({n:,} images): expected the corrupted "
            "images of this very test set, in its order"
        )
    size = test.images.shape[-1]
    conditions: dict[str, Change] = {}
    for name in names:
        array = _array(root / f"{name}.npy")
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape != (5 * per_severity, *array.shape[1:3], 3):
            raise ValueError(
                f"{root / name}.npy holds {array.dtype} {array.shape}: expected uint8 ({5 * per_severity}, 32, 32, 3)"
            )
        for severity in severities:
            first = (severity - 1) * per_severity
            conditions[f"{name}/{severity}"] = partial(_of_array, root / f"{name}.npy", first, size)
    files = [root / LABELS, *(root / f"{name}.npy" for name in names)]
    return ShiftedImages(own, conditions, _identity(root, files, own))


def _of_array(file: Path, first: int, size: int, rows: Tensor) -> Tensor:
    """Read images from position `first` on."""
    images = torch.from_numpy(_array(file)[(rows + first).numpy()]).permute(0, 3, 1, 2)
    return images.contiguous() if images.shape[-1] == size else resized(images.float(), size, "bicubic")


def _of_files(files: Sequence[Path], size: int, rows: Tensor) -> Tensor:
    """Read some of the files."""
    return decode([files[row] for row in rows.tolist()], size)


def _array(file: Path) -> np.ndarray:
    try:
        # mapped, since the whole set takes gigabytes
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no array of numbers"
        raise ValueError(f"{file} cannot be read ({reason}): unpack the official archive anew") from error


def _from_folders(root: Path, places: Mapping[str, Path], test: ImageSet) -> ShiftedImages:
    required_labels(test, "accuracy on official images")
    positions = {name: place for place, name in enumerate(test.classes)}
    first: list[str] = []
    found: dict[str, list[Path]] = {}
    for condition, place in places.items():
        if not place.is_dir():
            held = named(folders_in(root)) or "no folder"
            raise ValueError(
                f"{root} has {held}, not {place.relative_to(root).as_posix()}/CLASS/IMAGE: unpack the official archive"
            )
        tree = scan(place, tuple(positions))
        check_listed(tree, positions)
        relative = [path.relative_to(place).as_posix() for path in tree.paths]
        first = first or relative
        if odd := sorted(set(relative) ^ set(first)):
            raise ValueError(
                f"{place} and {next(iter(places.values()))} hold other images, such as {named(odd, '')}: expected the "
                "same in each"
            )
        found[condition] = list(tree.paths)
    labels = torch.tensor([positions[name.split("/")[0]] for name in first])
    order = torch.randperm(len(first), generator=fixed_generator())
    n, size = min(len(first), len(test)), test.images.shape[-1]
    conditions: dict[str, Change] = {}
    for condition, paths in found.items():
        conditions[condition] = partial(_of_files, [paths[row] for row in order[:n].tolist()], size)
    deviations = () if n == len(first) else (f"{n:,} of the {len(first):,} official images",)
    files = (path for paths in found.values() for path in paths)
    kept = labels[order[:n]]
    return ShiftedImages(kept, conditions, _identity(root, files, kept), deviations)


def _identity(root: Path, files: Iterable[Path], labels: Tensor) -> str:
    digest = hashlib.sha256(labels.numpy().tobytes())
    for file in files:
        status = file.stat()
        digest.update(f"{file.relative_to(root).as_posix()}\0{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
