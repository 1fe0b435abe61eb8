"""The display of a running run, and the signals that stop it."""

import math
import signal
from collections.abc import Mapping
from datetime import timedelta
from types import FrameType
from typing import Any, Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from astra_gym.ssl_core.distributed.ranks import current
from astra_gym.ssl_core.utils.stopping import SIGNALS, StopRequested, handle, put_back, status_of
from astra_gym.ssl_core.utils.training_plan import TrainingPlan

Row = Mapping[str, Any]


class RunProgress:
    """A display of the run: a live one in a terminal, else one line per epoch (or nothing). A context manager.

    Args:
        plan: updates of the run.
        kind: `live`, `lines`, `off`, or `auto`: live in a terminal, else lines.
        console: where to print, by default the standard output.
    """

    def __init__(self, plan: TrainingPlan, *, kind: str = "auto", console: Console | None = None) -> None:
        self.plan = plan
        self.console = console or Console()
        self.kind = _kind(kind, self.console)
        # Without a thread of its own the display costs nothing between two updates and cannot disturb their timing.
        self._live = Live(console=self.console, auto_refresh=False) if self.kind == "live" else None
        self._drawn = -math.inf

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.refresh()
            self._live.stop()

    def update(self, row: Row, images_per_second: float, images_per_step: int) -> None:
        """Show a target update.

        Args:
            row: metrics of the update, see `astra_gym.experiments.runs.metrics.metrics_of`.
            images_per_second: the rate, 0 if it is not known yet.
            images_per_step: images of a target update, for the time left.
        """
        step = row["step"]
        left = (self._total(step) - step) * images_per_step / images_per_second if images_per_second else None
        if self._live:
            now = self.console.get_time()
            due = now - self._drawn >= 0.25
            self._drawn = now if due else self._drawn
            self._live.update(self._panel(row, images_per_second, left), refresh=due)
        elif self.kind == "lines" and self.plan.ends_epoch(step):
            self.note(self._line(row, images_per_second, left))

    def note(self, text: str) -> None:
        """Print a line, above the live display if there is one; nothing if progress is off."""
        if self.kind != "off":
            self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _total(self, step: int) -> float:
        """Return the updates of the whole run; where passes decide, about as many as at the mean cost so far."""
        if self.plan.spent(step) is None:
            return self.plan.total
        return step / max(self.plan.moment(step).progress, 1e-9)

    def _position(self, step: int) -> tuple[str, str]:
        epoch = math.ceil(self.plan.epochs_done(step))
        if self.plan.spent(step) is None:
            return f"epoch {min(epoch, self.plan.epochs)}/{self.plan.epochs}", f"step {step}/{self.plan.total}"
        return f"epoch {epoch}", f"step {step} ({100 * self.plan.moment(step).progress:.0f} % of passes)"

    def _panel(self, row: Row, rate: float, left: float | None) -> RenderableType:
        head = Table.grid(padding=(0, 2), expand=True)
        for _ in range(2):
            head.add_column(no_wrap=True)
        head.add_column(ratio=1, min_width=8)
        for _ in range(2):
            head.add_column(no_wrap=True, justify="right")
        epoch, step = self._position(row["step"])
        bar = ProgressBar(total=self._total(row["step"]), completed=row["step"])
        head.add_row(epoch, step, bar, _rate(rate), _left(left))
        body = Table.grid(padding=(0, 2))
        body.add_column(style="bold", no_wrap=True)
        body.add_column()
        for name, text in _facts(row).items():
            body.add_row(name, text)
        return Group(head, body)

    def _line(self, row: Row, rate: float, left: float | None) -> str:
        parts = [*self._position(row["step"]), _rate(rate), f"loss {row['loss/total']:.3f}"]
        if "reward/mean" in row:
            parts += [f"reward {row['reward/mean']:.4f}", *_budget(row)]
        return " | ".join([*parts, _left(left)])


