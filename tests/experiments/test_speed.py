"""What is compared must agree, and does the same work."""

from typing import Any

import pytest
import torch
from torch import Tensor

from envs.actions import GRID
from experiments import speed
from experiments.measuring import Stopwatch
from experiments.speed import REFERENCE, VARIANTS, WORLDS, measure_attack, measure_precision, measure_step, own_step
from experiments.training import Run
from experiments.workloads import (
    DisagreementError,
    Options,
    budget_of,
    check_agreement,
    in_precision,
    random_actions,
    seasoned,
)
from ssl_core.attacks import Attacked, Budget
from ssl_core.learner import TargetLearner

QUICK = Options(1, torch.device("cpu"), quick=True)


def silent(text: str) -> None:
    """Says nothing."""


def test_agreement_is_measured() -> None:
    expected = torch.full((2, 3, 4, 4), 0.5)
    found = expected.clone()
    found[0, 0, 0, 0] += 0.01

    def loss(views: Tensor) -> float:
        return views.mean().item()

    compared = check_agreement(expected, found, loss, "b")
    assert compared["equal_pixels"] == pytest.approx(95 / 96)
    assert compared["loss_ratio"] == pytest.approx(1 + 0.01 / 96 / 0.5, abs=1e-6)
    with pytest.raises(DisagreementError, match=r"b: 1\.04% of the pixels differ"):
        check_agreement(expected, found, loss, "b", exact=True)
    with pytest.raises(DisagreementError, match=r"attains a loss of 0\.501, the plain loop 0\.5: over 0\.1% apart"):
        check_agreement(expected, expected + 1e-3, loss, "b")
    assert check_agreement(expected, expected + 1e-3, loss, "b", tolerance=1e-2)["tolerance"] == 1e-2
    with pytest.raises(DisagreementError, match="nan"):
        check_agreement(expected, expected * torch.nan, loss, "b")


def test_budgets_are_uniform_on_the_grid_and_their_steps_within_both_ends() -> None:
    actions = random_actions(3000, torch.Generator().manual_seed(0), (12, 14))
    budget = budget_of(actions, torch.device("cpu"))
    assert set(budget.steps.tolist()) == {12, 13, 14}
    assert {round(255 * value) for value in budget.epsilon.tolist()} == set(GRID[0])
    assert {round(255 * value) for value in budget.step_size.tolist()} == set(GRID[2])
    assert budget.steps.double().mean().item() == pytest.approx(13, abs=0.1)


def test_a_seasoned_network_has_seen_data_on_every_route() -> None:
    engine = Run(QUICK.settings(), torch.device("cpu")).engine
    before = {name: value.clone() for name, value in engine.learner.network.named_buffers()}
    network = seasoned(engine)
    moved = {name for name, value in network.named_buffers() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "running" in name or "tracked" in name}
    assert not network.training
    assert in_precision(network, "bf16").precision == "bf16" and network.precision == "fp32"


def test_every_variant_of_the_attack_is_timed_and_agrees() -> None:
    figures, details = measure_attack(QUICK, 2, silent)
    assert [figure.name for figure in figures] == [variant.name for variant in VARIANTS]
    for figure in figures:
        pairs = zip(details["seconds"][REFERENCE.name], details["seconds"][figure.name], strict=True)
        assert figure.values == tuple(plain / fast for plain, fast in pairs) and len(figure.values) == 2
    agreement = details["agreement"]
    # the warm-up is compared too, though not counted
    assert [(entry["variant"], entry["round"]) for entry in agreement] == [
        (variant.name, number) for number in range(3) for variant in VARIANTS
    ]
    assert {entry["equal_pixels"] for entry in agreement if entry["exact"]} == {1}
    assert sum(entry["exact"] for entry in agreement) == 3 * 2
    assert {entry["variant"]: entry["tolerance"] for entry in agreement}["+ bf16"] == 0.1


@pytest.mark.parametrize(("threads", "caught"), [(1, "active views only"), (2, "active views only")])
def test_a_wrong_attack_is_caught(threads: int, caught: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = speed.pgd

    def one_step_for_all(encode: Any, objective: Any, images: Tensor, budget: Budget, **rest: Any) -> Attacked:
        steps = torch.ones_like(budget.steps)
        return real(encode, objective, images, Budget(budget.epsilon, budget.step_size, steps), **rest)

    monkeypatch.setattr(speed, "pgd", one_step_for_all)
    with pytest.raises(DisagreementError, match=f"^{caught}: "):
        measure_attack(Options(threads, torch.device("cpu"), quick=True), 1, silent)


def test_a_wrong_attack_of_the_learner_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = TargetLearner.attack

    def clean(learner: TargetLearner, views: Tensor, budget: Budget, generator: torch.Generator) -> Attacked:
        return Attacked(views, real(learner, views, budget, generator).embeddings)

    monkeypatch.setattr(TargetLearner, "attack", clean)
    with pytest.raises(DisagreementError, match=r"^\+ folded batch norm: "):
        measure_attack(QUICK, 1, silent)
    with pytest.raises(DisagreementError, match=r"^ResNet-18, reinforce, fp32: "):
        measure_step(QUICK, 1, silent)


def test_whole_steps_are_timed_on_both_sides_and_agree() -> None:
    figures, details = measure_step(QUICK, 1, silent)
    assert [figure.name for figure in figures] == [
        f"{world.name}, {', '.join(side)}" for world in WORLDS for side in world.sides
    ]
    for figure in figures:
        world, agent, precision = figure.name.split(", ")
        seconds = details[world]["seconds"]
        assert figure.values == (seconds[f"twin, {agent}"][0] / seconds[f"{agent}, {precision}"][0],)
    assert [len(details[world.name]["agreement"]) for world in WORLDS] == [4, 2]
    assert set(details["digits"]["precisions"].values()) <= {"fp32", "bf16"}


@pytest.mark.parametrize(("agent", "interval"), [("reinforce", 1), ("reinforce-paper", 10)])
def test_our_step_plays_the_given_actions_and_the_agent_learns(agent: str, interval: int) -> None:
    run = Run(QUICK.settings(agent=agent), torch.device("cpu"))
    actions = random_actions(run.env.num_envs, torch.Generator().manual_seed(3))
    for step in (1, 2):
        seconds, adversarial = own_step(run, Stopwatch(), actions)
        record = run.engine.last
        assert record is not None and record.budget is not None and record.step == step
        assert torch.equal(record.budget.steps, budget_of(actions, torch.device("cpu")).steps)
        assert record.adversarial is adversarial
        assert run.agent.updates == step
        assert seconds["interval"] == interval and min(seconds.values()) > 0
    assert "_send" not in vars(run.agent)


def test_an_agent_of_another_kind_is_refused() -> None:
    run = Run(QUICK.settings(agent="random"), torch.device("cpu"))
    with pytest.raises(ValueError, match="random plays what it chooses: expected reinforce or reinforce-paper"):
        own_step(run, Stopwatch(), random_actions(16, torch.Generator()))


def test_precisions_are_compared_in_three_stages() -> None:
    figures, details = measure_precision(QUICK, 1, silent)
    assert [figure.name for figure in figures] == ["observe", "attack", "update", "attained loss"]
    for figure in figures[:3]:
        seconds = [details["seconds"][f"{figure.name}, {precision}"][0] for precision in ("fp32", "bf16")]
        assert figure.values == (seconds[0] / seconds[1],)
    assert figures[3].values[0] == pytest.approx(1, abs=0.1) and figures[3].values[0] != 1
