import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.methods.dynacl import DynACL, DynACLPlus, by_both, shift_at, strength_at
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.target_network import Encoded, TargetNetwork
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.transforms.views import ViewSettings, two_views
from astra_gym.ssl_core.utils.training_plan import Moment, TrainingPlan
from tests.helpers.draws import generator
from tests.helpers.tiny_networks import unlike_routes


def images(seed: int, n: int = 8) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=generator(seed))


def networks() -> tuple[Networks, TargetNetwork, TargetNetwork]:
    online, average = unlike_routes(0).eval(), unlike_routes(1).eval().requires_grad_(False)
    return Networks(online, others={"momentum": average}), online, average


def learner(method: DynACL, epochs: int = 4) -> TargetLearner:
    target = unlike_routes(0)
    plan = TrainingPlan(epochs=epochs, steps=1)
    return TargetLearner(
        target,
        method,
        make_optimizer("sgd-classic", target, 0.1, 0.0),
        lambda step: 0.1,
        others={"momentum": unlike_routes(1)},
        moment=plan.moment,
    )


def statistics(target: nn.Module, route: str) -> list[Tensor]:
    return [value.clone() for name, value in target.named_buffers() if f".{route}.running" in name]


def reference(z: np.ndarray, temperature: float) -> np.ndarray:
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    near = np.exp(z @ z.T / temperature)
    np.fill_diagonal(near, 0)
    partners = near[np.arange(len(z)), np.arange(len(z)) ^ 1]
    return -np.log(partners / near.sum(axis=1))


def at(epoch: int, epochs: int) -> Moment:
    return Moment(epoch=epoch, epochs=epochs)


