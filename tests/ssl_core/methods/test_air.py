import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.methods.air import ACLAIR, DynACLAIR, DynACLAIRPlus
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.transforms.views import ViewSettings, two_views
from astra_gym.ssl_core.utils.training_plan import Moment, TrainingPlan
from tests.helpers.draws import generator, images
from tests.helpers.tiny_networks import unlike_routes

KINDS = [ACLAIR, DynACLAIR, DynACLAIRPlus]


def learner(method: ACLAIR) -> TargetLearner:
    target = unlike_routes()
    optimizer = make_optimizer("sgd-classic", target, 0.002, 0.0)
    return TargetLearner(target, method, optimizer, lambda step: 0.002, moment=TrainingPlan(epochs=4, steps=1).moment)


def statistics(target: nn.Module, route: str) -> list[Tensor]:
    return [value.clone() for name, value in target.named_buffers() if f".{route}.running" in name]


def unit(z: Tensor) -> np.ndarray:
    rows = z.detach().double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def contrast(z: np.ndarray, t: float) -> float:
    near = np.exp(z @ z.T / t)
    np.fill_diagonal(near, 0)
    return float(np.mean(-np.log(near[np.arange(len(z)), np.arange(len(z)) ^ 1] / near.sum(axis=1))))


def shares(one: np.ndarray, other: np.ndarray, t: float) -> np.ndarray:
    values = np.exp((one * other).sum(axis=1) / t)
    return values / values.sum()


def distance(p: np.ndarray, q: np.ndarray, form: str) -> float:
    return float((q * (np.log(q) - (p if form == "released" else np.log(p)))).sum())


@pytest.mark.parametrize("form", ["released", "kl"])
def test_terms_are_the_equations(form: str) -> None:
    method, target, t = DynACLAIR(temperature=0.3, form=form), unlike_routes().eval(), 0.3
    views, adversarial = images(0, 12), images(1, 8)
    terms = method.losses(Networks(target), views, adversarial)
    clean = unit(target(views[:8], "normal").embeddings)
    original = unit(target(views[8:], "normal").embeddings)
    attacked = unit(target(adversarial, "pgd").embeddings)
    one, two, first, second = clean[0::2], clean[1::2], attacked[0::2], attacked[1::2]
    assert terms["clean"].mean().item() == pytest.approx(contrast(clean, t), rel=1e-4)
    assert terms["adversarial"].mean().item() == pytest.approx(contrast(attacked, t), rel=1e-4)
    sir = distance(shares(one, original, t), shares(two, original, t), form)
    p, q = (shares(moved, original, t) * shares(moved, own, t) for moved, own in ((first, one), (second, two)))
    assert terms["sir"].mean().item() == pytest.approx(sir, rel=1e-4, abs=1e-6)
    assert terms["air"].mean().item() == pytest.approx(distance(p, q, form), rel=1e-4, abs=1e-6)
    assert terms.keys() == method.weights.keys() == method.weights_at(Moment()).keys()


def test_identical_views_leave_nothing_to_regularise() -> None:
    strong, original = images(0, 4).repeat_interleave(2, dim=0), images(1, 4)
    adversarial = images(2, 4).repeat_interleave(2, dim=0)
    terms = ACLAIR(form="kl").losses(Networks(unlike_routes().eval()), torch.cat([strong, original]), adversarial)
    assert abs(terms["sir"].item()) < 1e-6 and abs(terms["air"].item()) < 1e-6


def test_the_order_of_the_images_does_not_matter() -> None:
    views, adversarial, order = images(0, 12), images(1, 8), torch.tensor([2, 0, 3, 1])
    pairs = torch.stack([2 * order, 2 * order + 1], dim=1).flatten()
    networks = Networks(unlike_routes().eval())
    terms = ACLAIR().losses(networks, views, adversarial)
    moved = ACLAIR().losses(networks, torch.cat([views[pairs], views[8:][order]]), adversarial[pairs])
    for name in terms:
        torch.testing.assert_close(moved[name].mean(), terms[name].mean())
    # but each original belongs to its own image
    wrong = ACLAIR().losses(networks, torch.cat([views[:8], views[8:][order]]), adversarial)
    assert abs((wrong["sir"] - terms["sir"]).item()) > 1e-6


class Chosen(nn.Module):
    """Embeddings by parameters: those of clean rows, of originals and of attacked rows."""

    def __init__(self, clean: Tensor, original: Tensor, attacked: Tensor) -> None:
        super().__init__()
        self.given = {("normal", 4): clean, ("normal", 2): original, ("pgd", 4): attacked}

    def forward(self, images: Tensor, route: str) -> Encoded:
        z = self.given[route, len(images)]
        return Encoded(z, z)


