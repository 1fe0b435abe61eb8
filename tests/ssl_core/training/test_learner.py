import copy

import pytest
import torch

from astra_gym.ssl_core.attacks.pgd import Attacked, Budget, pgd
from astra_gym.ssl_core.methods import make_method
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.target_network import build_network
from astra_gym.ssl_core.training.learner import SHAPES, NonFiniteLossError, TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.utils.finite import not_finite
from tests.helpers.draws import generator


def learner(method: str = "astra", lr: float = 0.1) -> TargetLearner:
    rules = make_method(method)
    network = build_network(generator(), arch="resnet10", width=4, routes=rules.routes.names, projector_dim=8)
    return TargetLearner(network, rules, make_optimizer("sgd", network, lr, 0.0), lambda step: lr / (1 + step))


VIEWS = torch.rand(8, 3, 8, 8, generator=generator(1))
BUDGET = Budget.uniform(8, epsilon=8 / 255, step_size=2 / 255, steps=3)


def test_frozen_puts_every_flag_back_even_after_an_error() -> None:
    network = learner().network.train()
    network.projector.eval()
    network.backbone.conv.weight.requires_grad_(False)
    modes = [part.training for part in network.modules()]
    gradients = [parameter.requires_grad for parameter in network.parameters()]
    with pytest.raises(KeyError), frozen(network):
        assert not any(part.training for part in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        raise KeyError
    assert modes == [part.training for part in network.modules()]
    assert gradients == [parameter.requires_grad for parameter in network.parameters()]


def test_looking_and_attacking_change_nothing() -> None:
    target = learner()
    target.update(VIEWS, VIEWS)
    before = {name: value.clone() for name, value in target.network.state_dict().items()}
    attacked = target.attack(VIEWS, BUDGET, generator(2))
    encoded = target.encode_clean(VIEWS)
    assert target.network.training and all(p.requires_grad for p in target.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in target.network.state_dict().items())
    assert not encoded.embeddings.requires_grad
    with frozen(target.network):
        torch.testing.assert_close(attacked.embeddings, target.network(attacked.images, "pgd").embeddings)


def test_astra_starts_in_eight_whatever_epsilon_is_and_acl_in_its_own_ball() -> None:
    idle = Budget.uniform(8, epsilon=1.0, step_size=1 / 255, steps=0)
    gray = torch.full((8, 3, 8, 8), 0.5)
    astra = (learner("astra").attack(gray, idle, generator()).images - gray).abs().max()
    acl = (learner("acl").attack(gray, idle, generator()).images - gray).abs().max()
    assert 0.95 * 8 / 255 < astra <= 8 / 255 + 1e-6
    assert acl > 0.4


def test_update_descends_follows_the_schedule_and_reports_its_terms() -> None:
    target = learner()
    first = target.update(VIEWS, VIEWS)
    assert first.keys() == {"clean", "adversarial", "mixed", "total"}
    weighted = 0.5 * first["clean"] + 0.5 * first["adversarial"] + 0.5 * first["mixed"]
    assert first["total"] == pytest.approx(weighted, rel=1e-5)
    assert target.optimizer.param_groups[0]["lr"] == 0.1
    for _ in range(15):
        last = target.update(VIEWS, VIEWS)
    assert last["total"] < first["total"]
    assert target.step == 16
    assert target.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 16)


def test_a_loss_that_is_not_finite_updates_no_weight() -> None:
    target = learner()
    torch.nn.init.constant_(target.network.projector.linears[0].bias, float("nan"))
    before = target.network.backbone.conv.weight.clone()
    with pytest.raises(NonFiniteLossError, match="update 1"):
        target.update(VIEWS, VIEWS)
    assert torch.equal(before, target.network.backbone.conv.weight)
    assert target.step == 0


def test_weights_that_are_not_finite_stop_it_at_once() -> None:
    target = learner(lr=1e38)
    target.schedule = lambda step: 3e38
    with pytest.raises(NonFiniteLossError, match="the weights after update 1 are not finite"):
        target.update(VIEWS, VIEWS)


