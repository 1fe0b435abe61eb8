"""The frame of every command: a signal, a full disk or a full memory ends it with one line and a status, a closed
output does not.

A command is a function that is called with an `Ending`. It keeps the `Ending` up to date: where it writes, what a
sudden end leaves, and what to do then.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from astra_gym.experiments.config.commands import program
from astra_gym.experiments.config.output import surviving
from astra_gym.ssl_core.distributed.ranks import is_one_of_several
from astra_gym.ssl_core.safety.disk import FULL, FolderLostError, disk_error
from astra_gym.ssl_core.safety.memory_errors import lacks_memory, release
from astra_gym.ssl_core.safety.sealing import unsealed_collected
from astra_gym.ssl_core.utils.messages import FEW, said, shown
from astra_gym.ssl_core.utils.stopping import StopRequested, raising, status_of

DIVIDED = ("train", "evaluate")
"""The commands that several processes share (torchrun)."""


@dataclass
class Ending:
    """What a command reports if it ends early.

    Args:
        name: name of the command.
        place: folder or file that the command writes.
        kept: words for what remains there; a function if that must be looked up.
        after: words for what the user can do then.
        stopped: the message after a signal.
    """

    name: str
    place: Path = field(default_factory=Path)
    kept: str | Callable[[], str] = "nothing was written"
    after: str = "repeat the command"
    stopped: str = "interrupted: nothing was written"

    def of_disk(self, error: OSError) -> str:
        """Return the line for an error of a disk."""
        if isinstance(error, FolderLostError):
            return f"{error}: what was in it is lost, unless you have it elsewhere"
        place, kept = self.place, self.kept if isinstance(self.kept, str) else self.kept()
        file = _file_of(error)
        if file is not None and not file.is_relative_to(place):
            # the file may be on another disk, such as a cache of decoded images
            place = file.parent
        if error.errno in FULL:
            return f"no space left in {place}; {kept}; {self.after}"
        return f"{file or place} cannot be read or written ({error.strerror}); {kept}; {self.after}"

    def of_memory(self, error: BaseException) -> str:
        """Return the line for an error for which `lacks_memory` holds."""
        # the checkpoint that is looked up below needs memory, too
        release(error)
        where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
        kept = self.kept if isinstance(self.kept, str) else self.kept()
        less = "need less, by a smaller --batch_size or" if self.name in DIVIDED else "free some, or"
        return f"no memory left on {where}; {kept}; {less} what docs/troubleshooting.md names; {self.after}"

    def concerns(self, error: BaseException) -> bool:
        """Return whether an error is about a file in the command's place."""
        file = _file_of(error)
        return self.place != Path() and file is not None and file.is_relative_to(self.place)


def _file_of(error: BaseException) -> Path | None:
    """Return the file that an error names; that which was written, if it was copied."""
    name = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    # TensorBoard's names are bytes; a number is a descriptor
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None


def framed(name: str, argv: Sequence[str] | None, command: Callable[[list[str], Ending], int]) -> int:
    """Run a command.

    Args:
        name: name of the command, one of `astra_gym.experiments.config.commands.COMMANDS`.
        argv: flags of the command, by default this process's.
        command: function that takes the flags and the `Ending`, and returns the exit status.

    Returns:
        The exit status: the command's own, 1 if the disk or the memory ended it, 2 if a flag is not UTF-8, 128 + N if
        signal N ended it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    ending = Ending(name)
    if name not in DIVIDED and is_one_of_several() and (size := os.environ["WORLD_SIZE"]) != "1":
        return _end(
            ending, 2, f"one of {size} processes, but only {' and '.join(DIVIDED)} divide their work: start it once"
        )
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            return _end(ending, 2, f"{shown(word)} is not UTF-8, in which every file is written: give another name")
    with surviving(), unsealed_collected() as unsealed, _quiet_threads(ending):
        raised: list[StopRequested] = []
        try:
            with raising() as raised:
                status = command(words, ending)
                if status != 2:
                    _note_unsealed(name, unsealed)
                return status
        except KeyboardInterrupt as stop:
            return _end(ending, status_of(stop), ending.stopped)
        except Exception as error:
            if raised:
                # interrupted code has raised another error instead
                return _end(ending, status_of(raised[-1]), ending.stopped)
            found = disk_error(error)
            if found is None and isinstance(error, OSError) and ending.concerns(error):
                found = error
            if found is None and lacks_memory(error):
                return _end(ending, 1, ending.of_memory(error))
            if found is None:
                raise
            return _end(ending, 1, ending.of_disk(found))


def _end(ending: Ending, status: int, text: str) -> int:
    print(said(program(ending.name), text), file=sys.stderr)
    return status


def _note_unsealed(name: str, found: Sequence[Path]) -> None:
    """Print one note that names the files that were read without a seal. After bad input only its error is printed."""
    if found:
        more = f" and {len(found) - FEW} more" if len(found) > FEW else ""
        listed = ", ".join(map(str, found[:FEW])) + more
        text = f"without a seal, as version 0.1 wrote them: {listed}; damage in them would not be seen"
        print(said(program(name), text, "note"), file=sys.stderr)


@contextlib.contextmanager
def _quiet_threads(ending: Ending) -> Iterator[None]:
    """While entered, threads do not print what ends a command in a line: the code that waits for them raises the same
    error.
    """
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        error = failed.exc_value
        if error is None or not (disk_error(error) or ending.concerns(error)):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
