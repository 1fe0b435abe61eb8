"""Paths that names from files, links and devices cannot lead astray."""

import os
import shutil
import stat
from collections.abc import Collection
from pathlib import Path
from typing import IO

from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.files import check_target, replacing, write_json

LONGEST = 200
"""Bytes of a name: file systems take 255, and temporary files and suffixes need some."""


def path_component(name: object, what: str) -> str:
    """A name that comes from a file, checked before it becomes one part of a path.

    Args:
        name: of a file or folder, without a folder before it.
        what: it names, for the error: "the arm".

    Returns:
        The name.

    Raises:
        ValueError: if it is no text, is empty, `.` or `..`, has a slash, a backslash or a control character in it, or
            is longer than `LONGEST` bytes.
    """
    if isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\"} and name.isprintable():
        try:
            if len(os.fsencode(name)) <= LONGEST:
                return name
        except UnicodeEncodeError:
            pass
    shown = f"{name!r}" if len(f"{name!r}") <= 60 else f"{name!r:.60}..."
    raise ValueError(f"{what} is called {shown}: expected a plain name, without slashes, of 1 to {LONGEST} bytes")


def check_folder(path: Path) -> None:
    """Raises a ValueError if something is there that is no folder, or a link to one: it may lead anywhere."""
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link, which is not written through: put the folder itself there")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is no folder: move it away")


def check_place(path: Path, flag: str) -> None:
    """Raises a ValueError if something is at a path that a user has named, and is neither a folder nor a link to one.

    Args:
        path: may be missing.
        flag: by which it was named, for the error.
    """
    if os.path.lexists(path) and not path.is_dir():
        what = "a link that leads to no folder" if path.is_symlink() else "a file"
        raise ValueError(f"{flag}: {path} is {what}: expected a folder, or nothing")


def open_to_append(path: Path) -> IO[str]:
    """Opens a text file to write at its end and to read; it is made where it is missing.

    Raises:
        ValueError: if something is there that is no regular file, such as a link.
        OSError: if it cannot be opened.
    """
    check_target(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o666), "a+", encoding="utf-8")


def copy_file(source: Path, target: Path) -> None:
    """Copies a regular file's content, atomically; the target's folder is made.

    Raises:
        ValueError: if the source is no regular file, or something else lies at the target.
    """
    check_target(source)
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary, follow_symlinks=False)


class OwnFiles:
    """Which files of a folder this project has written: a list beside the folder. No others are replaced or removed.

    Args:
        folder: the folder; it is made when something is claimed.
        older: names that count where there is no list, since an older version has written them.
    """

    def __init__(self, folder: Path, older: Collection[str] = ()) -> None:
        self.folder = folder
        self.list = folder.with_name(f".{folder.name}.json")
        self.older = older

    def names(self) -> set[str]:
        """Those that are listed.

        Raises:
            ValueError: if the list is damaged, or names anything but files of the folder.
        """
        file = self.list
        check_folder(self.folder)
        check_target(file)
        try:
            document = read_json(file)
        except FileNotFoundError:
            return {name for name in self.older if os.path.lexists(self.folder / name)}
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read ({error}): delete it, and move {self.folder} away") from error
        listed = document.get("files") if isinstance(document, dict) else None
        if not isinstance(listed, list):
            raise ValueError(f"{file} holds no list of files: delete it, and move {self.folder} away")
        return {path_component(name, f"a file in {file}") for name in listed}

    def check(self, *names: str) -> None:
        """Raises a ValueError if a file of such a name is there that this project has not written."""
        own = self.names()
        for name in names:
            check_target(self.folder / name)
            if name not in own and os.path.lexists(self.folder / name):
                raise ValueError(f"{self.folder / name} would be replaced, and is not of this project: move it away")

    def claim(self, *names: str) -> None:
        """Lists files, before they are written; raises as `check`."""
        self.check(*names)
        self._write(self.names() | set(names))

    def keep_only(self, *names: str) -> None:
        """Removes the other files that are listed."""
        for name in self.names() - set(names):
            path = self.folder / name
            if os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode):
                path.unlink()
        self._write(set(names))

    def _write(self, names: set[str]) -> None:
        write_json(self.list, {"files": sorted(names)})
