"""FLOPs by hand, the machine's limits, and what is used of both."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from astra_gym.experiments.benchmarks import efficiency
from astra_gym.experiments.benchmarks.efficiency import (
    attack_flops,
    copy_speed,
    counted,
    limits,
    matrix_peak,
    measure_efficiency,
    update_flops,
    view_flops,
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


def test_a_peak_is_measured_by_the_clock() -> None:
    moments = iter(range(100))
    # one product takes a second: the larger one, of 128, counts
    assert matrix_peak("fp32", QUICK, lambda: float(next(moments))) == pytest.approx(2 * 128**3)


@pytest.mark.parametrize(("quick", "rate"), [(True, 4 / 0.012), (False, 32 / 0.024)])
def test_a_product_is_repeated_until_enough_time_has_passed(
    quick: bool, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficiency, "MATRICES", (64, 128))
    monkeypatch.setattr(efficiency, "LEAST_SECONDS", 0.021)
    # 1, 1, 2, 4 ... products, after each of which the clock is 4 ms on
    moments = iter(range(100))
    peak = matrix_peak("fp32", replace(QUICK, quick=quick), lambda: 0.004 * next(moments))
    assert peak == pytest.approx(2 * 128**3 * rate)


def test_the_limits_of_a_convolution_and_what_follows_it_by_hand() -> None:
    x = torch.empty(2, 8, 16, 16, device="meta", dtype=torch.bfloat16)
    weight = torch.empty(4, 8, 3, 3, device="meta", dtype=torch.bfloat16)
    flops, read, written = 2 * (2 * 4 * 16 * 16) * 8 * 9, 2 * (2 * 8 * 16 * 16 + 4 * 8 * 9), 2 * (2 * 4 * 16 * 16)

    def work() -> None:
        F.conv2d(x, weight, padding=1).view(2, -1).relu_()

    # bound by its arithmetic, then by its traffic; the rectifier reads and writes its map, and returns it once more
    for peak, bandwidth, convolution in ((1e3, 1e9, flops / 1e3), (1e9, 10.0, (read + written) / 10)):
        found = limits(work, peak, bandwidth)
        assert found.fused == pytest.approx(convolution)
        assert found.passes == pytest.approx(convolution + 2 * written / bandwidth)


def test_a_copy_reads_and_writes() -> None:
    moments = iter(range(100))
    assert copy_speed(QUICK, lambda: float(next(moments))) == pytest.approx(2 * 4 * 2**14)


def test_efficiency_is_measured() -> None:
    figures, details = measure_efficiency(QUICK, 1, lambda text: None)
    used = [figure for figure in figures if figure.unit == "of the peak"]
    assert [figure.name for figure in used] == ["attack, fp32", "update, fp32", "attack, bf16", "update, bf16"]
    for figure in used:
        stage, precision = figure.name.split(", ")
        rate = details["flops_needed"][stage] / details["seconds"][figure.name][0]
        assert figure.values == (pytest.approx(rate / details["peak_flops_a_second"][precision][0]),)

    for name, (limit,) in details["limits"].items():
        shown = {figure.name: figure.values[0] for figure in figures if figure.name.startswith(f"{name}: limit")}
        took = details["seconds"][name][0]
        assert shown == {f"{name}: limit, {kind}": pytest.approx(least / took) for kind, least in limit.items()}
        assert 0 < limit["fused"] < limit["passes"]
