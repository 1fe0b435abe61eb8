"""Places that run out of space: a small file system in memory, or writes that fail as on a full disk."""

import builtins
import contextlib
import errno
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def can_mount() -> bool:
    """Whether this process may mount a file system (root, and a kernel that lets it)."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    probe = Path(os.environ["TMPDIR"]) / "probe"
    probe.mkdir(exist_ok=True)
    if _mounted("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(probe)):
        _mounted("umount", str(probe))
        return True
    return False


def _mounted(*words: str) -> bool:
    return subprocess.run(words, capture_output=True).returncode == 0


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A folder that holds `size` bytes; yields a function that gives it another size."""
    folder.mkdir(parents=True, exist_ok=True)
    if not _mounted("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        raise RuntimeError(f"cannot mount a tmpfs at {folder}")

    def resize(new: int) -> None:
        if not _mounted("mount", "-o", f"remount,size={new}", str(folder)):
            raise RuntimeError(f"cannot give {folder} another size")

    try:
        yield resize
    finally:
        # lazily: whatever still has a file open there must not keep it
        _mounted("umount", "-l", str(folder))


@contextlib.contextmanager
def full_below(folder: Path, left: int) -> Iterator[None]:
    """Files below a folder take `left` more bytes from now on; then writing, and fsync, fail as on a full disk.

    It wraps Python's `open`, whatever library calls it, and `os.fsync`.
    """
    root, room = os.path.realpath(folder) + os.sep, [left]
    opened, synced = io.open, os.fsync

    def guarded(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        made = opened(file, mode, *arguments, **named)
        if isinstance(file, int) or not any(letter in mode for letter in "wax+"):
            return made
        return _Guarded(made, room) if os.path.realpath(_named(made, file)).startswith(root) else made

    def sync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if room[0] <= 0 and os.readlink(f"/proc/self/fd/{number}").startswith(root):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(descriptor)

    with _replaced(guarded, sync):
        yield


def _named(made: Any, file: Any) -> str:
    # a temporary file is opened by the name of its folder
    try:
        return os.readlink(f"/proc/self/fd/{made.fileno()}")
    except OSError:
        return os.fsdecode(file)


@contextlib.contextmanager
def _replaced(opener: Any, sync: Any) -> Iterator[None]:
    import _io

    before = builtins.open, io.open, _io.open, os.fsync
    builtins.open = io.open = _io.open = opener  # type: ignore[assignment]
    os.fsync = sync
    try:
        yield
    finally:
        builtins.open, io.open, _io.open, os.fsync = before  # type: ignore[assignment]


class _Guarded:
    """A file whose writes are counted."""

    def __init__(self, file: Any, room: list[int]) -> None:
        self.__dict__.update(_file=file, _room=room)

    def write(self, data: Any) -> Any:
        """Writes, while there is room."""
        self._room[0] -= len(data) if isinstance(data, str) else memoryview(data).nbytes
        if self._room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        """Writes each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._file, name, value)

    def __enter__(self) -> Any:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)
