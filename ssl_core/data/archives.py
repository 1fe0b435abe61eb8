"""Data sets that torchvision reads from their unpacked official archives: CIFAR-10, CIFAR-100, STL-10."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from astra_gym.ssl_core.data.image_set import ImageSet, Split, fixed_generator, limited
from astra_gym.ssl_core.utils.files import expanded


@dataclass(frozen=True)
class Wanted:
    """What is wanted of an archive, as in `astra_gym.ssl_core.data.datasets.load_dataset`."""

    data_dir: str | None
    image_size: int | None
    limit: int | None
    test_limit: int | None
    download: bool


def resized(images: Tensor, size: int, mode: str) -> Tensor:
    """Resize float images (N, C, H, W) in [0, 255] to uint8 (N, C, size, size), with antialiasing."""
    if images.shape[-2:] != (size, size):
        images = functional.interpolate(images, size=(size, size), mode=mode, antialias=True)
    return images.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Archive:
    """A data set that torchvision reads from its unpacked official archive.

    Attributes:
        name: name of the data set, for messages.
        source: torchvision's class.
        class_names: name of the file with the names of the classes.
        train, test: arguments of `source` for the two sets.
        read: function from an opened `source` to images, uint8 (N, 3, H, W), and labels, int64 (N,); those of unlabeled
            images are -1, as torchvision gives them.
    """

    name: str
    source: Any
    class_names: str
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    read: Callable[[Any], tuple[Tensor, Tensor]]


def _torchvision_datasets(name: str) -> Any:
    try:
        # Imported here, since nothing else needs torchvision, and a build that does not match torch's fails at import.
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"{name} is read by torchvision, which cannot be imported beside torch {torch.__version__} ({error}): "
            "install a pair of torch and torchvision of matching versions, e.g. pip install --upgrade torch torchvision"
        ) from error
    return datasets


def load_cifar(name: str, wanted: Wanted) -> Split:
    """Load "cifar10" or "cifar100", see `astra_gym.ssl_core.data.datasets.load_dataset`."""
    source = getattr(_torchvision_datasets(name), name.upper())

    def read(part: Any) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)

    archive = Archive(name, source, source.meta["filename"], {"train": True}, {"train": False}, read)
    return _load_archive(archive, wanted)


def load_stl10(wanted: Wanted) -> Split:
    """Load "stl10": its labeled images. The file of the unlabeled ones may be missing."""
    stl10 = _torchvision_datasets("stl10").STL10
    # torchvision's class needs the 2.8 GB of unlabeled images, and computes their checksum twice
    files = [entry for entry in stl10.train_list if not entry[0].startswith("unlabeled")]
    return _load_archive(_stl10("stl10", type("LabeledSTL10", (stl10,), {"train_list": files}), "train"), wanted)


def load_stl10_unlabeled(wanted: Wanted) -> Split:
    """Load "stl10-unlabeled": the unlabeled images to train on, and the labeled ones for probes.

    The limit of training images is one of unlabeled images.
    """
    stl10 = _torchvision_datasets("stl10").STL10
    found = _load_archive(_stl10("stl10-unlabeled", stl10, "unlabeled"), wanted)
    labeled = load_stl10(replace(wanted, limit=None, test_limit=1, download=False))
    notes = (f"{len(labeled.train):,} labeled images for probes",)
    return replace(found, probed=labeled.train, notes=notes)


def _stl10(name: str, source: Any, split: str) -> Archive:
    def read(part: Any) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(part.data), torch.from_numpy(part.labels).long()

    return Archive(name, source, source.class_names_file, {"split": split}, {"split": "test"}, read)


def _load_archive(archive: Archive, wanted: Wanted) -> Split:
    if wanted.data_dir is None:
        raise ValueError(
            f"{archive.name} is read from a folder, or downloaded to it: give --data_dir DIR, the folder that holds "
            f"or shall hold {archive.source.base_folder}"
        )
    root = expanded(wanted.data_dir)
    with warnings.catch_warnings():
        # CIFAR's batches were pickled by Python 2; some versions of NumPy warn of a dtype flag in them.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        train = _open_archive(archive, root, wanted.download)
        test = archive.source(str(root), **archive.test)
    name = f"{archive.name} train"
    train_rows = torch.arange(len(train))
    if wanted.limit is not None:
        train_rows = limited(torch.randperm(len(train), generator=fixed_generator()), wanted.limit, name)
    test_rows = limited(torch.arange(len(test)), wanted.test_limit, f"{archive.name} test")
    return Split(
        _archive_set(archive, train, train_rows, wanted.image_size, name),
        _archive_set(archive, test, test_rows, wanted.image_size, f"{archive.name} test"),
    )


def _open_archive(archive: Archive, root: Path, download: bool) -> Any:
    """Open torchvision's training set, or raise an error that says what is wrong with the files of both sets."""
    name, source = archive.name, archive.source

    def opened(**arguments: Any) -> Any:
        part = source(str(root), **archive.train, **arguments)
        if not hasattr(part, "classes"):
            # torchvision's STL-10 opens without the file that names them
            raise RuntimeError(f"{archive.class_names} is missing")
        return part

    try:
        return opened()
    except RuntimeError as error:
        folder = root / source.base_folder
        files = [file for file, _ in (*source.train_list, *source.test_list)] + [archive.class_names]
        missing = [file for file in files if not (folder / file).is_file()]
        if len(missing) == len(files):
            state = f"there is no {folder}"
        elif missing:
            state = f"{folder} is incomplete: it lacks {', '.join(missing)}"
        else:
            state = f"{folder} is damaged: a file's checksum is not that of the original"
        advice = (
            f"unpack the official {source.filename} ({source.url}) in {root}, "
            f"or give the --data_dir that holds {source.base_folder}"
        )
        if not download:
            raise ValueError(f"{name}: {state}, and it may not be downloaded: {advice}") from error
    try:
        return opened(download=True)
    except Exception as error:  # urllib, ssl, tarfile, gzip and the file system each fail in their own way
        raise ValueError(f"{name}: {state}, and downloading it failed ({error}): {advice}") from error


def _archive_set(archive: Archive, part: Any, rows: Tensor, image_size: int | None, name: str) -> ImageSet:
    images, labels = archive.read(part)
    images = images[rows].contiguous()
    if image_size is not None:
        # In parts, since the floats of the whole set would take four times its memory.
        images = torch.cat([resized(some.float(), image_size, "bicubic") for some in images.split(1000)])
    if bool((labels == -1).all()):
        return ImageSet(images, None, (), name)
    return ImageSet(images, labels[rows], tuple(part.classes), name)
