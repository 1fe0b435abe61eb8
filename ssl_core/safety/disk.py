"""Errors of a disk while a program writes: it is full, read-only or failing, or the folder is gone."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of a quota."""
FAILED = (errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG)
"""Error numbers of a disk that fails, has become read-only, or does not allow so large a file."""

SCARCE = 4096
"""Free bytes below which a disk counts as full: one block of a file."""


class FolderLostError(OSError):
    """Error for a folder that was removed or moved while a process writes into it."""


def disk_error(error: BaseException) -> OSError | None:
    """Return the disk's error (by `FULL` or `FAILED`) that is or caused another error; None if there is none.

    PyTorch, for example, reports a full disk as a RuntimeError about an unfinished archive.
    """
    for cause in _causes(error):
        if isinstance(cause, FolderLostError) or (isinstance(cause, OSError) and cause.errno in (*FULL, *FAILED)):
            return cause
    return None


def is_full(error: BaseException) -> bool:
    """Whether an error is, or was caused by, one of `FULL`."""
    return any(isinstance(cause, OSError) and cause.errno in FULL for cause in _causes(error))


def is_full_at(folder: Path) -> bool:
    """Whether the disk of a folder has almost no space left; False if unknown."""
    try:
        return shutil.disk_usage(folder).free < SCARCE
    except OSError:
        return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop(0)
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            waiting += [cause.__cause__, cause.__context__]
