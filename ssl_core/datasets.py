"""The data sets, held in memory as uint8, and the sampler of batches.

Which images lie in the training and in the test set, and their order, never depend on a run's seed: two runs with the
same settings see the same data. Whatever a user can put right is a `ValueError` that says how.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from ssl_core.lookup import pick

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_SPLIT_SEED = 20250424


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64, positions in `classes`; None where there are none.
        classes: names of the classes; empty where there are no labels.
        name: for messages, e.g. "cifar10 test".
    """

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            got = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise ValueError(f"{self.name}: images are {got}, expected uint8 of shape (N, 3, H, W)")
        if self.labels is not None and (self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]):
            got = f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            raise ValueError(f"{self.name}: labels are {got}, expected int64 of shape ({len(self)},)")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, n: int) -> "ImageSet":
        """The first n images; ValueError unless 1 <= n <= len(self)."""
        images = _limited(self.images, n, self.name)
        return ImageSet(images, None if self.labels is None else self.labels[:n], self.classes, self.name)


@dataclass(frozen=True, eq=False)
class Split:
    """What is trained on, and what is held out."""

    train: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class _Request:
    data_dir: str | None
    image_size: int | None
    limit: int | None
    test_limit: int | None
    download: bool


def load_dataset(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    download: bool = True,
) -> Split:
    """Load a data set of the table `DATASETS`.

    - "digits": scikit-learn's 1,797 scans of 8 x 8, resized to `image_size` (16); 1,437 and 360 by a stratified split.
    - "cifar10": 50,000 and 10,000 images of 32 x 32 in `data_dir`; downloaded where they are not there and `download`.
    - "folder": the images (png, jpg, jpeg, webp, bmp) anywhere below `data_dir`, cut to squares of `image_size` (32). A
      `train` folder in it, with a `test` or else a `val` folder beside it, is the split; otherwise a fifth is set apart
      for the test, stratified by class. Labels are the names of the first-level folders, if every image lies in one and
      there are at least two of them; else there are none.

    Args:
        name: a key of `DATASETS`.
        data_dir: the folder with the data; required by "cifar10" and "folder", refused by "digits".
        image_size: height and width, in pixels; None for the data set's own default.
        limit: train on this many images: the first of a fixed random order, so that the classes keep about their shares
            and a smaller limit takes a part of what a larger one takes. None for all.
        test_limit: keep the first so many test images: of CIFAR-10's own order, else of a fixed random one.
        download: whether a missing data set may be downloaded.

    Raises:
        ValueError: an unknown name, a limit below 1 or above what there is, missing, damaged or contradictory data.
    """
    load = pick(name, DATASETS, "data set")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}, expected 1 pixel or more")
    return load(_Request(data_dir, image_size, limit, test_limit, download))


def _limited(rows: Tensor, limit: int | None, what: str) -> Tensor:
    if limit is not None and not 1 <= limit <= len(rows):
        raise ValueError(f"{what}: {limit} images were asked for, expected 1 to {len(rows)}, all there are")
    return rows[:limit]


def _fixed_generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SPLIT_SEED)


