"""Files written whole or not at all."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from astra_gym.ssl_core.safety.sealing import sealed_json
from astra_gym.ssl_core.safety.writers import held, sweep, temporary_of

MOST_NAME, MOST_PATH, MOST_PARTS = 255, 4096, 200
"""Largest number of bytes of a name and of a path, and of nested folders.

The first two are Linux's, and about the same elsewhere; Python creates nested folders by recursion.
"""
_NO_FILES = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_target(path: Path | str) -> None:
    """Raise a ValueError if a path exists and is no regular file: it is not replaced."""
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return
    if kind in _NO_FILES:
        raise ValueError(f"{path} is {_NO_FILES[kind]}: expected a file there, or nothing")


@contextmanager
def replacing(path: Path | str, *, durable: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces `path` on success: no reader ever sees half a file.

    Missing folders are created. Temporary files of killed writers of the same file are removed.

    Args:
        path: the file.
        durable: whether the content is on the disk before it is renamed, for files that must survive a loss of power.

    Raises:
        ValueError: if the path exists and is no regular file, such as a link or a device.
    """
    path = Path(path)
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, lambda name: name == path.name)
    # The suffix is kept, since writers such as matplotlib read the format from it.
    temporary = temporary_of(path)
    # a dead process's file of this name, or a link: it would be written through
    temporary.unlink(missing_ok=True)
    with held(temporary) as descriptor:
        try:
            yield temporary
            if durable:
                os.fsync(descriptor)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_file(path: Path | str, content: bytes | str) -> None:
    """Write a file's bytes, or its text in UTF-8, whole or not at all; missing folders are created.

    Raises:
        ValueError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path | str, document: Mapping[str, Any]) -> None:
    """Write plain values as indented JSON with a seal, whole or not at all; missing folders are created.

    `astra_gym.ssl_core.safety.sealing.read_json` reads it.

    Raises:
        ValueError: if the document is empty, or holds a number that is not finite, which JSON does not have.
    """
    write_file(path, sealed_json(json.dumps(document, indent=1, allow_nan=False) + "\n"))


def expanded(path: os.PathLike[str] | str) -> Path:
    """Replace a leading `~` or `~USER` by the home folder, where no shell does it: in a file, in `--out=~/x`.

    Raises:
        ValueError: if there is no such user, or the path is too long for a file system.
    """
    try:
        found = Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: there is no home folder for its beginning, write the path out") from error
    longest = max((len(os.fsencode(part)) for part in found.parts), default=0)
    if longest > MOST_NAME or len(os.fsencode(found)) >= MOST_PATH or len(found.parts) > MOST_PARTS:
        text = str(found)
        raise ValueError(
            f"the path {text[:40]}...{text[-20:]} has {len(text)} characters: expected less than {MOST_PATH} bytes, "
            f"names of at most {MOST_NAME}, and {MOST_PARTS} of them"
        )
    return found


def resolved(path: os.PathLike[str] | str) -> Path:
    """Return the `expanded` path from the root, without links.

    Raises:
        ValueError: as `expanded`, or if links lead in a circle.
    """
    try:
        found = expanded(path).resolve()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            # from Python 3.13 on only this finds a circle
            found.stat()
        return found
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path}: links in it lead in a circle, give a path that ends somewhere") from error
