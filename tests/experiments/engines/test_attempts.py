import os
import time

import pytest

from astra_gym.experiments.engines import attempts
from astra_gym.experiments.engines.attempts import ATTEMPTS, REPORT, Attempt, recall
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.files import write_json


def test_an_attempt_from_its_order_to_its_end(tmp_path) -> None:
    here = Attempt(tmp_path, "x")
    here.order()
    there = Attempt(tmp_path, "x", here.token)
    assert not here.has_begun and not there.is_mine
    assert there.take() and there.is_mine and here.has_begun and here.status is None
    assert not there.is_asked_to_stop
    here.order(stop=True)
    assert there.is_asked_to_stop and there.is_mine
    there.leave(143)
    assert here.status == 143 and here.has_begun
    here.forget()
    assert not list(tmp_path.iterdir())


def test_of_two_attempts_the_later_one_runs(tmp_path) -> None:
    """And of two processes of one attempt, as where a batch system gives a node up that is only slow, too."""
    first, second = Attempt(tmp_path, "x"), Attempt(tmp_path, "x")
    first.order()
    assert first.take()
    second.order()
    assert not first.is_mine and not first.take()
    first.leave()
    assert second.take() and second.is_mine
    again = Attempt(tmp_path, "x", second.token)
    second.leave()
    # the job waits in the queue again
    assert not second.has_begun
    assert again.take() and again.is_mine and not second.is_mine
    # what ends late says nothing of the one that runs now
    second.leave(1)
    assert again.status is None and again.has_begun
    again.call_off()
    assert not again.is_mine and not again.take()


def test_the_next_attempt_waits_for_one_on_a_machine_that_does_not_answer(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(attempts, "GRACE", 0.5)
    for host, pid, seconds in (("elsewhere", 1, 0.5), (os.uname().nodename, 2**22 + 1, 0.0)):
        first, second = Attempt(tmp_path, "x"), Attempt(tmp_path, "x")
        first.order()
        assert first.take()
        report = tmp_path / f"x{REPORT}"
        write_json(report, read_json(report) | {"host": host, "pid": pid})
        second.order()
        began = time.monotonic()
        assert second.take()
        assert seconds <= time.monotonic() - began < seconds + 0.4
        second.leave()


@pytest.mark.parametrize("ended", [True, False])
def test_the_attempts_of_a_killed_comparison_are_recalled(tmp_path, monkeypatch, ended: bool) -> None:
    monkeypatch.setattr(attempts, "GRACE", 0.5)
    recall(tmp_path)
    folder = tmp_path / ATTEMPTS
    queued, running = Attempt(folder, "queued"), Attempt(folder, "running")
    for attempt in (queued, running):
        attempt.order()
    assert running.take()
    if ended:
        running.leave(0)
    began = time.monotonic()
    recall(tmp_path)
    # this process is still there, so the attempt may be too
    assert (time.monotonic() - began < 0.4) == ended
    assert not running.is_mine and not queued.take()
    assert not folder.exists()
