"""Measurement: clocks, parts of a run, rounds in turn, medians and spreads, straight lines, targets."""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from astra_gym.ssl_core.utils.registry import pick

Work = TypeVar("Work")
Seconds = Mapping[tuple[str, ...], float]


class Unit(NamedTuple):
    """The written form of a value, and whether more is better (1), less is better (-1), or neither (0)."""

    form: str
    better: int


UNITS = {
    "times faster": Unit("{:.2f}x", 1),
    "times the loss": Unit("{:.4f}x", 1),
    "of the peak": Unit("{:.1%}", 1),
    "overhead": Unit("{:.1%}", -1),
    "deviation": Unit("{:.1%}", -1),
    "times the cost": Unit("{:.2f}x", -1),
    "seconds": Unit("{:.2f} s", -1),
    "share": Unit("{:.1%}", 0),
}
"""Units of values. An "overhead" is a share that should be small; a "share" only shows how the time is spent."""
TARGETS = {
    ("attack", "+ folded batch norm"): 2.5,
    ("attack", "+ bf16"): 5.0,
    ("step", "ResNet-18, reinforce, fp32"): 2.4,
    ("step", "ResNet-18, reinforce, bf16"): 4.5,
    ("step", "digits, reinforce, auto"): 2.5,
    ("shares", "reinforce: outside the target network's arithmetic"): 0.05,
    ("scaling", "seconds against the mean number of steps, off a line"): 0.10,
    ("evaluation", "PGD-20"): 1.3,
    ("evaluation", "AutoAttack, quick"): 1.3,
    ("data", "reading from disk, in a SimCLR step"): 0.10,
    ("efficiency", "update, bf16"): 0.9,
    ("start", "first training step"): 4.0,
    ("robustness", "fixed-tuned: against the paper's constant"): 3.0,
    ("training", "digits, against the other checkout"): 1.5,
}
"""Targets by a value's part and name: the least median, or the largest if less is better."""


class DeviceClock:
    """Seconds since some moment, read after the device has done all its work."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Stopwatch:
    """Seconds of nested parts, by path; a part's clock stops while a part inside it runs."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._path: tuple[str, ...] = ()
        self._since = 0.0
        self.seconds: dict[tuple[str, ...], float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside for `name`, below the part that is running."""
        outer = self._path
        self._turn((*outer, name))
        try:
            yield
        finally:
            self._turn(outer)

    def _turn(self, path: tuple[str, ...]) -> None:
        now = self._clock()
        if self._path:
            self.seconds[self._path] += now - self._since
        self._path, self._since = path, now

    @contextmanager
    def watching(self, owner: object, attribute: str, name: str) -> Iterator[None]:
        """While entered, count calls of the owner's attribute for `name`; the owner is restored at the end."""
        original = getattr(owner, attribute)

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return original(*arguments, **named)

        with replaced(owner, attribute, timed):
            yield

    def take(self) -> dict[tuple[str, ...], float]:
        """Return the seconds so far, and restart the watch."""
        seconds = dict(self.seconds)
        self.seconds.clear()
        return seconds


@contextmanager
def replaced(owner: object, attribute: str, value: object) -> Iterator[None]:
    """While entered, replace the owner's attribute; it is restored at the end."""
    # by the instance's dict, since frozen dataclasses refuse setattr
    own = vars(owner)
    before = {attribute: own[attribute]} if attribute in own else {}
    own[attribute] = value
    try:
        yield
    finally:
        del own[attribute]
        own.update(before)


@dataclass(frozen=True)
class Figure:
    """A measured value, once for each round.

    Args:
        part: part of the benchmark.
        name: name, unique within the part.
        unit: a name of `UNITS`.
        values: one value or more; None if it was not reached, which is worse than any value.

    Raises:
        ValueError: if the unit is unknown or there is no value.
    """

    part: str
    name: str
    unit: str
    values: tuple[float | None, ...]

    def __post_init__(self) -> None:
        pick(self.unit, UNITS, "unit")
        if not self.values:
            raise ValueError(f"the figure {self.name!r} has no values: expected one per round")

    def summary(self) -> dict[str, Any]:
        """Return median, quartiles and, if there is a target, whether the median meets it; None: not reached."""
        better = UNITS[self.unit].better
        worst = -math.inf if better > 0 else math.inf
        low, median, high = quartiles([worst if value is None else value for value in self.values])
        target = TARGETS.get((self.part, self.name))
        met = None
        if target is not None:
            met = median >= target if better > 0 else median <= target
        shown = [value if math.isfinite(value) else None for value in (low, median, high)]
        return {"median": shown[1], "quartiles": (shown[0], shown[2]), "target": target, "met": met}

    def record(self) -> dict[str, Any]:
        """Return what the results file keeps."""
        return asdict(self) | self.summary()


Result = tuple[list[Figure], dict[str, Any]]
"""Result of a part of the benchmark: its values, and details that explain them."""


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile, by linear interpolation; a value may be infinite."""
    ranked = sorted(values)

    def quartile(number: int) -> float:
        place, rest = divmod(number * (len(ranked) - 1), 4)
        # infinity times 0 is not a number
        return (ranked[place] * (4 - rest) + ranked[place + 1] * rest) / 4 if rest else ranked[place]

    return quartile(1), quartile(2), quartile(3)


def interleaved(
    tasks: Mapping[str, Callable[[Work], Any]],
    prepare: Callable[[int], Work],
    rounds: int,
    clock: Callable[[], float],
    check: Callable[[int, Work, dict[str, Any]], None] | None = None,
) -> dict[str, list[float]]:
    """Run the tasks in turn (ABCD ABCD ...), all on the same work within a round.

    Args:
        tasks: tasks by name, in their order.
        prepare: function that makes the work of a round; not timed. Round 0 is a warm-up, which does not count.
        rounds: number of rounds that count.
        clock: clock that is read before and after each task.
        check: function that checks what the tasks returned in a round, including the warm-up; not timed.

    Returns:
        Seconds of each task, one value per counted round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        work, found = prepare(number), {}
        for name, task in tasks.items():
            began = clock()
            found[name] = task(work)
            took = clock() - began
            seconds[name] += [took] if number else []
        if check is not None:
            check(number, work, found)
    return seconds


def ratios(reference: Sequence[float], variant: Sequence[float]) -> tuple[float, ...]:
    """Return how many times faster the variant was than the reference, round by round."""
    return tuple(slow / fast for slow, fast in zip(reference, variant, strict=True))


class Line(NamedTuple):
    """A least-squares line `intercept + slope * x`, and the largest `|y - line| / line` of its points."""

    intercept: float
    slope: float
    deviation: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Fit a line through points.

    Raises:
        ValueError: if there are fewer than three points, since any two are on a line, or x does not vary.
    """
    if len(x) < 3 or len(x) != len(y) or len(set(x)) < 2:
        raise ValueError(f"a line is fitted to {list(x)} and {list(y)}: expected three points or more, x not all equal")
    slope, intercept = statistics.linear_regression(x, y)
    fitted = [intercept + slope * value for value in x]
    off = [abs(value - line) / abs(line) for value, line in zip(y, fitted, strict=True)]
    return Line(intercept, slope, max(off))
