"""Signals that ask a process to stop, also in the seconds of its imports: with real processes, which end by them."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from astra_gym.experiments.config.commands import COMMANDS
from astra_gym.ssl_core.utils import stopping
from astra_gym.ssl_core.utils.provenance import ROOT
from astra_gym.ssl_core.utils.stopping import SIGNALS, StopRequested, deferring, raising, status_of

SLOW = "import sys, time\nprint('importing', flush=True)\ntime.sleep(60)\n"
"""Gymnasium as it would be on a slow disk: nothing of ours is imported before it but what catches signals."""
SCRIPTS = [f"experiments/{name}.py" for name in COMMANDS.values()]


def ended_while_importing(tmp_path: Path, number: signal.Signals, *words: str) -> tuple[int, str]:
    """The status and the standard error of a process that gets a signal while it imports."""
    (tmp_path / "gymnasium.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, *words],
        # of the module; a script's own folder comes first anyway
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(number)
    return process.wait(), process.communicate()[1]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_the_seconds_of_imports_ends_in_a_line_and_its_status(tmp_path, number: signal.Signals) -> None:
    status, error = ended_while_importing(tmp_path, number, str(ROOT / "experiments" / "train_agent.py"))
    assert status == 128 + number
    assert error == f"train_agent.py: error: {number.name} while it was starting: nothing was done\n"


@pytest.mark.parametrize("words", [*([script] for script in SCRIPTS[1:]), ["-m", "astra_gym", "train"]])
def test_every_command_catches_signals_before_its_imports(tmp_path, words: list[str]) -> None:
    words = [str(ROOT / word) if word in SCRIPTS else word for word in words]
    status, error = ended_while_importing(tmp_path, signal.SIGTERM, *words)
    name = "astra-gym" if words[0] == "-m" else Path(words[0]).name
    assert (status, error) == (143, f"{name}: error: SIGTERM while it was starting: nothing was done\n")


def test_a_library_that_is_imported_catches_none(tmp_path) -> None:
    status, error = ended_while_importing(tmp_path, signal.SIGTERM, "-c", "import astra_gym")
    assert (status, error) == (-signal.SIGTERM, "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_and_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(item) for item in SIGNALS]
    with pytest.raises(StopRequested) as caught, raising() as raised:
        os.kill(os.getpid(), number)
    assert status_of(caught.value) == 128 + number and str(caught.value) == number.name and raised == [caught.value]
    assert [signal.getsignal(item) for item in SIGNALS] == before
    assert status_of(KeyboardInterrupt()) == 130


def test_what_is_not_left_halfway_is_stopped_after_its_end() -> None:
    done = []
    with pytest.raises(StopRequested, match="SIGTERM"), raising(), deferring():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(True)
    assert done


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raising():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


HELD_BACK = """
import os, signal
from astra_gym.ssl_core.utils.stopping import StopRequested, block, raising
block()
os.kill(os.getpid(), signal.SIGTERM)
try:
    with raising():
        print("it came too late")
except StopRequested as stop:
    print(stop)
"""


def test_a_signal_that_was_held_back_comes_when_there_is_somebody_to_take_it() -> None:
    # a process of its own: of one with several threads, as a tests' worker is, another thread takes the signal
    words = [sys.executable, "-c", HELD_BACK]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "SIGTERM\n", "")


def test_another_thread_than_the_main_one_has_no_signals() -> None:
    done = []

    def work() -> None:
        with raising():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


@pytest.mark.parametrize(
    ("called", "words", "command"),
    [
        (str(ROOT / "experiments" / "report.py"), [], "report.py"),
        ("/usr/bin/astra-gym", [], "astra-gym"),
        ("-m", ["python", "-m", "astra_gym", "train"], "astra-gym"),
        ("/elsewhere/train_agent.py", [], None),
        (str(ROOT / "experiments"), [], None),
        ("", [], None),
    ],
)
def test_which_processes_are_commands(monkeypatch, called: str, words: list[str], command: str | None) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr(sys, "orig_argv", words)
    assert stopping._command() == command