@pytest.mark.parametrize("form", ["released", "kl"])
def test_gradients_go_through_all_embeddings(form: str) -> None:
    z = [torch.randn(n, 5, dtype=torch.float64, generator=generator(n + k)) for k, n in enumerate((4, 2, 4))]
    z = [each.requires_grad_() for each in z]

    def total(*each: Tensor) -> Tensor:
        method = DynACLAIR(form=form)
        terms = method.losses(Networks(Chosen(*each)), images(0, 6), images(1, 4))
        return torch.stack([method.weights[name] * values.mean() for name, values in terms.items()]).sum()

    assert torch.autograd.gradcheck(total, z)
    assert all(bool((g != 0).any()) for g in torch.autograd.grad(total(*z), z))


@pytest.mark.parametrize("kind", KINDS)
def test_views_are_two_strong_ones_and_the_image_itself(kind: type[ACLAIR]) -> None:
    settings, given = ViewSettings(strength=0.8), images(0, 3)
    for epoch, strength in ((0, 0.8), (2, 0.8 if kind is ACLAIR else 0.4)):
        made = kind().make_views(given, settings, Moment(epoch=epoch, epochs=4), generator(3))
        assert torch.equal(made[:6], two_views(given, ViewSettings(strength=strength), generator(3)))
        assert torch.equal(made[6:], given)
        assert torch.equal(kind().attacked(made), made[:6])
    assert (kind().views_per_image, kind().attacked_per_image, kind().loss.paired) == (3, 2, False)


def test_weights_follow_the_strength() -> None:
    for e in range(1, 1001):
        w = 2 / 3 * ((e - 1) // 50 * 50 / 1000)
        ours = DynACLAIR().weights_at(Moment(epoch=e - 1, epochs=1000))
        assert ours == pytest.approx({"clean": 1 - w, "adversarial": 1 + w, "sir": 0.5, "air": 0.5})
    fixed = ACLAIR(sir_weight=0, air_weight=0.25)
    for epoch in (0, 999):
        expected = {"clean": 1, "adversarial": 1, "sir": 0, "air": 0.25}
        assert fixed.weights_at(Moment(epoch=epoch, epochs=1000)) == expected
    assert DynACLAIR(reweighting=0).weights_at(Moment(epoch=3, epochs=4)) == DynACLAIR().weights


@pytest.mark.parametrize("kind", KINDS)
def test_the_attack_is_acls_and_every_route_has_its_own_stream(kind: type[ACLAIR]) -> None:
    target, views = learner(kind()), images(0, 12)
    assert target.encode_clean(views).embeddings.shape == (8, 8)
    attacked = target.attack(views, Budget.uniform(8, epsilon=8 / 255, step_size=2 / 255, steps=5), generator(2))
    idle = target.attack(views, Budget.uniform(8, epsilon=8 / 255, step_size=2 / 255, steps=0), generator(2))
    objective = target.objective(views)
    assert objective(attacked.embeddings).mean() > objective(idle.embeddings).mean() + 1e-4
    alike = copy.deepcopy(target.network).train()
    losses = target.update(views, attacked.images)
    assert losses["total"] == pytest.approx(
        losses["clean"] + losses["adversarial"] + 0.5 * losses["sir"] + 0.5 * losses["air"], rel=1e-5
    )
    for given, route in ((views[:8], "normal"), (views[8:], "normal"), (attacked.images, "pgd")):
        alike(given, route)  # the originals in a batch of their own
    for route in ("normal", "pgd"):
        assert all(map(torch.equal, statistics(target.network, route), statistics(alike, route)))
    assert target.encoder is target.network
    target.moment_at = Moment  # the weights of the schedule's beginning again
    assert target.update(views, attacked.images)["total"] < losses["total"]


def test_a_part_is_encoded_as_the_whole() -> None:
    networks, rows = Networks(unlike_routes().eval()), torch.tensor([5, 0, 3])
    whole = ACLAIR().encode(networks)(images(0, 8), torch.arange(8))
    torch.testing.assert_close(ACLAIR().encode(networks)(images(0, 8)[rows], rows), whole[rows])


def test_what_lists_say() -> None:
    assert [kind.post_processed for kind in KINDS] == [False, False, True]
    assert all(kind.paper and 0 < len(kind.summary) <= 90 for kind in KINDS)
    assert all(kind.networks.others == () and kind.networks.evaluated == "target" for kind in KINDS)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown form of the divergence 'released code'"):
        ACLAIR(form="released code")
    for name in ("sir_weight", "air_weight"):
        for value in (-0.1, float("inf"), float("nan"), "1", True):
            with pytest.raises(ValueError, match=f"{name} is .*expected a finite number of 0 or more"):
                DynACLAIR(**{name: value})
    with pytest.raises(ValueError, match=r"reweighting is 1.5: expected a finite number in \[0, 1\]"):
        DynACLAIR(reweighting=1.5)
    with pytest.raises(ValueError, match="temperature"):
        ACLAIR(temperature=0)
    with pytest.raises(ValueError, match="there are 8 views: expected three per image"):
        ACLAIR().attacked(images(0, 8))
    with pytest.raises(ValueError, match="none were given"):
        ACLAIR().losses(Networks(unlike_routes()), images(0, 12), None)
