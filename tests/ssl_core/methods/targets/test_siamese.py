import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.methods.targets.siamese import BYOL, Siamese, SimSiam
from astra_gym.ssl_core.methods.traits import Routes
from astra_gym.ssl_core.models.heads import build_heads
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import Moment, TrainingPlan
from tests.helpers.draws import generator
from tests.helpers.tiny_networks import tiny_network

METHODS = (BYOL, SimSiam)
BOTH = pytest.mark.parametrize("kind", METHODS)


def learner(method: Siamese, lr: float = 0.05) -> TargetLearner:
    target = tiny_network(routes=method.routes.names, projector="mlp")
    heads = build_heads(Streams(0, torch.device("cpu")), method.make_heads(target.feature_dim, target.embedding_dim))
    beside = [(head, method.networks.constant_head_lr) for head in heads.values()]
    # another start than the online network's, so that the two can be told apart
    others = {name: tiny_network(5, routes=method.routes.names, projector="mlp") for name in method.networks.others}
    return TargetLearner(
        target,
        method,
        make_optimizer("sgd-classic", target, lr, 0.0, heads=beside),
        lambda step: lr / (1 + step),
        heads=heads,
        others=others,
        moment=TrainingPlan(epochs=3, steps=2).moment,
    )


def networks(made: TargetLearner) -> Networks:
    return Networks(made.network, dict(made.heads.items()), dict(made.others.items()))


VIEWS = torch.rand(8, 3, 8, 8, generator=generator(1))
ATTACKED = torch.rand(8, 3, 8, 8, generator=generator(2))
BUDGET = Budget.uniform(8, epsilon=8 / 255, step_size=2 / 255, steps=5)


def numpy_rows(p: Tensor, z: Tensor) -> np.ndarray:
    """cos(p_i, z_j) of every view i and the other view j of its image."""
    rows = []
    for i in range(len(p)):
        a, b = p[i].detach().numpy(), z[i + 1 if i % 2 == 0 else i - 1].detach().numpy()
        rows.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return np.array(rows)


@BOTH
@pytest.mark.parametrize("streams", ["ds", "a2a"])
def test_the_loss_of_each_stream_on_its_route_is_the_papers(kind: type[Siamese], streams: str) -> None:
    made = learner(kind(predictor_hidden=6, streams=streams))
    method = made.method
    expected = {}
    again = copy.deepcopy(made)
    for part in (again.network, again.heads, again.others):
        part.train()
    for name, images, route in (("clean", VIEWS, "normal"), ("adversarial", ATTACKED, "pgd")):
        if streams == "a2a" and name == "clean":
            continue
        z = again.network(images, route).embeddings
        p = again.heads["predictor"](z, route)
        if kind is BYOL:
            pairs = numpy_rows(p, again.others["momentum"](images, route).embeddings).reshape(-1, 2)
            expected[name] = (2 - 2 * pairs).sum(axis=1).mean()  # their equations 2 and 3: both views are added
        else:
            expected[name] = -numpy_rows(p, z).mean()
    terms = made.update(VIEWS, ATTACKED)
    weights = method.weights
    assert weights.keys() == expected.keys()
    assert terms["total"] == pytest.approx(sum(expected.values()) / len(expected), rel=1e-5)
    assert weights[name] * terms[name] == pytest.approx(expected[name] / len(expected), rel=1e-5)


@BOTH
def test_identical_directions_cost_nothing_and_opposite_ones_the_most(kind: type[Siamese]) -> None:
    p = torch.randn(4, 5, generator=generator(), dtype=torch.float64).repeat_interleave(2, dim=0)
    low, high = (0.0, 4.0) if kind is BYOL else (-1.0, 1.0)
    objective = kind().objective
    torch.testing.assert_close(objective(torch.cat([p, 3 * p], dim=1)), torch.full((8,), low).double())
    torch.testing.assert_close(objective(torch.cat([p, -2 * p], dim=1)), torch.full((8,), high).double())
    apart = torch.tensor([[1.0, 0, 0, 1], [1.0, 0, 0, 1]]).double()
    torch.testing.assert_close(objective(apart), torch.full((2,), (low + high) / 2).double())
    z = torch.randn(8, 6, generator=generator(1), dtype=torch.float64)
    order = torch.tensor([4, 5, 0, 1, 6, 7, 2, 3])
    torch.testing.assert_close(objective(z[order]), objective(z)[order])


