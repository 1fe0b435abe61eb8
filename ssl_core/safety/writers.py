"""Locks of folders for one process, and removal of the temporary files of killed writers."""

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from astra_gym.ssl_core.safety.disk import FolderLostError

LOCK = ".lock"
"""Name of the file in a folder that a process locks."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""Errors of a file system without locks."""
MARK = "partial"
"""Part of the name of every temporary file, so that no file of a user's resembles one."""
TEMPORARY = re.compile(rf"\.(?P<stem>.+)\.(?P<pid>\d+)\.{MARK}(?P<suffix>\.[^.]+)?")
"""Names of `temporary_of`."""
SLACK = 2.0
"""Tolerance in seconds between the times of a file and of a process."""


class Locked(ValueError):
    """Error for a lock that another process holds."""


def lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file for this process, until the file is closed or the process ends in any way.

    Args:
        descriptor: descriptor of the open file.
        shared: whether others may hold a shared lock too.

    Returns:
        Whether the file is now locked; None if the file system has no locks.
    """
    try:
        # missing on Windows, where the rest of this file can be imported
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in WITHOUT_LOCKS:
            return None
        raise
    return True


class FolderLock:
    """A lock of a folder for this process, until it is closed or the process ends; a context manager.

    Args:
        folder: an existing folder.
        doing: work on the folder as a participle, for the message.
        file: name of a file in the folder, to lock this file only; it need not exist.

    Raises:
        Locked: if another process holds the lock.
        ValueError: if the lock is no regular file.
        OSError: if the lock cannot be written.
    """

    def __init__(self, folder: Path, doing: str = "written", file: str = "") -> None:
        self.folder = folder
        self.path = folder / (f".{file}.lock" if file else LOCK)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._file = -1
        try:
            self._file, held = self._opened()
            if held is False:
                holder = os.pread(self._file, 300, 0).decode(errors="replace")
                who = " ".join("".join(c for c in holder if c.isprintable()).split()) or "unknown"
                raise Locked(
                    f"{folder / file} is being {doing} by another process ({who}): wait for its end, or stop it"
                )
            self.has_locks = held is True
            """Whether the file system has locks; without them no other process is kept away."""
            # the content is only for the message of another process; a full disk may prevent it
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except BaseException:
            self.close()
            raise

    def _opened(self) -> tuple[int, bool | None]:
        """Open the lock's file and return it and whether it is locked; never follow a link."""
        while True:
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.EISDIR):
                    raise ValueError(f"{self.path} is no regular file: remove it") from error
                raise
            self._file = file
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise ValueError(f"{self.path} is no regular file: remove it")
            held = lock(file)
            # the file may be gone meanwhile, and another process may have created the next one
            if held is not True or _is_at(file, self.path):
                return file, held
            os.close(file)
            self._file = -1

    def check(self) -> None:
        """Raise a FolderLostError if the folder is no longer at its path."""
        if not _is_at(self._folder, self.folder):
            raise FolderLostError(f"{self.folder} was removed or moved while it was written")

    def close(self) -> None:
        """Release the lock; its file stays."""
        for descriptor in (self._file, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._folder = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there, mine = os.stat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def temporary_of(path: Path) -> Path:
    """Return the temporary file by which this process replaces a file; it has the suffix of the file."""
    return path.with_name(f".{path.stem}.{os.getpid()}.{MARK}{path.suffix}")


@contextlib.contextmanager
def held(temporary: Path) -> Iterator[int]:
    """Create an empty temporary file, lock it, and yield its descriptor.

    The lock shows other processes that its writer is alive.
    """
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        lock(file)
        yield file
    finally:
        os.close(file)


def sweep(folder: Path, ours: Callable[[str], bool] | None = None) -> list[Path]:
    """Remove the temporary files of dead writers in a folder, not in its subfolders.

    Such a file is unlocked, and the process in its name is gone, or is younger than the file, so that it is another
    process with the same number. In doubt a file stays, for example if the file system has no locks.

    Args:
        folder: the folder; it may be missing.
        ours: whether this project writes a file of this name, the final name of a temporary one; None: it writes all,
            in a folder without other writers.

    Returns:
        The removed files.
    """
    try:
        found = [Path(entry.path) for entry in os.scandir(folder) if entry.name.startswith(".")]
    except OSError:
        return []
    matches = [(path, match) for path in found if (match := TEMPORARY.fullmatch(path.name))]
    wanted = [(path, match) for path, match in matches if ours is None or ours(match["stem"] + (match["suffix"] or ""))]
    return [path for path, match in wanted if _removed(path, int(match["pid"]))]


def _removed(path: Path, pid: int) -> bool:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or lock(file) is not True or not _is_at(file, path):
            return False
        if _may_have_written(pid, status.st_mtime):
            return False
        os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _may_have_written(pid: int, when: float) -> bool:
    """Whether a process with this number is running and had begun at that time."""
    if not is_running(pid):
        return False
    began = _began(pid)
    return began is None or began <= when + SLACK


def is_running(pid: int) -> bool:
    """Whether a process with this number is running on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        # a process of another user
        return True
    facts = _facts(pid)
    return not facts or facts[0] not in ("Z", "X")


def _began(pid: int) -> float | None:
    """Return the start of a process, in seconds since 1970; None if unknown."""
    facts = _facts(pid)
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii", errors="replace").splitlines()
        booted = next(float(line.split()[1]) for line in lines if line.startswith("btime "))
        return booted + int(facts[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, StopIteration, LookupError, ValueError):
        return None


def _facts(pid: int) -> list[str]:
    """Return the fields of `/proc/PID/stat` from the state on, see proc(5); empty if there are none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    # the name before them may contain any character
    return text.rpartition(")")[2].split()
