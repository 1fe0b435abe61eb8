"""How folders are laid out: a split in people's spellings, classes, and what may be meant in two ways is refused."""

import os
from pathlib import Path

import pytest
from PIL import Image

from astra_gym.ssl_core.data.folder_layout import find_split, part_of_split
from astra_gym.ssl_core.data.image_folder import load_folder
from astra_gym.ssl_core.data.image_set import Split

CLASSES = ("cat", "dog", "owl")


def paint(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(path)


def lay_out(root: Path, *folders: str, each: int = 3) -> Path:
    """So many images in every folder, all different."""
    for place, folder in enumerate(folders):
        for k in range(each):
            paint(root / folder / f"{k}.png", 300 * place + k)
    return root


def halves(root: Path, train: str, test: str) -> Path:
    return lay_out(root, *(f"{half}/{name}" for half in (train, test) for name in CLASSES))


def load(root: Path, cache: Path | None = None) -> Split:
    return load_folder(str(root), size=8, cache_dir=None if cache is None else str(cache))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "valid"),
        ("train", "validation"),
        ("Train", "Test"),
        ("training", "testing"),
        ("TRAIN", "DEV"),
        ("Training_Set", "Test_Set"),
        ("TrainImages", "val"),
        ("seg_train", "seg_test"),
        ("train2017", "val2017"),
        ("trainval", "test-data"),
        ("train_val", "holdout"),
    ],
)
def test_a_split_in_peoples_spellings_is_the_split(train: str, test: str, tmp_path: Path) -> None:
    root = halves(tmp_path / "pets", train, test)
    lay_out(root, "notes-and-extras")
    for cache in (None, tmp_path / "cache"):
        data = load(root, cache)
        assert data.train.classes == data.test.classes == CLASSES
        assert {path.relative_to(root).parts[0] for path in data.train.paths} == {train}
        assert {path.relative_to(root).parts[0] for path in data.test.paths} == {test}
        assert (len(data.train), len(data.test)) == (9, 9)
        assert data.notes == (f"divided by {train}/ and {test}/", "not read: notes-and-extras/")


def test_words_within_other_words_are_no_split() -> None:
    for name in ("trains", "tester", "contest", "valley", "evaluate", "latest", "restrain", "device", "cats", "2017"):
        assert part_of_split(name) is None, name
    assert part_of_split("train_station") == ("train", ("station",))
    assert part_of_split("test_tube") == ("test", ("tube",))


def test_what_was_read_before_is_read_the_same(tmp_path: Path) -> None:
    """`train` beside `test`, else beside `val`, whatever else there is; a class called `train` among others."""
    root = halves(tmp_path / "a", "train", "val")
    lay_out(root, "Testing/cat", "validation/cat")
    assert find_split(root) == ("train", "val")
    lay_out(root, "test/cat")
    assert find_split(root) == ("train", "test")
    vehicles = lay_out(tmp_path / "b", "bus", "car", "train", each=5)
    assert load(vehicles).train.classes == ("bus", "car", "train")
    stations = lay_out(tmp_path / "c", "train_station", "test_tube", "val_d_isere", each=5)
    assert load(stations).train.classes == ("test_tube", "train_station", "val_d_isere")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ("Train/a", "Train/b", "Test/c"),
            r"Train/ and Test/ are either the halves.*lacks \(c/\): expected train/",
        ),
        (("Train/a", "training/a", "Test/a"), r"several ways, by Train/, training/ and Test/: leave one"),
        (("training/a", "valid/a", "Val/a"), r"several ways, by training/ and Val/, valid/"),
        (
            ("bus", "Train", "Valid"),
            r"Train/ and Valid/ are either the halves of a split or classes like bus/: expected",
        ),
        (("train/a", "train/b", "other/a"), r"train/ and other/ hold the same folders \(a/\).*expected train/CLASS"),
        (("Testing/a", "Testing/b"), r"has Testing/, but no train/: add it, or give --data_dir .*Testing"),
        (
            ("archive/train/a", "archive/test/a"),
            r"archive is divided into train/ and test/, which would be mixed",
        ),
        (("cat/Train", "cat/Valid", "dog/Train"), r"cat is divided into Train/ and Valid/, which would be mixed"),
        (("train/train/a", "train/val/a", "test/a"), r"train is divided into train/ and val/"),
    ],
)
def test_what_may_be_meant_in_two_ways_is_refused(folders: tuple[str, ...], message: str, tmp_path: Path) -> None:
    root = lay_out(tmp_path, *folders)
    with pytest.raises(ValueError, match=message) as refused:
        load(root)
    assert len(str(refused.value).replace(str(root), "")) < 300


