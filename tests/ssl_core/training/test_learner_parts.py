"""What a learner has beside its target: heads, a moving average, a teacher, free perturbations, modes, schedules."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.methods import ACL, AttackTraits, Method, Networks, NetworkTraits
from astra_gym.ssl_core.models.folding import FoldedNetwork
from astra_gym.ssl_core.models.heads import Predictor
from astra_gym.ssl_core.models.target_network import TargetNetwork, build_network
from astra_gym.ssl_core.training import trained_networks
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import TrainingPlan
from tests.helpers.draws import generator

VIEWS = torch.rand(8, 3, 8, 8, generator=generator(1))
BUDGET = Budget.uniform(8, epsilon=8 / 255, step_size=2 / 255, steps=2)


def network(routes: tuple[str, ...] = ("normal", "pgd"), seed: int = 0) -> TargetNetwork:
    return build_network(generator(seed), arch="resnet10", width=4, routes=routes, projector_dim=8)


def learner(method: Method, optimizer: str = "sgd-classic", lr: float = 0.05, **others: TargetNetwork) -> TargetLearner:
    target = network(method.routes.names)
    heads = method.make_heads(target.feature_dim, target.embedding_dim)
    beside = [(head, method.networks.constant_head_lr) for head in heads.values()]
    made = make_optimizer(optimizer, target, lr, 0.0, heads=beside)
    plan = TrainingPlan(epochs=4, steps=3 * method.replays, replays=method.replays)
    return TargetLearner(
        target, method, made, lambda step: lr / (1 + step), heads=heads, others=others, moment=plan.moment
    )


@dataclass(frozen=True)
class Predicted(ACL):
    """A head behind the embeddings, a moving average and a teacher; no paper's method."""

    networks = NetworkTraits(others=("momentum", "teacher"), evaluated="momentum", constant_head_lr=True)
    seen: ClassVar[list[tuple[bool, ...]]] = []

    def make_heads(self, feature_dim: int, embedding_dim: int) -> dict[str, nn.Module]:
        return {"predictor": Predictor(embedding_dim, 6, embedding_dim, self.routes.names)}

    def momentum(self, moment) -> float:
        return 0.9 + 0.01 * moment.step

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        first = networks.heads["predictor"](networks(views, "normal").embeddings, "normal")
        slow = networks.others["momentum"](self.given(adversarial), "pgd")
        # any route: a teacher is called on its own
        taught = networks.others["teacher"](views, "no such route")
        assert not slow.embeddings.requires_grad and not taught.embeddings.requires_grad
        return {"clean": nt_xent(first, reduction="none"), "adversarial": nt_xent(slow.embeddings, reduction="none")}


def predicted() -> TargetLearner:
    made = learner(Predicted(), momentum=network(), teacher=network(("only",), seed=5))
    made.teacher_route = "only"
    return made


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_moving_average_follows_its_formula_and_has_statistics_of_its_own() -> None:
    target = predicted()
    slow = {name: value.clone() for name, value in target.others["momentum"].named_parameters()}
    for step in range(3):
        target.update(VIEWS, VIEWS)
        share = 0.9 + 0.01 * step
        slow = {
            name: share * slow[name] + (1 - share) * value.detach() for name, value in target.network.named_parameters()
        }
    for name, value in target.others["momentum"].named_parameters():
        torch.testing.assert_close(value, slow[name], rtol=1e-5, atol=1e-7)
    norms = target.others["momentum"].backbone.norm.by_route
    assert norms["pgd"].num_batches_tracked == 3 and norms["normal"].num_batches_tracked == 0
    assert target.encoder is target.others["momentum"]


def test_a_fold_is_told_how_many_passes_to_expect(monkeypatch) -> None:
    found: list[int] = []

    class Watched(FoldedNetwork):
        def __init__(self, network: TargetNetwork, passes: int) -> None:
            found.append(passes)
            super().__init__(network, passes)

    monkeypatch.setattr(trained_networks, "FoldedNetwork", Watched)
    target = learner(ACL())
    target.encode_clean(VIEWS)
    target.attack(VIEWS, Budget.uniform(len(VIEWS), epsilon=0.1, step_size=0.1, steps=3), generator())
    # the clean pass, the reference of the objective, the attack
    assert found == [1, 1, 3]


