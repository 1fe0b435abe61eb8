"""The layout of a folder of images: the folders of a split, the class folders, and other files."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
JUNK = ("__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information")
"""Folders made by operating systems and archives: ignored, like hidden ones."""
TRAIN, TEST, VAL = "train", "test", "val"
WORDS: Mapping[str, str] = (
    dict.fromkeys(("train", "training", "trainval"), TRAIN)
    | dict.fromkeys(("test", "testing"), TEST)
    | dict.fromkeys(("val", "valid", "validate", "validation", "dev", "devel", "development"), VAL)
    | dict.fromkeys(("eval", "evaluation", "holdout", "heldout"), VAL)
)
"""Words for a part of a split, in lower case."""
FILLERS = ("set", "dataset", "data", "images", "image", "imgs", "img", "split", "folder")
"""Words without meaning beside a word for a part of a split: `test_set`, `TrainImages`."""
LONGEST_SUFFIX = 10
SHOWN = 3
"""Largest number of names in a message."""


@dataclass(frozen=True)
class ImageTree:
    """The content of a folder and its subfolders.

    Attributes:
        root: the folder.
        paths: its images, in an order that does not depend on the file system.
        folders: the folders that hold images directly, with the root if it holds some.
        skipped: numbers of files that are no images, by `suffix_of`.
        empty: first-level folders that hold no image, each with the numbers of its files, by `suffix_of`.
    """

    root: Path
    paths: Sequence[Path]
    folders: Sequence[Path]
    skipped: Mapping[str, int]
    empty: Mapping[str, Mapping[str, int]]

    @property
    def below(self) -> dict[tuple[str, ...], set[str]]:
        """Names of the folders with images in or below them, by the parts of their parent's path from the root."""
        found: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for folder in self.folders:
            parts = folder.relative_to(self.root).parts
            for depth, name in enumerate(parts):
                found[parts[:depth]].add(name)
        return found


def suffix_of(name: str) -> str:
    """Return the kind of a file for a count, such as `.heic`: its suffix in lower case, if it has a short one."""
    suffix = os.path.splitext(name)[1].lower()
    if len(suffix) < 2:
        return "without a suffix"
    return suffix if len(suffix) <= LONGEST_SUFFIX and suffix.isprintable() else "of other kinds"


def counted(kinds: Mapping[str, int]) -> str:
    """Format counts by kind, the largest first: `12 .heic, 1 .txt`."""
    first = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    more = sum(count for _, count in first[5:])
    return ", ".join([f"{count:,} {kind}" for kind, count in first[:5]] + ([f"{more:,} others"] if more else []))