class Stages:
    """A display of work in stages, for stages that take longer than a moment. A context manager.

    Args:
        kind: as in `RunProgress`; `lines` are one in ten seconds.
        console: where to print, by default the standard output.
        patience: seconds before a display appears.
    """

    PAUSE: Mapping[str, float] = {"live": 0.25, "lines": 10.0}
    """Seconds between two updates."""

    def __init__(self, *, kind: str = "auto", console: Console | None = None, patience: float = 1.0) -> None:
        self.console = console or Console()
        self.kind = _kind(kind, self.console)
        self.patience = patience
        self._live = Live(console=self.console, auto_refresh=False, transient=True) if self.kind == "live" else None
        self._doing = ""
        self._began = 0.0
        self._due = math.inf
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def begin(self, doing: str) -> None:
        """Begin a stage, which `doing` describes in a few words."""
        self._stop()
        now = self.console.get_time()
        self._doing, self._began, self._due, self._shown = doing, now, now + self.patience, False

    def update(self, done: float, total: float) -> None:
        """Show how far the stage has got, and about how long it will take."""
        now = self.console.get_time()
        if self.kind == "off" or now < self._due:
            return
        self._shown, self._due = True, now + self.PAUSE[self.kind]
        seconds = now - self._began
        left = _left(seconds * (total - done) / done if done else None)
        if self._live:
            line = Table.grid(padding=(0, 2), expand=True)
            # two columns are left for the terminal's ^C: in the next line it would keep this one from being erased
            line.width = self.console.width - 2
            line.add_column(no_wrap=True)
            line.add_column(ratio=1, min_width=8)
            line.add_column(no_wrap=True, justify="right")
            line.add_row(self._text(done, total), ProgressBar(total=total, completed=done), left)
            self._live.start()
            self._live.update(line, refresh=True)
        else:
            self.note(f"{self._doing} | {self._amount(done, total)} | {left}")

    def end(self, text: str) -> None:
        """End the stage; print `text` and the time that it took, if it was shown or took longer than `patience`."""
        seconds = self.console.get_time() - self._began
        self._stop()
        if self._shown or seconds >= self.patience:
            self.note(f"{text} in {seconds:.0f} s")

    def note(self, text: str) -> None:
        """Print a line; nothing if progress is off."""
        if self.kind != "off":
            self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _stop(self) -> None:
        if self._live:
            self._live.stop()

    def _text(self, done: float, total: float) -> str:
        return f"{self._doing} {self._amount(done, total)}"

    def _amount(self, done: float, total: float) -> str:
        return f"{100 * done / total:.0f} %" if total else "-"


class Decoding(Stages):
    """A display of the decoding of images. A context manager.

    Args:
        kind, console: as in `Stages`.
    """

    PATIENCE = 3.0
    """Most folders are decoded by then."""

    def __init__(self, *, kind: str = "auto", console: Console | None = None) -> None:
        super().__init__(kind=kind, console=console, patience=self.PATIENCE)

    def update(self, done: float, total: float) -> None:
        """Show how many of `total` images are decoded; 0 begins another set of images."""
        if done == 0:
            self.begin("decoding images")
        if done < total:
            super().update(done, total)
        elif self._shown:
            self.end(f"decoded {total:,} images")

    def _amount(self, done: float, total: float) -> str:
        return f"{done:,}/{total:,}"


def _kind(kind: str, console: Console) -> str:
    # not in a terminal that cannot redraw a display (TERM=dumb)
    return ("live" if console.is_interactive else "lines") if kind == "auto" else kind


def _facts(row: Row) -> dict[str, Columns]:
    """Return the display's lines below the bar, without values that a method lacks."""
    losses = {key.removeprefix("loss/"): value for key, value in row.items() if key.startswith("loss/")}
    facts = {"loss": [f"{losses.pop('total'):.3f}", *(f"{name} {value:.3f}" for name, value in losses.items())]}
    if "reward/mean" in row:
        shown = {key.removeprefix("reward/"): value for key, value in row.items() if key.startswith("reward/")}
        mean, std = shown.pop("mean"), shown.pop("std")
        facts["reward"] = [f"{mean:.4f} ± {std:.4f}", *(f"{name} {value:.3f}" for name, value in shown.items())]
        facts["attack"] = _budget(row)
    # Values and their names stay together when a narrow terminal breaks the line, which a text with no-break spaces
    # does not ensure: rich breaks it there too.
    return {name: Columns(map(Text, parts), padding=(0, 3)) for name, parts in facts.items()}


def _budget(row: Row) -> list[str]:
    return [
        f"epsilon {row['budget/epsilon_255']:.1f}/255",
        f"steps {row['budget/steps']:.1f}",
        f"step size {row['budget/step_size_255']:.1f}/255",
    ]


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f} images/s" if images_per_second else "- images/s"


def _left(seconds: float | None) -> str:
    return "- left" if seconds is None else f"{timedelta(seconds=round(seconds))} left"


class Interrupt:
    """While entered, a signal to stop the process does not end it: `asked` becomes the name of the first signal.

    A second Ctrl-C interrupts immediately. A second signal of another kind does not, because a closing terminal and a
    system that shuts down send several. Signals reach a process's main thread only; entered in another thread, this has
    no effect.
    """

    SIGNALS = SIGNALS

    def __init__(self) -> None:
        self.asked: str | None = None
        self.status = 0
        """The exit status of a process that was asked to stop."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.asked, self.status = None, 0
        self._before = handle(self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        put_back(self._before)

    def settle(self) -> str | None:
        """Return the name of a signal that any rank got; None if none did.

        All ranks call this at the same places, and stop only by what it returns: `asked` may change on one of them at
        any time.
        """
        number = current().largest(self.status - 128 if self.asked else 0)
        if not number:
            return None
        self._ask(StopRequested(number))
        return self.asked

    def _ask(self, stop: StopRequested) -> None:
        self.asked, self.status = str(stop), status_of(stop)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        stop = StopRequested(number)
        if self.asked is None:
            # Nothing is printed here, because a handler may interrupt a print, which Python's streams do not allow.
            self._ask(stop)
        elif number == signal.SIGINT:
            raise stop