@pytest.mark.parametrize(
    ("traits", "decays", "message"),
    [
        (
            {"averaged_heads": ("predictor", "pre")},
            True,
            "averaged_heads of Own has 'pre': .* that it makes, predictor$",
        ),
        ({}, False, 'Own has the network "momentum" and no method `momentum`: define its decay'),
    ],
)
def test_a_moving_average_that_cannot_be_kept_is_refused(traits: dict, decays: bool, message: str) -> None:
    body = {"networks": NetworkTraits(others=("momentum",), **traits), "make_heads": Predicted.make_heads}
    kind = type("Own", (ACL,), body | ({"momentum": Predicted.momentum} if decays else {}))
    with pytest.raises(ValueError, match=message):
        learner(kind(), momentum=network())


def test_a_teacher_stays_as_it_is_and_heads_are_trained_at_a_constant_rate() -> None:
    target = predicted()
    teacher = copy.deepcopy(target.others["teacher"].state_dict())
    head = copy.deepcopy(target.heads.state_dict())
    for _ in range(2):
        target.update(VIEWS, VIEWS)
    assert same(teacher, target.others["teacher"].state_dict())
    assert not same(head, target.heads.state_dict())
    rates = {bool(group.get("constant_lr")): group["lr"] for group in target.optimizer.param_groups}
    assert rates == {True: 0.05, False: 0.025}


def test_the_state_holds_all_but_the_teacher_and_goes_on_exactly() -> None:
    straight, resumed = predicted(), predicted()
    straight.update(VIEWS, VIEWS)
    state = copy.deepcopy(straight.state_dict())
    assert state["others"].keys() == {"momentum"}
    resumed.load_state_dict(state)
    assert straight.update(VIEWS, VIEWS) == resumed.update(VIEWS, VIEWS)
    for part in ("network", "heads", "others"):
        assert same(getattr(straight, part).state_dict(), getattr(resumed, part).state_dict())


def test_another_teacher_is_refused() -> None:
    state = predicted().state_dict()
    other = predicted()
    torch.nn.init.zeros_(other.others["teacher"].backbone.conv.weight)
    with pytest.raises(ValueError, match="the teacher is another one"):
        other.load_state_dict(state)


def test_everything_is_in_eval_mode_under_attack_and_put_back() -> None:
    target = predicted()
    target.update(VIEWS, VIEWS)
    before = copy.deepcopy(target._parts.state_dict())
    modes = [part.training for part in target._parts.modules()]
    target.attack(VIEWS, BUDGET, generator())
    target.encode_clean(VIEWS)
    assert same(before, target._parts.state_dict())
    assert modes == [part.training for part in target._parts.modules()]


@dataclass(frozen=True)
class InTrainMode(ACL):
    attack = AttackTraits(mode="train")


