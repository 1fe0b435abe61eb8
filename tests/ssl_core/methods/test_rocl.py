import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.methods.rocl import RoCL
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.target_network import Encoded, TargetNetwork
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from tests.helpers.draws import generator
from tests.helpers.tiny_networks import tiny_network


def network() -> TargetNetwork:
    return tiny_network(routes=("normal",), projector="rocl")


def images(n: int, seed: int) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=generator(seed))


def numpy_contrast(*versions: np.ndarray, temperature: float = 0.5) -> float:
    """Every ordered pair of versions of an image is a term; the terms of an image are added, anchors averaged."""
    z = np.concatenate([v / np.linalg.norm(v, axis=1, keepdims=True) for v in versions])
    b = len(versions[0])
    total = 0.0
    for i in range(len(z)):
        others = [math.exp(float(z[i] @ z[k]) / temperature) for k in range(len(z)) if k != i]
        for j in range(len(z)):
            if j != i and j % b == i % b:
                total += math.log(sum(others)) - float(z[i] @ z[j]) / temperature
    return total / len(z)


def test_the_loss_is_that_of_the_paper_with_a_pass_for_each_term() -> None:
    method, target = RoCL(temperature=0.4, regularizer=20.0), network().train()
    views, adversarial = images(8, 0), images(4, 1)
    terms = method.losses(Networks(target), views, adversarial)
    # by themselves, in train mode, whose outputs depend on what shares their batch
    again = network().train()
    two = again(torch.cat([adversarial, views[1::2]]), "normal").embeddings.detach().numpy()
    three = again(torch.cat([views[0::2], views[1::2], adversarial]), "normal").embeddings.detach().numpy()
    expected = numpy_contrast(*np.split(three, 3), temperature=0.4)
    assert terms["contrastive"].mean().item() == pytest.approx(expected, rel=1e-5)
    assert terms["regularizer"].mean().item() == pytest.approx(
        numpy_contrast(*np.split(two, 2), temperature=0.4), rel=1e-5
    )
    assert method.weights == {"contrastive": 1.0, "regularizer": 0.05}
    assert RoCL().weights["regularizer"] == 1 / 256
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in target.state_dict().items())


def test_identical_versions_have_the_closed_form() -> None:
    same = torch.ones(5, 4, dtype=torch.float64)
    torch.testing.assert_close(RoCL().contrast(same, same, same), torch.full((15,), 2 * math.log(14)).double())
    torch.testing.assert_close(RoCL().contrast(same, same), torch.full((10,), math.log(9)).double())


def test_only_the_first_view_is_attacked_and_its_partner_decides() -> None:
    method, target, views = RoCL(), network().eval(), images(8, 0)
    assert (method.num_attacked(16), method.attacked_per_image, method.views_per_image) == (16, 1, 2)
    assert torch.equal(method.attacked(views), views[0::2])
    objective = method.objective_for(Networks(target), views)
    moved = torch.randn(4, 8, generator=generator(2))
    with torch.no_grad():
        rows = torch.stack([moved, target(views[1::2], "normal").embeddings], dim=1).flatten(0, 1)
    torch.testing.assert_close(objective(moved), nt_xent(rows, reduction="none")[0::2])
    clean = target(views, "normal").embeddings
    terms = method.reward_terms(objective, clean[0::2], moved)
    torch.testing.assert_close(terms["clean"], nt_xent(clean, reduction="none")[0::2])
    with pytest.raises(NotImplementedError, match="objective_for"):
        method.objective(moved)


