import socket
from dataclasses import replace
from pathlib import Path

import pytest

from astra_gym.experiments.engines.attempts import Attempt
from astra_gym.experiments.engines.base import LOST, EngineFlags
from astra_gym.experiments.engines.remote import Attendant, RemoteCell, ordered
from astra_gym.ssl_core.distributed.ranks import STARTED
from tests.helpers.cells import job


class Given(RemoteCell):
    """A cell whose machine is over when the test says so."""

    over = ""
    cancelled = False

    def why_over(self) -> str:
        return self.over

    def cancel(self) -> None:
        self.cancelled = True


def test_a_cell_as_the_comparison_sees_it(tmp_path) -> None:
    attempt, task = ordered(job(tmp_path, "x"), EngineFlags(), tmp_path)
    cell = Given(job(tmp_path, "x"), attempt)
    assert cell.is_alive and not cell.has_begun and cell.seconds == 0
    there = Attempt(Path(task.attempts), "x", task.token)
    assert there.take() and cell.has_begun and cell.seconds >= 0
    cell.ask_to_stop()
    assert there.is_asked_to_stop and not cell.cancelled
    there.leave(143)
    assert not cell.is_alive and cell.ended().status == 143
    assert not list(Path(task.attempts).iterdir())


@pytest.mark.parametrize("stopped", [False, True])
def test_a_cell_whose_machine_dies_or_that_never_got_one(tmp_path, stopped: bool) -> None:
    attempt, _ = ordered(job(tmp_path, "x"), EngineFlags(), tmp_path)
    cell = Given(job(tmp_path, "x"), attempt)
    if stopped:
        cell.ask_to_stop()
        assert cell.cancelled
    cell.over = "its machine died"
    assert not cell.is_alive
    end = cell.ended()
    assert (end.status, end.unseen) == (143 if stopped else LOST, "its machine died")


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path) -> None:
    _, task = ordered(job(tmp_path, "x"), EngineFlags(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"elsewhere is not seen on .*: put it where all see it"):
        Attendant()(replace(task, attempts=str(tmp_path / "elsewhere")))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_a_cell_is_one_process_whatever_the_comparison_was_started_as(tmp_path, monkeypatch) -> None:
    with socket.socket() as taken:
        # as a second cell would find it
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in zip(STARTED, ("0", "1", "127.0.0.1", str(taken.getsockname()[1])), strict=True):
            monkeypatch.setenv(name, value)
        _, task = ordered(job(tmp_path, "x", "--epochs=1", "--evaluate=false"), EngineFlags(), tmp_path)
        assert Attendant()(task) == 0, Path(task.log).read_text()


def test_an_attempt_that_was_called_off_before_it_began_does_nothing(tmp_path) -> None:
    attempt, task = ordered(job(tmp_path, "x"), EngineFlags(), tmp_path)
    attempt.call_off()
    assert Attendant()(task) is None
    assert not (tmp_path / "x").exists() and not (tmp_path / "logs").exists()
