"""What is not the target network: shares in closed form, and parts of real runs that sum up."""

import sys
from pathlib import Path

import pytest
import torch

from astra_gym.experiments.benchmarks import overheads
from astra_gym.experiments.benchmarks.measure import Stopwatch
from astra_gym.experiments.benchmarks.overheads import (
    ACT,
    LEARN,
    SB3,
    agent_share,
    first_step,
    measure_shares,
    part_of,
    share_figures,
    watched,
)
from astra_gym.experiments.benchmarks.workloads import Options
from astra_gym.experiments.runs.run import Run

OUTSIDE = "outside the target network's arithmetic"
QUICK = Options(1, torch.device("cpu"), quick=True)


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
        ("rest > update > update: optimizer", (False, "update: optimizer")),
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
    figures, details = share_figures("a", epochs, steps=5)
    assert {figure.name: figure.values for figure in figures} == {
        f"a: {OUTSIDE}": pytest.approx((0.2, 0.5)),
        "a: rest": pytest.approx((0.1, 0.2)),
        "a: attack: bookkeeping": pytest.approx((0.1, 0.0)),
        "a: checkpoint": pytest.approx((0.0, 0.1)),
        "a: attack: network": pytest.approx((0.8, 0.5)),
    }
    assert [figure.name for figure in figures][:2] == [f"a: {OUTSIDE}", "a: rest"]
    assert figures[-1].name == "a: attack: network"
    assert [figure.unit for figure in figures] == ["overhead", *["share"] * 4]
    assert details["seconds_a_step"] == [2.0, 2.0]
    assert details["unexplained"] == pytest.approx([0.0, 0.2])


def test_an_agents_share_in_closed_form() -> None:
    seconds = {
        ("rest", ACT): 3.0,
        ("rest", LEARN): 20.0,
        ("rest", LEARN, "network"): 10.0,
        ("rest", SB3): 2.0,
        ("rest", "attack", "network"): 60.0,
        ("rest",): 2.0,
    }
    assert agent_share(seconds, 1) == pytest.approx(35 / 97)
    assert agent_share(seconds, 10) == pytest.approx(8 / 70)


@pytest.mark.every_agent
def test_the_parts_of_real_runs_sum_up() -> None:
    figures, details = measure_shares(QUICK, 2, lambda text: None)
    common = {
        *(f"{part}: {kind}" for part in ("observe", "attack", "update") for kind in ("network", "bookkeeping")),
        *("act", "reward", "update: optimizer", "next batch", "agent update", "logging", "checkpoint", "rest"),
    }
    for agent, own in (("reinforce", set()), ("ppo", {SB3, "environment's shell"})):
        shares = {
            figure.name.removeprefix(f"{agent}: "): figure.values
            for figure in figures
            if figure.name.startswith(f"{agent}: ")
        }
        outside = shares.pop(OUTSIDE)
        assert set(shares) == common | own
        for epoch in range(2):
            total = sum(values[epoch] for values in shares.values())
            inside = sum(values[epoch] for name, values in shares.items() if name.endswith(": network"))
            unexplained = details[agent]["unexplained"][epoch]
            assert total + unexplained == pytest.approx(1, abs=1e-9)
            assert 0 <= unexplained < 0.05
            assert outside[epoch] == pytest.approx(1 - inside)
            assert all(values[epoch] > 0 for values in shares.values())


def test_a_run_is_left_as_it_was() -> None:
    run = Run(QUICK.settings(agent="ppo"), torch.device("cpu"))
    owners = (run, run.engine, run.engine.method, run.engine.learner, run.engine.learner.network, run.agent.model)
    before = [set(vars(owner)) for owner in owners]
    with watched(Stopwatch(), run):
        assert "encode" in vars(run.engine.method) and "train" in vars(run.agent.model)
    assert [set(vars(owner)) for owner in owners] == before


@pytest.mark.every_agent
def test_the_first_step_of_a_fresh_process_comes_after_its_imports() -> None:
    whole, imports = first_step(QUICK)
    assert 0 < imports < whole


def test_a_start_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(Path("/bin/false")))
    with pytest.raises(RuntimeError, match=r"made no first step \(status 1\)"):
        overheads.measure_start(QUICK, 1, lambda text: None)
