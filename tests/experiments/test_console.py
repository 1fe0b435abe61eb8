"""The display at several widths, quiet without a terminal; signals that only ask."""

import io
import os
import re
import signal
from typing import Any

import pytest
from rich.console import Console

from astra_gym.experiments import console
from astra_gym.experiments.console import Decoding, Interrupt, RunProgress
from astra_gym.ssl_core.distributed.ranks import Ranks
from astra_gym.ssl_core.utils.training_plan import TrainingPlan

ATTACKED: dict[str, Any] = {
    "loss/clean": 4.1234,
    "loss/adversarial": 4.5678,
    "loss/mixed": 5.4321,
    "loss/total": 7.1234,
    "reward/mean": 0.0421,
    "reward/std": 0.0123,
    "reward/adversarial": 4.6,
    "reward/clean": 4.5,
    "reward/mixed": 5.0,
    "reward/cost": 3.0,
    "budget/epsilon_255": 9.13,
    "budget/steps": 8.25,
    "budget/step_size_255": 2.94,
    "budget/strength_255": 9.0,
}
PLAIN: dict[str, Any] = {"loss/clean": 4.1234, "loss/total": 4.1234}


def shown(row: dict[str, Any], width: int, terminal: bool, kind: str = "auto", steps: int = 6, term: str = "") -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None, _environ={"TERM": term})
    with RunProgress(TrainingPlan(2, 3), kind=kind, console=console) as progress:
        for step in range(1, steps + 1):
            progress.update(row | {"step": step}, 512.0, 128)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_display_says_everything_within_the_width(width: int) -> None:
    last = shown(ATTACKED, width, terminal=True).split("\x1b[2K")[-1]
    lines = [line.rstrip() for line in last.splitlines()]
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for part in ("epoch 2/2", "step 6/6", "512 images/s", "0:00:00 left", "7.123", "clean 4.123", "mixed 5.432"):
        assert part in text
    for part in ("0.0421 ± 0.0123", "cost 3.000", "epsilon 9.1/255", "steps 8.2", "step size 2.9/255"):
        assert part in text


@pytest.mark.parametrize("width", [80, 120])
def test_a_method_without_an_attack_shows_its_loss_alone(width: int) -> None:
    text = shown(PLAIN, width, terminal=True)
    assert "4.123" in text
    assert "reward" not in text


def decoding(seconds_each: float, terminal: bool = False, kind: str = "auto", total: int = 1000) -> str:
    """What is shown while `total` images are decoded, ten at a time."""
    file, now = io.StringIO(), 0.0

    def clock() -> float:
        return now

    console = Console(file=file, width=80, force_terminal=terminal, color_system=None, _environ={}, get_time=clock)
    with Decoding(kind=kind, console=console) as shown:
        for done in range(0, total + 1, 10):
            shown.update(done, total)
            now += 10 * seconds_each
    return file.getvalue()


def test_decoding_is_shown_where_it_takes_longer_than_a_moment() -> None:
    assert decoding(0.002) == "" and decoding(0.002, terminal=True) == ""
    assert decoding(0.025).splitlines() == [
        "decoding images | 120/1,000 | 0:00:22 left",
        "decoding images | 520/1,000 | 0:00:12 left",
        "decoding images | 920/1,000 | 0:00:02 left",
        "decoded 1,000 images in 25 s",
    ]
    assert decoding(0.025, kind="off") == ""
    live = decoding(0.025, terminal=True)
    assert "decoding images 500/1,000" in live and "0:00:12 left" in live
    assert live.rstrip().splitlines()[-1].endswith("decoded 1,000 images in 25 s")
    # Ctrl-C's echo fits behind it, and the line is erased
    assert {len(line) for line in re.findall("decoding images.*? left", live)} == {78}


def test_without_a_terminal_there_is_one_line_an_epoch() -> None:
    lines = shown(ATTACKED, 80, terminal=False).splitlines()
    assert [line.split(" | ")[:2] for line in lines] == [["epoch 1/2", "step 3/6"], ["epoch 2/2", "step 6/6"]]
    assert lines[0].endswith("| epsilon 9.1/255 | steps 8.2 | step size 2.9/255 | 0:00:01 left")
    assert "\x1b" not in lines[0]
    assert len(shown(PLAIN, 80, terminal=False).splitlines()) == 2
    assert shown(ATTACKED, 80, terminal=True, term="dumb").splitlines() == lines  # it cannot redraw a display


def test_progress_can_be_switched_off_and_chosen() -> None:
    assert shown(ATTACKED, 80, terminal=True, kind="off") == ""
    assert "\x1b" not in shown(ATTACKED, 80, terminal=True, kind="lines")


def test_an_unknown_rate_gives_no_time_left() -> None:
    file = io.StringIO()
    with RunProgress(TrainingPlan(1, 1), console=Console(file=file, width=80)) as progress:
        progress.update(PLAIN | {"step": 1}, 0.0, 128)
    assert file.getvalue().endswith("- left\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_once_and_interrupts_twice(number: signal.Signals) -> None:
    before = {item: signal.getsignal(item) for item in Interrupt.SIGNALS}
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        assert interrupt.asked is None
        os.kill(os.getpid(), number)
        assert interrupt.asked == number.name
        os.kill(os.getpid(), signal.SIGINT)
    assert {item: signal.getsignal(item) for item in Interrupt.SIGNALS} == before


def test_a_signal_while_ranks_agree_is_heeded_at_the_next_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Ranks):
        """A rank that gets a signal just after it has told the others its number."""

        def largest(self, number: int) -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            return number

    monkeypatch.setattr(console, "current", Asked)
    with Interrupt() as interrupt:
        assert interrupt.settle() is None and interrupt.asked == "SIGTERM"
        assert interrupt.settle() == "SIGTERM" and interrupt.status == 143


def test_handlers_come_back_without_a_signal() -> None:
    before = {item: signal.getsignal(item) for item in Interrupt.SIGNALS}
    with Interrupt() as interrupt:
        assert signal.getsignal(signal.SIGTERM) == interrupt._handle
    assert {item: signal.getsignal(item) for item in Interrupt.SIGNALS} == before
