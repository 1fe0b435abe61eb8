"""FLOPs by hand, drawn numbers of steps, and the files of a profile."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from astra_gym.experiments.benchmarks import costs
from astra_gym.experiments.benchmarks.costs import (
    attack_flops,
    counted,
    matrix_peak,
    measure_efficiency,
    measure_scaling,
    steps_of_mean,
    update_flops,
    view_flops,
    write_profile,
)
from astra_gym.experiments.benchmarks.workloads import Options
from astra_gym.ssl_core.attacks.pgd import Budget

QUICK = Options(1, torch.device("cpu"), quick=True)
SMALL = {"arch": "resnet10", "width": 4, "projector_hidden": 16, "projector_dim": 8, "image_size": 8}


def test_the_flops_of_one_convolution_by_hand() -> None:
    layer = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False)
    x = torch.ones(2, 3, 8, 8, requires_grad=True)
    # 2 images of 4 x 4 outputs in 5 channels, each of 3 x 3 x 3 products and sums
    forward = 2 * (2 * 4 * 4 * 5) * 27
    assert counted(lambda: layer(x)) == forward
    assert counted(lambda: layer(x).sum().backward()) == 3 * forward
    layer.requires_grad_(False)
    assert counted(lambda: layer(x).sum().backward()) == 2 * forward


def by_hand(size: int) -> tuple[int, int]:
    """FLOPs of a forward pass of `SMALL`, of all layers and of the first."""
    stem = 2 * size**2 * 4 * 27
    total, inputs, side = stem, 4, size
    for stage in range(4):
        channels = 4 * 2**stage
        side = side if stage == 0 else side // 2
        total += 2 * side**2 * channels * 9 * (inputs + channels)
        total += 2 * side**2 * channels * inputs if stage else 0
        inputs = channels
    return total + 2 * (32 * 16 + 16 * 8 + 8 * 8), stem


def test_the_flops_of_a_network_by_hand() -> None:
    learner = QUICK.learner(**SMALL)
    network, method = learner.network, learner.method
    forward, stem = by_hand(8)
    # the gradient of an input costs what the forward pass does
    assert view_flops(network, "pgd", 8) == (forward, 2 * forward)
    budget = Budget(epsilon=torch.zeros(3), step_size=torch.zeros(3), steps=torch.tensor([0, 2, 5]))
    assert attack_flops(network, method, 8)(budget) == 7 * 2 * forward + 3 * forward
    # two streams of 6 views; the views' own gradient is not needed; the similarities of two losses on 6 rows and of one
    # on 12, each z @ z.T with both of its gradients
    losses = 2 * 8 * (6**2 * 2 + 12**2) * 3
    assert update_flops(network, method, 6, 8) == 2 * 6 * (3 * forward - stem) + losses
    # counting leaves the network as it is
    assert all(value.device.type == "cpu" and value.requires_grad for value in network.parameters())


def test_the_flops_of_another_precision_are_the_same() -> None:
    counts = [view_flops(QUICK.learner(**SMALL, precision=name).network, "pgd", 8) for name in ("fp32", "bf16")]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("mean", [3.0, 4.0, 6.0, 8.5, 11.0, 14.0])
def test_drawn_steps_have_the_mean_and_the_same_largest_number(mean: float) -> None:
    steps = steps_of_mean(mean, 20000, torch.Generator().manual_seed(0))
    assert steps.double().mean().item() == pytest.approx(mean, abs=0.1)
    assert steps.max() == 14 and steps.min() >= 3


def test_a_peak_is_measured_by_the_clock() -> None:
    moments = iter(range(100))
    # one product takes a second: the larger one, of 128, counts
    assert matrix_peak("fp32", QUICK, lambda: float(next(moments))) == pytest.approx(2 * 128**3)


@pytest.mark.parametrize(("quick", "rate"), [(True, 4 / 0.012), (False, 32 / 0.024)])
def test_a_product_is_repeated_until_enough_time_has_passed(
    quick: bool, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "MATRICES", (64, 128))
    monkeypatch.setattr(costs, "LEAST_SECONDS", 0.021)
    # 1, 1, 2, 4 ... products, after each of which the clock is 4 ms on
    moments = iter(range(100))
    peak = matrix_peak("fp32", replace(QUICK, quick=quick), lambda: 0.004 * next(moments))
    assert peak == pytest.approx(2 * 128**3 * rate)


def test_costs_are_measured() -> None:
    figures, details = measure_scaling(QUICK, 1, lambda text: None)
    assert [figure.unit for figure in figures] == ["deviation", "share", *["times the cost"] * 3]
    assert [figure.name for figure in figures[1:]] == [
        "fixed cost at 8.5 steps",
        "32 views",
        "width 8",
        "16 x 16 pixels",
    ]
    (line,) = details["lines"]
    assert figures[1].values == (line["fixed_share"],)
    assert line["fixed_share"] * (line["intercept"] + 8.5 * line["slope"]) == pytest.approx(line["intercept"])
    sizes = details["sizes"]
    for figure in figures[2:]:
        views = 32 if figure.name == "32 views" else 16
        cost, base = (
            sizes["seconds"][name][0] / count / sizes["flops_a_view"][name]
            for name, count in ((figure.name, views), ("base", 16))
        )
        assert figure.values == (pytest.approx(cost / base),)
    assert sizes["flops_a_view"]["32 views"] == sizes["flops_a_view"]["base"]
    assert sizes["flops_a_view"]["16 x 16 pixels"] > 3 * sizes["flops_a_view"]["base"]

    figures, details = measure_efficiency(QUICK, 1, lambda text: None)
    assert [figure.name for figure in figures] == ["attack, fp32", "update, fp32", "attack, bf16", "update, bf16"]
    for figure in figures:
        stage, precision = figure.name.split(", ")
        rate = details["flops_needed"][stage] / details["seconds"][figure.name][0]
        assert figure.values == (pytest.approx(rate / details["peak_flops_a_second"][precision][0]),)


def test_a_profile_is_a_trace_and_a_table(tmp_path: Path) -> None:
    made = write_profile(tmp_path / "new", QUICK)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["benchmark.pt.trace.json", "operators.txt"]
    events = json.loads(made.trace.read_text())["traceEvents"]
    names = {event["name"] for event in events if event.get("ph") == "X"}
    assert {"attack", "update", "aten::convolution_backward"} <= names
    # the warm-up is not in it
    assert sum(event["name"] == "update" and event.get("cat") == "user_annotation" for event in events) == 1
    text = made.table.read_text()
    assert "Self CPU" in text and "convolution" in text
