"""A fence around a call: what is opened, made, moved or removed outside a folder is stopped and noted, system-wide.

Python reports such operations to audit hooks, whatever library they are called from. The network is shut, too.
"""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ENTRIES = {
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.mkfifo": (0,),
    "os.mknod": (0,),
}
"""Operations on an entry of a folder, and which of their arguments name it: a link itself, not where it leads."""
CONTENTS = {
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.utime": (0,),
}
"""Operations on what a name leads to, through links."""
FOLDER_ARGUMENT = {"os.mkdir": 2, "os.rmdir": 1, "os.remove": 1, "os.mkfifo": 2, "os.mknod": 3}
"""Where an operation's folder descriptor is among its arguments."""
NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind"}
PROGRAMS = {"os.system", "os.exec", "os.spawn", "os.posix_spawn", "pty.spawn"}
HARMLESS = ("/dev/null", "/dev/tty", "/proc/self/", "/dev/shm/")
KNOWN_PROGRAMS = {"git", "uname", "fc-list"}
"""Programs that the commands start: for the commit, for the name of the system, and matplotlib for its fonts."""


class Breach(BaseException):
    """Something was about to be done outside the fence. No `except Exception` takes it for an ordinary error."""


class Fence:
    """What a call did to the file system while `raised`.

    Args:
        allowed: folders in which anything may be done.
    """

    def __init__(self, allowed: Sequence[Path]) -> None:
        self.allowed = tuple(os.path.realpath(folder) for folder in allowed)
        self.breaches: list[str] = []
        self.read: set[str] = set()

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Watches and stops what the threads of this process do, until the end."""
        global _fence
        _install()
        _fence = self
        try:
            yield
        finally:
            _fence = None

    def saw(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit event."""
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int) or path is None:
                return
            place = os.path.realpath(_text(path))
            if flags & WRITING or any(letter in (mode or "") for letter in "wax+"):
                self._check("write", place)
            else:
                self.read.add(place)
        elif event in ENTRIES:
            for index in ENTRIES[event]:
                self._check(event, _entry(arguments[index], _folder(event, arguments)))
        elif event in CONTENTS:
            if not isinstance(arguments[0], int):
                self._check(event, os.path.realpath(_text(arguments[0])))
        elif event in NETWORK and not _is_local(arguments):
            raise OSError(101, "Network is unreachable")
        elif event in PROGRAMS or (event == "subprocess.Popen" and not _is_known(arguments)):
            self._breach(f"started a program: {str(arguments)[:200]}")

    def _check(self, what: str, place: str) -> None:
        if place.startswith(HARMLESS) or any(place == root or place.startswith(root + os.sep) for root in self.allowed):
            return
        self._breach(f"{what} outside: {place}")

    def _breach(self, text: str) -> None:
        self.breaches.append(text)
        raise Breach(text)


_fence: Fence | None = None
_installed = False
_busy = threading.local()


def _install() -> None:
    # a hook cannot be taken away again, so one is there for all fences
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    fence = _fence
    if fence is None or getattr(_busy, "now", False):
        return
    if event != "open" and not event.startswith(("os.", "socket.", "subprocess.", "pty.")):
        return
    _busy.now = True
    try:
        fence.saw(event, arguments)
    finally:
        _busy.now = False


def _text(path: Any) -> str:
    return os.fsdecode(path)


def _folder(event: str, arguments: tuple[Any, ...]) -> int:
    index = FOLDER_ARGUMENT.get(event)
    if index is None or index >= len(arguments) or not isinstance(arguments[index], int):
        return -1
    return int(arguments[index])


def _entry(path: Any, folder: int) -> str:
    """An entry's place, with links resolved in its folder only."""
    text = os.path.join(os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd(), _text(path))
    head, tail = os.path.split(text.rstrip("/"))
    return os.path.join(os.path.realpath(head), tail) if tail not in ("", ".", "..") else os.path.realpath(text)


def _is_local(arguments: tuple[Any, ...]) -> bool:
    # a socket of the file system, by which processes of one machine talk
    return len(arguments) > 1 and isinstance(arguments[1], str | bytes) and hasattr(arguments[0], "family")


def _is_known(arguments: tuple[Any, ...]) -> bool:
    executable, words = arguments[0], arguments[1]
    program = executable or (words if isinstance(words, str) else words[0])
    return os.path.basename(_text(program)) in KNOWN_PROGRAMS
