"""Who writes where: folders that one process holds, and the temporary files that killed writers have left."""

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from astra_gym.ssl_core.safety.disk import FolderLostError

LOCK = ".lock"
"""The file in a folder by which a process holds it."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""What a file system answers that has no locks."""
BY_PROCESS = re.compile(r"\.(?P<stem>.+)\.(?P<pid>\d+)(?P<suffix>\.[^.]+)?")
"""Temporary files of `astra_gym.ssl_core.utils.files.replacing`, and of images decoded by version 0.1 (`.partial`)."""
AT_RANDOM = re.compile(r"\.(?P<name>.+?\.[^.]+)\.((?P<pid>\d+)\.)?[a-z0-9_]{8}")
"""Temporary files of checkpoints of version 0.1."""
SLACK = 2.0
"""Seconds by which the times of a file and of a process may be off."""


class Locked(ValueError):
    """Another process holds the lock."""


def lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file for this process, until the file is closed or the process ends, however that may be.

    Args:
        descriptor: of the open file.
        shared: whether others may lock it so as well.

    Returns:
        Whether it is locked now; None where the file system has no locks.
    """
    try:
        # not there on Windows, where the rest of this file can be imported
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
    """Holds a folder for this process, until it is closed or the process ends. A context manager.

    Args:
        folder: that exists.
        doing: what is done to it, for the message.

    Raises:
        Locked: if another process holds it.
        ValueError: if its lock is no regular file.
        OSError: if the lock cannot be written.
    """

    def __init__(self, folder: Path, doing: str = "written") -> None:
        self.folder = folder
        self.path = folder / LOCK
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._file = -1
        try:
            self._file, held = self._opened()
            if held is False:
                holder = os.pread(self._file, 300, 0).decode(errors="replace")
                who = " ".join("".join(c for c in holder if c.isprintable()).split()) or "unknown"
                raise Locked(f"{folder} is being {doing} by another process ({who}): wait for its end, or stop it")
            self.has_locks = held is True
            """Whether the file system has locks; where it has none, nobody else is kept away."""
            # for the message alone, which a full disk may lack
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except BaseException:
            self.close()
            raise

    def _opened(self) -> tuple[int, bool | None]:
        """The lock's file, and whether it is locked; what a stranger's link leads to is not touched."""
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
            # somebody may have removed it meanwhile, and another process have made the next
            if held is not True or _is_at(file, self.path):
                return file, held
            os.close(file)
            self._file = -1

    def check(self) -> None:
        """Raises a FolderLostError if the folder is no longer where it was."""
        if not _is_at(self._folder, self.folder):
            raise FolderLostError(f"{self.folder} was removed or moved while it was written")

    def close(self) -> None:
        """Lets go; the lock's file stays."""
        for descriptor in (self._file, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._folder = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there, mine = os.stat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


@contextlib.contextmanager
def held(temporary: Path) -> Iterator[int]:
    """Make a temporary file, empty, and lock it while it is written: so nobody takes it for a dead writer's. Yields its
    descriptor."""
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        lock(file)
        yield file
    finally:
        os.close(file)


def sweep(folder: Path, ours: Callable[[str], bool] | None = None) -> list[Path]:
    """Remove the temporary files in a folder, not below it, whose writers are dead.

    Such a file is unlocked, and the process that its name tells is gone, or is younger than the file: a process has
    taken the number since. In doubt it stays, as where the file system has no locks.

    Args:
        folder: may be missing.
        ours: whether a file of this name, which a temporary one was to become, is written by this project; None: any
            is, in a folder that nobody else writes into.

    Returns:
        What was removed.
    """
    try:
        found = [Path(entry.path) for entry in os.scandir(folder) if entry.name.startswith(".")]
    except OSError:
        return []
    return [path for path in found if _is_temporary(path.name, ours) and _removed(path)]


def _is_temporary(name: str, ours: Callable[[str], bool] | None) -> bool:
    targets = []
    if match := BY_PROCESS.fullmatch(name):
        suffix = match["suffix"] or ""
        targets.append(match["stem"] + ("" if suffix == ".partial" else suffix))
    if match := AT_RANDOM.fullmatch(name):
        targets.append(match["name"])
    return bool(targets) and (ours is None or any(map(ours, targets)))


def _removed(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or lock(file) is not True or not _is_at(file, path):
            return False
        match = BY_PROCESS.fullmatch(path.name) or AT_RANDOM.fullmatch(path.name)
        pid = match["pid"] if match else None
        if pid is not None and _may_have_written(int(pid), status.st_mtime):
            return False
        os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _may_have_written(pid: int, when: float) -> bool:
    """Whether a process lives that has the number, and had begun by then."""
    if not is_running(pid):
        return False
    began = _began(pid)
    return began is None or began <= when + SLACK


def is_running(pid: int) -> bool:
    """Whether there is a process of this number on this machine that has not ended."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        # somebody else's
        return True
    facts = _facts(pid)
    return not facts or facts[0] not in ("Z", "X")


def _began(pid: int) -> float | None:
    """When a process began, in seconds since 1970; None where the system does not tell."""
    facts = _facts(pid)
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii", errors="replace").splitlines()
        booted = next(float(line.split()[1]) for line in lines if line.startswith("btime "))
        return booted + int(facts[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, StopIteration, LookupError, ValueError):
        return None


def _facts(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` from the state on, see proc(5); none where there are none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    # the name before them may hold anything
    return text.rpartition(")")[2].split()
