"""The table of data sets: what is loaded, what is refused."""

import pickle
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.data.datasets import DATASETS, DataRequest, DatasetSpec, find_dataset, load_dataset
from astra_gym.ssl_core.data.image_set import Split
from tests.helpers.archives import checksum, draw, write_stl10


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


# --- digits


def test_digits_are_scikit_learns_scans_in_a_fixed_stratified_split() -> None:
    split = load_dataset("digits", image_size=8)
    assert (len(split.train), len(split.test)) == (1437, 360)
    assert split.train.classes == tuple("0123456789")
    from sklearn.datasets import load_digits

    scans = load_digits()
    expected = np.rint(scans.images * 255 / 16).astype(np.uint8)
    pairs = sorted((image.tobytes(), int(label)) for image, label in zip(expected, scans.target, strict=True))
    found = []
    for part in (split.train, split.test):
        assert part.labels is not None
        assert torch.equal(part.images[:, 0], part.images[:, 1]) and torch.equal(part.images[:, 0], part.images[:, 2])
        for image, label in zip(part.images[:, 0].contiguous().numpy(), part.labels.tolist(), strict=True):
            found.append((image.tobytes(), label))
    assert sorted(found) == pairs
    assert split.test.labels is not None
    exact = np.bincount(scans.target) * 360 / 1797
    assert (np.abs(torch.bincount(split.test.labels).numpy() - exact) < 1).all()


def test_digits_are_the_same_whatever_the_global_seed() -> None:
    torch.manual_seed(1)
    first = load_dataset("digits")
    torch.manual_seed(2)
    second = load_dataset("digits")
    assert first.train.images.shape == (1437, 3, 16, 16) and first.train.images.is_contiguous()
    assert torch.equal(first.train.images, second.train.images) and torch.equal(first.test.images, second.test.images)


def test_limits_take_nested_parts() -> None:
    small, large, whole = (load_dataset("digits", limit=n, test_limit=n) for n in (100, 300, None))
    assert (len(small.train), len(small.test), len(large.train)) == (100, 100, 300)
    assert torch.equal(large.train.images[:100], small.train.images)
    assert torch.equal(whole.test.images[:100], small.test.images)
    assert rows(large.train.images) <= rows(whole.train.images)
    assert large.train.labels is not None and torch.bincount(large.train.labels).min() >= 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digit"}, "unknown data set 'digit'.*did you mean 'digits'"),
        ({"limit": 0}, "digits train: 0 images were asked for, expected 1 to 1437"),
        ({"limit": 1438}, "digits train: 1438 images"),
        ({"test_limit": 361}, "digits test: 361 images were asked for, expected 1 to 360"),
        ({"image_size": 0}, "image_size is 0"),
        ({"data_dir": "here"}, "read from no folder, but data_dir is 'here'"),
        ({"name": "cifar10"}, "cifar10 is read from a folder.*give --data_dir.*cifar-10-batches-py"),
        ({"name": "cifar100"}, "cifar100 is read from a folder.*give --data_dir.*cifar-100-python"),
        ({"name": "stl10"}, "stl10 is read from a folder.*give --data_dir.*stl10_binary"),
        ({"name": "folder"}, "give --data_dir"),
        ({"cache_dir": "here"}, "cache_dir is 'here', but digits is not decoded from image files"),
        ({"name": "cifar10", "data_dir": "x", "cache_dir": "here"}, "cache_dir is 'here', but cifar10 is not decoded"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(**{"name": "digits", **arguments})


# --- cifar10


def test_cifar10_is_the_real_one(cifar10_dir: Path) -> None:
    split = load_dataset("cifar10", data_dir=str(cifar10_dir), download=False)
    assert split.train.images.shape == (50_000, 3, 32, 32) and split.test.images.shape == (10_000, 3, 32, 32)
    assert split.train.labels is not None and torch.bincount(split.train.labels).tolist() == [5000] * 10
    assert split.train.classes[:3] == ("airplane", "automobile", "bird")
    from torchvision.datasets import CIFAR10
    from torchvision.transforms.functional import pil_to_tensor

    with warnings.catch_warnings(action="ignore"):  # NumPy 2.4 warns of the pickle's dtype
        source = CIFAR10(str(cifar10_dir), train=False)
    assert split.test.labels is not None
    for k in (0, 1, 9_999):
        image, label = source[k]
        assert torch.equal(split.test.images[k], pil_to_tensor(image)) and split.test.labels[k] == label
    small = load_dataset("cifar10", data_dir=str(cifar10_dir), image_size=16, limit=2000, test_limit=1000)
    assert small.train.images.shape == (2000, 3, 16, 16) and small.test.images.shape == (1000, 3, 16, 16)
    assert small.test.labels is not None and torch.equal(small.test.labels, split.test.labels[:1000])
    assert small.train.labels is not None
    # Five standard deviations of a random choice.
    assert ((torch.bincount(small.train.labels) - 200).abs() < 5 * 13.5).all()


def test_an_incomplete_or_damaged_cifar10_is_named(cifar10_dir: Path, tmp_path: Path) -> None:
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for file in (cifar10_dir / "cifar-10-batches-py").iterdir():
        if file.name not in ("data_batch_3", "test_batch"):
            shutil.copy(file, batches)
    with pytest.raises(ValueError, match="incomplete: it lacks data_batch_3, test_batch"):
        load_dataset("cifar10", data_dir=str(tmp_path), download=False)
    for name in ("data_batch_3", "test_batch"):
        shutil.copy(cifar10_dir / "cifar-10-batches-py" / name, batches)
    (batches / "test_batch").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="damaged: a file's checksum"):
        load_dataset("cifar10", data_dir=str(tmp_path), download=False)