@BOTH
def test_the_attack_goes_through_both_branches_and_the_update_through_one(kind: type[Siamese]) -> None:
    z = torch.randn(4, 6, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(kind().objective, (z,))
    (attack,) = torch.autograd.grad(kind().objective(z).sum(), z)
    assert attack[:, :3].abs().min() > 0 and attack[:, 3:].abs().min() > 0
    (update,) = torch.autograd.grad(kind().row_losses(z[:, :3], z[:, 3:], stop=True).sum(), z)
    torch.testing.assert_close(update[:, :3], attack[:, :3])
    assert update[:, 3:].abs().max() == 0


def test_the_stop_gradient_reaches_the_weights() -> None:
    """Without the stop the projector's gradient has a second part: the loss must not have it."""
    made = learner(SimSiam(predictor_hidden=6, streams="a2a"))
    made.network.train()
    terms = made.method.losses(networks(made), VIEWS, ATTACKED)
    last = made.network.projector.linears[-1].weight
    (stopped,) = torch.autograd.grad(terms["adversarial"].mean(), last)
    z = made.network(ATTACKED, "pgd").embeddings
    p, fixed = made.heads["predictor"](z, "pgd"), z.detach().view(-1, 2, 8).flip(1).flatten(0, 1)
    (expected,) = torch.autograd.grad(-torch.cosine_similarity(p, fixed).mean(), last)
    torch.testing.assert_close(stopped, expected)


@BOTH
@pytest.mark.parametrize("streams", ["ds", "a2a"])
def test_the_attack_raises_the_frameworks_own_loss(kind: type[Siamese], streams: str) -> None:
    made = learner(kind(predictor_hidden=6, streams=streams))
    made.update(VIEWS, ATTACKED)
    before = copy.deepcopy(made._parts.state_dict())
    objective = made.objective(VIEWS)
    still = made.attack(VIEWS, Budget.uniform(8, epsilon=8 / 255, step_size=2 / 255, steps=0), generator())
    attacked = made.attack(VIEWS, BUDGET, generator())
    assert objective(attacked.embeddings).mean() > objective(still.embeddings).mean() + 1e-3
    assert all(torch.equal(value, before[name]) for name, value in made._parts.state_dict().items())
    low, high = (0, 4) if kind is BYOL else (-1, 1)
    clean = made.encode_clean(VIEWS).embeddings
    terms = made.method.reward_terms(objective, clean, attacked.embeddings)
    assert terms.keys() == {"adversarial", "clean"}
    assert all(bool(((low <= value) & (value <= high)).all()) for value in terms.values())
    with frozen(made._parts), torch.no_grad():
        own = made.network(attacked.images, "pgd").embeddings
        p = made.heads["predictor"](own, "pgd")
        z = made.others["momentum"](attacked.images, "pgd").embeddings if kind is BYOL else own
        cosines = torch.from_numpy(numpy_rows(p, z))
        expected = 2 - 2 * cosines if kind is BYOL else -cosines
        torch.testing.assert_close(terms["adversarial"], expected, rtol=1e-3, atol=1e-4)
        encode, rows = made.method.encode(networks(made)), torch.tensor([5, 0, 3])
        whole = encode(attacked.images, torch.arange(8))
        torch.testing.assert_close(encode(attacked.images[rows], rows), whole[rows])


@BOTH
def test_a_route_gets_the_statistics_of_its_own_stream(kind: type[Siamese]) -> None:
    one, other = (learner(kind(predictor_hidden=6)) for _ in range(2))
    one.update(VIEWS, ATTACKED)
    other.update(VIEWS, 1 - ATTACKED)
    kept = {name: value for name, value in one._parts.state_dict().items() if "running" in name}
    assert {route for name in kept for route in ("normal", "pgd") if f".{route}." in name} == {"normal", "pgd"}
    for name, value in other._parts.state_dict().items():
        if "running" in name:
            assert torch.equal(value, kept[name]) == (".normal." in name), name


@BOTH
def test_attacked_views_alone_have_one_route(kind: type[Siamese]) -> None:
    assert kind(streams="a2a").routes == Routes.single("pgd") and kind().routes == Routes()
    made = learner(kind(predictor_hidden=6, streams="a2a"))
    assert made.update(VIEWS, ATTACKED) == learner(made.method).update(1 - VIEWS, ATTACKED)


def test_byols_moving_average_follows_a_cosine_and_has_statistics_of_its_own() -> None:
    method = BYOL(predictor_hidden=6, momentum_start=0.9)
    assert method.momentum(Moment(progress=0.0)) == pytest.approx(0.9)
    assert method.momentum(Moment(progress=0.5)) == pytest.approx(0.95)
    assert method.momentum(Moment(progress=1.0)) == 1.0
    assert BYOL().momentum(Moment()) == pytest.approx(0.99)
    made = learner(method)
    slow = {name: value.clone() for name, value in made.others["momentum"].named_parameters()}
    for step in range(4):
        made.update(VIEWS, ATTACKED)
        share = 1 - 0.1 * (np.cos(np.pi * step / 6) + 1) / 2
        online = dict(made.network.named_parameters())
        slow = {name: share * value + (1 - share) * online[name].detach() for name, value in slow.items()}
    for name, value in made.others["momentum"].named_parameters():
        torch.testing.assert_close(value, slow[name], rtol=1e-5, atol=1e-7)
    norm = made.others["momentum"].backbone.norm.by_route["pgd"]
    assert norm.num_batches_tracked == 4
    assert not torch.equal(norm.running_mean, made.network.backbone.norm.by_route["pgd"].running_mean)
    assert made.encoder is made.network


def test_only_simsiams_predictor_keeps_its_rate() -> None:
    for kind, last in ((SimSiam, 0.05), (BYOL, 0.025)):
        made = learner(kind(predictor_hidden=6))
        for _ in range(2):
            made.update(VIEWS, ATTACKED)
        groups = {id(p): group["lr"] for group in made.optimizer.param_groups for p in group["params"]}
        assert all(groups[id(p)] == pytest.approx(last) for p in made.heads.parameters())
        assert all(groups[id(p)] == pytest.approx(0.025) for p in made.network.parameters())


@BOTH
def test_it_learns(kind: type[Siamese]) -> None:
    made = learner(kind(predictor_hidden=6), lr=0.1)
    first = made.update(VIEWS, ATTACKED)
    for _ in range(10):
        last = made.update(VIEWS, ATTACKED)
    assert last["total"] < first["total"]


@BOTH
def test_bad_options_are_refused(kind: type[Siamese]) -> None:
    with pytest.raises(ValueError, match=r"no paper says which takes the attacked view; expected 'ds'.*'a2a'"):
        kind(streams="a2s")
    with pytest.raises(ValueError, match="streams is 's2s': expected 'ds'"):
        kind(streams="s2s")
    for hidden in (0, 2.5, True):
        with pytest.raises(ValueError, match="predictor_hidden is"):
            kind(predictor_hidden=hidden)
    with pytest.raises(ValueError, match="none were given"):
        kind().losses(Networks(tiny_network()), VIEWS, None)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), True, "0.99"])
def test_a_momentum_out_of_its_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="momentum_start is"):
        BYOL(momentum_start=value)
