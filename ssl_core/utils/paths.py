"""Safe paths: checks against names from files, links and devices that lead elsewhere."""

import os
import shutil
import stat
from collections.abc import Collection
from pathlib import Path
from typing import IO

from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.files import check_target, replacing, write_json

LONGEST = 200
"""Largest number of bytes of a name: file systems allow 255, and temporary files and suffixes need some."""


def path_component(name: object, what: str) -> str:
    """Check a name from a file before it becomes a part of a path.

    Args:
        name: name of a file or folder, without a folder before it.
        what: the named thing, for the error: "the arm".

    Returns:
        The name.

    Raises:
        ValueError: if the name is no text, is empty, `.` or `..`, has a slash, a backslash or a control character, or
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
    """Raise a ValueError if the path exists and is no folder, or is a link, which may lead anywhere."""
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link, which is not written through: put the folder itself there")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is no folder: move it away")


def check_place(path: Path, flag: str) -> None:
    """Raise a ValueError if a user's path exists and is neither a folder nor a link to one.

    Args:
        path: the path; it may be missing.
        flag: name of the path's flag, for the error.
    """
    if os.path.lexists(path) and not path.is_dir():
        what = "a link that leads to no folder" if path.is_symlink() else "a file"
        raise ValueError(f"{flag}: {path} is {what}: expected a folder, or nothing")


def open_to_append(path: Path) -> IO[str]:
    """Open a text file to append and to read; create it if it is missing.

    Raises:
        ValueError: if the path exists and is no regular file, such as a link.
        OSError: if the file cannot be opened.
    """
    check_target(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o666), "a+", encoding="utf-8")


def copy_file(source: Path, target: Path) -> None:
    """Copy a regular file's content atomically; the target's folder is created.

    Raises:
        ValueError: if the source or an existing target is no regular file.
    """
    check_target(source)
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary, follow_symlinks=False)


class OwnFiles:
    """A list, beside a folder, of the files in it that this project has written. Only these are replaced or removed.

    Args:
        folder: the folder; it may be missing.
        older: names that count as listed if there is no list, because an older version has written them.
    """

    def __init__(self, folder: Path, older: Collection[str] = ()) -> None:
        self.folder = folder
        self.list = folder.with_name(f".{folder.name}.json")
        self.older = older

    def names(self) -> set[str]:
        """Return the listed names.

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
        """Raise a ValueError if a file of such a name exists that this project has not written."""
        own = self.names()
        for name in names:
            check_target(self.folder / name)
            if name not in own and os.path.lexists(self.folder / name):
                raise ValueError(f"{self.folder / name} would be replaced, and is not of this project: move it away")

    def claim(self, *names: str) -> None:
        """Add files to the list before they are written; raise as `check`."""
        self.check(*names)
        self._write(self.names() | set(names))

    def keep_only(self, *names: str) -> None:
        """Remove the other listed files."""
        for name in self.names() - set(names):
            path = self.folder / name
            if os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode):
                path.unlink()
        self._write(set(names))

    def _write(self, names: set[str]) -> None:
        write_json(self.list, {"files": sorted(names)})
