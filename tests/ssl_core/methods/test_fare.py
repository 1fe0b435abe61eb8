"""FARE's loss, objective and views by hand; gradients and exact resume are asked of every method alike."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget, ConstantBudget
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.methods.fare import FARE
from astra_gym.ssl_core.models.target_network import Encoded, build_network
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.transforms.views import ViewSettings
from astra_gym.ssl_core.utils.training_plan import Moment
from tests.helpers.draws import generator, images


def learner(method: FARE, lr: float = 0.01) -> TargetLearner:
    network = build_network(generator(0), arch="resnet10", width=4, routes=method.routes.names, projector="none")
    initial, optimizer = copy.deepcopy(network), make_optimizer("sgd", network, lr, 0.0)
    return TargetLearner(network, method, optimizer, lambda step: lr, others={"initial": initial})


def linear(seed: int) -> nn.Linear:
    made = nn.Linear(12, 5, bias=False, dtype=torch.float64)
    nn.init.normal_(made.weight, generator=generator(seed))
    return made


def networks(own: nn.Linear, before: nn.Linear) -> Networks:
    # embeddings of another size, which nothing may use
    def of(made: nn.Linear):
        return lambda x, route: Encoded(made(x.double().flatten(1)), x.double().flatten(1)[:, :2] * 7)

    return Networks(of(own), others={"initial": of(before)})


@pytest.mark.parametrize("clean_weight", [0.0, 0.3, 1.0])
def test_the_loss_is_its_equation_in_numpy(clean_weight: float) -> None:
    method, own, before = FARE(clean_weight=clean_weight), linear(1), linear(2)
    x, attacked = (torch.rand(4, 3, 2, 2, generator=generator(seed), dtype=torch.float64) for seed in (3, 4))
    terms = method.losses(networks(own, before), x, attacked)
    f, f0 = (made.weight.detach().numpy() for made in (own, before))
    a, b = (each.flatten(1).numpy() for each in (x, attacked))
    adversarial, clean = (((each @ f.T - a @ f0.T) ** 2).sum(1) for each in (b, a))
    np.testing.assert_allclose(terms["adversarial"].detach(), adversarial)
    assert terms.keys() == method.weights.keys() == ({"adversarial", "clean"} if clean_weight else {"adversarial"})
    total = sum(weight * terms[name].mean().item() for name, weight in method.weights.items())
    assert total == pytest.approx((1 - clean_weight) * adversarial.mean() + clean_weight * clean.mean())
    objective = method.objective_for(networks(own, before), x)
    np.testing.assert_allclose(objective(own(attacked.flatten(1))).detach(), adversarial)


def test_distances_are_sums_over_dimensions_of_features_as_they_are() -> None:
    # a start that moved by 3 along each of 5 dimensions, whatever the length of the features
    for scale in (1.0, 100.0):
        made = Networks(
            lambda x, route, scale=scale: Encoded(torch.full((len(x), 5), scale + 3), x),
            others={"initial": lambda x, route, scale=scale: Encoded(torch.full((len(x), 5), scale), x)},
        )
        terms = FARE(clean_weight=0.5).losses(made, images(0), images(1))
        assert torch.equal(terms["adversarial"], torch.full((6,), 45.0))
        assert torch.equal(terms["clean"], terms["adversarial"])


def test_views_are_the_images_themselves_and_the_budget_is_the_authors() -> None:
    method, batch = FARE(), images(0)
    assert torch.equal(method.make_views(batch, ViewSettings(), Moment(), generator(3)), batch)
    assert (method.views_per_image, method.attacked_per_image, method.originals_per_image) == (1, 1, 0)
    assert method.default_budget(0) == ConstantBudget(epsilon=4 / 255, step_size=1 / 255, steps=10)
    assert (method.attack.mode, method.attack.start_radius, method.networks.others) == ("eval", None, ("initial",))


def test_nothing_is_lost_at_the_start_and_an_attack_raises_the_distance() -> None:
    target, views = learner(FARE()), images(3)
    found = target.objective(views)
    clean = found(target.encode_clean(views).embeddings)
    torch.testing.assert_close(clean, torch.zeros(6), rtol=0, atol=1e-8)
    attacked = target.attack(views, Budget.uniform(6, epsilon=8 / 255, step_size=2 / 255, steps=5), generator(5))
    gained = method_rewards(target, views, attacked.embeddings)
    assert bool((gained["adversarial"] > 1e-6).all()) and gained["clean"].max() < 1e-8


def method_rewards(target: TargetLearner, views: Tensor, z: Tensor) -> dict[str, Tensor]:
    return target.method.reward_terms(target.objective(views), target.encode_clean(views).embeddings, z)


def test_updates_bring_attacked_features_back_and_leave_the_start_as_it_was() -> None:
    target, views = learner(FARE(), lr=1e-3), images(3)
    attacked = (views + 0.1 * torch.randn(views.shape, generator=generator(7))).clamp(0, 1)
    before = copy.deepcopy(target.others["initial"].state_dict())
    losses = [target.update(views, attacked)["adversarial"] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    after = target.others["initial"].state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert not torch.equal(target.network.backbone.conv.weight, before["backbone.conv.weight"])
    # the state holds it, so resuming does not read the file
    again = learner(FARE())
    nn.init.zeros_(again.others["initial"].backbone.conv.weight)
    again.load_state_dict(target.state_dict())
    assert torch.equal(again.others["initial"].backbone.conv.weight, before["backbone.conv.weight"])


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), "1"])
def test_bad_options_are_refused(weight: object) -> None:
    with pytest.raises(ValueError, match="clean_weight is"):
        FARE(clean_weight=weight)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="objective_for"):
        FARE().objective(torch.zeros(2, 3))
