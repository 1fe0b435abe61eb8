"""The table of data sets: the loader of each, and known facts about it.

Every error that a user can fix is a `ValueError` that says how.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from astra_gym.ssl_core.data.image_folder import load_folder
from astra_gym.ssl_core.data.image_set import ImageSet, Split, fixed_generator, limited, stratified
from astra_gym.ssl_core.utils.files import expanded
from astra_gym.ssl_core.utils.import_path import described, imported, is_dotted
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.registry import pick


@dataclass(frozen=True)
class DataRequest:
    """The request to a data set's loader: the arguments of `load_dataset`."""

    data_dir: str | None = None
    image_size: int | None = None
    limit: int | None = None
    test_limit: int | None = None
    download: bool = True
    cache_dir: str | None = None
    on_progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A data set: its loader and facts about it.

    Args:
        load: loader, `load(request) -> Split`. A custom one may ignore the limits of the request: they are applied to
            its result.
        summary: one line for lists.
        source: citation; empty if there is none.
        preset: default preset of a run on it (`--preset`).
        image_size: image side in pixels in published results; None if there are none.
        sizes: numbers of training and test images; None if they vary or no results are published.
        probe_lr: published learning rate of a linear head, for both SLF and ALF (DynACL's LPAFT.py); None: no protocol
            is published.
        finetuned: whether a full fine-tuning is among its published protocols.
        cached: whether its decoded images can be kept on disk (`cache_dir`).
    """

    load: Callable[[DataRequest], Split]
    summary: str = ""
    source: str = ""
    preset: str = "folder"
    image_size: int | None = None
    sizes: tuple[int, int] | None = None
    probe_lr: float | None = None
    finetuned: bool = True
    cached: bool = False


def find_dataset(name: str) -> DatasetSpec:
    """Return the data set with a name of `DATASETS`, or at a dotted path, my_module:MY_DATA.

    Raises:
        ValueError: if there is no such data set.
    """
    if not is_dotted(name):
        return pick(name, DATASETS, "data set")
    found = imported(name, "data set", "my_module:MY_DATA")
    if not isinstance(found, DatasetSpec):
        raise ValueError(
            f"data set {shown(name)} is {described(found)}: expected an astra_gym.ssl_core.data.datasets.DatasetSpec"
        )
    return found


def load_dataset(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    download: bool = True,
    cache_dir: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Split:
    """Load a data set of the table `DATASETS`, or a custom one.

    - "digits": scikit-learn's 1,797 scans of 8 x 8, resized to `image_size` (16); 1,437 and 360 by a stratified split.
    - "cifar10", "cifar100": 50,000 and 10,000 images of 32 x 32 in 10 or 100 (fine) classes; in `data_dir`, downloaded
      if they are missing and `download` is set.
    - "stl10": the 5,000 and 8,000 labeled images of 96 x 96 in 10 classes, likewise (a download of 2.6 GB). The 100,000
      unlabeled ones, on which the papers pre-train, are not read and may be missing.
    - "folder": the images (png, jpg, jpeg, webp, bmp) anywhere below `data_dir`, cut to squares of `image_size` (32). A
      `train` folder in it, and a `test` or else a `val` folder, are the split (upper or lower case, and usual spellings
      such as `Training` and `valid`). Otherwise a fifth is held out as the test set, stratified by class. Labels are
      the names of the first-level folders, if there are two or more and every image is in one; else the images are
      unlabeled. Files of other kinds are skipped, and counted in the notes of the split. Files are decoded by one
      thread per core.

    Args:
        name: a key of `DATASETS`, or the dotted path of a `DatasetSpec`, my_module:MY_DATA.
        data_dir: the folder with the data; required by all but "digits", which refuses it.
        image_size: height and width, in pixels; None for the data set's default.
        limit: number of training images, the first in a fixed random order: class shares stay about the same, and a
            smaller limit gives a subset of a larger limit's images. None for all.
        test_limit: number of test images, the first in the archive's order (CIFAR, STL-10), else in a fixed random one.
        download: whether a missing data set may be downloaded.
        cache_dir: folder for the decoded images of "folder", so that they are decoded once and need not fit in memory
            (`astra_gym.ssl_core.data.decoding.decode_to_disk`); None to decode into memory. The other data sets refuse
            it.
        on_progress: called with the numbers of images decoded and to be decoded, for the training set and then for the
            test set; not called if nothing is decoded.

    Raises:
        ValueError: for an unknown name, a limit below 1 or above the number of images, missing, damaged or
            contradictory data, or images that do not fit in memory or on the disk.
    """
    spec = find_dataset(name)
    check_cache_dir(name, cache_dir)
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}, expected 1 pixel or more")
    request = DataRequest(data_dir, image_size, limit, test_limit, download, cache_dir, on_progress)
    return _checked(name, spec.load(request), request) if is_dotted(name) else spec.load(request)


def _checked(name: str, split: Split, request: DataRequest) -> Split:
    """Check a custom loader's result and its image size, and apply the limits."""
    if not isinstance(split, Split):
        raise ValueError(f"load of the data set {shown(name)} gives {described(split)}: expected a Split(train, test)")
    side = request.image_size
    for part in (split.train, split.test):
        if side is not None and part.images.shape[-2:] != (side, side):
            found = tuple(part.images.shape[-2:])
            raise ValueError(
                f"the data set {shown(name)} gives images of {found}: expected ({side}, {side}), by --image_size"
            )
    limits = (split.train, request.limit), (split.test, request.test_limit)
    train, test = (part if limit is None else part.take(limit) for part, limit in limits)
    return Split(train, test, split.notes)


def check_cache_dir(name: str, cache_dir: str | None) -> None:
    """Raise a ValueError if a cache folder is given to a data set that decodes no image files."""
    if cache_dir is not None and not find_dataset(name).cached:
        takes = ", ".join(other for other, spec in DATASETS.items() if spec.cached)
        raise ValueError(
            f"cache_dir is {cache_dir!r}, but {name} is not decoded from image files and has nothing to keep there: "
            f"leave it out (only {takes} takes it)"
        )


def _resize(images: Tensor, size: int, mode: str) -> Tensor:
    """Resize float images (N, C, H, W) in [0, 255] to uint8 (N, C, size, size), with antialiasing."""
    if images.shape[-2:] != (size, size):
        images = functional.interpolate(images, size=(size, size), mode=mode, antialias=True)
    return images.round().clamp(0, 255).to(torch.uint8)


def _scans() -> np.ndarray:
    """Read scikit-learn's digits (1797, 65): 64 pixels of 0 to 16 and the label in each row.

    This reads the same file as `load_digits`, without importing scikit-learn, which takes a second.
    """
    package = find_spec("sklearn")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.column_stack([found.data, found.target])


def _digits(request: DataRequest) -> Split:
    if request.data_dir is not None:
        raise ValueError(
            f"digits come with scikit-learn and are read from no folder, but data_dir is {request.data_dir!r}: "
            "leave it out, or choose the data set 'folder' or 'cifar10'"
        )
    scans = _scans()
    labels = torch.as_tensor(scans[:, -1], dtype=torch.int64)
    gray = torch.as_tensor(scans[:, :-1], dtype=torch.float32).view(-1, 1, 8, 8) * (255 / 16)
    images = _resize(gray, request.image_size or 16, "bilinear").expand(-1, 3, -1, -1)
    classes = tuple(map(str, range(10)))
    train, test = stratified(labels, 360)
    train = limited(train, request.limit, "digits train")
    test = limited(test, request.test_limit, "digits test")
    return Split(
        ImageSet(images[train].contiguous(), labels[train], classes, "digits train"),
        ImageSet(images[test].contiguous(), labels[test], classes, "digits test"),
    )


@dataclass(frozen=True)
class _Archive:
    """A data set that torchvision reads from its unpacked official archive.

    Attributes:
        name: name of the data set, for messages.
        source: torchvision's class.
        class_names: name of the file with the names of the classes.
        train, test: arguments of `source` for the two sets.
        read: function from an opened `source` to images, uint8 (N, 3, H, W), and labels, int64 (N,).
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


def _cifar(name: str, request: DataRequest) -> Split:
    source = getattr(_torchvision_datasets(name), name.upper())

    def read(part: Any) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)

    archive = _Archive(name, source, source.meta["filename"], {"train": True}, {"train": False}, read)
    return _load_archive(archive, request)


def _stl10(request: DataRequest) -> Split:
    stl10 = _torchvision_datasets("stl10").STL10
    # torchvision's class needs the 2.8 GB of unlabeled images, and computes their checksum twice
    files = [entry for entry in stl10.train_list if not entry[0].startswith("unlabeled")]
    labelled = type("LabelledSTL10", (stl10,), {"train_list": files})

    def read(part: Any) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(part.data), torch.from_numpy(part.labels).long()

    archive = _Archive("stl10", labelled, stl10.class_names_file, {"split": "train"}, {"split": "test"}, read)
    return _load_archive(archive, request)


def _load_archive(archive: _Archive, request: DataRequest) -> Split:
    if request.data_dir is None:
        raise ValueError(
            f"{archive.name} is read from a folder, or downloaded to it: give --data_dir DIR, the folder that holds "
            f"or shall hold {archive.source.base_folder}"
        )
    root = expanded(request.data_dir)
    with warnings.catch_warnings():
        # CIFAR's batches were pickled by Python 2; some versions of NumPy warn of a dtype flag in them.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        train = _open_archive(archive, root, request.download)
        test = archive.source(str(root), **archive.test)
    name = f"{archive.name} train"
    train_rows = torch.arange(len(train))
    if request.limit is not None:
        train_rows = limited(torch.randperm(len(train), generator=fixed_generator()), request.limit, name)
    test_rows = limited(torch.arange(len(test)), request.test_limit, f"{archive.name} test")
    return Split(
        _archive_set(archive, train, train_rows, request.image_size, name),
        _archive_set(archive, test, test_rows, request.image_size, f"{archive.name} test"),
    )


def _open_archive(archive: _Archive, root: Path, download: bool) -> Any:
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


def _archive_set(archive: _Archive, part: Any, rows: Tensor, image_size: int | None, name: str) -> ImageSet:
    images, labels = archive.read(part)
    images = images[rows].contiguous()
    if image_size is not None:
        # In parts, since the floats of the whole set would take four times its memory.
        images = torch.cat([_resize(some.float(), image_size, "bicubic") for some in images.split(1000)])
    return ImageSet(images, labels[rows], tuple(part.classes), name)


def _folder(request: DataRequest) -> Split:
    return load_folder(
        request.data_dir,
        size=request.image_size or 32,
        limit=request.limit,
        test_limit=request.test_limit,
        cache_dir=request.cache_dir,
        on_progress=request.on_progress,
    )


DATASETS: Mapping[str, DatasetSpec] = {
    "digits": DatasetSpec(
        load=_digits,
        summary="1,797 scans of handwritten digits, 8 x 8, embedded",
        source="Alpaydin & Kaynak, UCI 1998, in scikit-learn",
        preset="digits",
    ),
    "cifar10": DatasetSpec(
        load=partial(_cifar, "cifar10"),
        summary="60,000 photographs of 10 classes, 32 x 32",
        source="Krizhevsky 2009",
        preset="cifar10-quick",
        image_size=32,
        sizes=(50_000, 10_000),
        probe_lr=0.01,
    ),
    "cifar100": DatasetSpec(
        load=partial(_cifar, "cifar100"),
        summary="60,000 photographs of 100 classes, 32 x 32",
        source="Krizhevsky 2009",
        preset="cifar10-quick",
        image_size=32,
        sizes=(50_000, 10_000),
        probe_lr=0.05,
    ),
    "stl10": DatasetSpec(
        load=_stl10,
        summary="13,000 photographs of 10 classes, 96 x 96: the 5,000 and 8,000 labelled ones only",
        source="Coates et al., AISTATS 2011",
        preset="cifar10-quick",
        image_size=96,
        sizes=(5_000, 8_000),
        probe_lr=0.1,
        finetuned=False,
    ),
    "folder": DatasetSpec(
        load=_folder,
        summary="any folder of images, labelled by sub-folders or not at all",
        preset="folder",
        cached=True,
    ),
}