def test_a_missing_cifar10_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = r"there is no .*cifar-10-batches-py, and it may not be downloaded: unpack .*cifar-10-python.tar.gz"
    with pytest.raises(ValueError, match=expected):
        load_dataset("cifar10", data_dir=str(tmp_path), download=False)
    from torchvision.datasets import CIFAR10

    # A port at which nobody listens: the network is really asked, and really fails.
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(ValueError, match=r"there is no .*, and downloading it failed \(.*refused.*\): unpack"):
        load_dataset("cifar10", data_dir=str(tmp_path))


# --- cifar100 and stl10: archives in the official layout; of torchvision, only the checksums are changed


@pytest.fixture
def cifar100_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """300 and 120 images, which lie in rows of 3,072 bytes: red, green and blue, each line by line."""
    from torchvision.datasets import CIFAR100

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for seed, (name, n) in enumerate({"train": 300, "test": 120}.items()):
        fine = (np.arange(n) * 7 % 100).tolist()
        batch = {"data": draw(seed, n, 3072), "fine_labels": fine, "coarse_labels": [0] * n, "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = {"fine_label_names": [f"fine {k}" for k in range(100)], "coarse_label_names": ["coarse"] * 20}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    monkeypatch.setattr(CIFAR100, "train_list", [["train", checksum(folder / "train")]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", checksum(folder / "test")]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": checksum(folder / "meta")})
    return tmp_path