def test_statistics_that_are_not_finite_stop_it_too() -> None:
    target = learner()
    torch.nn.init.constant_(target.network.backbone.norm.by_route["pgd"].running_mean, float("nan"))
    with pytest.raises(NonFiniteLossError, match="the weights after update 1 are not finite"):
        target.update(VIEWS, VIEWS)


@pytest.mark.parametrize("n", [2, 64, 66, 126, 254])
def test_an_attack_meets_few_batch_sizes(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    granularities = []

    def noted(*arguments, granularity: int = 1, **named) -> Attacked:
        granularities.append(granularity)
        return pgd(*arguments, granularity=granularity, **named)

    monkeypatch.setattr("astra_gym.ssl_core.training.learner.pgd", noted)
    views = torch.rand(n, 3, 4, 4, generator=generator())
    learner().attack(views, Budget.uniform(n, epsilon=8 / 255, step_size=2 / 255, steps=1), generator())
    (granularity,) = granularities
    assert n / granularity <= SHAPES
    assert granularity == 1 or n / (granularity - 1) > SHAPES  # no coarser than that needs


def test_state_goes_on_where_it_was() -> None:
    straight, resumed = learner(), learner(lr=0.1)
    for _ in range(2):
        straight.update(VIEWS, VIEWS)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    assert resumed.step == 2
    a, b = straight.update(VIEWS, VIEWS), resumed.update(VIEWS, VIEWS)
    assert a == b
    for x, y in zip(straight.network.state_dict().values(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_watched_ends_the_next_update_before_any_weight_moves(value: float) -> None:
    target = learner()
    target.watch("the rewards", torch.ones(8))
    target.update(VIEWS, VIEWS)
    before = target.network.backbone.conv.weight.clone()
    target.watch("the rewards", torch.tensor([1.0, value, 1.0]))
    with pytest.raises(NonFiniteLossError, match="the rewards of update 2 are not finite"):
        target.update(VIEWS, VIEWS)
    assert torch.equal(before, target.network.backbone.conv.weight) and target.step == 1
    # it was read: the next update is judged by what is watched for it
    target.update(VIEWS, VIEWS)


def test_an_attack_without_a_gradient_ends_the_next_update() -> None:
    target = learner()
    objective = target.objective(VIEWS)
    # values are fine; the root's slope at 0 is not
    target.attack(VIEWS, BUDGET, generator(), lambda z: objective(z) + 0 * (z - z.detach()).abs().sqrt().sum(1))
    # which is seen before anything is saved, too
    assert not_finite(target.numbers()) == ["watched/the attack's gradients"]
    with pytest.raises(NonFiniteLossError, match="the attack's gradients of update 1 are not finite"):
        target.update(VIEWS, VIEWS)


def taught(precision: str) -> TargetLearner:
    """A student of a teacher whose own run computed in bfloat16, as `load_network` gives it (fp32) or as it was."""
    rules = make_method("deacl")
    network = build_network(generator(), arch="resnet10", width=4, routes=rules.routes.names, projector_dim=8)
    teacher = build_network(generator(1), arch="resnet10", width=4, routes=("normal",), precision="bf16")
    teacher.precision = precision
    optimizer = make_optimizer("sgd", network, 0.1, 0.0)
    return TargetLearner(network, rules, optimizer, lambda step: 0.1, others={"teacher": teacher})


def test_a_run_from_before_keeps_its_teacher_s_precision() -> None:
    state = taught("fp32").state_dict()
    assert state["teacher_precision"] == "fp32"
    found = taught("fp32")
    found.load_state_dict(copy.deepcopy(state))
    assert found.others["teacher"].precision == "fp32"
    del state["teacher_precision"]
    found.load_state_dict(copy.deepcopy(state))
    assert found.others["teacher"].precision == "bf16"
    # and after it was saved anew
    again = taught("fp32")
    again.load_state_dict(copy.deepcopy(found.state_dict()))
    assert again.others["teacher"].precision == "bf16"
    assert "teacher_precision" not in learner().state_dict()
