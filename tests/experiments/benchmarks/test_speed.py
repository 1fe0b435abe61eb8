"""What is compared must agree, and does the same work."""

from typing import Any

import pytest
import torch
from torch import Tensor

from astra_gym.agents.reinforce import REINFORCE
from astra_gym.envs.engine import AttackEngine
from astra_gym.experiments.benchmarks import speed
from astra_gym.experiments.benchmarks.measure import Stopwatch
from astra_gym.experiments.benchmarks.reference import PlainStep, Strategy, seconds_per_step
from astra_gym.experiments.benchmarks.speed import (
    REFERENCE,
    VARIANTS,
    measure_attack,
    measure_precision,
    measure_step,
    own_step,
    twin_stages,
    worlds,
)
from astra_gym.experiments.benchmarks.workloads import (
    DisagreementError,
    Options,
    Tolerance,
    budget_of,
    check_agreement,
    follow,
    in_precision,
    perturbations,
    random_actions,
    seasoned,
)
from astra_gym.experiments.runs.run import Run
from astra_gym.ssl_core.attacks.pgd import Attacked, Budget
from astra_gym.ssl_core.training.learner import TargetLearner

QUICK = Options(1, torch.device("cpu"), quick=True)


def silent(text: str) -> None:
    """Says nothing."""


def test_agreement_is_measured() -> None:
    expected = torch.full((2, 3, 4, 4), 0.5)
    found = expected.clone()
    found[0, 0, 0, 0] += 0.01

    def loss(views: Tensor) -> float:
        return views.mean().item()

    # a loss of 0.4 at the start: the reference gains 0.1
    start = torch.full_like(expected, 0.4)
    compared = check_agreement(expected, found, start, loss, "b")
    assert compared["equal_pixels"] == pytest.approx(95 / 96)
    assert compared["loss_ratio"] == pytest.approx(1 + 0.01 / 96 / 0.5, abs=1e-6)
    assert compared["gain_ratio"] == pytest.approx(1 + 0.01 / 96 / 0.1, abs=1e-5)
    with pytest.raises(DisagreementError, match=r"b: 1\.04% of the pixels differ"):
        check_agreement(expected, found, start, loss, "b", exact=True)
    with pytest.raises(DisagreementError, match=r"attains a loss of 0\.501, the reference 0\.5: over 0\.1% apart"):
        check_agreement(expected, expected + 1e-3, start, loss, "b")
    loose = Tolerance(1e-2, 5e-2)
    assert check_agreement(expected, expected + 1e-3, start, loss, "b", tolerance=loose)["tolerance"] == {
        "loss": 1e-2,
        "gain": 5e-2,
    }
    with pytest.raises(DisagreementError, match="nan"):
        check_agreement(expected, expected * torch.nan, start, loss, "b")


@pytest.mark.parametrize("change", [-2e-4, 2e-4])
def test_a_little_of_the_loss_may_be_much_of_the_gain(change: float) -> None:
    def loss(views: Tensor) -> float:
        return views.mean().item()

    start = torch.full((2, 3, 4, 4), 0.499)
    # 0.04 % of the loss, and 20 % of the gain
    with pytest.raises(DisagreementError, match=rf"^b: gains {100 * (1 + change / 1e-3):.1f}\S*% of the loss"):
        check_agreement(start + 1e-3, start + 1e-3 + change, start, loss, "b")
    with pytest.raises(DisagreementError, match=r"from 0\.499 at the start: expected a gain"):
        check_agreement(start, start, start, loss, "b")


def test_an_attack_that_does_nothing_is_outside_every_tolerance() -> None:
    for quick in (False, True):
        for precision in ("fp32", "bf16"):
            tolerance = Options(1, torch.device("cpu"), quick=quick).tolerance(precision)
            assert tolerance.gain <= 0.5 and tolerance.loss <= 0.1


def test_the_start_is_the_learners() -> None:
    engine = AttackEngine(QUICK.settings().world)
    # no steps, in a ball that holds the start: the attack gives the start back
    count = len(engine.views)
    budget = Budget.uniform(count, epsilon=1.0, step_size=0.0, steps=0)
    found = engine.learner.attack(engine.views, budget, torch.Generator().manual_seed(5)).images
    radius = engine.method.attack.start_radius
    start = perturbations(engine.views, budget, radius, torch.Generator().manual_seed(5))
    assert torch.equal(found, (engine.views + start).clamp(0, 1)) and start.abs().max() > 0
    own = perturbations(
        engine.views, Budget.uniform(count, epsilon=0.25, step_size=0.0, steps=0), None, torch.Generator()
    )
    assert 0.24 < own.abs().max() <= 0.25


