import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget, ConstantBudget
from astra_gym.ssl_core.methods.advcl import HEAD, AdvCL
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.models.clustering import assign
from astra_gym.ssl_core.models.heads import build_heads
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.target_network import Encoded, TargetNetwork, build_network
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.transforms.high_frequency import high_frequency
from astra_gym.ssl_core.transforms.views import ViewSettings, two_views, weak_views
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import Moment
from tests.helpers.draws import generator, images

CLUSTERS = (2, 3, 5)
METHOD = AdvCL(clusters=CLUSTERS)
BUDGET = Budget.uniform(12, epsilon=8 / 255, step_size=2 / 255, steps=5)


def views(seed: int = 3) -> Tensor:
    return METHOD.make_views(images(seed), ViewSettings(), Moment(), generator(seed))


def network(routes: tuple[str, ...], seed: int) -> TargetNetwork:
    sizes: dict[str, Any] = {"projector": "advcl", "projector_hidden": 16, "projector_dim": 8}
    return build_network(generator(seed), arch="resnet10", width=4, routes=routes, **sizes)


def learner(method: AdvCL = METHOD, tables: bool = True) -> TargetLearner:
    target, teacher = network(method.routes.names, 0), network(("normal",), 1)
    heads = build_heads(Streams(2), method.make_heads(target.feature_dim, target.embedding_dim))
    optimizer = make_optimizer("sgd", target, 0.05, 0.0, heads=[(head, False) for head in heads.values()])
    made = TargetLearner(target, method, optimizer, lambda step: 0.05, heads=heads, others={"teacher": teacher.eval()})
    if tables:
        made.make_tables((images(9, 20) * 255).to(torch.uint8), Streams(5))
    return made


