"""Data sets: what is loaded, what is refused, and that the sampler goes on where it was."""

import io
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ssl_core.datasets import DATASETS, BatchSampler, ImageSet, load_dataset

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def paint(path: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (40, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def flat(colour: tuple[int, int, int], size: int = 32) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, size, size)


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
        ({"name": "cifar10"}, "give --data_dir"),
        ({"name": "folder"}, "give --data_dir"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(**{"name": "digits", **arguments})


def test_image_sets_check_themselves() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    labels = torch.arange(4)
    first = ImageSet(images, labels, ("a", "b", "c", "d"), "toy").take(2)
    assert len(first) == 2 and first.labels is not None and first.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="toy: 5 images were asked for, expected 1 to 4"):
        ImageSet(images, None, (), "toy").take(5)
    with pytest.raises(ValueError, match=r"toy: images are torch.float32.*expected uint8"):
        ImageSet(images.float(), None, (), "toy")
    with pytest.raises(
        ValueError, match=r"toy: labels are torch.int64 of shape \(3,\), expected int64 of shape \(4,\)"
    ):
        ImageSet(images, labels[:3], (), "toy")


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


# --- folder


def test_a_folder_of_classes_is_split_by_class(tmp_path: Path) -> None:
    for k in range(10):
        paint(tmp_path / "cats" / f"{k}.png", (k, 0, 0))
        paint(tmp_path / "dogs" / "deep" / "er" / f"{k}.JPEG", (0, 100 + 10 * k, 0))
    paint(tmp_path / "birds" / "one.webp", BLUE)
    (tmp_path / "cats" / "notes.txt").write_text("no image")
    paint(tmp_path / "cats" / ".hidden.png", WHITE)
    paint(tmp_path / ".cache" / "thumb.png", WHITE)
    split = load_dataset("folder", data_dir=str(tmp_path))
    assert split.train.classes == split.test.classes == ("birds", "cats", "dogs")
    assert split.train.labels is not None and split.test.labels is not None
    assert torch.bincount(split.train.labels).tolist() == [1, 8, 8]
    assert torch.bincount(split.test.labels, minlength=3).tolist() == [0, 2, 2]
    assert not rows(split.train.images) & rows(split.test.images)
    for image, label in zip(split.train.images, split.train.labels, strict=True):
        assert int(image.float().mean(dim=(1, 2)).argmax()) == {0: 2, 1: 0, 2: 1}[int(label)] or image.sum() == 0
    again = load_dataset("folder", data_dir=str(tmp_path))
    assert torch.equal(again.train.images, split.train.images) and torch.equal(again.test.images, split.test.images)


def test_a_folder_that_has_a_split_keeps_it(tmp_path: Path) -> None:
    for k in range(6):
        paint(tmp_path / "train" / "ab"[k % 2] / f"{k}.bmp", (k, 0, 0))
    for k in range(4):
        paint(tmp_path / "val" / "ab"[k % 2] / f"{k}.bmp", (0, k, 0))
    split = load_dataset("folder", data_dir=str(tmp_path), image_size=8)
    assert split.train.images.shape == (6, 3, 8, 8) and split.test.images.shape == (4, 3, 8, 8)
    assert split.train.labels is not None and torch.equal(split.train.images[:, 0, 0, 0] % 2, split.train.labels)
    assert split.test.labels is not None and torch.equal(split.test.images[:, 1, 0, 0] % 2, split.test.labels)
    paint(tmp_path / "test" / "a" / "0.png", BLUE)
    assert len(load_dataset("folder", data_dir=str(tmp_path)).test) == 1
    paint(tmp_path / "test" / "c" / "0.png", BLUE)
    with pytest.raises(ValueError, match=r"0.png is of the class 'c', but the classes of the training images are a, b"):
        load_dataset("folder", data_dir=str(tmp_path))
    shutil.rmtree(tmp_path / "test" / "c")
    paint(tmp_path / "test" / "stray.png", BLUE)
    with pytest.raises(ValueError, match=r"stray.png is in no class folder"):
        load_dataset("folder", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    "names",
    [("1.png", "2.png", "3.png"), ("one/1.png", "one/2.png", "one/3.png"), ("one/1.png", "two/2.png", "3.png")],
    ids=["no folders", "a single class", "an image outside the classes"],
)
def test_a_folder_without_classes_has_no_labels(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        paint(tmp_path / name)
    split = load_dataset("folder", data_dir=str(tmp_path))
    assert (len(split.train), len(split.test)) == (2, 1)
    assert split.train.labels is None and split.test.labels is None and split.train.classes == ()


def test_only_the_limited_images_of_a_folder_are_read(tmp_path: Path) -> None:
    for k in range(20):
        paint(tmp_path / f"{k:02}.png", (k, 0, 0))
    some = load_dataset("folder", data_dir=str(tmp_path), limit=3, test_limit=1)
    for k in {*range(20)} - {*some.train.images[:, 0, 0, 0].tolist(), *some.test.images[:, 0, 0, 0].tolist()}:
        (tmp_path / f"{k:02}.png").write_bytes(b"")
    again = load_dataset("folder", data_dir=str(tmp_path), limit=3, test_limit=1)
    assert torch.equal(again.train.images, some.train.images)
    with pytest.raises(ValueError, match="train: 17 images were asked for, expected 1 to 16"):
        load_dataset("folder", data_dir=str(tmp_path), limit=17)


def read_one(tmp_path: Path, save: Callable[[Path], None], suffix: str = "png") -> Tensor:
    """The image that `save` writes, as it is loaded (a twin is needed, since one image is held out)."""
    for name in ("first", "twin"):
        save(tmp_path / f"{name}.{suffix}")
    return load_dataset("folder", data_dir=str(tmp_path)).train.images[0]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("LA", (10, 255), (10, 10, 10)),
        ("I;16", 257 * 77, (77, 77, 77)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: object, expected: tuple[int, int, int], tmp_path: Path) -> None:
    image = read_one(tmp_path, Image.new(mode, (40, 40), colour).save)
    assert torch.equal(image, flat(expected))


def test_palettes_become_rgb_with_transparent_entries_white(tmp_path: Path) -> None:
    indexed = Image.new("P", (64, 32), 0)
    indexed.putpalette([*GREEN, *BLUE])
    indexed.paste(1, (32, 0, 64, 32))
    image = read_one(tmp_path, lambda path: indexed.save(path, transparency=b"\xff\x00"))
    assert torch.equal(image[:, :, :16], flat(GREEN)[:, :, :16])
    assert torch.equal(image[:, :, 16:], flat(WHITE)[:, :, 16:])


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    sideways = Image.new("RGB", (32, 32), RED)
    sideways.paste(BLUE, (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the top comes to the right
    image = read_one(tmp_path, lambda path: sideways.save(path, exif=exif))
    assert torch.equal(image[:, :, 16:], flat(BLUE)[:, :, 16:]) and torch.equal(image[:, :, :16], flat(RED)[:, :, :16])


def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path: Path) -> None:
    wide = Image.new("RGB", (256, 64), RED)
    wide.paste(BLUE, (96, 0, 160, 64))
    image = read_one(tmp_path, wide.save)
    # Resampling blurs the two edges of the square.
    assert torch.equal(image[:, :, 2:-2], flat(BLUE)[:, :, 2:-2])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    image = read_one(tmp_path, noise.save)
    from torchvision.transforms.functional import InterpolationMode, pil_to_tensor, resize

    assert torch.equal(image, pil_to_tensor(resize(noise, [32, 32], InterpolationMode.BICUBIC)))


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"no image at all", png()[:2000]], ids=["empty", "text", "truncated"])
def test_a_corrupt_image_is_named(content: bytes, tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    paint(tmp_path / "b.png")
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image \(.+\): repair it or remove it"):
        load_dataset("folder", data_dir=str(tmp_path))


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        load_dataset("folder", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"holds no image: expected \.png"):
        load_dataset("folder", data_dir=str(tmp_path))
    paint(tmp_path / "a" / "1.png")
    with pytest.raises(ValueError, match="holds a single image"):
        load_dataset("folder", data_dir=str(tmp_path))
    paint(tmp_path / "b" / "1.png")
    with pytest.raises(ValueError, match="has one image per class"):
        load_dataset("folder", data_dir=str(tmp_path))


def test_a_train_folder_alone_is_not_taken_for_a_class(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        paint(tmp_path / "train" / name)
    with pytest.raises(
        ValueError, match=r"has train/, but neither test/ nor val/: add one, or give --data_dir .*train"
    ):
        load_dataset("folder", data_dir=str(tmp_path))
    assert load_dataset("folder", data_dir=str(tmp_path / "train")).train.classes == ("a", "b")


# --- sampler


def test_an_epoch_is_a_permutation_without_its_incomplete_end() -> None:
    sampler = BatchSampler(10, 3, torch.Generator().manual_seed(0))
    assert sampler.steps_per_epoch == 3
    epochs = [torch.cat([sampler.next() for _ in range(3)]) for _ in range(200)]
    for epoch in epochs:
        assert epoch.dtype == torch.int64 and len(epoch.unique()) == 9
    assert not torch.equal(epochs[0], epochs[1])
    # Every image is left out of about a tenth of the epochs.
    left_out = 200 - torch.bincount(torch.cat(epochs), minlength=10)
    assert ((left_out - 20).abs() < 5 * (200 * 0.09) ** 0.5).all()


@pytest.mark.parametrize("taken", [0, 1, 4, 5, 7])
def test_a_sampler_goes_on_where_it_was(taken: int, tmp_path: Path) -> None:
    sampler = BatchSampler(23, 5, torch.Generator().manual_seed(3))
    for _ in range(taken):
        sampler.next()
    torch.save(sampler.state_dict(), tmp_path / "sampler.pt")
    expected = [sampler.next() for _ in range(12)]
    other = BatchSampler(23, 5, torch.Generator().manual_seed(99))
    other.next()
    other.load_state_dict(torch.load(tmp_path / "sampler.pt", weights_only=True))
    assert all(torch.equal(other.next(), batch) for batch in expected)


def test_a_state_is_not_changed_by_going_on() -> None:
    sampler = BatchSampler(8, 4, torch.Generator().manual_seed(3))
    sampler.next()
    state = sampler.state_dict()
    second = sampler.next()
    sampler.next()
    sampler.load_state_dict(state)
    assert torch.equal(sampler.next(), second)


def test_impossible_batches_and_foreign_states_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 11, but there are only 10 images"):
        BatchSampler(10, 11, torch.Generator())
    with pytest.raises(ValueError, match="batch_size is 0"):
        BatchSampler(10, 0, torch.Generator())
    state = BatchSampler(10, 5, torch.Generator()).state_dict()
    with pytest.raises(ValueError, match="batch_size 5, this run 2"):
        BatchSampler(10, 2, torch.Generator()).load_state_dict(state)
    with pytest.raises(ValueError, match="n 10, this run 11"):
        BatchSampler(11, 5, torch.Generator()).load_state_dict(state)


def test_the_table_names_the_data_sets() -> None:
    assert list(DATASETS) == ["digits", "cifar10", "folder"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for k in range(5):
            pixels = np.full((8, 8, 3), 10 * k, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{k}.png")
    (tmp_path / "pictures" / "a" / "again").symlink_to(tmp_path / "pictures")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "pictures")
    data = load_dataset("folder", data_dir=str(tmp_path / "elsewhere"), image_size=8, limit=None, test_limit=None)
    assert len(data.train) + len(data.test) == 10
