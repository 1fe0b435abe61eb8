"""A signal that came to one rank after the ranks' last agreement on stops."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from astra_gym.experiments import console, train_agent
from astra_gym.ssl_core.distributed.ranks import Ranks


class Late(Ranks):
    """A rank that gets a signal in the ranks' last agreement, or another has got it before."""

    heard = False
    waited = False

    def largest(self, number: int) -> int:
        if self.heard:
            return signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        return number

    def await_last_word(self) -> None:
        self.waited = True


@pytest.mark.parametrize("heard", [True, False])
def test_a_rank_that_stops_alone_does_not_wait_for_rank_0(
    heard: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = Late()
    ranks.heard = heard
    for module in (console, train_agent):
        monkeypatch.setattr(module, "current", lambda: ranks)
    optimizer, progress = SimpleNamespace(passes=None), SimpleNamespace(progress="off")
    run: Any = SimpleNamespace(
        engine=SimpleNamespace(step=3, planned_updates=3),
        settings=SimpleNamespace(optimizer=optimizer, run=progress),
        train=lambda *parts: None,
    )
    folder: Any = SimpleNamespace(path=Path("run"), moved=(), trusting=())
    status = train_agent._train(run, folder, cast(Any, None), cast(Any, SimpleNamespace(console=None)))
    # rank 0 may evaluate for hours, and need this rank for it
    assert status == 128 + signal.SIGTERM and ranks.waited == heard
    assert "SIGTERM: saved at step 3 of 3" in capsys.readouterr().err
