"""Calls of the commands and of the interface within this process, behind a fence, and the demands on every answer."""

import contextlib
import gc
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from astra_gym.experiments.config.commands import COMMANDS
from astra_gym.ssl_core.utils.messages import counted
from astra_gym.ssl_core.utils.provenance import ROOT
from tests.torture.fence import Breach, Fence

STATUSES = (0, 1, 2, 130)
"""What a command's `main` may return."""
LONGEST = 300
"""Characters of a message; paths do not count."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x9b]")
PATHS = re.compile(r"""(?:(?<=[\s'"(=:,])|^)(?:~|\.{1,2})?(?:/[^\s'",;:)/]+)+/?""")


class Hang(BaseException):
    """A call took longer than it may. No `except Exception` takes it for an ordinary error."""


@dataclass
class Answer:
    """What a call did.

    Args:
        status: of a command; None where it did not end by itself.
        out, err: what it printed.
        error: what was raised, None if nothing was.
        crash: the exception that escaped and should not have, with its place; empty if there was none.
        value: of a call of the interface.
        breaches: what it tried outside the fence.
        read: files that it opened for reading.
        seconds: of wall time.
    """

    status: int | None = None
    out: str = ""
    err: str = ""
    error: BaseException | None = None
    crash: str = ""
    value: Any = None
    breaches: list[str] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """All that it said."""
        return "\n".join(part for part in (self.out, self.err, str(self.error or "")) if part)


def command(name: str, words: Sequence[str], *, allowed: Sequence[Path], limit: float = 120.0) -> Answer:
    """Calls a command's `main` in the present folder, as if its script had been started there.

    Args:
        name: of `COMMANDS`.
        words: the command line.
        allowed: folders in which it may write.
        limit: seconds that it may take.
    """
    main = import_module(f"astra_gym.experiments.{COMMANDS[name]}").main
    script = str(ROOT / "experiments" / f"{COMMANDS[name]}.py")

    def run() -> int:
        sys.argv = [script, *words]
        return int(main(list(words)))

    answer = called(run, allowed=allowed, limit=limit)
    if isinstance(answer.error, SystemExit):
        code = answer.error.code
        # a text as code is printed by the interpreter, with status 1
        answer.status = code if isinstance(code, int) else 0 if code is None else 1
        answer.err += f"{code}\n" if isinstance(code, str) else ""
    elif answer.error is None:
        answer.status = answer.value
    elif not answer.crash:
        answer.crash = place_of(answer.error)
    return answer


def called(function: Callable[[], Any], *, allowed: Sequence[Path], limit: float = 120.0) -> Answer:
    """Calls a function behind a fence, with a time limit; what it prints is caught, what it changes is put back."""
    answer, fence = Answer(), Fence(allowed)
    began = time.perf_counter()
    with _kept(), _caught(answer), fence.raised():
        try:
            with _limited(limit):
                answer.value = function()
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            answer.error = error
        except (Hang, Breach) as error:
            answer.error, answer.crash = error, place_of(error)
    answer.breaches, answer.read = fence.breaches, fence.read
    answer.seconds = time.perf_counter() - began
    return answer


def place_of(error: BaseException) -> str:
    """An exception's class and the last line of the project's own code in its traceback: one fault, one text."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(str(ROOT)) and "/tests/" not in frame.filename]
    own = [frame for frame in own if "/.venv/" not in frame.filename]
    where = f" in {Path(own[-1].filename).relative_to(ROOT)}:{own[-1].name}" if own else ""
    return f"{type(error).__name__}{where}"


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def over(number: int, frame: FrameType | None) -> None:
        raise Hang(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    # again and again: the first may be raised where it is swallowed, as in a destructor
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Puts back what a process has only one of."""
    folder, path, words, environment = os.getcwd(), list(sys.path), sys.argv, dict(os.environ)
    modules, handlers = set(sys.modules), {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.chdir(folder)
        sys.argv = words
        sys.path[:] = path
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        for name in set(sys.modules) - modules:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file and not file.startswith((str(ROOT), sys.prefix, sys.base_prefix)):
                # a user's own module of this case must not be found by the next
                del sys.modules[name]


@contextlib.contextmanager
def _caught(answer: Answer) -> Iterator[None]:
    """Catches what is printed, in files, which have descriptors as the streams of a process do."""
    unraisable = sys.unraisablehook
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        # as of the real one: what cannot be printed is written out
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as err,
    ):

        def noted(what: Any) -> None:
            err.write(f"Exception ignored in {what.object!r}: {what.exc_value!r}\n")

        sys.unraisablehook = noted
        try:
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("default")
                try:
                    yield
                finally:
                    # what is left of open files complains here, and not in a later case
                    gc.collect()
                    # what stays is looked at once, and not again after every call, which would take half a second
                    gc.freeze()
        finally:
            sys.unraisablehook = unraisable
            for file, name in ((out, "out"), (err, "err")):
                file.seek(0)
                setattr(answer, name, file.read())


def message_faults(text: str, given: Sequence[str] = ()) -> list[str]:
    """What is wrong with an error message: more than a line, too long, or control characters.

    Args:
        text: the message.
        given: paths that may stand in it and do not count.
    """
    faults, lines = [], [line for line in text.splitlines() if line.strip()]
    if not lines:
        return ["no message"]
    # an evaluation says it of each of its parts
    if len(lines) > 1 and not all("error: no figure for" in line for line in lines):
        faults.append("several lines")
    if max(counted(_without(line, given)) for line in lines) > LONGEST:
        faults.append("longer than 300 characters")
    if CONTROL.search(text.replace("\n", "")):
        faults.append("control characters")
    return faults


def _without(line: str, given: Sequence[str]) -> str:
    for path in sorted(given, key=len, reverse=True):
        if len(path) > 3:
            line = line.replace(path, "")
    return PATHS.sub("", line)


def faults(answer: Answer, given: Sequence[str] = ()) -> list[tuple[str, str]]:
    """What is wrong with a command's answer, whatever was asked: (kind, detail) each.

    Args:
        answer: of `command`.
        given: paths that may stand in a message and do not count.
    """
    found = [("outside the fence", breach) for breach in answer.breaches]
    if isinstance(answer.error, Hang):
        return [*found, ("hang", f"{answer.crash}: {answer.error}")]
    if isinstance(answer.error, Breach):
        return found
    if answer.crash:
        return [*found, (f"traceback: {answer.crash}", " ".join(str(answer.error).split())[:300])]
    if "Traceback (most recent call last)" in answer.text or "Exception ignored" in answer.text:
        found.append(("traceback printed", answer.err[-300:]))
    if answer.status not in STATUSES:
        found.append((f"status {answer.status}", answer.err[:300]))
    # a grid whose cells failed tells of them on the standard output, each in a line
    if answer.status == 2 or (answer.status == 1 and "cells are finished" not in answer.out):
        found += [(f"message: {fault}", answer.err[:400]) for fault in message_faults(answer.err, given)]
    return found