def test_an_attack_in_train_mode_couples_the_batch_and_moves_the_attacked_statistics_only() -> None:
    target = learner(InTrainMode())
    target.network.eval()
    norms = target.network.backbone.norm.by_route
    steps = Budget(epsilon=torch.full((8,), 8 / 255), step_size=torch.full((8,), 2 / 255), steps=torch.arange(8) % 3)
    attacked = target.attack(VIEWS, steps, generator(3))
    # two steps at most; the pass for the embeddings leaves nothing
    assert norms["pgd"].num_batches_tracked == 2 and norms["normal"].num_batches_tracked == 0
    assert not any(part.training for part in target.network.modules())
    target.network.train()
    with torch.no_grad():
        whole = target.network(attacked.images, "pgd").embeddings
    torch.testing.assert_close(attacked.embeddings, whole, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Free(ACL):
    attack = AttackTraits(mode="train", free=True)

    @property
    def replays(self) -> int:
        return 3


def test_free_perturbations_follow_the_plain_loop() -> None:
    target, twin = learner(Free()), learner(Free())
    budget = Budget.uniform(8, epsilon=8 / 255, step_size=0.01, steps=3)
    delta = torch.zeros_like(VIEWS)
    batches = [VIEWS, torch.rand(8, 3, 8, 8, generator=generator(2))]
    for step in range(6):
        views = batches[step // 3]
        carried = target.carry(views, budget)
        # the released order: forward and backward with the perturbation, the weights' step, the perturbation's step
        images = (views + delta).clamp(0, 1)
        torch.testing.assert_close(carried.images, images, rtol=0, atol=1e-7)
        found = target.update(views, carried.images)
        x = images.clone().requires_grad_()
        twin.network.train()
        terms = twin.method.losses(Networks(twin.network), views, x)
        loss = sum(twin.method.weights[name] * values.mean() for name, values in terms.items())
        assert found["total"] == pytest.approx(loss.item(), rel=1e-5)
        for group in twin.optimizer.param_groups:
            group["lr"] = twin.schedule(step)
        twin.optimizer.zero_grad()
        loss.backward()
        twin.optimizer.step()
        delta = (delta + 0.01 * x.grad.sign()).clamp(-8 / 255, 8 / 255)
        following = batches[min(step + 1, 5) // 3]
        delta = (following + delta).clamp(0, 1) - following
    assert delta.abs().max() > 0.9 * 8 / 255


def test_a_view_without_steps_left_stays_and_a_smaller_ball_holds() -> None:
    target = learner(Free())
    steps = torch.tensor([0, 1, 2, 3, 9, 9, 9, 9])
    moved = []
    for epsilon in (8 / 255, 8 / 255, 8 / 255, 1 / 255):
        budget = Budget(epsilon=torch.full((8,), epsilon), step_size=torch.full((8,), 0.01), steps=steps)
        before = target.free.numbers().get("perturbations", torch.zeros_like(VIEWS)).clone()
        images = target.carry(VIEWS, budget).images
        moved.append((target.free.numbers()["perturbations"] - before).flatten(1).abs().amax(dim=1) > 0)
        target.update(VIEWS, images)
    # nothing moves before there is a gradient; then where the replay's number is below the steps
    assert not moved[0].any()
    assert moved[1].tolist() == [False, False, True, True, True, True, True, True]
    assert moved[2].tolist() == [False, False, False, True, True, True, True, True]
    assert target.free.numbers()["perturbations"].abs().max() <= 1 / 255 + 1e-7


def test_carrying_leaves_the_statistics_and_goes_on_exactly() -> None:
    target, resumed = learner(Free()), learner(Free())
    target.update(VIEWS, target.carry(VIEWS, BUDGET).images)
    resumed.load_state_dict(copy.deepcopy(target.state_dict()))
    before = copy.deepcopy(target.network.state_dict())
    images = target.carry(VIEWS, BUDGET).images
    assert same(before, target.network.state_dict())
    assert torch.equal(images, resumed.carry(VIEWS, BUDGET).images)


@dataclass(frozen=True)
class Scheduled(ACL):
    def weights_at(self, moment):
        return {"clean": 1.0 - moment.epoch / 4, "adversarial": moment.epoch / 4}


def test_weights_follow_the_moment() -> None:
    target = learner(Scheduled())
    for step in range(4):
        found = target.update(VIEWS, VIEWS)
        share = (step // 3) / 4
        assert found["total"] == pytest.approx((1 - share) * found["clean"] + share * found["adversarial"], rel=1e-5)


@dataclass(frozen=True)
class Perturbing(ACL):
    gamma: float = 0.05

    def weight_perturbation(self, moment) -> float:
        return self.gamma if moment.step >= 1 else 0.0

    def perturbation_loss(self, networks: Networks, views: Tensor, adversarial: Tensor) -> Tensor:
        return nt_xent(networks(adversarial, "pgd").embeddings)


def test_perturbed_weights_give_another_gradient_but_the_step_starts_from_the_old_ones() -> None:
    plain, perturbed = learner(Perturbing(gamma=0.0)), learner(Perturbing())
    assert plain.update(VIEWS, VIEWS) == perturbed.update(VIEWS, VIEWS)
    before = copy.deepcopy(perturbed.network.state_dict())
    first, second = plain.update(VIEWS, VIEWS), perturbed.update(VIEWS, VIEWS)
    # a step up the loss of the attacked views
    assert second["adversarial"] > first["adversarial"]
    # the weights moved by a step of the optimizer, not by the perturbation
    weight = "backbone.blocks.3.convs.0.weight"
    ours = perturbed.network.state_dict()[weight] - before[weight]
    theirs = plain.network.state_dict()[weight] - before[weight]
    assert 0 < (ours - theirs).norm() < theirs.norm() < 0.05 * before[weight].norm()
    # the direction's forward pass left no trace in the statistics
    norms = perturbed.network.backbone.norm.by_route
    assert norms["pgd"].num_batches_tracked == 2


@dataclass(frozen=True)
class Tabled(ACL):
    def make_tables(self, networks: Networks, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        means = networks(images.float() / 255, "normal").features.mean(dim=0)
        return {"means": means, "draw": torch.rand(1, generator=generator)}


def test_tables_are_made_once_from_the_images_and_kept() -> None:
    target = learner(Tabled())
    images = (VIEWS * 255).to(torch.uint8)
    target.make_tables(images, Streams(3))
    assert target.tables.keys() == {"means", "draw"} and target.tables["means"].shape == (target.network.feature_dim,)
    other = learner(Tabled())
    other.load_state_dict(copy.deepcopy(target.state_dict()))
    assert torch.equal(other.tables["draw"], target.tables["draw"])
    assert "tables" not in learner(ACL()).state_dict()
