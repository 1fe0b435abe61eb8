"""The benchmark: a stopwatch in closed form, parts that sum up, a wrong attack that is caught, the command itself."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments import benchmark
from experiments.benchmark import (
    REFERENCE,
    VARIANTS,
    DisagreementError,
    Figure,
    Stopwatch,
    check_agreement,
    masked_loop,
    part_of,
    step_figures,
)
from ssl_core.attacks import Attacked, Budget, pgd

OUTSIDE = "outside the target network's arithmetic"


class Clock:
    """Stands still until it is told to move on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_stopwatch_stands_still_for_the_outer_part_while_an_inner_one_runs(clock: Clock) -> None:
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
    assert watch.seconds == {("a",): 17, ("a", "b"): 42, ("a", "b", "a"): 4, ("b",): 64}


def test_a_stopwatch_survives_an_exception(clock: Clock) -> None:
    watch = Stopwatch(clock)
    with watch.part("a"):
        with pytest.raises(KeyError), watch.part("b"):
            clock.advance(1)
            raise KeyError
        clock.advance(2)
    assert watch.seconds == {("a", "b"): 1, ("a",): 2}


def test_watching_counts_calls_and_leaves_the_owner_as_it_was(clock: Clock) -> None:
    watch, network = Stopwatch(clock), torch.nn.Linear(2, 3)
    budget = Budget.uniform(2, 0.1, 0.1, 3)
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


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("rest", (False, "rest")),
        ("rest > observe", (False, "observe: bookkeeping")),
        ("rest > observe > network", (True, "observe: network")),
        ("rest > observe > loss", (False, "observe: bookkeeping")),
        ("rest > reward > attack", (False, "attack: bookkeeping")),
        ("rest > reward > attack > network", (True, "attack: network")),
        ("rest > reward > attack > loss", (True, "attack: network")),
        ("rest > reward > loss", (False, "reward")),
        ("rest > update > network > network > loss", (True, "update: network")),
        ("rest > update > update: optimiser", (False, "update: optimiser")),
        ("rest > agent update > network", (False, "agent update")),
    ],
)
def test_only_the_target_networks_own_forwards_and_backwards_are_its_arithmetic(
    path: str, expected: tuple[bool, str]
) -> None:
    assert part_of(path.split(" > ")) == expected


def test_shares_in_closed_form() -> None:
    epochs = [
        (
            {
                ("rest",): 1.0,
                ("rest", "attack"): 1.0,
                ("rest", "attack", "network"): 6.0,
                ("rest", "attack", "loss"): 2.0,
            },
            10.0,
        ),
        ({("rest",): 2.0, ("rest", "attack", "network"): 5.0, ("rest", "checkpoint"): 1.0}, 10.0),
    ]
    figures, details = step_figures(epochs, steps=5)
    assert {figure.name: figure.values for figure in figures} == {
        OUTSIDE: pytest.approx((0.2, 0.5)),
        "rest": pytest.approx((0.1, 0.2)),
        "attack: bookkeeping": pytest.approx((0.1, 0.0)),
        "checkpoint": pytest.approx((0.0, 0.1)),
        "attack: network": pytest.approx((0.8, 0.5)),
    }
    assert [figure.name for figure in figures][:2] == [OUTSIDE, "rest"] and figures[-1].name == "attack: network"
    assert details["seconds_a_step"] == [2.0, 2.0]
    assert details["unexplained"] == pytest.approx([0.0, 0.2])


def test_a_figure_is_its_median_and_quartiles_and_knows_its_target() -> None:
    figure = Figure("attack", VARIANTS[-1].name, "times faster", (1.0, 2.0, 3.0, 4.0, 9.0))
    assert figure.summary() == {"median": 3.0, "quartiles": (2.0, 4.0), "target": 1.8, "met": True}
    assert Figure("attack", VARIANTS[-1].name, "times faster", (1.7,)).summary()["met"] is False
    assert Figure("step", OUTSIDE, "share", (0.14,)).summary()["met"] is True
    assert Figure("step", OUTSIDE, "share", (0.16,)).summary()["met"] is False
    alone = Figure("step", "rest", "share", (0.16,)).summary()
    assert alone == {"median": 0.16, "quartiles": (0.16, 0.16), "target": None, "met": None}


