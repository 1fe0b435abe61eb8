"""Folders of images: their classes, their split, what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from astra_gym.ssl_core.data.datasets import load_dataset

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def paint(path: Path, color: tuple[int, int, int] = RED, size: tuple[int, int] = (40, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


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
    with pytest.raises(
        ValueError, match=r"0.png is of the class 'c', but the classes of the training images are a, b: move"
    ):
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


def pictures(root: Path) -> Path:
    """Twenty images in two classes, all different."""
    for k in range(20):
        paint(root / "ab"[k % 2] / f"{k:02}.png", (10 * k, 0, 0))
    return root


def test_from_the_cache_comes_the_same_data_set(tmp_path: Path) -> None:
    root = pictures(tmp_path / "pictures")
    told: list[tuple[int, int]] = []
    for limit in (None, 7):
        plain = load_dataset("folder", data_dir=str(root), image_size=8, limit=limit)
        for _ in range(2):
            cached = load_dataset(
                "folder",
                data_dir=str(root),
                image_size=8,
                limit=limit,
                cache_dir=str(tmp_path / "cache"),
                on_progress=lambda done, total: told.append((done, total)),
            )
            for mine, other in ((cached.train, plain.train), (cached.test, plain.test)):
                assert torch.equal(mine.images, other.images) and mine.images.shape == other.images.shape
                assert mine.labels is not None and other.labels is not None and torch.equal(mine.labels, other.labels)
                assert (mine.classes, mine.name) == (other.classes, other.name)
                assert other.file is None and mine.file is not None and mine.file.parent == tmp_path / "cache"
    # all 16 and 4; then 7, and the test images are there already
    assert [(done, total) for done, total in told if done == total] == [(16, 16), (4, 4), (7, 7)]


def test_a_folder_that_changes_is_decoded_again(tmp_path: Path) -> None:
    root, cache = pictures(tmp_path / "pictures"), str(tmp_path / "cache")
    load_dataset("folder", data_dir=str(root), image_size=8, cache_dir=cache)
    paint(root / "a" / "new.png", BLUE)
    for k in range(20):
        paint(root / "ab"[k % 2] / f"{k:02}.png", (0, 10 * k, 0), (41, 41))
    cached, plain = (load_dataset("folder", data_dir=str(root), image_size=8, cache_dir=dir) for dir in (cache, None))
    assert torch.equal(cached.train.images, plain.train.images) and torch.equal(cached.test.images, plain.test.images)


def test_images_that_would_fill_the_memory_are_refused_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pictures(tmp_path / "pictures")
    bytes_of_all = 20 * 3 * 8 * 8
    expected = (
        r"20 images take 0\.0 GB, more than half of the 0\.0 GB of memory.*: keep them on disk by --cache_dir DIR"
    )
    monkeypatch.setattr("astra_gym.ssl_core.data.image_files.available", lambda device: 2 * bytes_of_all - 1)
    with pytest.raises(ValueError, match=expected):
        load_dataset("folder", data_dir=str(root), image_size=8)
    load_dataset("folder", data_dir=str(root), image_size=8, limit=15)
    load_dataset("folder", data_dir=str(root), image_size=8, cache_dir=str(tmp_path / "cache"))
    for free in (2 * bytes_of_all, None):
        monkeypatch.setattr("astra_gym.ssl_core.data.image_files.available", lambda device, free=free: free)
        load_dataset("folder", data_dir=str(root), image_size=8)