def test_the_attacks_gradient_is_that_of_the_released_loss_and_stops_at_the_other_operands() -> None:
    method, partners = RoCL(), torch.randn(3, 6, generator=generator(1), dtype=torch.float64)
    z = torch.randn(3, 6, generator=generator(0), dtype=torch.float64, requires_grad=True)
    (whole,) = torch.autograd.grad(method.contrast(z, partners).mean(), z)
    (own,) = torch.autograd.grad(method.contrast(z, partners)[0::2].sum(), z)
    torch.testing.assert_close(own, whole * 6)
    (first,) = torch.autograd.grad(method.contrast(z, partners)[0], z)
    assert first[0].abs().max() > 0 and first[1:].abs().max() == 0
    # by finite differences, every other row and the operand that is stopped held fast
    fixed = z.detach().clone()
    change = torch.zeros_like(fixed)
    change[0, 2] = 1e-6

    def row(anchor: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize
        everything = unit(torch.stack([fixed, partners], dim=1).flatten(0, 1), dim=1)
        logits = everything @ unit(anchor, dim=0) / 0.5
        return torch.logsumexp(logits[1:], dim=0) - logits[1]

    slope = (row(fixed[0] + change[0]) - row(fixed[0] - change[0])) / 2e-6
    torch.testing.assert_close(first[0, 2], slope, rtol=1e-5, atol=1e-8)


def test_a_row_of_the_training_loss_moves_its_own_anchor_and_no_other_version() -> None:
    """Both terms through `losses`, whose network gives chosen embeddings of the 2b and of the 3b images."""
    b, t = 3, 0.3
    z = {v: torch.randn(v * b, 5, dtype=torch.float64, generator=generator(v)).requires_grad_() for v in (2, 3)}
    stub = Networks(lambda x, route: Encoded(z[len(x) // b], z[len(x) // b]))
    terms = RoCL(temperature=t).losses(stub, images(2 * b, 0), images(b, 1))
    for v, values in ((2, terms["regularizer"]), (3, terms["contrastive"])):
        fixed = z[v].detach().numpy()
        units = fixed / np.linalg.norm(fixed, axis=1, keepdims=True)
        for row in range(v * b):
            # rows of an image are together in the loss, those of a version in the batch
            place = row // v + b * (row % v)
            others = [k for k in range(v * b) if k != place]
            shares = np.exp(units[others] @ units[place] / t)
            positives = units[[k for k in others if k % b == place % b]]
            pull = ((v - 1) * shares @ units[others] / shares.sum() - positives.sum(axis=0)) / t
            expected = np.zeros_like(fixed)
            expected[place] = (pull - units[place] * (units[place] @ pull)) / np.linalg.norm(fixed[place])
            (slope,) = torch.autograd.grad(values[row], z[v], retain_graph=True)
            np.testing.assert_allclose(slope.numpy(), expected, rtol=1e-9, atol=1e-12)
        # without the stop the operands' share would be in the gradient: the loss itself rises by more or less
        (slope,) = torch.autograd.grad(values.sum(), z[v], retain_graph=True)
        change = 1e-6 * torch.randn(slope.shape, dtype=torch.float64, generator=generator(9))
        moved = [RoCL(temperature=t).contrast(*(z[v] + side * change).chunk(v)).sum() for side in (1, -1)]
        assert abs((moved[0] - moved[1]).item() / 2 - (slope * change).sum().item()) > 1e-7


def learner() -> TargetLearner:
    target = network()
    return TargetLearner(target, RoCL(), make_optimizer("sgd-classic", target, 0.05, 0.0), lambda step: 0.05)


def test_the_attack_raises_its_objective_in_the_released_ball() -> None:
    made, views = learner(), images(8, 0)
    made.update(views, views[0::2])
    before = copy.deepcopy(made.network.state_dict())
    own = made.method.default_budget(0)
    assert own == ConstantBudget(epsilon=0.0314, step_size=0.007, steps=7) and made.method.attack.start_radius is None
    objective = made.objective(views)
    still = made.attack(views, replace(own, steps=0).expand(4), generator())
    attacked = made.attack(views, own.expand(4), generator())
    assert objective(attacked.embeddings).mean() > objective(still.embeddings).mean() + 0.01
    assert 0.03 < (still.images - views[0::2]).abs().max() <= 0.0314 + 1e-6
    assert (attacked.images - views[0::2]).abs().max() <= 0.0314 + 1e-6
    assert all(torch.equal(value, before[name]) for name, value in made.network.state_dict().items())
    with frozen(made.network), torch.no_grad():
        encode = made.method.encode(Networks(made.network))
        rows = torch.tensor([2, 0])
        torch.testing.assert_close(encode(attacked.images[rows], rows), attacked.embeddings[rows], rtol=1e-4, atol=1e-5)


def test_it_learns_and_the_statistics_follow_both_passes() -> None:
    made, views = learner(), images(8, 0)
    first = made.update(views, images(4, 1))
    assert first["total"] == pytest.approx(first["contrastive"] + first["regularizer"] / 256, rel=1e-5)
    assert made.network.backbone.norm.by_route["normal"].num_batches_tracked == 2
    for _ in range(10):
        last = made.update(views, images(4, 1))
    assert last["total"] < first["total"]


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True, "256"])
def test_a_regulariser_that_has_no_inverse_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="regularizer is"):
        RoCL(regularizer=value)


def test_attacked_views_are_needed() -> None:
    with pytest.raises(ValueError, match="none were given"):
        RoCL().losses(Networks(network()), images(8, 0), None)
