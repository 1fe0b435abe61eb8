"""The standard streams of a command: one that cannot be written to is switched off, and the work continues."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET)
"""Errors of a stream whose reader has gone away: `| head`, a terminal or a connection that was closed."""


class Output(io.TextIOBase):
    """A text stream that never fails: after the first error it swallows what is written.

    Args:
        stream: to be written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost: Exception | None = None
        """Why it is switched off."""

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
        """Hand over what is written."""
        if self.lost is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        self.lost = error
        # what lies in the stream's buffer would fail again when the interpreter ends
        with contextlib.suppress(OSError, ValueError):
            number = self.stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """Of the stream."""
        return self.stream.errors

    def isatty(self) -> bool:
        """Whether it is a terminal, and still there."""
        try:
            return self.lost is None and self.stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        """Of the stream."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """It takes everything."""
        return True

    def close(self) -> None:
        """The stream stays open: it is somebody else's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def surviving() -> Iterator[None]:
    """Within, the standard output and the standard error never fail; at the end what is written has been handed over.

    A reader that went away is left alone; of a disk that is full, where the output is a file there, the standard error
    tells.
    """
    before = sys.stdout, sys.stderr
    # a process may be started without them
    out, err = (Output(stream or io.StringIO()) for stream in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.flush()
        if isinstance(out.lost, OSError) and out.lost.errno not in GONE:
            err.write(f"note: the standard output was lost ({out.lost.strerror}): nothing more was printed\n")
        err.flush()
        # not what somebody within has put there, such as a live display that was torn down
        sys.stdout, sys.stderr = before
