"""What a disk does to a program that writes: it fills up, becomes read-only, fails, or loses the folder."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk that is full, and of a quota."""
FAILED = (errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG)
"""Errors of a disk that fails, can only be read any more, or takes no file so large."""

SCARCE = 4096
"""Bytes, a block of a file."""


class FolderLostError(OSError):
    """A folder that a process writes into was removed or moved by somebody else."""


def disk_error(error: BaseException) -> OSError | None:
    """The error of a disk, by `FULL` or `FAILED`, that another error is or comes from; None where there is none.

    PyTorch, for one, tells a full disk as a RuntimeError about the archive that it could not end.
    """
    for cause in _causes(error):
        if isinstance(cause, FolderLostError) or (isinstance(cause, OSError) and cause.errno in (*FULL, *FAILED)):
            return cause
    return None


def is_full(error: BaseException) -> bool:
    """Whether an error is or comes from one by `FULL`."""
    return any(isinstance(cause, OSError) and cause.errno in FULL for cause in _causes(error))


def is_full_at(folder: Path) -> bool:
    """Whether the disk of a folder has next to no space left; not where that cannot be known."""
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