def test_schedules_of_a_thousand_epochs_are_the_released_ones() -> None:
    for e in range(1, 1001):  # the released code counts from 1
        strength = 1 - (e - 1) // 50 * 50 / 1000
        assert strength_at(at(e - 1, 1000)) == pytest.approx(strength, abs=1e-12)
        w = min(1 + e // 50 * 0.05 * 2 / 3, 2)
        ours = DynACL().weights_at(at(e - 1, 1000))
        assert ours == pytest.approx({"clean": (2 - w) / 2, "adversarial": w / 2})
    # weights move an epoch before the strength: in the 50th and not the 51st
    assert [strength_at(at(epoch, 1000)) for epoch in (48, 49, 50)] == [1, 1, 0.95]
    assert [shift_at(at(epoch, 1000)) for epoch in (48, 49, 50)] == [0, 0.05, 0.05]
    assert strength_at(at(999, 1000)) == pytest.approx(0.05) and shift_at(at(999, 1000)) == 1


@pytest.mark.parametrize("epochs", [20, 100, 500, 980])
def test_shorter_runs_keep_the_proportions(epochs: int) -> None:
    for epoch in range(epochs):
        stage = epoch // (epochs // 20)
        assert strength_at(at(epoch, epochs)) == pytest.approx(1 - stage / 20)
        assert shift_at(at(epoch, epochs)) == pytest.approx(stage / 20)  # a thousandth is no epoch here


def test_schedules_of_very_short_and_of_longer_runs() -> None:
    assert (strength_at(at(0, 1)), shift_at(at(0, 1))) == (1, 0)
    assert [strength_at(at(epoch, 4)) for epoch in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [shift_at(at(epoch, 4)) for epoch in range(4)] == [0, 0.25, 0.5, 0.75]
    assert [strength_at(at(epoch, 3)) for epoch in range(3)] == pytest.approx([1, 1 - 6 / 20, 1 - 13 / 20])
    assert [shift_at(at(epoch, 2000)) for epoch in (97, 98)] == [0, 0.05]
    assert [strength_at(at(epoch, 2000)) for epoch in (99, 100)] == [1, 0.95]
    for epoch in (4, 400):  # beyond the plan
        assert strength_at(at(epoch, 4)) == pytest.approx(0.05) and shift_at(at(epoch, 4)) == 1


def test_weights_follow_the_option() -> None:
    assert DynACL(reweighting=0).weights_at(at(3, 4)) == {"clean": 0.5, "adversarial": 0.5}
    assert DynACL(reweighting=1.0).weights_at(at(2, 4)) == {"clean": 0.25, "adversarial": 0.75}
    assert DynACL().weights == DynACL().weights_at(Moment())


def test_views_weaken() -> None:
    settings = ViewSettings(strength=0.8)
    for epoch, strength in ((0, 0.8), (2, 0.4)):
        made = DynACL().make_views(images(0), settings, at(epoch, 4), generator(3))
        assert torch.equal(made, two_views(images(0), ViewSettings(strength=strength), generator(3)))


def test_first_views_go_through_the_target_and_second_ones_through_its_average() -> None:
    method = DynACL(temperature=0.2)
    both, online, average = networks()
    terms = method.losses(both, images(0), images(1))
    for name, given, route in (("clean", images(0), "normal"), ("adversarial", images(1), "pgd")):
        z = torch.zeros(8, 8)
        z[0::2] = online(given[0::2], route).embeddings.detach()
        z[1::2] = average(given[1::2], route).embeddings
        np.testing.assert_allclose(terms[name].detach().numpy(), reference(z.double().numpy(), 0.2), rtol=1e-4)
        for attacked in (True, False):
            encoded = method.encoded(both, given, torch.arange(8), attacked).embeddings
            assert torch.allclose(encoded, z, rtol=1e-4, atol=1e-5) == (attacked == (route == "pgd"))


@pytest.mark.parametrize("rows", [[5, 0, 3, 2], [1, 3], [6], [7, 2, 2]])
def test_a_part_is_encoded_as_the_whole(rows: list[int]) -> None:
    both = networks()[0]
    chosen = torch.tensor(rows)
    whole = by_both(both, images(0), torch.arange(8), "pgd")
    part = by_both(both, images(0)[chosen], chosen, "pgd")
    torch.testing.assert_close(part.embeddings, whole.embeddings[chosen])
    torch.testing.assert_close(part.features, whole.features[chosen])


def test_the_attack_sees_the_gradient_of_both_networks_and_the_update_of_one() -> None:
    both, online, average = networks()
    average.requires_grad_(True)
    given = images(0).requires_grad_()
    DynACL().encode(both)(given, torch.arange(8)).sum().backward()
    assert given.grad is not None and bool((given.grad.flatten(1).abs().amax(dim=1) > 0).all())
    for network_ in (online, average):
        network_.zero_grad()
    sum(values.sum() for values in DynACL().losses(both, images(0), images(1)).values()).backward()
    assert online.backbone.conv.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in average.parameters())


def test_the_attack_raises_the_contrastive_loss_of_the_pair_and_changes_nothing() -> None:
    target = learner(DynACL())
    target.network.train()
    before = copy.deepcopy([target.network.state_dict(), target.others.state_dict()])
    attacked = target.attack(images(0), Budget.uniform(8, epsilon=8 / 255, step_size=2 / 255, steps=5), generator(2))
    idle = target.attack(images(0), Budget.uniform(8, epsilon=8 / 255, step_size=2 / 255, steps=0), generator(2))
    objective = target.objective(images(0))
    assert objective(attacked.embeddings).mean() > objective(idle.embeddings).mean() + 1e-4
    with frozen(target.network), frozen(target.others), torch.no_grad():
        plain = by_both(target.plain(), attacked.images, torch.arange(8), "pgd").embeddings
    torch.testing.assert_close(attacked.embeddings, plain, rtol=1e-3, atol=1e-4)
    budget = Budget(
        epsilon=torch.full((8,), 8 / 255),
        step_size=torch.full((8,), 2 / 255),
        steps=torch.tensor([0, 3, 1, 2, 5, 5, 0, 1]),
    )
    uneven = target.attack(images(0), budget, generator(2))
    assert float((uneven.images - images(0)).abs().max()) <= 8 / 255 + 1e-6
    for part, state in zip((target.network, target.others), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())


def test_an_update_moves_the_average_by_its_formula_and_its_statistics_by_its_own_views() -> None:
    target = learner(DynACL(ema=0.9))
    average = target.others["momentum"]
    shadow = copy.deepcopy(average)
    expected = {name: value.clone() for name, value in average.named_parameters()}
    for _ in range(3):
        # the weights from before the step, as released
        for name, value in target.network.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * value.detach()
        target.update(images(0), images(1))
    for name, value in average.named_parameters():
        torch.testing.assert_close(value, expected[name])
    fresh = learner(DynACL())
    online = copy.deepcopy(fresh.network)
    fresh.update(images(0), images(1))
    for part, alike, first in ((fresh.network, online, 0), (fresh.others["momentum"], shadow, 1)):
        alike.train()
        alike(images(0)[first::2], "normal")
        alike(images(1)[first::2], "pgd")
        for route in ("normal", "pgd"):
            assert all(map(torch.equal, statistics(part, route), statistics(alike, route)))
    assert fresh.encoder is fresh.others["momentum"]


def test_an_update_has_the_weights_that_are_due() -> None:
    target = learner(DynACL())
    for step in range(3):
        losses = target.update(images(0), images(1))
        w = 1 + 2 / 3 * step / 4
        expected = (2 - w) / 2 * losses["clean"] + w / 2 * losses["adversarial"]
        assert losses["total"] == pytest.approx(expected, rel=1e-5)


def chosen(method: DynACL, clean: Tensor, attacked: Tensor, moment: Moment) -> float:
    """The loss at a moment, of two networks that give chosen embeddings (2N, d): of first and of second views."""
    given = {"normal": clean, "pgd": attacked}
    first, second = (lambda x, route, k=k: Encoded(given[route][k::2], given[route][k::2]) for k in (0, 1))
    terms = method.losses(Networks(first, others={"momentum": second}), images(0, len(clean)), images(1, len(clean)))
    weights = method.weights_at(moment)
    return sum(weights[name] * values.mean().item() for name, values in terms.items())


AXES = torch.eye(6, dtype=torch.float64)
EQUAL = (AXES[:1].expand(6, -1) * torch.arange(1, 7)[:, None], math.log(5))
"""Embeddings of three images' views in one direction, and their NT-Xent; then orthogonal ones, and alike in pairs."""
APART = (AXES * 3, math.log(5))
TWINS = (AXES[:3].repeat_interleave(2, dim=0), math.log(math.exp(2) + 4) - 2)
FOES = (TWINS[0] * torch.tensor([1, -1]).repeat(3)[:, None], math.log(math.exp(-2) + 4) + 2)
"""The views of an image have opposite directions, the images are orthogonal."""


@pytest.mark.parametrize(("clean", "attacked"), [(EQUAL, APART), (TWINS, EQUAL), (TWINS, FOES), (FOES, TWINS)])
def test_the_loss_has_closed_forms_at_every_moment(clean: tuple[Tensor, float], attacked: tuple[Tensor, float]) -> None:
    for epoch in (0, 48, 49, 50, 499, 500, 949, 998, 999):
        w = min(1 + (epoch + 1) // 50 * 0.05 * 2 / 3, 2)
        found = chosen(DynACL(), clean[0], attacked[0], at(epoch, 1000))
        assert found == pytest.approx(((2 - w) * clean[1] + w * attacked[1]) / 2, rel=1e-12)
    # with reweighting 1 nothing is left of the clean views at last
    assert chosen(DynACL(reweighting=1.0), clean[0], attacked[0], at(999, 1000)) == pytest.approx(attacked[1])
    assert chosen(DynACL(reweighting=0.0), clean[0], attacked[0], at(999, 1000)) == pytest.approx(
        (clean[1] + attacked[1]) / 2
    )


def test_the_loss_in_the_limits_of_the_temperature_and_for_another_order_of_the_images() -> None:
    clean, attacked = (torch.randn(6, 5, dtype=torch.float64, generator=generator(seed)) for seed in (3, 4))
    late, order = at(999, 1000), torch.tensor([4, 5, 0, 1, 2, 3])
    assert chosen(DynACL(temperature=1e7), clean, attacked, late) == pytest.approx(math.log(5), rel=1e-6)
    gaps = []
    for given in (clean, attacked):
        z = torch.nn.functional.normalize(given, dim=1)
        cosine = (z @ z.T).fill_diagonal_(-2)
        gaps.append((cosine.amax(dim=1) - cosine[torch.arange(6), torch.arange(6) ^ 1]).mean().item())
    cold = 1e-3 * chosen(DynACL(temperature=1e-3), clean, attacked, late)
    assert cold == pytest.approx(gaps[0] / 6 + 5 * gaps[1] / 6, abs=1e-3 * math.log(5) + 1e-9)
    moved = chosen(DynACL(), clean[order], attacked[order], late)
    assert moved == pytest.approx(chosen(DynACL(), clean, attacked, late), rel=1e-12)


def test_what_a_learner_needs() -> None:
    method = DynACL()
    assert (method.networks.others, method.networks.evaluated, method.loss.paired) == (("momentum",), "momentum", False)
    assert method.momentum(Moment()) == 0.99 and method.num_attacked(4) == 8
    assert DynACLPlus().post_processed and not method.post_processed
    assert all(kind.paper and 0 < len(kind.summary) <= 90 for kind in (DynACL, DynACLPlus))


def test_bad_arguments_are_refused() -> None:
    for name in ("ema", "reweighting"):
        for value in (-0.1, 1.1, float("nan"), "0.5", True):
            with pytest.raises(ValueError, match=rf"{name} is .*expected a finite number in \[0, 1\]"):
                DynACL(**{name: value})
    with pytest.raises(ValueError, match="temperature"):
        DynACLPlus(temperature=-1.0)
    with pytest.raises(ValueError, match="none were given"):
        DynACL().losses(networks()[0], images(0), None)
