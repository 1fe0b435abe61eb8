"""Stopwatch, rounds, medians, quartiles and lines in closed form."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from astra_gym.experiments.benchmarks.measure import (
    TARGETS,
    UNITS,
    DeviceClock,
    Figure,
    Stopwatch,
    fit_line,
    interleaved,
    quartiles,
    ratios,
    replaced,
)
from astra_gym.ssl_core.attacks.pgd import Budget


class Hand:
    """A clock that stands still until it is told to move on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Hand:
    return Hand()


def test_a_stopwatch_stands_still_for_the_outer_part_while_an_inner_one_runs(clock: Hand) -> None:
    watch = Stopwatch(clock)
    clock.advance(1000)
    with watch.part("a"):
        clock.advance(1)
        with watch.part("b"):
            clock.advance(2)
            with watch.part("a"):
                clock.advance(4)
            clock.advance(8)
        clock.advance(16)
        with watch.part("b"):
            clock.advance(32)
    clock.advance(1000)
    with watch.part("b"):
        clock.advance(64)
    assert watch.take() == {("a",): 17, ("a", "b"): 42, ("a", "b", "a"): 4, ("b",): 64}
    assert watch.take() == {}


def test_a_stopwatch_survives_an_exception(clock: Hand) -> None:
    watch = Stopwatch(clock)
    with watch.part("a"):
        with pytest.raises(KeyError), watch.part("b"):
            clock.advance(1)
            raise KeyError
        clock.advance(2)
    assert watch.seconds == {("a", "b"): 1, ("a",): 2}


def test_watching_counts_calls_and_leaves_the_owner_as_it_was(clock: Hand) -> None:
    watch, network = Stopwatch(clock), torch.nn.Linear(2, 3)
    budget = Budget.uniform(2, epsilon=0.1, step_size=0.1, steps=3)
    before = dict(vars(network)), dict(vars(budget)), torch.autograd.grad

    class Slow(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            clock.advance(5)
            return super().forward(input)

    network.__class__ = Slow
    x = torch.ones(1, 2, requires_grad=True)
    with (
        watch.watching(network, "forward", "network"),
        watch.watching(network, "forward", "again"),
        watch.watching(torch.autograd, "grad", "grad"),
        watch.watching(budget, "__len__", "a frozen dataclass"),
    ):
        (gradient,) = torch.autograd.grad(network(x).sum(), x)
    assert torch.equal(gradient, network.weight.sum(0, keepdim=True))
    assert watch.seconds == {("again",): 0, ("again", "network"): 5, ("grad",): 0}
    assert (dict(vars(network)), dict(vars(budget)), torch.autograd.grad) == before


def test_an_attribute_is_put_back_after_an_exception() -> None:
    owner = torch.nn.Linear(1, 1)
    with pytest.raises(KeyError), replaced(owner, "forward", len):
        assert owner.forward is len
        raise KeyError
    assert "forward" not in vars(owner)


def test_rounds_run_in_turn_on_the_same_work_and_the_first_does_not_count(clock: Hand) -> None:
    calls: list[tuple[str, int]] = []
    seen: list[tuple[int, int, dict[str, str]]] = []

    def task(name: str, cost: float) -> Callable[[int], str]:
        def run(work: int) -> str:
            calls.append((name, work))
            clock.advance(cost * work)
            return f"{name}{work}"

        return run

    def prepare(number: int) -> int:
        clock.advance(1000)
        return 10 + number

    def check(number: int, work: int, found: dict[str, str]) -> None:
        clock.advance(1000)
        seen.append((number, work, found))

    seconds = interleaved({"a": task("a", 1), "b": task("b", 2)}, prepare, 2, clock, check)
    assert seconds == {"a": [11, 12], "b": [22, 24]}
    assert calls == [("a", 10), ("b", 10), ("a", 11), ("b", 11), ("a", 12), ("b", 12)]
    assert seen == [(number, 10 + number, {"a": f"a{10 + number}", "b": f"b{10 + number}"}) for number in range(3)]
    assert ratios(seconds["b"], seconds["a"]) == (2, 2)
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


def test_a_clock_moves_on() -> None:
    clock = DeviceClock("cpu")
    assert 0 <= clock() < clock() + 1e-9


def test_medians_and_quartiles() -> None:
    assert quartiles((1.0, 2.0, 3.0, 4.0, 9.0)) == (2, 3, 4)
    assert quartiles((4.0, 1.0)) == (1.75, 2.5, 3.25)
    assert quartiles((7.0,)) == (7, 7, 7)
    assert quartiles((1.0, 2.0, math.inf)) == (1.5, 2, math.inf)


def test_what_is_not_reached_is_worse_than_any_value() -> None:
    slow = Figure("start", "first training step", "seconds", (None, 1.0, 2.0)).summary()
    assert slow == {"median": 2.0, "quartiles": (1.5, None), "target": 4.0, "met": True}
    fast = Figure("robustness", "fixed-tuned: against the paper's constant", "times faster", (None, 9.0, None))
    assert fast.summary() == {"median": None, "quartiles": (None, None), "target": 3.0, "met": False}


def test_a_figure_knows_whether_its_target_is_met() -> None:
    figure = Figure("attack", "+ folded batch norm", "times faster", (1.0, 2.0, 3.0, 4.0, 9.0))
    assert figure.summary() == {"median": 3.0, "quartiles": (2.0, 4.0), "target": 2.5, "met": True}
    assert Figure("attack", "+ folded batch norm", "times faster", (2.4,)).summary()["met"] is False
    assert Figure("start", "first training step", "seconds", (3.9,)).summary()["met"] is True
    assert Figure("start", "first training step", "seconds", (4.1,)).summary()["met"] is False
    alone = Figure("shares", "reinforce: rest", "share", (0.16,))
    assert alone.summary() == {"median": 0.16, "quartiles": (0.16, 0.16), "target": None, "met": None}
    assert alone.record()["unit"] == "share"
    with pytest.raises(ValueError, match=r"unknown unit 'tims faster'.*did you mean 'times faster'"):
        Figure("attack", "a", "tims faster", (1.0,))
    with pytest.raises(ValueError, match="'a' has no values"):
        Figure("attack", "a", "times faster", ())


def test_no_target_is_for_a_unit_without_a_better_side() -> None:
    assert all(target > 0 for target in TARGETS.values())
    assert {name for name, unit in UNITS.items() if not unit.better} == {"share"}


def test_a_line_is_the_least_squares_one() -> None:
    exact = fit_line([1, 2, 4], [5, 7, 11])
    assert exact == (pytest.approx(3), pytest.approx(2), pytest.approx(0, abs=1e-12))
    # y = 0, 0, 3 over x = 0, 1, 2: slope 3/2, intercept -1/2; the lines' values are -1/2, 1, 5/2
    bent = fit_line([0, 1, 2], [0, 0, 3])
    assert bent == (pytest.approx(-0.5), pytest.approx(1.5), pytest.approx(1.0))
    for x, y in (([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 2])):
        with pytest.raises(ValueError, match="expected three points or more"):
            fit_line(x, y)
