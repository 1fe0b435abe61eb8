import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.methods.taro import TARO, agreement
from astra_gym.ssl_core.models.heads import build_heads
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.target_network import build_network
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.utils.rng import Streams
from tests.helpers.draws import generator


def learner(**options: float) -> TargetLearner:
    method = TARO(predictor_hidden=6, **options)  # type: ignore[arg-type]
    target = build_network(
        generator(), arch="resnet10", width=4, routes=method.routes.names, projector="simsiam-2", projector_dim=8
    )
    heads = build_heads(Streams(0, torch.device("cpu")), method.make_heads(target.feature_dim, target.embedding_dim))
    beside = [(head, method.networks.constant_head_lr) for head in heads.values()]
    optimizer = make_optimizer("sgd-classic", target, 0.05, 0.0, heads=beside)
    return TargetLearner(target, method, optimizer, lambda step: 0.05 / (1 + step), heads=heads)


def networks(made: TargetLearner) -> Networks:
    return Networks(made.network, dict(made.heads.items()))


VIEWS = torch.rand(8, 3, 8, 8, generator=generator(1))
ATTACKED = torch.rand(8, 3, 8, 8, generator=generator(2))


def cosine(a: Tensor, b: Tensor) -> np.ndarray:
    x, y = a.detach().numpy(), b.detach().numpy()
    return (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


@pytest.mark.parametrize("w2", [1.0, 0.3])
def test_the_loss_is_the_released_one_with_a_pass_for_each_stream(w2: float) -> None:
    made = learner(w2=w2)
    again = copy.deepcopy(made)
    again.network.train()
    again.heads.train()
    z = [again.network(images, "normal").embeddings for images in (VIEWS[0::2], ATTACKED[0::2], ATTACKED[1::2])]
    p = [again.heads["predictor"](each, "normal") for each in z]

    def symmetric(i: int, j: int) -> float:
        return float(-(cosine(p[i], z[j]) + cosine(p[j], z[i])).mean() / 2)

    expected = symmetric(0, 1) + w2 * (symmetric(2, 1) + symmetric(2, 0))
    terms = made.update(VIEWS, ATTACKED)
    assert terms["total"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert terms["clean"] == pytest.approx(symmetric(0, 1), rel=1e-4, abs=1e-6)
    assert terms["mixed"] == pytest.approx(symmetric(2, 0), rel=1e-4, abs=1e-6)
    statistics = {name: value for name, value in again._parts.state_dict().items() if "running" in name}
    # three passes, and nothing else, have moved them
    assert all(torch.equal(made._parts.state_dict()[name], value) for name, value in statistics.items())


def test_the_clean_second_view_is_not_in_the_loss() -> None:
    other = VIEWS.clone()
    other[1::2] = 0.5
    assert learner().update(VIEWS, ATTACKED) == learner().update(other, ATTACKED)


def test_agreement_in_closed_form_and_its_stop_gradient() -> None:
    p = torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(
        agreement(torch.cat([p, 2 * p], dim=1), torch.cat([3 * p, p], dim=1)), -torch.ones(4).double()
    )
    torch.testing.assert_close(agreement(torch.cat([p, -p], dim=1), torch.cat([p, -p], dim=1)), torch.ones(4).double())
    first = torch.randn(4, 6, generator=generator(1), dtype=torch.float64, requires_grad=True)
    second = torch.randn(4, 6, generator=generator(2), dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(agreement(first, second), agreement(second, first))
    for gradient in torch.autograd.grad(agreement(first, second).sum(), (first, second)):
        assert gradient[:, :3].abs().min() > 0 and gradient[:, 3:].abs().max() == 0
    z, other = first.detach()[:, 3:], second.detach()
    prediction = first.detach()[:, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: agreement(torch.cat([p, z], dim=1), other), (prediction,))


def numpy_targets(features: np.ndarray, predictions: np.ndarray, a1: float, a2: float) -> np.ndarray:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = (unit @ unit.T + 1) / 2
    np.fill_diagonal(similarity, 0.5)
    probabilities = np.exp(predictions) / np.exp(predictions).sum(axis=1, keepdims=True)
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1)
    entropy = np.tile(entropy / entropy.min(), (len(entropy), 1))
    score = a1 * similarity / np.linalg.norm(similarity, axis=1, keepdims=True)
    return (score + a2 * entropy / np.linalg.norm(entropy, axis=1, keepdims=True)).argmax(axis=1)


@pytest.mark.parametrize(("a1", "a2"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_targets_are_of_a_views_own_kind(a1: float, a2: float) -> None:
    features, predictions = (torch.randn(12, 5, generator=generator(seed), dtype=torch.float64) for seed in (0, 1))
    target = TARO(similarity_weight=a1, entropy_weight=a2).selected(features, predictions)
    for kind in (0, 1):
        own = numpy_targets(features[kind::2].numpy(), predictions[kind::2].numpy(), a1, a2)
        assert target[kind::2].tolist() == [2 * int(j) + kind for j in own]


def test_the_attack_pulls_each_view_towards_its_target() -> None:
    made = learner(entropy_weight=0.0)
    made.update(VIEWS, ATTACKED)
    before = copy.deepcopy(made._parts.state_dict())
    budget = made.method.default_budget(0)
    assert budget == ConstantBudget(epsilon=8 / 255, step_size=2 / 255, steps=10)
    objective = made.objective(VIEWS)
    still = made.attack(VIEWS, replace(budget, steps=0).expand(8), generator())
    attacked = made.attack(VIEWS, budget.expand(8), generator())
    assert all(torch.equal(value, before[name]) for name, value in made._parts.state_dict().items())
    with frozen(made._parts), torch.no_grad():
        joined = made.method.joined(networks(made), VIEWS, "normal")
        (p, z), (own, own_z) = joined.embeddings.chunk(2, dim=1), attacked.embeddings.chunk(2, dim=1)
        target = made.method.selected(joined.features, p)
        # the first summand, through which the gradient goes
        start = still.embeddings[:, :8]
        assert (cosine(own, z[target]) > cosine(start, z[target]) + 0.01).all()
        expected = cosine(own, z[target]) + cosine(p[target], own_z)
        torch.testing.assert_close(objective(attacked.embeddings), torch.from_numpy(expected), rtol=1e-3, atol=1e-4)
        encode, rows = made.method.encode(networks(made)), torch.tensor([6, 1, 2])
        whole = encode(attacked.images, torch.arange(8))
        torch.testing.assert_close(encode(attacked.images[rows], rows), whole[rows])


def test_the_attacks_gradient_goes_through_the_views_own_prediction() -> None:
    made = learner()
    objective = made.objective(VIEWS)
    z = torch.randn(8, 16, generator=generator(), requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(z).sum(), z)
    assert gradient[:, :8].abs().amax(dim=1).min() > 0 and gradient[:, 8:].abs().max() == 0


def test_the_reward_is_simsiams_loss_and_not_the_targeted_similarity() -> None:
    clean, adversarial = (torch.randn(8, 16, generator=generator(seed), dtype=torch.float64) for seed in (0, 1))

    def refused(z: Tensor) -> Tensor:
        raise AssertionError("the targeted similarity is not to be asked")

    terms = TARO().reward_terms(refused, clean, adversarial)
    swapped = clean[[1, 0, 3, 2, 5, 4, 7, 6]]
    for name, z in (("adversarial", adversarial), ("clean", clean)):
        expected = -(cosine(z[:, :8], swapped[:, 8:]) + cosine(swapped[:, :8], z[:, 8:])) / 2
        torch.testing.assert_close(terms[name], torch.from_numpy(expected))
        assert bool((terms[name].abs() <= 1).all())


def test_it_learns_and_the_predictor_keeps_its_rate() -> None:
    made = learner()
    first = made.update(VIEWS, ATTACKED)
    for _ in range(10):
        last = made.update(VIEWS, ATTACKED)
    assert last["total"] < first["total"]
    groups = {id(p): group["lr"] for group in made.optimizer.param_groups for p in group["params"]}
    assert {groups[id(p)] for p in made.heads.parameters()} == {0.05}
    assert all(groups[id(p)] == pytest.approx(0.05 / 11) for p in made.network.parameters())


def test_bad_options_are_refused() -> None:
    for name in ("similarity_weight", "entropy_weight", "w2"):
        for value in (-1.0, float("inf"), float("nan"), True, "1"):
            with pytest.raises(ValueError, match=f"{name} is"):
                TARO(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="both 0"):
        TARO(similarity_weight=0, entropy_weight=0)
    with pytest.raises(ValueError, match="predictor_hidden is 0"):
        TARO(predictor_hidden=0)
    with pytest.raises(ValueError, match="none were given"):
        TARO().losses(networks(learner()), VIEWS, None)
    with pytest.raises(NotImplementedError, match="objective_for"):
        TARO().objective(torch.zeros(4, 6))