def _stratified(labels: Tensor, n_test: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and to test on, each in a fixed random order; quotas of the classes by largest remainder.

    No class gives its last image away, so that the training set knows every class.
    """
    order = torch.randperm(len(labels), generator=_fixed_generator())
    counts = torch.bincount(labels)
    shares = counts * n_test / len(labels)
    quotas = shares.long()
    by_remainder = (shares - quotas).argsort(descending=True, stable=True)
    spare = by_remainder[quotas[by_remainder] + 1 < counts[by_remainder]]
    quotas[spare[: n_test - int(quotas.sum())]] += 1
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label, quota in enumerate(quotas.tolist()):
        held_out[order[labels[order] == label][:quota]] = True
    return order[~held_out[order]], order[held_out[order]]


def _resize(images: Tensor, size: int, mode: str) -> Tensor:
    """Float images (N, C, H, W) in [0, 255] to uint8 (N, C, size, size), with antialiasing."""
    if images.shape[-2:] != (size, size):
        images = functional.interpolate(images, size=(size, size), mode=mode, antialias=True)
    return images.round().clamp(0, 255).to(torch.uint8)


def _digits(request: _Request) -> Split:
    if request.data_dir is not None:
        raise ValueError(
            f"digits come with scikit-learn and are read from no folder, but data_dir is {request.data_dir!r}: "
            "leave it out, or choose the data set 'folder' or 'cifar10'"
        )
    # Imported here, since scikit-learn takes a second that the other data sets need not pay.
    from sklearn.datasets import load_digits

    scans = load_digits()
    labels = torch.as_tensor(scans.target, dtype=torch.int64)
    gray = torch.as_tensor(scans.images, dtype=torch.float32).unsqueeze(1) * (255 / 16)
    images = _resize(gray, request.image_size or 16, "bilinear").expand(-1, 3, -1, -1)
    classes = tuple(str(name) for name in scans.target_names)
    train, test = _stratified(labels, 360)
    train = _limited(train, request.limit, "digits train")
    test = _limited(test, request.test_limit, "digits test")
    return Split(
        ImageSet(images[train].contiguous(), labels[train], classes, "digits train"),
        ImageSet(images[test].contiguous(), labels[test], classes, "digits test"),
    )


def _cifar10(request: _Request) -> Split:
    if request.data_dir is None:
        raise ValueError(
            "cifar10 is read from a folder, or downloaded to it: give --data_dir DIR, the folder that holds "
            "or shall hold cifar-10-batches-py"
        )
    try:
        # Imported here, since nothing else needs torchvision, and a build that does not match torch's fails at import.
        from torchvision.datasets import CIFAR10
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"cifar10 is read by torchvision, which cannot be imported beside torch {torch.__version__} ({error}): "
            "install a pair of torch and torchvision of matching versions, e.g. pip install --upgrade torch torchvision"
        ) from error
    root = Path(request.data_dir).expanduser()
    with warnings.catch_warnings():
        # The batches were pickled by Python 2; some versions of NumPy warn of a dtype flag in them.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        train = _open_cifar10(CIFAR10, root, request.download)
        test = CIFAR10(str(root), train=False)
    train_rows = torch.arange(len(train))
    if request.limit is not None:
        train_rows = _limited(torch.randperm(len(train), generator=_fixed_generator()), request.limit, "cifar10 train")
    test_rows = _limited(torch.arange(len(test)), request.test_limit, "cifar10 test")
    return Split(
        _cifar10_set(train, train_rows, request.image_size, "cifar10 train"),
        _cifar10_set(test, test_rows, request.image_size, "cifar10 test"),
    )


def _open_cifar10(cifar10: Any, root: Path, download: bool) -> Any:
    """torchvision's training set, or an error that says what is wrong with the copy, its test batch included."""
    try:
        return cifar10(str(root), train=True)
    except RuntimeError as error:
        batches = root / cifar10.base_folder
        files = [name for name, _ in (*cifar10.train_list, *cifar10.test_list)] + [cifar10.meta["filename"]]
        missing = [name for name in files if not (batches / name).is_file()]
        if len(missing) == len(files):
            state = f"there is no {batches}"
        elif missing:
            state = f"{batches} is incomplete: it lacks {', '.join(missing)}"
        else:
            state = f"{batches} is damaged: a file's checksum is not that of the original"
        advice = (
            f"unpack the official {cifar10.filename} ({cifar10.url}) in {root}, "
            f"or give the --data_dir that holds {cifar10.base_folder}"
        )
        if not download:
            raise ValueError(f"cifar10: {state}, and it may not be downloaded: {advice}") from error
    try:
        return cifar10(str(root), train=True, download=True)
    except Exception as error:  # urllib, ssl, tarfile, gzip and the file system each fail in their own way
        raise ValueError(f"cifar10: {state}, and downloading it failed ({error}): {advice}") from error


def _cifar10_set(source: Any, rows: Tensor, image_size: int | None, name: str) -> ImageSet:
    images = torch.from_numpy(source.data)[rows].permute(0, 3, 1, 2).contiguous()
    if image_size is not None:
        # In parts, since the floats of the whole set would take four times its memory.
        images = torch.cat([_resize(part.float(), image_size, "bicubic") for part in images.split(1000)])
    return ImageSet(images, torch.tensor(source.targets)[rows], tuple(source.classes), name)


def _folder(request: _Request) -> Split:
    if request.data_dir is None:
        raise ValueError("the data set 'folder' needs to know which: give --data_dir DIR, a folder of images")
    root = Path(request.data_dir).expanduser()
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder: give --data_dir an existing folder of images")
    size = request.image_size or 32
    train_dir = root / "train"
    test_dir = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if train_dir.is_dir() and test_dir is not None:
        train_paths, test_paths = _image_paths(train_dir), _image_paths(test_dir)
        train_labels, classes = _folder_labels(train_paths, train_dir)
        test_labels = _test_labels(test_paths, test_dir, classes)
        train, test = (torch.randperm(len(paths), generator=_fixed_generator()) for paths in (train_paths, test_paths))
    else:
        train_paths = test_paths = _image_paths(root)
        if len(train_paths) < 2:
            raise ValueError(f"{root} holds a single image: at least two are needed, one to train on and one held out")
        if all(train_dir in path.parents for path in train_paths):
            raise ValueError(f"{root} has train/, but neither test/ nor val/: add one, or give --data_dir {train_dir}")
        train_labels, classes = _folder_labels(train_paths, root)
        test_labels = train_labels
        strata = torch.zeros(len(train_paths), dtype=torch.int64) if train_labels is None else train_labels
        train, test = _stratified(strata, max(1, round(0.2 * len(train_paths))))
        if not len(test):
            raise ValueError(f"{root} has one image per class, so none can be held out: add images, or a test folder")
    train = _limited(train, request.limit, f"{root} train")
    test = _limited(test, request.test_limit, f"{root} test")
    return Split(
        _folder_set(train_paths, train_labels, train, classes, size, f"{root} train"),
        _folder_set(test_paths, test_labels, test, classes, size, f"{root} test"),
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
    return torch.tensor([classes.index(name) for name in names if name is not None]), classes


def _test_labels(paths: Sequence[Path], root: Path, classes: tuple[str, ...]) -> Tensor | None:
    if not classes:
        return None
    names = [_class_name(path, root) for path in paths]
    for name, path in zip(names, paths, strict=True):
        if name not in classes:
            what = "in no class folder" if name is None else f"of the class {name!r}"
            raise ValueError(f"{path} is {what}, but the classes of the training images are {', '.join(classes)}")
    return torch.tensor([classes.index(name) for name in names if name is not None])


def _folder_set(
    paths: Sequence[Path], labels: Tensor | None, rows: Tensor, classes: tuple[str, ...], size: int, name: str
) -> ImageSet:
    images = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
    for image, row in zip(images, rows.tolist(), strict=True):
        image.copy_(_read_image(paths[row], size))
    return ImageSet(images, None if labels is None else labels[rows], classes, name)


def _read_image(path: Path, size: int) -> Tensor:
    """(3, size, size) uint8 RGB: upright by its EXIF tag, the shorter side resized to `size`, the centre cut out."""
    try:
        with Image.open(path) as file:
            image = _as_rgb(ImageOps.exif_transpose(file))
    except Exception as error:  # Pillow's decoders fail in many ways: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{path} cannot be read as an image ({error}): repair it or remove it") from error
    square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def _as_rgb(image: Image.Image) -> Image.Image:
    """RGB; transparent parts on white, as viewers show them."""
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255, which turns nearly every pixel white.
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if "A" in image.mode.upper() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


DATASETS: Mapping[str, Callable[[_Request], Split]] = {"digits": _digits, "cifar10": _cifar10, "folder": _folder}


class BatchSampler:
    """Batches of row numbers without end: every epoch a new permutation, its incomplete last batch dropped.

    Args:
        n: number of images.
        batch_size: images in a batch, at most n.
        generator: CPU generator; one permutation is drawn from it at the first batch of every epoch.

    Raises:
        ValueError: a batch of less than one image, or of more than there are.
    """

    def __init__(self, n: int, batch_size: int, generator: torch.Generator) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected 1 image or more")
        if batch_size > n:
            raise ValueError(f"batch_size is {batch_size}, but there are only {n} images: lower it, or raise the limit")
        self.n = n
        self.batch_size = batch_size
        self._generator = generator
        self._order = torch.empty(0, dtype=torch.int64)
        self._taken = self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.n // self.batch_size

    def next(self) -> Tensor:
        """(batch_size,) int64: the rows of the coming batch, none of them twice in an epoch."""
        if self._taken == self.steps_per_epoch:
            self._order = torch.randperm(self.n, generator=self._generator)
            self._taken = 0
        start = self._taken * self.batch_size
        self._taken += 1
        return self._order[start : start + self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands, the generator's state included: plain ints and tensors."""
        return {
            "n": self.n,
            "batch_size": self.batch_size,
            "taken": self._taken,
            "order": self._order.clone(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken, in the middle of an epoch too; sets the generator's state.

        Raises:
            ValueError: the state of a sampler over other data or batches.
        """
        for name in ("n", "batch_size"):
            if state[name] != getattr(self, name):
                ours = getattr(self, name)
                raise ValueError(f"the sampler's state has {name} {state[name]}, this run {ours}: resume with the same")
        self._taken = state["taken"]
        self._order = state["order"].clone()
        self._generator.set_state(state["generator"])
