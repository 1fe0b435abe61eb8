"""How a command ends that a signal, a disk or an error ends."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.ssl_core.safety.disk import FolderLostError
from astra_gym.ssl_core.utils.stopping import SIGNALS


def ended(capsys, error: BaseException | None = None, *, number: int | None = None, hidden: bool = False) -> tuple:
    def command(words: list[str], ending: Ending) -> int:
        ending.place, ending.kept = Path("runs/one"), lambda: "the checkpoint of step 7 is whole"
        ending.after, ending.stopped = "resume by X", "interrupted; resume by X"
        if number is not None:
            try:
                os.kill(os.getpid(), number)
            except KeyboardInterrupt:
                if hidden:
                    raise ImportError("numpy failed to import") from None
                raise
        if error is not None:
            raise error
        return 5

    status = framed("train", ["--flag"], command)
    return status, capsys.readouterr().err


def test_a_command_ends_with_its_own_status(capsys) -> None:
    assert ended(capsys) == (5, "")
    before = sys.stdout, sys.stderr, threading.excepthook, [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError):
        ended(capsys, ZeroDivisionError())
    with pytest.raises(SystemExit):
        ended(capsys, SystemExit(2))
    after = sys.stdout, sys.stderr, threading.excepthook, [signal.getsignal(number) for number in SIGNALS]
    assert before == after


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_it_with_its_number_also_where_a_library_makes_an_error_of_it(capsys, number, hidden) -> None:
    line = "train_agent.py: error: interrupted; resume by X\n"
    assert ended(capsys, number=number, hidden=hidden) == (128 + number, line)


TOLD = {
    OSError(errno.ENOSPC, "No space"): "no space left in runs/one; the checkpoint of step 7 is whole; resume by X",
    OSError(errno.EDQUOT, "Quota", "runs/one/a.pt"): "no space left in runs/one; the checkpoint of step 7 is whole",
    OSError(errno.ENOSPC, "No space", "cache/a.u8"): "no space left in cache; the checkpoint of step 7 is whole",
    OSError(errno.EROFS, "Read-only file system"): "runs/one cannot be read or written (Read-only file system); the",
    PermissionError(errno.EACCES, "Permission denied", "runs/one/x"): "runs/one/x cannot be read or written",
    # TensorBoard's names are bytes
    FileNotFoundError(errno.ENOENT, "No such file", b"runs/one/events"): "runs/one/events cannot be read or written",
    # of a copy, what is written
    OSError(errno.ENOSPC, "No space", "runs/two/a", None, "kept/a"): "no space left in kept; the checkpoint of step 7",
    FolderLostError("runs/one was removed or moved while it was written"): "runs/one was removed or moved while",
}


@pytest.mark.parametrize("error", TOLD)
def test_a_disk_ends_it_in_one_line(capsys, error: OSError) -> None:
    status, line = ended(capsys, error)
    assert status == 1 and len(line) < 300 and line.count("\n") == 1
    assert line.startswith(f"train_agent.py: error: {TOLD[error]}")


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied", "elsewhere"), FileNotFoundError("x"), OSError()]
)
def test_other_errors_are_not_hidden(capsys, error: OSError) -> None:
    with pytest.raises(OSError) as caught:
        ended(capsys, error)
    assert caught.value is error


def test_a_name_that_no_file_could_hold_is_refused_before_anything_is_done(capsys) -> None:
    assert framed("train", ["--run_dir", "runs/\udce9t\udce9"], lambda words, ending: 0) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        r"train_agent.py: error: 'runs/\udce9t\udce9' is not UTF-8, in which every file is written: give"
    )


def error_of(asks: Callable[[], object]) -> Exception:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        asks()
    assert isinstance(caught.value, Exception)
    return caught.value


def test_a_full_memory_ends_it_in_one_line(capsys) -> None:
    machine = [error_of(lambda: torch.empty(2**60)), error_of(lambda: np.empty(2**50)), MemoryError()]
    for error in [*machine, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")]:
        status, line = ended(capsys, error)
        where = "this machine" if error in machine else "the GPU"
        assert status == 1 and len(line) < 300
        assert line == (
            f"train_agent.py: error: no memory left on {where}; the checkpoint of step 7 is whole; need less, by a "
            "smaller --batch_size or what docs/troubleshooting.md names; resume by X\n"
        )
    with pytest.raises(RuntimeError, match="a bug"):
        ended(capsys, RuntimeError("a bug"))


def test_threads_print_nothing_of_a_full_disk_and_everything_else(capsys, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: seen.append(failed.exc_value))
    lost = FileNotFoundError(errno.ENOENT, "gone", b"runs/one/events")
    errors = [OSError(errno.ENOSPC, "full"), lost, ValueError("a bug")]

    def fails(error: Exception) -> None:
        raise error

    def command(words: list[str], ending: Ending) -> int:
        ending.place = Path("runs/one")
        for error in errors:
            thread = threading.Thread(target=fails, args=(error,))
            thread.start()
            thread.join()
        return 0

    assert framed("train", [], command) == 0 and seen == errors[2:]