@pytest.fixture
def stl10_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without the unlabeled images."""
    return write_stl10(tmp_path, monkeypatch)


def test_cifar100_has_its_fine_classes(cifar100_dir: Path) -> None:
    split = load_dataset("cifar100", data_dir=str(cifar100_dir), download=False)
    for seed, part in enumerate((split.train, split.test)):
        n = (300, 120)[seed]
        assert torch.equal(part.images, torch.from_numpy(draw(seed, n, 3072)).reshape(n, 3, 32, 32))
        assert part.labels is not None and part.labels.tolist() == (np.arange(n) * 7 % 100).tolist()
        assert part.classes == tuple(f"fine {k}" for k in range(100)) and part.images.is_contiguous()
    assert (split.train.name, split.test.name) == ("cifar100 train", "cifar100 test")


def test_stl10_has_its_labeled_images_upright(stl10_dir: Path) -> None:
    split = load_dataset("stl10", data_dir=str(stl10_dir), download=False)
    for seed, part in enumerate((split.train, split.test)):
        n = (40, 30)[seed]
        assert torch.equal(part.images, torch.from_numpy(draw(seed, n, 3, 96, 96)).transpose(2, 3))
        assert part.labels is not None and part.labels.tolist() == (np.arange(n) * 3 % 10).tolist()
        assert part.classes == tuple(f"class {k}" for k in range(10)) and part.images.is_contiguous()
    assert (split.train.name, split.test.name) == ("stl10 train", "stl10 test")


def test_stl10s_unlabeled_images_are_trained_on_and_the_labeled_ones_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stl10(tmp_path, monkeypatch, unlabeled=50)
    given = {"data_dir": str(tmp_path), "download": False}
    split, labeled = load_dataset("stl10-unlabeled", **given), load_dataset("stl10", **given)
    assert torch.equal(split.train.images, torch.from_numpy(draw(9, 50, 3, 96, 96)).transpose(2, 3))
    assert (split.train.labels, split.train.classes) == (None, ())
    assert split.notes == ("40 labeled images for probes",)
    for one, other in ((split.probe_train, labeled.train), (split.test, labeled.test)):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert one.classes == other.classes
    assert labeled.probe_train is labeled.train
    fewer = load_dataset("stl10-unlabeled", **given, limit=7, test_limit=5, image_size=16)
    assert (len(fewer.train), len(fewer.probe_train), len(fewer.test)) == (7, 40, 5)
    assert fewer.train.images.shape[2:] == fewer.probe_train.images.shape[2:] == (16, 16)
    (tmp_path / "stl10_binary" / "unlabeled_X.bin").unlink()
    with pytest.raises(ValueError, match=r"stl10-unlabeled: .* is incomplete: it lacks unlabeled_X.bin"):
        load_dataset("stl10-unlabeled", **given)


@pytest.mark.parametrize("name", ["cifar100", "stl10"])
def test_archives_are_limited_and_resized(name: str, request: pytest.FixtureRequest) -> None:
    root = str(request.getfixturevalue(f"{name}_dir"))
    whole = load_dataset(name, data_dir=root)
    small, large = (load_dataset(name, data_dir=root, limit=n, test_limit=n) for n in (10, 25))
    assert torch.equal(large.train.images[:10], small.train.images)
    assert torch.equal(whole.test.images[:25], large.test.images)
    assert rows(large.train.images) < rows(whole.train.images)
    assert not torch.equal(whole.train.images[:10], small.train.images)
    known = {
        image.numpy().tobytes(): label
        for image, label in zip(whole.train.images, whole.train.labels.tolist(), strict=True)
    }
    assert [known[image.numpy().tobytes()] for image in large.train.images] == large.train.labels.tolist()
    resized = load_dataset(name, data_dir=root, image_size=24, limit=10, test_limit=10)
    assert resized.train.images.shape == resized.test.images.shape == (10, 3, 24, 24)
    exact = torch.nn.functional.interpolate(small.test.images.float(), (24, 24), mode="bicubic", antialias=True)
    assert (resized.test.images - exact.clamp(0, 255)).abs().max() <= 0.5
    with pytest.raises(ValueError, match=f"{name} train: 1000 images were asked for, expected 1 to {len(whole.train)}"):
        load_dataset(name, data_dir=root, limit=1000)
    with pytest.raises(ValueError, match=f"{name} test: 1000 images were asked for, expected 1 to {len(whole.test)}"):
        load_dataset(name, data_dir=root, test_limit=1000)


@pytest.mark.parametrize(
    ("name", "folder", "lost"),
    [
        ("cifar100", "cifar-100-python", ("test", "meta")),
        ("stl10", "stl10_binary", ("train_y.bin", "test_X.bin")),
        ("stl10", "stl10_binary", ("class_names.txt",)),
    ],
)
def test_an_incomplete_or_damaged_archive_is_named(
    name: str, folder: str, lost: tuple[str, ...], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = request.getfixturevalue(f"{name}_dir")
    for file in lost:
        (root / folder / file).rename(root / file)
    with pytest.raises(ValueError, match=f"{name}: .*{folder} is incomplete: it lacks {', '.join(lost)}, and it may"):
        load_dataset(name, data_dir=str(root), download=False)
    for file in lost:
        (root / file).rename(root / folder / file)
    load_dataset(name, data_dir=str(root), download=False)
    damaged = next((root / folder).glob("test*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{name}: .*{folder} is damaged: a file's checksum"):
        load_dataset(name, data_dir=str(root), download=False)


@pytest.mark.parametrize(("name", "folder"), [("cifar100", "cifar-100-python"), ("stl10", "stl10_binary")])
def test_a_missing_archive_says_what_to_do(
    name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=rf"{name}: there is no .*{folder}, and it may not be .*: unpack .*\.tar\.gz"):
        load_dataset(name, data_dir=str(tmp_path), download=False)
    from torchvision import datasets

    monkeypatch.setattr(getattr(datasets, name.upper()), "url", "http://127.0.0.1:9/archive.tar.gz")
    with pytest.raises(ValueError, match=r"there is no .*, and downloading it failed \(.*refused.*\): unpack"):
        load_dataset(name, data_dir=str(tmp_path))


@pytest.mark.parametrize("failure", ["ImportError('no torchvision')", "RuntimeError('operator nms does not exist')"])
def test_a_torchvision_that_does_not_match_is_explained(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(f"raise {failure}\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="install a pair of torch and torchvision"):
        load_dataset("cifar10", data_dir=str(tmp_path))


def test_the_table_names_the_data_sets() -> None:
    assert list(DATASETS) == ["digits", "cifar10", "cifar100", "stl10", "stl10-unlabeled", "tiny-imagenet", "folder"]


def _negative(request: DataRequest) -> Split:
    split = load_dataset("digits", image_size=request.image_size)
    return Split(*(replace(part, images=255 - part.images) for part in (split.train, split.test)), notes=("negative",))


NEGATIVE = DatasetSpec(load=_negative)
SIZE = DatasetSpec(load=lambda request: load_dataset("digits", image_size=10))
NOTHING = DatasetSpec(load=lambda request: None)  # type: ignore[arg-type, return-value]


def test_a_custom_data_set_is_loaded_by_its_path_with_the_size_and_limits_asked_for() -> None:
    found = load_dataset(f"{__name__}:NEGATIVE", image_size=8, limit=20, test_limit=5)
    plain = load_dataset("digits", image_size=8)
    assert (len(found.train), len(found.test), found.notes) == (20, 5, ("negative",))
    assert torch.equal(found.train.images, 255 - plain.train.images[:20])
    assert found.test.labels is not None and torch.equal(found.test.labels, plain.test.labels[:5])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("SIZE", {"image_size": 8}, r"gives images of \(10, 10\): expected \(8, 8\), by --image_size"),
        ("NOTHING", {}, "gives a NoneType: expected a Split"),
        ("NEGATIVE", {"limit": 2000}, "2000 images were asked for, expected 1 to 1437"),
        ("NEGATIVE", {"classes": "x"}, r"classes is 'x', but .* is not decoded from image files"),
        (
            "NEGATIVE",
            {"cache_dir": "x"},
            r"not decoded from image files.*\(only tiny-imagenet, folder take it\)",
        ),
        ("_negative", {}, "is a function: expected an astra_gym.ssl_core.data.datasets.DatasetSpec"),
    ],
)
def test_a_bad_custom_data_set_is_refused(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(f"{__name__}:{name}", **arguments)


def test_one_record_says_all_of_a_data_set() -> None:
    assert {name: spec.preset for name, spec in DATASETS.items()} == {
        "digits": "digits",
        **dict.fromkeys(("cifar10", "cifar100", "stl10", "stl10-unlabeled"), "cifar10-quick"),
        **dict.fromkeys(("tiny-imagenet", "folder"), "folder"),
    }
    assert all(spec.summary for spec in DATASETS.values()) and [n for n, s in DATASETS.items() if s.cached] == [
        "tiny-imagenet",
        "folder",
    ]
    assert {name: spec.evaluated for name, spec in DATASETS.items() if spec.evaluated} == {"stl10-unlabeled": "stl10"}
    assert find_dataset("stl10").sizes == (5_000, 8_000) and not find_dataset("stl10").finetuned
