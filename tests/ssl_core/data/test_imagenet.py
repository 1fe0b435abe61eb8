"""ImageNet's layouts, in small files: a list of classes, and Tiny-ImageNet's own folders."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.data.imagenet import read_classes

CLASSES = ("n01443537", "n01629819", "n01641577")
"""The red, the green and the blue one."""


def paint(path: Path, place: int, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    color = [0, 0, 0]
    color[place] = shade
    Image.new("RGB", (64, 64), tuple(color)).save(path, format="PNG")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """As the archive unpacks, but with three classes; the validation images are in no order of classes."""
    lines = []
    for place, name in enumerate(CLASSES):
        for k in range(4):
            paint(tmp_path / "train" / name / "images" / f"{name}_{k}.JPEG", place, 100 + k)
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("")
    for k in range(6):
        paint(tmp_path / "val" / "images" / f"val_{k}.JPEG", 2 - k % 3, 200 + k)
        lines.append(f"val_{k}.JPEG\t{CLASSES[2 - k % 3]}\t0\t0\t62\t62\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    paint(tmp_path / "test" / "images" / "test_0.JPEG", 0, 1)
    return tmp_path


def check_colors(split: Split) -> None:
    """Labels are those of the colors, brightest channel first."""
    for part in (split.train, split.test):
        assert part.labels is not None
        brightest = part.images.float().mean(dim=(2, 3)).argmax(1)
        names = [CLASSES[place] for place in brightest.tolist()]
        assert names == [part.classes[label] for label in part.labels.tolist()]


def test_tiny_imagenet_is_read_as_it_is_published(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    split = load_dataset("tiny-imagenet", data_dir=str(tiny))
    assert (len(split.train), len(split.test), split.train.classes) == (12, 6, CLASSES)
    assert split.train.images.shape[2:] == (64, 64)
    check_colors(split)
    assert split.notes == ("divided by train/ and val/, labels of val/ from val_annotations.txt", "not read: test/")
    few = load_dataset("tiny-imagenet", data_dir=str(tiny), limit=5, test_limit=2, image_size=16)
    assert few.train.paths == split.train.paths[:5] and few.test.paths == split.test.paths[:2]
    cache = tmp_path_factory.mktemp("cache")
    kept = load_dataset("tiny-imagenet", data_dir=str(tiny), cache_dir=str(cache))
    assert torch.equal(kept.train.images, split.train.images) and any(cache.iterdir())


def test_a_list_of_classes_reads_those_only(tiny: Path) -> None:
    chosen = tiny / "two.txt"
    chosen.write_text(f"# of ImageNet-100\n{CLASSES[2]} tailed frog\n\n{CLASSES[0]}\n")
    assert read_classes(str(chosen)) == (CLASSES[0], CLASSES[2])
    split = load_dataset("tiny-imagenet", data_dir=str(tiny), classes=str(chosen))
    assert (len(split.train), len(split.test), split.train.classes) == (8, 4, (CLASSES[0], CLASSES[2]))
    check_colors(split)


@pytest.mark.parametrize("halves", [("train", "val"), ()])
def test_a_folder_takes_a_list_of_classes_too(halves: tuple[str, ...], tmp_path: Path) -> None:
    """A class that is not listed may even be empty, and what lies beside the classes is not read."""
    root = tmp_path / "imagenet"
    for half in halves or (".",):
        for place, name in enumerate(CLASSES):
            for k in range(5):
                paint(root / half / name / f"{half.strip('.')}{k}.png", place, 100 + k)
        (root / half / "n09999999").mkdir()
        paint(root / half / "stray.png", 0, 9)
    chosen = tmp_path / "chosen.txt"
    chosen.write_text("\n".join(CLASSES[1:]))
    split = load_dataset("folder", data_dir=str(root), classes=str(chosen))
    assert split.train.classes == CLASSES[1:]
    assert (len(split.train), len(split.test)) == ((10, 10) if halves else (8, 2))
    check_colors(split)
    chosen.write_text("n00000001\n" + "\n".join(CLASSES))
    with pytest.raises(ValueError, match="has no images of n00000001, which the list of classes names"):
        load_dataset("folder", data_dir=str(root), classes=str(chosen))
    chosen.write_text("n00000001\nn00000002")
    with pytest.raises(ValueError, match="holds no image of n00000001, n00000002: its class folders are"):
        load_dataset("folder", data_dir=str(root), classes=str(chosen))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\nb\na x", "names a twice"), ("a\n# b", "names a: expected two or more"), (None, "cannot be read")],
)
def test_a_bad_list_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_classes(str(tmp_path / "list.txt"))


def test_another_layout_and_missing_annotations_are_named(tiny: Path) -> None:
    with pytest.raises(ValueError, match="give --data_dir DIR, the unpacked tiny-imagenet-200"):
        load_dataset("tiny-imagenet")
    with pytest.raises(ValueError, match="take the data set tiny-imagenet"):
        load_dataset("folder", data_dir=str(tiny))
    annotations = tiny / "val" / "val_annotations.txt"
    lines = annotations.read_text().splitlines()
    for text, message in (
        ("\n".join(lines[1:]), "val_0.JPEG has no line in val_annotations.txt"),
        ("\n".join(lines).replace(CLASSES[0], "n7"), "the class 'n7', which train/ lacks"),
        ("val_0.JPEG n01443537", "line 1: expected an image, its class and a box"),
    ):
        annotations.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_dataset("tiny-imagenet", data_dir=str(tiny))
    annotations.unlink()
    with pytest.raises(ValueError, match="for val/CLASS/IMAGE take the data set folder"):
        load_dataset("tiny-imagenet", data_dir=str(tiny))
