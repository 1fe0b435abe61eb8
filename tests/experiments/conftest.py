import os
import signal
from collections.abc import Callable

import pytest

from envs.engine import AttackEngine


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`interrupt(step)` sends this process a signal after so many updates, as a person at the keyboard would."""

    def at(step: int) -> None:
        play = AttackEngine.play

        def watched(engine, budget):
            record = play(engine, budget)
            if record.step == step:
                monkeypatch.setattr(AttackEngine, "play", play)
                os.kill(os.getpid(), signal.SIGINT)
            return record

        monkeypatch.setattr(AttackEngine, "play", watched)

    return at
