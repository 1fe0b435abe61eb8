"""Signals to stop a process: they end it while it starts, and raise an exception after that."""

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
"""Signals of Ctrl-C; of `kill`, a batch system and a machine that shuts down; of a closed terminal or connection."""
COMMAND = "astra-gym"
_begun = False


class StopRequested(KeyboardInterrupt):
    """Exception for a signal to stop this process.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def status_of(stop: KeyboardInterrupt) -> int:
    """Return the exit status of a stopped process: 128 plus the signal's number, so 130 after Ctrl-C."""
    return 128 + (stop.number if isinstance(stop, StopRequested) else signal.SIGINT)


def handle(handler: Callable[[int, FrameType | None], Any]) -> dict[signal.Signals, Any]:
    """Let a function handle the signals; return the handlers before, for `put_back`.

    Ignored signals stay ignored, except Ctrl-C: `nohup` ignores SIGHUP so that a process outlives its terminal. Signals
    reach the main thread only; in another thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    wanted = [number for number in SIGNALS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}


def put_back(before: dict[signal.Signals, Any]) -> None:
    """Undo `handle`."""
    for number, handler in before.items():
        # None is a handler that was not set from Python and cannot be restored from it
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def block() -> set[int]:
    """Block the signals for this thread and the processes that it starts; return the mask before."""
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS))


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Block the signals as `block` does, inside this context."""
    before = block()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock() -> None:
    """Unblock the signals, also those that the parent process has blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextlib.contextmanager
def raising() -> Iterator[list[StopRequested]]:
    """Raise a `StopRequested` in the main thread for a signal, inside this context.

    Returns:
        A list of the exceptions raised so far: interrupted code, such as a library's import, may turn one into another
        error.
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


@contextlib.contextmanager
def deferring() -> Iterator[None]:
    """Let signals come only after this context, for what must not be left halfway."""
    came: list[int] = []
    before = handle(lambda number, frame: came.append(number))
    try:
        yield
    finally:
        put_back(before)
        for number in came:
            signal.raise_signal(number)


def end_while_starting() -> None:
    """Let a signal end a command of this project with one line, until `raising` is entered.

    Imports take seconds, and there is nothing to save yet. After `raising`, at the command's end, a signal ends the
    process silently. In any other process this does nothing.
    """
    called = _command()
    if called is None:
        return

    def end(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not _begun:
            # not by `print`, since the handler may have interrupted one
            with contextlib.suppress(OSError):
                os.write(2, f"{called}: error: {name} while it was starting: nothing was done\n".encode())
        os._exit(128 + number)

    handle(end)


def _command() -> str | None:
    """Return this process's command: `astra-gym` or a script of this checkout; None for another program."""
    path = Path(sys.argv[0]) if getattr(sys, "argv", None) else Path()
    words = sys.orig_argv
    # with `python -m` the package is imported before argv holds its file
    if path.name == COMMAND or ("-m", "astra_gym") in itertools.pairwise(words):
        return COMMAND
    scripts = Path(__file__).resolve().parents[2] / "experiments"
    return path.name if path.suffix == ".py" and path.resolve().parent == scripts else None
