"""Signals that ask a process to stop: they end it while it starts, and raise an exception once it has begun."""

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; what `kill`, a batch system and a machine that shuts down send; a terminal or a connection that closes."""
COMMAND = "astra-gym"
_begun = False


class StopRequested(KeyboardInterrupt):
    """A signal has asked this process to stop.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def status_of(stop: KeyboardInterrupt) -> int:
    """The exit status of a process that was stopped: 128 plus the signal's number, so 130 after Ctrl-C."""
    return 128 + (stop.number if isinstance(stop, StopRequested) else signal.SIGINT)


def handle(handler: Callable[[int, FrameType | None], Any]) -> dict[signal.Signals, Any]:
    """Let a function handle the signals; return what handled them before, for `put_back`.

    What is ignored stays ignored, Ctrl-C excepted: by a SIGHUP that is, `nohup` lets a process outlive its terminal.
    Signals reach the main thread only; called elsewhere, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    wanted = [number for number in SIGNALS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}


def put_back(before: dict[signal.Signals, Any]) -> None:
    """Undo `handle`."""
    for number, handler in before.items():
        # None stands for a handler that was not set from Python and cannot be set again from it
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def block() -> set[int]:
    """Hold the signals back from this thread and from the processes that it starts; return the mask before."""
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS))


def unblock() -> None:
    """Let signals through that were held back, by the process that started this one too."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextlib.contextmanager
def raising() -> Iterator[list[StopRequested]]:
    """Within, a signal raises a `StopRequested` in the main thread.

    Returns:
        What was raised so far: code that is interrupted, such as a library's import, may turn it into another error.
    """
    global _begun
    raised: list[StopRequested] = []

    def stop(number: int, frame: FrameType | None) -> None:
        raised.append(StopRequested(number))
        raise raised[-1]

    before = handle(stop)
    _begun = True
    try:
        unblock()
        yield raised
    finally:
        put_back(before)


def end_while_starting() -> None:
    """Where this process is one of the project's commands, let a signal end it with a line, until `raising` is entered.

    Imports take seconds, and there is nothing to save yet. Afterwards, at the command's end, it ends it silently.
    """
    called = _command()
    if called is None:
        return

    def end(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not _begun:
            # no print: the handler may have interrupted one
            with contextlib.suppress(OSError):
                os.write(2, f"{called}: error: {name} while it was starting: nothing was done\n".encode())
        os._exit(128 + number)

    handle(end)


def _command() -> str | None:
    """What this process was called by: `astra-gym`, or a script of this checkout; None where it is somebody else's."""
    path = Path(sys.argv[0]) if getattr(sys, "argv", None) else Path()
    words = sys.orig_argv
    # of `python -m`, the package is imported before argv names its file
    if path.name == COMMAND or ("-m", "astra_gym") in itertools.pairwise(words):
        return COMMAND
    scripts = Path(__file__).resolve().parents[2] / "experiments"
    return path.name if path.suffix == ".py" and path.resolve().parent == scripts else None