def named(names: Iterable[str], mark: str = "/") -> str:
    """Format a few of the names, each with a mark after it, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"{name}{mark}" for name in names[:SHOWN]) + more


def scan(root: Path, only: Collection[str] = ()) -> ImageTree:
    """Find every image below a folder except hidden ones; links to folders are followed, once.

    Args:
        root: the folder.
        only: names of the first-level folders that are read, and nothing beside them; empty: everything.

    Raises:
        ValueError: if a folder or a link cannot be read, an entry named like an image is no file, or there is no image.
    """
    paths, folders, walked = list[Path](), list[Path](), set[str]()
    tops: dict[str, Counter[str]] = {}
    skipped, holding = Counter[str](), set[str]()
    todo = [(root, "")]
    while todo:
        folder, top = todo.pop()
        walked.add(os.path.realpath(folder))
        inner, before = [], len(paths)
        for name, is_folder in _listed(folder):
            if is_folder:
                inner.append(name)
            elif only and not top:
                skipped[suffix_of(name)] += 1
            elif name.lower().endswith(IMAGE_SUFFIXES):
                paths.append(folder / name)
            else:
                skipped[suffix_of(name)] += 1
                if top:
                    tops[top][suffix_of(name)] += 1
        if len(paths) > before:
            folders.append(folder)
            holding.add(top)
        inner = [name for name in inner if os.path.realpath(folder / name) not in walked]
        if not top:
            inner = [name for name in inner if not only or name in only]
            tops |= {name: Counter() for name in inner}
        todo += [(folder / name, top or name) for name in reversed(inner)]
    if not paths:
        if only:
            raise ValueError(f"{root} holds no image of {named(sorted(only), '')}: {_class_folders(root)}")
        instead = f" (but {counted(skipped)})" if skipped else ""
        raise ValueError(f"{root} holds no image{instead}: expected {', '.join(IMAGE_SUFFIXES)} files in it or below")
    empty = {name: kinds for name, kinds in tops.items() if name not in holding}
    return ImageTree(root, sorted(paths), folders, skipped, empty)


def _listed(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield the name of each entry of a folder that is not hidden, sorted, and whether it is a folder."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in JUNK:
                    continue
                is_folder = entry.is_dir()
                # A link to nothing may be meant as a class, and opening a pipe would wait forever.
                if not is_folder and not entry.is_file():
                    if entry.is_symlink():
                        raise ValueError(f"{entry.path} is a link to nothing: repair it or remove it")
                    if entry.name.lower().endswith(IMAGE_SUFFIXES):
                        raise ValueError(f"{entry.path} is not a file that can be read as an image: remove it")
                found.append((entry.name, is_folder))
    except OSError as error:
        what = error.filename or folder
        raise ValueError(f"{what} cannot be read ({error.strerror}): make it readable, or move it away") from error
    yield from sorted(found)


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that are not hidden, sorted; raise a ValueError as `scan`."""
    return [name for name, is_folder in _listed(folder) if is_folder]


def _class_folders(root: Path) -> str:
    """Say which class folders there are, for the error on a wrong list of classes."""
    names = folders_in(root)
    return f"its class folders are {named(names, '')}" if names else "it has no folders, expected CLASS/IMAGE"


