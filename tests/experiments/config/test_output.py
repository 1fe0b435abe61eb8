"""Standard streams that are lost: the reader goes away, the disk is full, the encoding is poor."""

import errno
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from astra_gym.experiments import train_agent
from astra_gym.experiments.config.commands import COMMANDS
from astra_gym.experiments.config.output import Output, surviving
from astra_gym.ssl_core.models.checkpoint import load_checkpoint
from astra_gym.ssl_core.utils.provenance import ROOT


class Broken(io.StringIO):
    """A stream that takes so many writes and fails then."""

    def __init__(self, error: Exception, writes: int = 1) -> None:
        super().__init__()
        self.error, self.writes = error, writes

    def write(self, text: str) -> int:
        if self.writes == 0:
            raise self.error
        self.writes -= 1
        return super().write(text)


def pipe_without_a_reader() -> io.TextIOWrapper:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def test_what_comes_after_the_first_failure_is_swallowed() -> None:
    for error in (BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.ENOSPC, "full"), ValueError("closed")):
        stream = Broken(error)
        output = Output(stream)
        console = Console(file=output)
        for _ in range(3):
            print("a line", file=output)
            console.print("another")
        output.flush()
        assert output.lost is error and stream.getvalue() == "a line"


def test_a_pipe_whose_reader_has_gone_fails_nobody_and_leaves_nothing_to_flush() -> None:
    with pipe_without_a_reader() as stream:
        output = Output(stream)
        output.write("x" * 100_000)
        output.flush()
        assert isinstance(output.lost, BrokenPipeError) and not output.isatty()
    # closing has flushed what was left


def test_characters_that_an_encoding_lacks_are_replaced() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=Output(stream)).print("0.1 ± 0.2 │ ä")
    stream.flush()
    assert stream.buffer.getvalue() == b"0.1 ? 0.2 ? ?\n"


def test_streams_are_replaced_within_and_a_full_disk_is_told(monkeypatch) -> None:
    out, err = Broken(OSError(errno.ENOSPC, "No space left on device")), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with surviving():
        for _ in range(9):
            print("much")
    assert (sys.stdout, sys.stderr) == (out, err)
    assert err.getvalue() == "note: the standard output was lost (No space left on device): nothing more was printed\n"
    with surviving():
        # started without them, as some supervisors do
        monkeypatch.setattr(sys, "stdout", None)
        with surviving():
            print("nobody sees it")


def test_without_standard_files_none_of_a_users_files_becomes_one(tmp_path: Path) -> None:
    child = "import sys; sys.exit(None in (sys.stdin, sys.stdout, sys.stderr))"
    code = (
        "import os, subprocess, sys\nfrom astra_gym.experiments.config.output import surviving\n"
        "with surviving(), open('metrics.jsonl', 'w') as file:\n"
        "    os.write(1, b'of a library'), os.write(2, b'of a library')\n"
        f"    sys.exit(file.fileno() < 3 or subprocess.run([sys.executable, '-c', {child!r}]).returncode)"
    )
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(closed, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == 0
    assert (tmp_path / "metrics.jsonl").read_text() == ""


FULL = Path("/dev/full")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "lost"),
    [
        (["-m", "astra_gym", "--help"], ["stdout", "stderr"]),
        (["-m", "astra_gym", "nonsense"], ["stderr"]),
        pytest.param(["experiments/train_agent.py", "--list"], ["stdout"], marks=pytest.mark.every_agent),
        pytest.param(
            *(["-m", "astra_gym", "--help"], ["full"]),
            marks=pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full"),
        ),
    ],
)
def test_a_process_whose_reader_has_gone_ends_as_it_would(words: list[str], lost: list[str]) -> None:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    opened = [FULL.open("w") if name == "full" else pipe_without_a_reader() for name in lost]
    streams |= {"stdout" if name == "full" else name: stream for name, stream in zip(lost, opened, strict=True)}
    done = subprocess.run([sys.executable, *words], **streams, text=True, cwd=ROOT)
    for stream in opened:
        stream.close()
    assert done.returncode == (2 if "nonsense" in words else 0)
    # of the interpreter's own last flush nothing is heard
    told = "note: the standard output was lost (No space left on device): nothing more was printed\n"
    assert (done.stderr or "") == (told if "full" in lost else "")


@pytest.mark.parametrize("name", COMMANDS.values())
def test_the_help_of_every_command_survives_its_reader(monkeypatch, name: str) -> None:
    main = importlib.import_module(f"astra_gym.experiments.{name}").main
    with pipe_without_a_reader() as stream, pytest.raises(SystemExit) as caught:
        monkeypatch.setattr(sys, "stdout", stream)
        main(["--help"])
    assert caught.value.code == 0


def test_a_run_whose_reader_goes_away_is_made_to_its_end(tmp_path: Path, monkeypatch) -> None:
    tiny = "--limit=12 --test_limit=8 --batch_size=4 --image_size=8 --width=2 --projector_hidden=4 --projector_dim=4"
    with pipe_without_a_reader() as out, pipe_without_a_reader() as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert train_agent.main([*tiny.split(), "--epochs=2", "--evaluate=false", f"--run_dir={tmp_path / 'run'}"]) == 0
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt", "run")["step"] == 6
