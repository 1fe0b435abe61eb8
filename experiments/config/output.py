"""The standard streams of a command: one that fails is switched off, and the work continues."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET)
"""Errors of a stream without a reader: `| head`, a closed terminal or connection."""


class Output(io.TextIOBase):
    """A text stream that never fails: after the first error it drops what is written.

    Args:
        stream: the stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost: Exception | None = None
        """The error that switched the stream off; None while it works."""

    def write(self, text: str) -> int:
        """Write what can be written; characters that the encoding lacks become question marks."""
        if self.lost is None:
            try:
                try:
                    self.stream.write(text)
                except UnicodeEncodeError:
                    encoding = self.stream.encoding
                    self.stream.write(text.encode(encoding, "replace").decode(encoding))
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if it still works."""
        if self.lost is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        self.lost = error
        # the stream's buffer would fail again when the interpreter ends
        with contextlib.suppress(OSError, ValueError):
            number = self.stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's encoding."""
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """The stream's handling of encoding errors."""
        return self.stream.errors

    def isatty(self) -> bool:
        """Return whether the stream is a terminal that is still open."""
        try:
            return self.lost is None and self.stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        """Return the stream's file number."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing: the stream belongs to the process."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def surviving() -> Iterator[None]:
    """While entered, the standard output and the standard error never fail; both are flushed at the end.

    A stream that the process was started without goes nowhere, and a reader that went away is ignored. If the output is
    a file that could not be written, as on a full disk, a note goes to the standard error.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # else the next file gets this number, and what a library prints; processes started here inherit it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    out, err = (Output(stream or io.StringIO()) for stream in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.flush()
        if isinstance(out.lost, OSError) and out.lost.errno not in GONE:
            err.write(f"note: the standard output was lost ({out.lost.strerror}): nothing more was printed\n")
        err.flush()
        # replaces what code in between has left there, such as a broken live display
        sys.stdout, sys.stderr = before