def part_of_split(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the part of a split in a folder's name (`train`, `test` or `val`) and the other words in it, or None.

    `Train`, `training_set` and `TrainImages` are ("train", ()), `seg_test` is ("test", ("seg",)), `cats` is None.
    """
    kinds, others = set[str](), []
    for token in re.findall(r"[^\W\d_]+", name.casefold()):
        short = [token.removesuffix(filler) for filler in FILLERS]
        word = next((part for part in (token, *short) if part in WORDS), None)
        if word is not None:
            kinds.add(WORDS[word])
        elif token not in FILLERS:
            others.append(token)
    if kinds == {TRAIN, VAL}:  # train_val is for training
        kinds = {TRAIN}
    return (kinds.pop(), tuple(others)) if len(kinds) == 1 else None


def find_split(root: Path) -> tuple[str, str] | None:
    """Return the names of the training and the held-out folder of the split in `root`, or None.

    The split is `train` with `test`, or else `train` with `val`, whatever other folders there are. Without these it is
    the only pair of such names in upper or lower case or in usual spellings.

    Raises:
        ValueError: if names may be meant as a split or as classes, there is more than one split, or a folder is
            unreadable.
    """
    names = folders_in(root)
    if TRAIN in names and (exact := next((name for name in (TEST, VAL) if name in names), None)):
        return TRAIN, exact
    pairs = _pairs(names)
    if not pairs:
        return None
    trains, tests = ([name for pair in pairs for name in pair[half]] for half in (0, 1))
    if len(trains) > 1 or len(tests) > 1:
        raise ValueError(
            f"{root} can be divided in several ways, by {named(trains)} and {named(tests)}: leave one folder for each "
            f"half, or call them train/ and test/"
        )
    [train], [test] = trains, tests
    classes, others = (set(folders_in(root / name)) for name in (train, test))
    if classes and others - classes:
        raise ValueError(
            f"{root}: {train}/ and {test}/ are either the halves of a split or two classes, and {test}/ has folders "
            f"that {train}/ lacks ({named(sorted(others - classes))}): {_LAYOUTS}"
        )
    alike = [name for name in names if part_of_split(name) is None and _holds_images(root / name)]
    if alike and not classes and not others:
        raise ValueError(
            f"{root}: {train}/ and {test}/ are either the halves of a split or classes like {named(alike)}: {_LAYOUTS}"
        )
    return train, test


def _holds_images(folder: Path) -> bool:
    return any(name.lower().endswith(IMAGE_SUFFIXES) for name, is_folder in _listed(folder) if not is_folder)


_LAYOUTS = "expected train/CLASS/IMAGE and test/CLASS/IMAGE with the same classes, or CLASS/IMAGE under other names"


def _pairs(names: Iterable[str]) -> list[tuple[list[str], list[str]]]:
    """Return the training and held-out folders of each split: names that differ only in the word for train, test or
    val."""
    groups: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        if (part := part_of_split(name)) is not None:
            groups[part[1]][part[0]].append(name)
    return [
        (group[TRAIN], group[TEST] or group[VAL])
        for group in groups.values()
        if TRAIN in group and (TEST in group or VAL in group)
    ]


def check_whole(tree: ImageTree) -> None:
    """Raise a ValueError if a folder without a split looks like a part of one.

    Raises:
        ValueError: if all images are below `train` (or another name of a part of a split), folders beside it have the
            same classes, or the halves of a split are deeper.
    """
    below = tree.below
    tops = below[()]
    parts = {name: part[0] for name in sorted(tops) if (part := part_of_split(name)) and not part[1]}
    if tree.root in tree.folders:
        parts = {}
    if len(tops) == 1 and parts:
        [(name, kind)] = parts.items()
        lacks = "neither test/ nor val/: add one" if kind == TRAIN else "no train/: add it"
        raise ValueError(f"{tree.root} has {name}/, but {lacks}, or give --data_dir {tree.root / name}")
    for name in parts:
        mine = below.get((name,), set())
        for other in sorted(tops - {name}):
            others = below.get((other,), set())
            if mine and others and (mine <= others or others <= mine):
                raise ValueError(
                    f"{tree.root}: {name}/ and {other}/ hold the same folders ({named(sorted(mine & others))}), so it "
                    f"is not clear whether they are the halves of a split or classes: {_LAYOUTS}"
                )
    check_inner(tree, whole=True)


def check_inner(tree: ImageTree, whole: bool = False) -> None:
    """Raise a ValueError if the halves of a split are deeper in a folder, since they would be mixed.

    Args:
        tree: content of the folder.
        whole: whether its first-level folders are already checked.

    Raises:
        ValueError: with the place of the halves.
    """
    for parts, names in sorted(tree.below.items()):
        if (parts or not whole) and (pairs := _pairs(sorted(names))):
            train, test = pairs[0][0][0], pairs[0][1][0]
            place = tree.root.joinpath(*parts)
            raise ValueError(
                f"{place} is divided into {train}/ and {test}/, which would be mixed: give --data_dir {place}, or "
                "have train/CLASS/IMAGE and test/CLASS/IMAGE in one folder"
            )


def check_classes(tree: ImageTree) -> None:
    """Raise a ValueError if one of the class folders has no image.

    Raises:
        ValueError: with the class, and the files in it.
    """
    if not tree.empty or tree.root in tree.folders:
        return
    name, kinds = next(iter(sorted(tree.empty.items())))
    more = f", like {len(tree.empty) - 1} more" if len(tree.empty) > 1 else ""
    instead = f"but {counted(kinds)}" if kinds else "and no other file"
    raise ValueError(
        f"{tree.root / name} is a class folder without an image ({instead}){more}: expected "
        f"{', '.join(IMAGE_SUFFIXES)} files; convert them, or move the folder away"
    )


def check_listed(tree: ImageTree, classes: Collection[str]) -> None:
    """Raise a ValueError if one of the listed classes has no folder with images."""
    if missing := sorted(set(classes) - tree.below[()]):
        raise ValueError(
            f"{tree.root} has no images of {named(missing, '')}, which the list of classes names: "
            f"{_class_folders(tree.root)}"
        )
