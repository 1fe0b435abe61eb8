"""The plain twins against what they are twins of."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from astra_gym.agents.policies import build_policy
from astra_gym.envs.actions import ActionTable
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.torch_env import TorchViewEnv
from astra_gym.envs.world_config import WorldSettings
from astra_gym.experiments.benchmarks.reference import (
    PlainLARS,
    PlainStep,
    Strategy,
    masked_loop,
    masked_steps,
    seconds_per_step,
)
from astra_gym.ssl_core.attacks.pgd import Attacked, Budget, pgd
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.target_network import build_network
from astra_gym.ssl_core.training.optim import LARS
from tests.helpers.draws import generator

WORLD = WorldSettings.of(
    image_size=8, arch="resnet10", width=4, projector_hidden=16, projector_dim=16, batch_size=8, limit=48, epochs=2
)


@pytest.fixture
def attack() -> Callable[..., Attacked]:
    """Runs an attack on a tiny ResNet in float64: 6 views with steps 0 to 5 from starts outside some of their balls."""
    source = generator()
    method = WORLD.method.make()
    network = build_network(
        source, arch="resnet10", width=4, routes=method.routes.names, projector_hidden=16, projector_dim=8
    ).double()
    images = torch.rand(6, 3, 8, 8, generator=source, dtype=torch.float64)
    with torch.no_grad():
        network.train()(images, method.routes.attack)
    network.eval()
    epsilon = torch.tensor([8.0, 8, 3, 8, 4, 8]) / 255
    budget = Budget(epsilon=epsilon, step_size=torch.full((6,), 2 / 255), steps=torch.tensor([0, 5, 3, 1, 0, 2]))
    start = (torch.rand(images.shape, generator=source, dtype=torch.float64) * 2 - 1) * 8 / 255

    def run(kind: Callable[..., Attacked]) -> Attacked:
        return kind(method.encode(network), method.objective, images, budget, start=start)

    return run


def test_the_plain_loop_finds_what_pgd_finds(attack: Callable[..., Attacked]) -> None:
    plain, fast = attack(masked_loop), attack(pgd)
    assert torch.equal(plain.images, fast.images)
    assert torch.allclose(plain.embeddings, fast.embeddings, rtol=1e-10, atol=1e-12)


def test_the_plain_loop_computes_the_weights_gradients_unless_they_are_frozen() -> None:
    layer = torch.nn.Conv2d(3, 2, 3)

    def run() -> None:
        images, budget = torch.full((2, 3, 4, 4), 0.5), Budget.uniform(2, epsilon=0.1, step_size=0.1, steps=2)
        masked_loop(lambda x, rows: layer(x), lambda z: z.sum((1, 2, 3)), images, budget, torch.zeros(2, 3, 4, 4))

    with frozen(layer):
        run()
    assert layer.weight.grad is None
    run()
    assert layer.weight.grad is not None


def test_the_plain_lars_is_the_fused_one() -> None:
    shapes, source = [(4, 3), (5,), (2, 2)], generator()
    # one weight is zero, whose ratio is 1, and one gets no gradient
    start = [torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]
    start[1].zero_()
    sides = [[torch.nn.Parameter(value.clone()) for value in start] for _ in range(2)]
    plain = PlainLARS(sides[0], 0.5, weight_decay=1e-2)
    fused = LARS(sides[1], 0.5, weight_decay=1e-2)
    for _ in range(4):
        for index in (0, 1):
            gradient = torch.randn(shapes[index], generator=source, dtype=torch.float64)
            for side in sides:
                side[index].grad = gradient.clone()
        plain.step()
        fused.step()
    for one, other in zip(*sides, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=0)
    assert not torch.equal(sides[0][0], start[0]) and torch.equal(sides[0][2], start[2])
    plain.zero_grad()
    assert sides[0][0].grad is None


def twin(settings: WorldSettings) -> PlainStep:
    engine = AttackEngine(settings)
    table = ActionTable("factored")
    spaces = {name: TorchViewEnv(engine, observation=name).observation_space for name in ("features", "image")}
    policies = {
        name: build_policy(generator(1), space, table.space, image_network="resnet18", width=4)
        for name, space in spaces.items()
    }
    return PlainStep(engine, {name: Strategy(policy) for name, policy in policies.items()})


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_the_twins_update_is_the_learners(optimizer: str) -> None:
    # without a warm-up: at a rate of 0 nothing would move
    settings = WORLD.replace(optimizer=optimizer, warmup_epochs=0)
    plain, engine = twin(settings), AttackEngine(settings)
    budget = Budget.uniform(16, epsilon=8 / 255, step_size=2 / 255, steps=2)
    before = copy.deepcopy(plain.network.state_dict())
    for _ in range(2):
        views = engine.views
        assert torch.equal(plain.views, views)
        adversarial = plain.attack(budget)
        assert plain.update(adversarial) == pytest.approx(engine.learner.update(views, adversarial)["total"], rel=1e-4)
        plain.next_batch()
        engine.draw_batch()
    ours = engine.learner.network.state_dict()
    moved = [name for name, value in before.items() if not torch.equal(value, ours[name])]
    assert len(moved) > len(before) / 2
    # batch norm takes this bias away: its gradient is rounding, of which LARS and Adam make full steps
    rounding = ("projector.linears.0.bias", "projector.norms.0.by_route.normal.running_mean")
    rounding += ("projector.norms.0.by_route.pgd.running_mean",)
    for name, value in plain.network.state_dict().items():
        assert name in rounding or torch.allclose(value, ours[name], rtol=1e-2, atol=1e-4), name


def test_the_twins_attack_starts_where_ours_does_and_attains_the_same() -> None:
    plain, engine = twin(WORLD), AttackEngine(WORLD)
    budget = Budget(
        epsilon=torch.full((16,), 8 / 255), step_size=torch.full((16,), 2 / 255), steps=torch.arange(16) % 4 + 1
    )
    found = plain.attack(budget)
    ours = engine.learner.attack(engine.views, budget, engine.streams.on_device("noise")).images
    route = plain.method.routes.attack
    losses = [plain.method.objective(plain.encoded(views, route).embeddings).mean().item() for views in (found, ours)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert (found == ours).float().mean() > 0.9


@pytest.mark.parametrize("steps", [1, 3])
def test_the_twins_attack_pays_one_forward_pass_a_step_and_no_other(steps: int) -> None:
    plain, passes = twin(WORLD), []
    plain.network.register_forward_hook(lambda *call: passes.append(torch.is_grad_enabled()))
    plain.attack(Budget.uniform(16, epsilon=8 / 255, step_size=2 / 255, steps=steps))
    assert passes == [True] * steps


def test_the_steps_alone_find_what_the_loop_finds(attack: Callable[..., Attacked]) -> None:
    found: list[torch.Tensor] = []

    def alone(*arguments: Any, **named: Any) -> Attacked:
        found.append(masked_steps(*arguments, **named))
        return Attacked(found[0], found[0])

    attack(alone)
    assert torch.equal(found[0], attack(masked_loop).images) and not found[0].requires_grad


@pytest.mark.parametrize("name", ["features", "image"])
def test_the_strategy_acts_on_its_observation_and_learns(name: str) -> None:
    plain = twin(WORLD)
    policy = plain.strategies[name].policy
    before = copy.deepcopy(policy.head.weight)
    observation, actions = plain.act(name)
    assert observation.shape[1:] == ((3, 8, 8) if name == "image" else (plain.engine.observation_dim,))
    assert actions.shape == (16, 3) and not policy.training and torch.equal(policy.head.weight, before)
    plain.learn(
        name,
        observation,
        actions,
        plain.assess(plain.attack(Budget.uniform(16, epsilon=8 / 255, step_size=2 / 255, steps=1))),
    )
    assert not torch.equal(policy.head.weight, before)


@pytest.mark.parametrize("reward", [1.0, -1.0])
def test_the_twin_makes_what_was_paid_more_probable(reward: float) -> None:
    plain = twin(WORLD)
    strategy = plain.strategies["features"]
    observation, actions = plain.act("features")

    def log_prob() -> float:
        with torch.no_grad():
            return float(strategy.policy.log_prob_entropy(observation, actions)[0].sum())

    before = log_prob()
    plain.learn("features", observation, actions, reward)
    assert (log_prob() - before) * reward > 0


def test_the_mean_of_ten_steps_in_closed_form() -> None:
    stages = {"attack": 100.0, "update": 20.0, "next batch": 3.0, "assess": 7.0, "s: act": 5.0, "s: learn": 30.0}
    ordinary = 5 + 100 + 20 + 3
    tenth = ordinary + 5 + 100 + 7 + 30
    assert seconds_per_step(stages | {"t: act": 1e6, "t: learn": 1e6}, "s") == (9 * ordinary + tenth) / 10


def test_the_twin_computes_in_float32_whatever_ours_does() -> None:
    plain = twin(WORLD.replace(precision="bf16"))
    assert plain.network.precision == "fp32" and plain.engine.learner.network.precision == "bf16"