@pytest.fixture
def attack() -> Iterator[Callable[..., Attacked]]:
    """Runs an attack on a small convolution of 6 images with steps 0 to 5, in float64."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 5, 5, generator=generator, dtype=torch.float64)
    weight = torch.rand(4, 3, 3, 3, generator=generator, dtype=torch.float64) - 0.5
    budget = Budget(torch.full((6,), 8 / 255), torch.full((6,), 2 / 255), torch.tensor([0, 5, 3, 1, 4, 2]))
    start = (torch.rand(images.shape, generator=generator, dtype=torch.float64) * 2 - 1) * 4 / 255

    def encode(x: Tensor, rows: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, weight).sin().flatten(1)

    def run(kind: Callable[..., Attacked]) -> Attacked:
        return kind(encode, lambda z: (z @ z.T).square().sum(1), images, budget, start=start)

    yield run


def test_the_plain_loop_finds_what_pgd_finds(attack: Callable[..., Attacked]) -> None:
    plain, fast = attack(masked_loop), attack(pgd)
    assert torch.equal(plain.images, fast.images)
    assert torch.allclose(plain.embeddings, fast.embeddings, rtol=1e-12)


def test_agreement_is_measured() -> None:
    expected = torch.full((2, 3, 4, 4), 0.5)
    found = expected.clone()
    found[0, 0, 0, 0] += 0.01

    def loss(views: Tensor) -> float:
        return views.mean().item()

    compared = check_agreement(expected, found, loss, "b", exact=False)
    assert compared["equal_pixels"] == pytest.approx(95 / 96)
    assert compared["loss_ratio"] == pytest.approx(1 + 0.01 / 96 / 0.5, abs=1e-6)
    with pytest.raises(DisagreementError, match=r"b: 1\.04% of the pixels differ"):
        check_agreement(expected, found, loss, "b", exact=True)
    with pytest.raises(DisagreementError, match=r"attains a loss of 0\.501"):
        check_agreement(expected, expected + 1e-3, loss, "b", exact=False)
    with pytest.raises(DisagreementError, match="nan"):
        check_agreement(expected, expected * torch.nan, loss, "b", exact=False)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_wrong_attack_stops_the_benchmark_and_nothing_is_written(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one_step_for_all(encode: Any, objective: Any, images: Tensor, budget: Budget, **rest: Any) -> Attacked:
        steps = torch.ones_like(budget.steps)
        return pgd(encode, objective, images, Budget(budget.epsilon, budget.step_size, steps), **rest)

    monkeypatch.setattr(benchmark, "pgd", one_step_for_all)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    output = tmp_path / "benchmark.json"
    assert benchmark.main(["--quick", "--parts", "attack", "--threads", str(threads), "--output", str(output)]) == 1
    assert not output.exists()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"benchmark.py: error: {VARIANTS[1].name}: ")


def run(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    script = Path(benchmark.__file__)
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_command_writes_every_figure_and_the_parts_sum_up(tmp_path: Path) -> None:
    words = ["--quick", "--repeats", "2", "--epochs", "2", "--threads", "1", "--output", "made/figures.json"]
    done = run(*words, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads((tmp_path / "made/figures.json").read_text())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["figures.json"]
    assert (document["schema"], document["quick"], document["threads"]) == (1, True, 1)
    assert document["processor"] and document["versions"]["torch"] and document["commit"]
    ratios = [figure for figure in document["figures"] if figure["part"] == "attack"]
    shares = {figure["name"]: figure for figure in document["figures"] if figure["part"] == "step"}

    assert [figure["name"] for figure in ratios] == [variant.name for variant in VARIANTS]
    seconds = document["details"]["attack"]["seconds"]
    for figure in ratios:
        pairs = zip(seconds[REFERENCE.name], seconds[figure["name"]], strict=True)
        assert figure["values"] == [plain / fast for plain, fast in pairs]
    agreement = document["details"]["attack"]["agreement"]
    # the warm-up is compared too, though not counted
    assert len(agreement) == 3 * len(VARIANTS)
    assert {entry["equal_pixels"] for entry in agreement if entry["exact"]} == {1}
    assert sum(entry["exact"] for entry in agreement) == 3 * 2

    outside = shares.pop(OUTSIDE)
    assert set(shares) == {
        *(f"{part}: {kind}" for part in ("observe", "attack", "update") for kind in ("network", "bookkeeping")),
        *("act", "reward", "update: optimiser", "next batch", "agent update", "logging", "checkpoint", "rest"),
    }
    for epoch in range(2):
        total = sum(figure["values"][epoch] for figure in shares.values())
        unexplained = document["details"]["step"]["unexplained"][epoch]
        inside = sum(figure["values"][epoch] for name, figure in shares.items() if name.endswith(": network"))
        assert total + unexplained == pytest.approx(1, abs=1e-9)
        assert 0 <= unexplained < 0.01
        assert outside["values"][epoch] == pytest.approx(1 - inside)
        assert all(figure["values"][epoch] > 0 for figure in shares.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "atack"], "unknown part 'atack': choose from attack, step; did you mean 'attack'?"),
        (["--repeats", "0"], "--repeats: expected 1 or more, got 0"),
        (["--epochs", "-1"], "--epochs: expected 1 or more, got -1"),
        (["--threads", "two"], "argument --threads: invalid int value: 'two'"),
        (["--thread", "2"], "unrecognized arguments: --thread 2"),
        (["--output", "."], "--output: . cannot be written: expected a file in a folder that can be"),
        (["--output", "file/x.json"], "[Errno 17] File exists: 'file'"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out) == (2, "")
    assert captured.err == f"benchmark.py: error: {message}\n"