def test_other_kinds_of_files_are_counted(tmp_path: Path) -> None:
    root = lay_out(tmp_path, *CLASSES)
    for name in ("a.HEIC", "b.heic", "sub/c.heic", "notes.txt", "README", "x.averyveryverylongsuffix"):
        path = root / "dog" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no image")
    paint(root / "dog" / ".hidden.gif")
    assert load(root).notes == (
        "a fifth is held out",
        "skipped 6 files (3 .heic, 1 .txt, 1 of other kinds, 1 without a suffix)",
    )


@pytest.mark.parametrize("half", ["", "train/", "test/"])
def test_a_class_without_an_image_is_an_error(half: str, tmp_path: Path) -> None:
    root = halves(tmp_path, "train", "test") if half else lay_out(tmp_path, *CLASSES)
    (root / half / "rat").mkdir()
    with pytest.raises(ValueError, match=r"rat is a class folder without an image \(and no other file\): expected"):
        load(root)
    (root / half / "rat" / "1.heic").write_text("no image")
    (root / half / "yak").mkdir()
    with pytest.raises(ValueError, match=r"rat is .* \(but 1 \.heic\), like 1 more"):
        load(root)


def test_folders_beside_images_without_classes_are_no_classes(tmp_path: Path) -> None:
    root = lay_out(tmp_path, ".", "some", each=5)
    (root / "annotations").mkdir()
    (root / "annotations" / "0.xml").write_text("<x/>")
    (root / "__MACOSX" / "x").mkdir(parents=True)
    data = load(root)
    assert data.train.labels is None
    assert data.notes[1:] == (
        "no labels, since 5 images lie in no class folder (0.png, 1.png, 2.png and 2 more)",
        "skipped 1 file (1 .xml)",
    )
    assert (
        load(lay_out(tmp_path / "one", "all", each=5)).notes[1]
        == "no labels, since all images lie in one folder (all/)"
    )


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay_out(tmp_path / "pets", *CLASSES, each=5)
    scandir = os.scandir

    def denying(path: Path) -> object:
        # what the system says to anybody but root
        if Path(path).name == "owl":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denying)
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(ValueError, match=r"owl cannot be read \(Permission denied\): make it readable"):
            load(root, cache)


@pytest.mark.parametrize("name", ["owl", "cat/9.png"])
def test_a_link_to_nothing_and_a_pipe_are_errors(name: str, tmp_path: Path) -> None:
    root = lay_out(tmp_path / "pets", "cat", "dog", each=5)
    (root / name).symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=f"{name} is a link to nothing: repair it or remove it"):
        load(root)
    (root / name).unlink()
    (root / name).symlink_to(root / name)
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        load(root)
    (root / name).unlink()
    os.mkfifo(root / "cat" / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png is not a file that can be read as an image"):
        load(root)


def test_links_to_classes_are_classes(tmp_path: Path) -> None:
    lay_out(tmp_path / "store", "cat", "dog", each=5)
    (tmp_path / "pets").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).symlink_to(tmp_path / "store" / name)
    assert load(tmp_path / "pets").train.classes == ("cat", "dog")
