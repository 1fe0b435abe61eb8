"""The table of data sets: the loader of each, and known facts about it.

Every error that a user can fix is a `ValueError` that says how.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from astra_gym.ssl_core.data.archives import Wanted, load_cifar, load_stl10, load_stl10_unlabeled, resized
from astra_gym.ssl_core.data.image_files import decode_files
from astra_gym.ssl_core.data.image_folder import load_folder
from astra_gym.ssl_core.data.image_set import ImageSet, Split, limited, stratified
from astra_gym.ssl_core.data.imagenet import read_classes, tiny_imagenet
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
    classes: str | None = None


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
        cached: whether it is decoded from files in class folders, so that the images can be kept on disk (`cache_dir`)
            and a part of the classes be read (`classes`).
        evaluated: name of the data set on which its encoders are evaluated, if its training images have no labels;
            empty: itself.
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
    evaluated: str = ""


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
    classes: str | None = None,
) -> Split:
    """Load a data set of the table `DATASETS`, or a custom one.

    - "digits": scikit-learn's 1,797 scans of 8 x 8, resized to `image_size` (16); 1,437 and 360 by a stratified split.
    - "cifar10", "cifar100": 50,000 and 10,000 images of 32 x 32 in 10 or 100 (fine) classes; in `data_dir`, downloaded
      if they are missing and `download` is set.
    - "stl10": the 5,000 and 8,000 labeled images of 96 x 96 in 10 classes, likewise (a download of 2.6 GB). The 100,000
      unlabeled ones are not read and may be missing.
    - "stl10-unlabeled": those 100,000 images to train on, and the labeled ones of "stl10" for probes (`Split.probed`)
      and tests. A limit is one of unlabeled images.
    - "tiny-imagenet": the 100,000 training and 10,000 validation images of 64 x 64 in 200 classes, in `data_dir` as
      published: `train/CLASS/images/` and `val/images/` with `val_annotations.txt`.
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
        classes: text file with the names of the class folders that are read, one a line
            (`astra_gym.ssl_core.data.imagenet.read_classes`), for "folder" and "tiny-imagenet"; None: all.

    Raises:
        ValueError: for an unknown name, a limit below 1 or above the number of images, missing, damaged or
            contradictory data, or images that do not fit in memory or on the disk.
    """
    spec = find_dataset(name)
    check_files(name, cache_dir=cache_dir, classes=classes)
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}, expected 1 pixel or more")
    request = DataRequest(data_dir, image_size, limit, test_limit, download, cache_dir, on_progress, classes)
    return _checked(name, spec.load(request), request) if is_dotted(name) else spec.load(request)


def _checked(name: str, split: Split, request: DataRequest) -> Split:
    """Check a custom loader's result and its image size, and apply the limits."""
    if not isinstance(split, Split):
        raise ValueError(f"load of the data set {shown(name)} gives {described(split)}: expected a Split(train, test)")
    side = request.image_size
    for part in (split.train, split.test, split.probe_train):
        if side is not None and part.images.shape[-2:] != (side, side):
            found = tuple(part.images.shape[-2:])
            raise ValueError(
                f"the data set {shown(name)} gives images of {found}: expected ({side}, {side}), by --image_size"
            )
    limits = (split.train, request.limit), (split.test, request.test_limit)
    train, test = (part if limit is None else part.take(limit) for part, limit in limits)
    return replace(split, train=train, test=test)


def check_files(name: str, **given: str | None) -> None:
    """Raise a ValueError if an argument about image files is given to a data set that is not decoded from such."""
    for argument, value in given.items():
        if value is not None and not find_dataset(name).cached:
            takes = ", ".join(other for other, spec in DATASETS.items() if spec.cached)
            raise ValueError(
                f"{argument} is {value!r}, but {name} is not decoded from image files: leave it out (only {takes} take "
                "it)"
            )


@cache
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
    images = resized(gray, request.image_size or 16, "bilinear").expand(-1, 3, -1, -1)
    classes = tuple(map(str, range(10)))
    train, test = stratified(labels, 360)
    train = limited(train, request.limit, "digits train")
    test = limited(test, request.test_limit, "digits test")
    return Split(
        ImageSet(images[train].contiguous(), labels[train], classes, "digits train"),
        ImageSet(images[test].contiguous(), labels[test], classes, "digits test"),
    )


def _from_archive(load: Callable[[Wanted], Split], request: DataRequest) -> Split:
    return load(Wanted(request.data_dir, request.image_size, request.limit, request.test_limit, request.download))


def _folder(request: DataRequest) -> Split:
    return load_folder(
        request.data_dir,
        size=request.image_size or 32,
        limit=request.limit,
        test_limit=request.test_limit,
        cache_dir=request.cache_dir,
        on_progress=request.on_progress,
        only=read_classes(request.classes) if request.classes is not None else (),
    )


def _tiny_imagenet(request: DataRequest) -> Split:
    return decode_files(
        tiny_imagenet(request.data_dir, read_classes(request.classes) if request.classes is not None else ()),
        size=request.image_size or 64,
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
        load=partial(_from_archive, partial(load_cifar, "cifar10")),
        summary="60,000 photographs of 10 classes, 32 x 32",
        source="Krizhevsky 2009",
        preset="cifar10-quick",
        image_size=32,
        sizes=(50_000, 10_000),
        probe_lr=0.01,
    ),
    "cifar100": DatasetSpec(
        load=partial(_from_archive, partial(load_cifar, "cifar100")),
        summary="60,000 photographs of 100 classes, 32 x 32",
        source="Krizhevsky 2009",
        preset="cifar10-quick",
        image_size=32,
        sizes=(50_000, 10_000),
        probe_lr=0.05,
    ),
    "stl10": DatasetSpec(
        load=partial(_from_archive, load_stl10),
        summary="13,000 photographs of 10 classes, 96 x 96: the 5,000 and 8,000 labeled ones only",
        source="Coates et al., AISTATS 2011",
        preset="cifar10-quick",
        image_size=96,
        sizes=(5_000, 8_000),
        probe_lr=0.1,
        finetuned=False,
    ),
    "stl10-unlabeled": DatasetSpec(
        load=partial(_from_archive, load_stl10_unlabeled),
        summary="STL-10's 100,000 unlabeled photographs to train on, its labeled ones for probes and tests",
        source="Coates et al., AISTATS 2011",
        preset="cifar10-quick",
        image_size=96,
        sizes=(100_000, 8_000),
        evaluated="stl10",
    ),
    "tiny-imagenet": DatasetSpec(
        load=_tiny_imagenet,
        summary="110,000 photographs of 200 classes, 64 x 64, in their published folders",
        source="Stanford CS231n 2015",
        preset="folder",
        image_size=64,
        sizes=(100_000, 10_000),
        cached=True,
    ),
    "folder": DatasetSpec(
        load=_folder,
        summary="any folder of images, labeled by sub-folders or not at all",
        preset="folder",
        cached=True,
    ),
}