def test_budgets_are_uniform_on_the_grid_and_their_steps_within_both_ends() -> None:
    actions = random_actions(3000, torch.Generator().manual_seed(0), (12, 14))
    budget = budget_of(actions, torch.device("cpu"))
    assert set(budget.steps.tolist()) == {12, 13, 14}
    assert {round(255 * value) for value in budget.epsilon.tolist()} == set(range(3, 16))
    assert {round(255 * value) for value in budget.step_size.tolist()} == set(range(1, 6))
    assert torch.bincount(budget.steps)[12:].tolist() == [1000, 1000, 1000]
    # chance decides on the views, not on the mean, even where the numbers cannot be all alike
    few = [budget_of(random_actions(64, torch.Generator().manual_seed(seed)), torch.device("cpu")) for seed in (1, 2)]
    assert few[0].steps.double().mean() == few[1].steps.double().mean() == 8.5
    assert not torch.equal(few[0].steps, few[1].steps)
    assert torch.bincount(few[0].steps)[3:].unique().tolist() == [5, 6]


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
    assert {entry["variant"]: entry["tolerance"] for entry in agreement}["+ bf16"] == {"loss": 0.1, "gain": 0.5}
    assert all(abs(entry["gain_ratio"] - 1) < entry["tolerance"]["gain"] for entry in agreement)


@pytest.mark.parametrize(("threads", "caught"), [(1, "active views only"), (2, "active views only")])
def test_a_wrong_attack_is_caught(threads: int, caught: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = speed.pgd

    def one_step_for_all(encode: Any, objective: Any, images: Tensor, budget: Budget, **rest: Any) -> Attacked:
        steps = torch.ones_like(budget.steps)
        return real(
            encode, objective, images, Budget(epsilon=budget.epsilon, step_size=budget.step_size, steps=steps), **rest
        )

    monkeypatch.setattr(speed, "pgd", one_step_for_all)
    with pytest.raises(DisagreementError, match=f"^{caught}: "):
        measure_attack(Options(threads, torch.device("cpu"), quick=True), 1, silent)


@pytest.mark.parametrize(
    ("precision", "caught"),
    [
        ("fp32", [r"\+ folded batch norm", "ResNet-18, reinforce, fp32", "attack, bf16"]),
        pytest.param(
            "bf16",
            [r"\+ bf16", "ResNet-18, reinforce, bf16", "attack, bf16"],
            marks=pytest.mark.every_agent,
        ),
    ],
)
def test_an_attack_that_does_nothing_is_caught(
    precision: str, caught: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TargetLearner.attack

    def clean(learner: TargetLearner, views: Tensor, *given: Any) -> Attacked:
        attacked = real(learner, views, *given)
        return Attacked(views, attacked.embeddings) if learner.network.precision == precision else attacked

    monkeypatch.setattr(TargetLearner, "attack", clean)
    for measure, name in zip((measure_attack, measure_step, measure_precision), caught, strict=True):
        with pytest.raises(DisagreementError, match=f"^{name}: "):
            measure(QUICK, 1, silent)


def test_a_follower_stands_where_its_leader_does() -> None:
    leader, follower = (AttackEngine(QUICK.settings(precision=name).world) for name in ("fp32", "bf16"))
    seasoned(leader)
    follow(follower, leader)
    assert torch.equal(leader.views, follower.views)
    state = follower.learner.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in leader.learner.network.state_dict().items())


def test_the_twins_stages_are_those_of_its_seconds() -> None:
    run = Run(QUICK.settings(), torch.device("cpu"))
    watch = Stopwatch()
    assert isinstance(run.agent, REINFORCE)
    twin = PlainStep(AttackEngine(run.settings.world), {"reinforce": Strategy(run.agent.policy)}, watch.part)
    clean = twin.views
    actions = random_actions(len(clean), torch.Generator().manual_seed(0))
    stages, adversarial = twin_stages(twin, watch, actions)
    assert seconds_per_step(stages, "reinforce") > 0
    assert set(stages) == {"reinforce: act", "attack", "assess", "reinforce: learn", "update", "next batch"}
    epsilon = budget_of(actions, torch.device("cpu")).epsilon.view(-1, 1, 1, 1)
    assert ((adversarial - clean).abs() <= epsilon + 1e-6).all() and not torch.equal(adversarial, twin.started)
    assert 0 < (twin.started - clean).abs().max() <= 8.01 / 255
    assert not torch.equal(twin.views, clean)


@pytest.mark.every_agent
def test_whole_steps_are_timed_on_both_sides_and_agree() -> None:
    figures, details = measure_step(QUICK, 1, silent)
    assert [figure.name for figure in figures] == [
        f"{world.name}, {', '.join(side)}" for world in worlds(QUICK) for side in world.sides
    ]
    for figure in figures:
        world, agent, precision = figure.name.split(", ")
        seconds = details[world]["seconds"]
        assert figure.values == (seconds[f"twin, {agent}"][0] / seconds[f"{agent}, {precision}"][0],)
    assert [len(details[world.name]["agreement"]) for world in worlds(QUICK)] == [4, 2]
    assert {entry["gain_ratio"] for world in worlds(QUICK) for entry in details[world.name]["agreement"]} != {1}
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
        assert run.agent.updates == step and run.agent.num_timesteps == step * run.env.num_envs
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