def supervised_contrast(z: np.ndarray, temperature: float = 0.5, base: float = 0.07) -> np.ndarray:
    """SupCon of each image from embeddings (b, versions, d): the mean over its versions, positive by positive."""
    b, versions = z.shape[:2]
    rows = z.reshape(b * versions, -1)
    rows = rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))
    values = np.zeros((b, versions))
    for i, row in enumerate(rows):
        total = sum(math.exp(row @ other / temperature) for j, other in enumerate(rows) if j != i)
        own = [j for j in range(len(rows)) if j != i and j // versions == i // versions]
        each = [-math.log(math.exp(row @ rows[j] / temperature) / total) for j in own]
        values[i // versions, i % versions] = temperature / base * sum(each) / len(each)
    return values.mean(axis=1)


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean over the classifiers of each row's cross entropy, from logits side by side."""
    parts = np.split(logits, np.cumsum(CLUSTERS)[:-1], axis=1)
    each = []
    for part, label in zip(parts, labels.T, strict=True):
        probabilities = np.exp(part) / np.exp(part).sum(axis=1, keepdims=True)
        each.append(-np.log(probabilities[np.arange(len(part)), label]))
    return np.mean(each, axis=0)


def test_it_says_what_a_learner_needs() -> None:
    method = AdvCL()
    assert method.routes.names == ("normal", "pgd", "pgd_ce") and method.routes.evaluation == "pgd"
    assert (method.views_per_image, method.attacked_per_image, method.num_attacked(16)) == (4, 2, 32)
    assert method.attack.mode == "train" and not method.starts_from_teacher
    assert method.default_budget(0) == ConstantBudget(epsilon=8 / 255, step_size=2 / 255, steps=5)
    assert method.clusters == (2, 10, 50, 100, 500)
    assert dict(method.weights) == {"contrast": 1.0, "pseudo": 0.2}
    assert method.make_heads(7, 3)[HEAD].state_dict().keys() == {
        f"linears.{k}.{name}" for k in range(5) for name in ("weight", "bias")
    }
    assert len(method.summary) <= 90


def test_views_are_two_strong_ones_a_weak_one_and_the_image() -> None:
    draw, batch = generator(7), images(1)
    made = METHOD.make_views(batch, ViewSettings(), Moment(), generator(7))
    strong = two_views(batch, ViewSettings(), draw)
    weak = weak_views(batch, ViewSettings(), draw)
    parts = METHOD.parts(made)
    for found, expected in zip(parts, (strong[0::2], strong[1::2], weak, batch), strict=True):
        assert torch.equal(found, expected)
    attacked = METHOD.attacked(made)
    assert torch.equal(attacked[0::2], weak) and torch.equal(attacked[1::2], weak)


@pytest.mark.parametrize("size", [8, 32])
def test_the_disc_of_low_frequencies_scales_with_the_image(size: int) -> None:
    batch = torch.rand(2, 3, size, size, generator=generator())
    torch.testing.assert_close(METHOD.high(batch), high_frequency(batch, size / 4))
    torch.testing.assert_close(METHOD.high(torch.full_like(batch, 0.7)), torch.zeros_like(batch))
    assert METHOD.high(batch).abs().max() > 0.1


class Plain(nn.Module):
    """A linear network with a matrix for each route: 4 features, and 3 embeddings of these."""

    def __init__(self, routes: tuple[str, ...], seed: int) -> None:
        super().__init__()
        draw = generator(seed)
        self.matrices = nn.ParameterDict(
            {route: torch.randn(4, 12, generator=draw, dtype=torch.float64) for route in routes}
        )
        self.head = nn.Parameter(torch.randn(3, 4, generator=draw, dtype=torch.float64))
        self.calls: list[tuple[str, int]] = []

    def forward(self, x: Tensor, route: str) -> Encoded:
        self.calls.append((route, len(x)))
        features = x.double().flatten(1) @ self.matrices[route].T
        return Encoded(features, features @ self.head.T)


class World:
    """Linear networks in float64, small views of 5 images, and what NumPy makes of them."""

    def __init__(self) -> None:
        draw = generator(11)
        self.student, self.teacher = Plain(METHOD.routes.names, 1), Plain(("normal",), 2)
        self.classifiers = METHOD.make_heads(4, 3)[HEAD].double()
        tables = {f"centroids_{k}": torch.randn(k, 4, generator=draw, dtype=torch.float64) for k in CLUSTERS}
        self.networks = Networks(self.student, {HEAD: self.classifiers}, {"teacher": self.teacher}, tables)
        self.views = torch.rand(20, 3, 2, 2, generator=draw)
        self.adversarial = torch.rand(10, 3, 2, 2, generator=draw)

    def features(self, x: Tensor, route: str, network: Plain | None = None) -> np.ndarray:
        matrix = (network or self.student).matrices[route].detach().numpy()
        return x.double().flatten(1).numpy() @ matrix.T

    def embeddings(self, x: Tensor, route: str) -> np.ndarray:
        return self.features(x, route) @ self.student.head.detach().numpy().T

    def expected(self, contrasted: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, second, weak, original = self.views[0:10:2], self.views[1:10:2], self.views[10:15], self.views[15:]
        versions = [contrasted] + [self.embeddings(x, "normal") for x in (first, second, METHOD.high(weak))]
        seen = self.features(original, "normal", self.teacher)
        centroids = [self.networks.tables[f"centroids_{k}"].numpy() for k in CLUSTERS]
        labels = [((seen[:, None] - each[None]) ** 2).sum(axis=2).argmin(axis=1) for each in centroids]
        return supervised_contrast(np.stack(versions, axis=1)), cross_entropies(logits, np.stack(labels, axis=1))

    def logits(self, features: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.classifiers(torch.from_numpy(features), "any").numpy()


def test_the_loss_is_its_equation() -> None:
    world = World()
    terms = METHOD.losses(world.networks, world.views, world.adversarial)
    contrasted = world.embeddings(world.adversarial[0::2], "pgd")
    logits = world.logits(world.features(world.adversarial[1::2], "pgd_ce"))
    contrast, pseudo = world.expected(contrasted, logits)
    np.testing.assert_allclose(terms["contrast"].detach(), contrast, rtol=1e-9)
    np.testing.assert_allclose(terms["pseudo"].detach(), pseudo, rtol=1e-9)
    # every version is a batch of batch norm of its own
    assert sorted(world.student.calls) == [("normal", 5)] * 3 + [("pgd", 5), ("pgd_ce", 5)]


def test_the_objective_is_the_contrast_in_even_rows_and_the_labels_in_odd_ones() -> None:
    world = World()
    objective = METHOD.objective_for(world.networks, world.views)
    z = METHOD.encoded(world.networks, world.adversarial, torch.arange(10), attacked=True).embeddings
    assert z.shape == (10, 3 + sum(CLUSTERS))
    contrasted = world.embeddings(world.adversarial[0::2], "pgd")
    logits = world.logits(world.features(world.adversarial[1::2], "pgd_ce"))
    contrast, pseudo = world.expected(contrasted, logits)
    np.testing.assert_allclose(objective(z)[0::2].detach(), contrast, rtol=1e-9)
    np.testing.assert_allclose(objective(z)[1::2].detach(), pseudo, rtol=1e-9)


def test_what_a_row_is_not_attacked_for_does_not_reach_the_objective() -> None:
    world = World()
    objective = METHOD.objective_for(world.networks, world.views)
    z = torch.randn(10, 3 + sum(CLUSTERS), generator=generator(), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(objective(z).sum(), z)
    assert not slope[0::2, 3:].any() and not slope[1::2, :3].any()
    assert bool(slope[0::2, :3].any(dim=1).all()) and bool(slope[1::2, 3:].any(dim=1).all())
    assert torch.autograd.gradcheck(objective, [z])


def test_gradients_are_those_of_finite_differences_and_the_teacher_gets_none() -> None:
    world = World()
    parameters = [*world.student.parameters(), *world.classifiers.parameters()]

    def total(*_: Tensor) -> Tensor:
        terms = METHOD.losses(world.networks, world.views, world.adversarial)
        return torch.stack([METHOD.weights[name] * values.mean() for name, values in terms.items()]).sum()

    assert torch.autograd.gradcheck(total, parameters)
    total().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters)
    assert all(parameter.grad is None for parameter in world.teacher.parameters())


def test_identical_versions_and_equal_logits_have_closed_forms() -> None:
    # two images whose four versions coincide, at right angles: each row has 3 positives of cosine 1, 4 negatives of 0
    versions = torch.eye(2).repeat_interleave(3, dim=0).view(2, 3, 2)
    expected = 0.5 / 0.07 * math.log((3 * math.exp(2) + 4) / math.exp(2))
    torch.testing.assert_close(METHOD.contrast(torch.eye(2) * 9, versions), torch.full((2,), expected))
    chance = sum(math.log(k) for k in CLUSTERS) / 3
    labels = torch.tensor([[0, 2, 4], [1, 1, 1]])
    torch.testing.assert_close(METHOD.pseudo(torch.zeros(2, 10), labels), torch.full((2,), chance))
    plain = AdvCL(clusters=CLUSTERS, base_temperature=0.5).contrast(torch.eye(2), versions)
    torch.testing.assert_close(plain, torch.full((2,), expected * 0.07 / 0.5))


def test_labels_are_those_of_the_fitted_clusters_of_the_images_themselves() -> None:
    target = learner()
    batch = (images(9, 20) * 255).to(torch.uint8) / 255
    assert {name: tuple(value.shape) for name, value in target.tables.items()} == {
        f"centroids_{k}": (k, 32) for k in CLUSTERS
    }
    seen = target._other("teacher")(batch, "normal").features
    labels = METHOD.labels(target.plain(), batch)
    for column, k in enumerate(CLUSTERS):
        assert torch.equal(labels[:, column], assign(seen.detach(), target.tables[f"centroids_{k}"]))
        assert labels[:, column].unique().tolist() == list(range(k))  # no cluster is empty
    again = learner()
    assert all(torch.equal(value, again.tables[name]) for name, value in target.tables.items())


def trained(batches: int = 5) -> TargetLearner:
    """In float64, after some updates: routes and statistics are no longer alike."""
    target, batch = learner(), views()
    for _ in range(batches):
        target.update(batch, METHOD.attacked(batch))
    target._parts.double()
    target.tables = {name: value.double() for name, value in target.tables.items()}
    return target


def plain_attack(target: TargetLearner, batch: Tensor, start: Tensor, steps: int) -> Tensor:
    """The attack by the training loss itself, all versions of the images encoded in train mode at every step."""
    images, moved = METHOD.attacked(batch), start
    with target.untracked():
        target._parts.train()
        target.others.eval()
        for _ in range(steps):
            moved = moved.detach().requires_grad_()
            terms = METHOD.losses(target.plain(), batch, moved)
            (slope,) = torch.autograd.grad(terms["contrast"].sum() + terms["pseudo"].sum(), moved)
            moved = (moved + 2 / 255 * slope.sign()).clamp(images - 8 / 255, images + 8 / 255).clamp(0, 1)
    return moved.detach()


def test_the_attack_is_that_of_the_training_loss_in_train_mode() -> None:
    target, batch = trained(), views().double()
    still = Budget.uniform(12, epsilon=8 / 255, step_size=2 / 255, steps=0)
    start = target.attack(batch, still, generator(5)).images
    end = target.attack(batch, Budget.uniform(12, epsilon=8 / 255, step_size=2 / 255, steps=5), generator(5))
    expected = plain_attack(target, batch, start, 5)
    # a budget's figures are float32
    torch.testing.assert_close(end.images, expected, rtol=0, atol=1e-8)
    with target.untracked(), torch.no_grad():
        before, after = (METHOD.losses(target.plain(), batch, each) for each in (start, end.images))
    assert after["contrast"].mean() > before["contrast"].mean() + 0.5
    assert after["pseudo"].mean() > before["pseudo"].mean() + 0.01
    assert not torch.equal(end.images[0::2], end.images[1::2])


def test_what_the_attack_compares_with_leaves_no_trace() -> None:
    target, batch = learner(), views()
    before = copy.deepcopy(target._parts.state_dict())
    objective, look = target.objective(batch), target.encode_clean(batch)
    assert objective(look.embeddings).shape == (12,)
    after = target._parts.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_attack_runs_in_train_mode_on_its_two_routes() -> None:
    target, batch = learner(), views()
    before = copy.deepcopy(target.network)
    # the pass of the one step sees the start
    start = target.attack(batch, Budget.uniform(12, epsilon=8 / 255, step_size=2 / 255, steps=0), generator(5)).images
    compare(target.network, before, *METHOD.routes.names)
    end = target.attack(batch, Budget.uniform(12, epsilon=8 / 255, step_size=2 / 255, steps=1), generator(5))
    expected = copy.deepcopy(before).train()
    for row, route in enumerate(METHOD.attack_routes):
        expected(start[row::2], route)
        compare(target.network, expected, route)
        embeddings = expected(end.images[row::2], route).embeddings
        torch.testing.assert_close(end.embeddings[row::2, :8], embeddings)
    compare(target.network, before, "normal")


def test_a_subset_is_encoded_like_the_whole_in_eval_mode() -> None:
    target, batch = learner(), images(3, 8)
    networks = target.plain()
    with frozen(target._parts):
        for attacked in (True, False):
            whole = METHOD.encoded(networks, batch, torch.arange(8), attacked)
            for rows in ([0], [7], [5, 2, 0, 1], [3, 1], [6, 4]):
                part = METHOD.encoded(networks, batch[rows], torch.tensor(rows), attacked)
                torch.testing.assert_close(part.embeddings, whole.embeddings[rows])
                torch.testing.assert_close(part.features, whole.features[rows])


def test_each_route_follows_its_own_views() -> None:
    target, batch, adversarial = learner(), views(), images(4, 12)
    before, teacher = copy.deepcopy(target.network), copy.deepcopy(target.others["teacher"].state_dict())
    target.update(batch, adversarial)
    parts = METHOD.parts(batch)
    streams = {
        "normal": [parts.first, parts.second, METHOD.high(parts.weak)],
        "pgd": [adversarial[0::2]],
        "pgd_ce": [adversarial[1::2]],
    }
    for route, stream in streams.items():
        expected = copy.deepcopy(before).train()
        for part in stream:
            expected(part, route)
        compare(target.network, expected, route)
    assert all(torch.equal(value, teacher[name]) for name, value in target.others["teacher"].state_dict().items())


def compare(one: TargetNetwork, other: TargetNetwork, *routes: str) -> None:
    """The backbones' running statistics of some routes are equal bit for bit."""
    ours, theirs = one.backbone.state_dict(), other.backbone.state_dict()
    for route in routes:
        names = [name for name in ours if f".{route}.running_" in name]
        assert names and all(torch.equal(ours[name], theirs[name]) for name in names)


def test_updates_descend_and_reward_terms_are_the_objectives_own() -> None:
    target, batch = learner(), views()
    adversarial = METHOD.attacked(batch)
    first = target.update(batch, adversarial)
    assert first["total"] == pytest.approx(first["contrast"] + 0.2 * first["pseudo"], rel=1e-5)
    for _ in range(15):
        last = target.update(batch, adversarial)
    assert last["contrast"] < first["contrast"] and last["pseudo"] < first["pseudo"]
    look, objective = target.encode_clean(batch), target.objective(batch)
    torch.testing.assert_close(look.embeddings[0::2], look.embeddings[1::2])  # the same clean view
    terms = METHOD.reward_terms(objective, look.embeddings, look.embeddings)
    torch.testing.assert_close(terms["clean"], objective(look.embeddings))
    least, most = math.log(3) / 0.14, (math.log(4 * 6 - 1) + 4) / 0.14
    assert bool(((terms["clean"][0::2] >= least) & (terms["clean"][0::2] <= most)).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": ()}, "clusters are"),
        ({"clusters": (2, 2)}, "expected different integers"),
        ({"clusters": (1, 10)}, "expected different integers"),
        ({"clusters": (2.0, 10)}, "expected different integers"),
        ({"base_temperature": 0.0}, "base_temperature is 0"),
        ({"pseudo_weight": -1.0}, "pseudo_weight is -1"),
        ({"radius": float("inf")}, "radius is inf"),
        ({"temperature": 0.0}, "temperature is 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdvCL(**options)


def test_what_does_not_fit_is_refused() -> None:
    assert AdvCL(clusters=[4, 2]).clusters == (4, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"there are 20 training images: 50 clusters need at least as many"):
        learner(AdvCL(clusters=(2, 50)))
    with pytest.raises(ValueError, match="make_tables makes them before training"):
        learner(tables=False).objective(views())
    with pytest.raises(ValueError, match="none were given"):
        learner().update(views(), None)
    with pytest.raises(NotImplementedError, match="objective_for"):
        METHOD.objective(torch.zeros(6, 5))
