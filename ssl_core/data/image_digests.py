"""Digests of decoded images, a run's record of its training images; the places of the files do not matter."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import PIL
from torch import Tensor

from astra_gym.ssl_core.data.image_set import ImageSet, Split
from astra_gym.ssl_core.utils.files import write_file

FORMAT, SCHEMA = "astra-gym image digests", 1
LENGTH = 16
"""Number of bytes of a digest, the first of a SHA-256."""
PIECE = 2**22
"""Bytes of images that a thread takes at a time."""
THREADS = 4
SHOWN = 3
"""Largest number of names in a message."""


@dataclass(frozen=True, eq=False)
class ImageDigests:
    """Digests of the pixels of a set, one per image.

    Attributes:
        shape: channels, height and width of an image.
        values: N times `LENGTH` bytes, in the order of the images.
        paths: the N files that the images were decoded from, for messages; empty if unknown.
    """

    shape: tuple[int, int, int]
    values: bytes
    paths: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.values) // LENGTH

    def __iter__(self) -> Iterator[bytes]:
        return (self.values[start : start + LENGTH] for start in range(0, len(self.values), LENGTH))

    def begins_like(self, other: "ImageDigests") -> bool:
        """Whether one of the two begins with all images of the other, in the same order."""
        n = min(len(self.values), len(other.values))
        return self.shape == other.shape and self.values[:n] == other.values[:n]


def digest_images(data: ImageSet) -> ImageDigests:
    """Compute the digests of a set; mapped images are read in pieces. 100,000 images of 32 x 32 take half a second."""
    channels, height, width = data.images.shape[1:]
    pieces = data.images.split(max(1, PIECE // (channels * height * width)))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="digests") as pool:
        values = b"".join(pool.map(_digest_piece, pieces))
    return ImageDigests((channels, height, width), values, data.paths)


def _digest_piece(images: Tensor) -> bytes:
    rows = images.flatten(1).contiguous().numpy()
    return b"".join(hashlib.sha256(row).digest()[:LENGTH] for row in rows)


@dataclass(frozen=True, eq=False)
class RunImages:
    """Digests of the images of a run: its training images, in their order, and the held-out ones.

    Attributes:
        train, test: digests of the training and the held-out images.
        taught: digests of the images that only its teacher, or the encoder that it started from, was trained on, each
            once.
        decoder: decoder of the image files; another version may give other pixels.
    """

    train: ImageDigests
    test: ImageDigests
    taught: bytes = b""
    decoder: str = f"Pillow {PIL.__version__}"

    @classmethod
    def of(cls, data: Split, *earlier: "RunImages") -> Self:
        """Compute the digests of a data set.

        Args:
            data: the data set of the run.
            earlier: images of the runs of its teacher and of its start; ignored if they have another size, since no
                digest is then the same.
        """
        train, test = digest_images(data.train), digest_images(data.test)
        taught = [value for run in earlier if run.train.shape == train.shape for value in run.beside(train)]
        return cls(train, test, b"".join(dict.fromkeys(taught)))

    def beside(self, train: ImageDigests) -> ImageDigests:
        """Return the digests that a network of this run was trained on and that are not in `train`, each once."""
        known = set(train)
        others = dict.fromkeys([*self.train, *ImageDigests(self.train.shape, self.taught)])
        return ImageDigests(self.train.shape, b"".join(value for value in others if value not in known))

    def difference(self, now: "RunImages") -> str:
        """Describe how other images differ from these; empty if they are the same in the same order."""
        for what, old, new in (("training", self.train, now.train), ("test", self.test, now.test)):
            if old.shape != new.shape:
                return f"{what} images are of size {new.shape}, not {old.shape}"
            if old.values != new.values:
                why = f"; {self.decoder} decoded them, not {now.decoder}" if now.decoder != self.decoder else ""
                return _changes(what, old, new) + why
        return ""

    def write(self, path: Path | str) -> None:
        """Write a line of JSON and the digests, whole or not at all."""
        body = self.train.values + self.test.values + self.taught
        head: dict[str, Any] = {
            "format": FORMAT,
            "schema": SCHEMA,
            "shape": self.train.shape,
            "train": len(self.train),
            "test": len(self.test),
            "decoder": self.decoder,
        }
        head["sha256"] = _sealed(head, body)
        write_file(path, json.dumps(head).encode() + b"\n" + body)

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a file that `write` wrote.

        Raises:
            ValueError: if the file cannot be read, or is damaged.
        """
        try:
            line, _, body = Path(path).read_bytes().partition(b"\n")
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}): make it readable") from error
        try:
            head = json.loads(line)
            if (head["format"], head["schema"]) != (FORMAT, SCHEMA):
                raise ValueError(f"it is of {head['format']!r} {head['schema']!r}, not {FORMAT!r} {SCHEMA}")
            if _sealed({name: value for name, value in head.items() if name != "sha256"}, body) != head["sha256"]:
                raise ValueError("its digests are not those that were written")
            channels, height, width = head["shape"]
            shape, first = (int(channels), int(height), int(width)), LENGTH * head["train"]
            last = first + LENGTH * head["test"]
            train, test = ImageDigests(shape, body[:first]), ImageDigests(shape, body[first:last])
            return cls(train, test, body[last:], str(head["decoder"]))
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): restore it, or remove it, and the run's images are no longer checked"
            ) from error


def _sealed(head: dict[str, Any], body: bytes) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode() + body).hexdigest()


def short_path(path: Path) -> str:
    """Return a file's name with its two parent folders: its half of a split and its class."""
    return "/".join(path.parts[-3:])


def _changes(what: str, old: ImageDigests, new: ImageDigests) -> str:
    """Describe the difference of two sets of digests."""
    before, after = Counter(old), Counter(new)
    added, gone = (after - before).total(), (before - after).total()
    if not added and not gone:
        return f"the {len(old):,} {what} images are in another order"
    parts = [f"{gone:,} of the {len(old):,} {what} images missing"] if gone else []
    if added:
        rows = [row for row, value in enumerate(new) if value not in before]
        names = f" ({', '.join(short_path(new.paths[row]) for row in rows[:SHOWN])})" if new.paths and rows else ""
        parts.append(f"{added:,} of now {len(new):,} new{names}")
    return ", ".join(parts)
