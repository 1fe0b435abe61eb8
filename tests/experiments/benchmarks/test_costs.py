"""Drawn numbers of steps, what a cost grows with, and the files of a profile."""

import json
from pathlib import Path

import pytest
import torch

from astra_gym.experiments.benchmarks.costs import measure_scaling, steps_of_mean, write_profile
from astra_gym.experiments.benchmarks.workloads import Options

QUICK = Options(1, torch.device("cpu"), quick=True)


@pytest.mark.parametrize("mean", [3.0, 4.0, 6.0, 8.5, 11.0, 14.0])
def test_drawn_steps_have_the_mean_and_the_same_largest_number(mean: float) -> None:
    steps = steps_of_mean(mean, 20000, torch.Generator().manual_seed(0))
    assert steps.double().mean().item() == pytest.approx(mean, abs=0.1)
    assert steps.max() == 14 and steps.min() >= 3


def test_costs_are_measured() -> None:
    figures, details = measure_scaling(QUICK, 1, lambda text: None)
    assert [figure.unit for figure in figures] == ["deviation", "share", "share", *["times the cost"] * 3]
    assert [figure.name for figure in figures[1:]] == [
        "fixed cost at 8.5 steps",
        "seconds when views stop, at a mean of 4 of 14 steps",
        "32 views",
        "width 8",
        "16 x 16 pixels",
    ]
    (line,) = details["lines"]
    assert figures[1].values == (line["fixed_share"],)
    assert line["fixed_share"] * (line["intercept"] + 8.5 * line["slope"]) == pytest.approx(line["intercept"])
    seconds = details["stopping"]["seconds"]
    assert figures[2].values == (seconds["stopping"][0] / seconds["all steps"][0],)
    sizes = details["sizes"]
    for figure in figures[3:]:
        views = 32 if figure.name == "32 views" else 16
        cost, base = (
            sizes["seconds"][name][0] / count / sizes["flops_a_view"][name]
            for name, count in ((figure.name, views), ("base", 16))
        )
        assert figure.values == (pytest.approx(cost / base),)
    assert sizes["flops_a_view"]["32 views"] == sizes["flops_a_view"]["base"]
    assert sizes["flops_a_view"]["16 x 16 pixels"] > 3 * sizes["flops_a_view"]["base"]


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
