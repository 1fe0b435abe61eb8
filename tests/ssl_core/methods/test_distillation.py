import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget, ConstantBudget
from astra_gym.ssl_core.methods.base import Method, Networks
from astra_gym.ssl_core.methods.distillation import DAQSDP, DeACL, Distillation
from astra_gym.ssl_core.methods.parts import by_parity, on_routes
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.target_network import Encoded, TargetNetwork
from astra_gym.ssl_core.models.weights.copying import copy_routes
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.transforms.trivial_augment import trivial_augment
from astra_gym.ssl_core.transforms.views import ViewSettings, weak_views
from astra_gym.ssl_core.utils.training_plan import Moment, TrainingPlan
from tests.helpers.draws import generator, images
from tests.helpers.tiny_networks import tiny_network

BOTH = [DeACL(), DAQSDP()]


def learner(method: Method, teacher_route: str = "pgd", moment: Moment | None = None) -> TargetLearner:
    # with projectors, whose embeddings nothing may use
    target, teacher = tiny_network(routes=method.routes.names), tiny_network(1).eval()
    with torch.no_grad():
        for n, part in enumerate(teacher.modules()):
            if isinstance(part, nn.BatchNorm2d):  # the routes differ
                part.bias.add_(torch.randn(part.bias.shape, generator=generator(n)))
    optimizer = make_optimizer("sgd", target, 0.1, 0.0)
    return TargetLearner(
        target,
        method,
        optimizer,
        lambda step: 0.1,
        others={"teacher": teacher},
        teacher_route=teacher_route,
        moment=lambda step: moment or Moment(step),
    )


class Plain(nn.Module):
    """A linear network with a matrix for each route, which notes what it was called with."""

    def __init__(self, routes: tuple[str, ...], seed: int) -> None:
        super().__init__()
        draw = generator(seed)
        self.matrices = nn.ParameterDict(
            {route: torch.randn(5, 12, generator=draw, dtype=torch.float64) for route in routes}
        )
        self.calls: list[tuple[str, int]] = []

    def forward(self, x: Tensor, route: str) -> Encoded:
        self.calls.append((route, len(x)))
        features = x.double().flatten(1) @ self.matrices[route].T
        return Encoded(features, features[:, :2] * 7)


def plain(method: Method) -> tuple[Plain, Plain, Networks]:
    student, teacher = Plain(method.routes.names, 1), Plain(("normal",), 2)
    return student, teacher, Networks(student, others={"teacher": teacher})


def small(seed: int, n: int = 6) -> Tensor:
    return torch.rand(n, 3, 2, 2, generator=generator(seed), dtype=torch.float64)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([x @ y / math.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)])


def encoded(network: Plain, x: Tensor, route: str) -> np.ndarray:
    return x.flatten(1).numpy() @ network.matrices[route].detach().numpy().T


@pytest.mark.parametrize("method", BOTH)
def test_they_say_what_a_learner_needs(method: Distillation) -> None:
    assert method.networks.others == ("teacher",) and method.starts_from_teacher
    assert not type(method)(scratch=True).starts_from_teacher
    assert {method.routes.clean, method.routes.attack, method.routes.evaluation} <= set(method.routes.names)
    assert method.attack.mode == "eval" and method.attack.start_radius is None
    assert method.default_budget(0) == ConstantBudget(epsilon=8 / 255, step_size=2 / 255, steps=5)
    assert method.views_per_image == method.attacked_per_image == (1 if isinstance(method, DeACL) else 2)
    assert len(method.summary) <= 90


def test_deacl_has_one_weak_view_an_image() -> None:
    settings = ViewSettings(padding=2)
    made = DeACL().make_views(images(0), settings, Moment(), generator(3))
    assert torch.equal(made, weak_views(images(0), settings, generator(3)))


def test_daq_sdp_has_a_weak_and_a_strong_view_in_turns() -> None:
    draw, batch = generator(3), images(0)
    made = DAQSDP().make_views(batch, ViewSettings(), Moment(), generator(3))
    assert made.shape == (12, 3, 8, 8)
    assert torch.equal(made[0::2], weak_views(batch, ViewSettings(), draw))
    strong = trivial_augment(batch, draw)
    assert torch.equal(made[1::2], weak_views(strong, ViewSettings(), draw))
    assert not torch.equal(strong, batch)


def test_deacl_is_its_equation() -> None:
    method = DeACL(trades_weight=3.0)
    student, teacher, networks = plain(method)
    views, adversarial = small(3), small(4)
    terms = method.losses(networks, views, adversarial)
    clean, attacked = encoded(student, views, "normal"), encoded(student, adversarial, "normal")
    np.testing.assert_allclose(terms["clean"].detach(), -cosines(clean, encoded(teacher, views, "normal")))
    np.testing.assert_allclose(terms["adversarial"].detach(), -cosines(attacked, clean))
    assert method.weights == {"clean": 1.0, "adversarial": 3.0}
    assert student.calls == [("normal", 12)]  # both in one batch


def test_daq_sdp_is_its_equation() -> None:
    method = DAQSDP()
    student, teacher, networks = plain(method)
    views, adversarial = small(3), small(4)
    terms = method.losses(networks, views, adversarial)
    total = sum(weight * terms[name].mean().item() for name, weight in method.weights.items())
    weak, strong, target = views[0::2], views[1::2], encoded(teacher, views, "normal")
    nature, other = encoded(student, weak, "nature"), encoded(student, strong, "strongnature")
    expected = -cosines(nature, target[0::2]).mean() - cosines(other, target[1::2]).mean()
    expected -= 2 * cosines(encoded(student, adversarial[0::2], "weak"), nature).mean()
    expected -= 2 * cosines(encoded(student, adversarial[1::2], "strong"), other).mean()
    assert total == pytest.approx(expected / 2, abs=1e-12)
    assert terms.keys() == method.weights.keys() and all(values.shape == (3,) for values in terms.values())


def test_the_perturbation_of_weights_raises_the_two_terms_of_the_weak_views() -> None:
    method = DAQSDP(trades_weight=1.5)
    student, teacher, networks = plain(method)
    views, adversarial = small(3), small(4)
    value = method.perturbation_loss(networks, views, adversarial)
    nature = encoded(student, views[0::2], "nature")
    expected = -cosines(nature, encoded(teacher, views[0::2], "normal")).mean()
    expected -= 1.5 * cosines(encoded(student, adversarial[0::2], "weak"), nature).mean()
    assert value.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weight", [2.0, 0.7])
@pytest.mark.parametrize("taught", [(1, 1), (0, 0), (-1, 1)])
@pytest.mark.parametrize("attacked", [(1, 1), (0, 0), (-1, -1), (1, 0)])
def test_daq_sdp_of_chosen_angles_has_a_closed_form(
    taught: tuple[int, int], attacked: tuple[int, int], weight: float
) -> None:
    """Cosines of clean features to the teacher's, and of attacked to clean ones, of weak and of strong views."""
    axes, lengths = torch.eye(6).double(), torch.arange(1.0, 4).double()[:, None]
    turned = {1: axes[:3], 0: axes[3:], -1: -axes[:3]}
    features = {"nature": lengths * axes[:3], "strongnature": axes[:3] / lengths}
    features |= {route: 2 * turned[cos] for route, cos in zip(("weak", "strong"), attacked, strict=True)}
    teacher = torch.stack([turned[cos] for cos in taught], dim=1).flatten(0, 1)
    method, losses = DAQSDP(trades_weight=weight), []
    for order in (torch.arange(3), torch.tensor([2, 0, 1])):
        given, seen = {key: value[order] for key, value in features.items()}, teacher.unflatten(0, (3, 2))[order]
        networks = Networks(
            lambda x, route, given=given: Encoded(given[route], given[route][:, :2]),
            others={"teacher": lambda x, route, seen=seen: Encoded(seen.flatten(0, 1), x)},
        )
        terms = method.losses(networks, small(3), small(4))
        losses.append(sum(method.weights[name] * values.mean().item() for name, values in terms.items()))
    assert losses == pytest.approx([-(sum(taught) + weight * sum(attacked)) / 2] * 2)


@pytest.mark.parametrize("method", BOTH)
def test_gradients_are_those_of_finite_differences_and_the_teacher_gets_none(method: Distillation) -> None:
    student, teacher, networks = plain(method)
    views, adversarial = small(3), small(4)
    parameters = [value.detach().clone().requires_grad_() for value in student.matrices.values()]

    def total(*matrices: Tensor) -> Tensor:
        named = dict(zip(student.matrices, matrices, strict=True))
        swapped = Networks(
            lambda x, route: Encoded(features := x.flatten(1) @ named[route].T, features), others=networks.others
        )
        terms = method.losses(swapped, views, adversarial)
        return torch.stack([method.weights[name] * values.mean() for name, values in terms.items()]).sum()

    assert torch.autograd.gradcheck(total, parameters)
    total(*parameters).backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters)
    assert all(value.grad is None for value in teacher.parameters())


@pytest.mark.parametrize("method", BOTH)
def test_the_attacked_views_term_moves_the_clean_features_too(method: Distillation) -> None:
    _, _, networks = plain(method)
    views = small(3).requires_grad_()
    terms = method.losses(networks, views, small(4))
    attacked = terms["adversarial"] if isinstance(method, DeACL) else terms["weak"] + terms["strong"]
    (slope,) = torch.autograd.grad(attacked.sum(), views)
    assert bool(slope.flatten(1).any(dim=1).all())


def test_a_student_that_begins_as_its_teacher_agrees_with_it() -> None:
    for method in BOTH:
        target = learner(method)
        teacher = target._other("teacher")
        copy_routes(teacher, target.network, "pgd")
        views = images(3)
        look = target.encode_clean(views)
        torch.testing.assert_close(target.objective(views)(look.embeddings), torch.full((6,), -1.0))
        assert torch.equal(look.embeddings, look.features)


@pytest.mark.parametrize("method", BOTH)
def test_the_objective_is_the_angle_to_the_teacher_on_its_own_route(method: Distillation) -> None:
    views, z = images(3), torch.randn(6, 32, generator=generator(5))
    for route in ("normal", "pgd"):
        target = learner(method, route)
        teacher = target._other("teacher")
        expected = -cosines(z.numpy(), teacher(views, route).features.detach().numpy())
        values = target.objective(views)(z)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
        terms = method.reward_terms(target.objective(views), -z, z)
        torch.testing.assert_close(terms["adversarial"], values)
        torch.testing.assert_close(terms["clean"], -values)


@pytest.mark.parametrize("method", BOTH)
def test_the_attack_turns_features_away_from_the_teacher(method: Distillation) -> None:
    target, views = learner(method), images(3)
    copy_routes(target._other("teacher"), target.network, "pgd")
    objective = target.objective(views)
    start = target.attack(views, Budget.uniform(6, epsilon=8 / 255, step_size=2 / 255, steps=0), generator(5))
    end = target.attack(views, Budget.uniform(6, epsilon=8 / 255, step_size=2 / 255, steps=5), generator(5))
    assert bool((objective(end.embeddings) > objective(start.embeddings)).all())
    assert (end.images - views).abs().max() <= 8 / 255 + 1e-6
    with frozen(target.network):
        for row, route in enumerate(["weak", "strong"] if isinstance(method, DAQSDP) else ["normal"] * 2):
            own = target.network(end.images[row::2], route).features
            torch.testing.assert_close(end.embeddings[row::2], own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("rows", [[0], [3], [5, 2, 0], [1, 3], [4, 2]])
def test_a_subset_is_encoded_like_the_whole(method: Distillation, rows: list[int]) -> None:
    networks, batch = Networks(distinct(method)), images(3)
    for attacked in (True, False):
        whole = method.encoded(networks, batch, torch.arange(6), attacked).embeddings
        part = method.encoded(networks, batch[rows], torch.tensor(rows), attacked).embeddings
        torch.testing.assert_close(part, whole[rows])


def distinct(method: Method) -> TargetNetwork:
    """A network in eval mode whose routes differ."""
    made = tiny_network(routes=method.routes.names).eval()
    with torch.no_grad():
        for n, route in enumerate(method.routes.names):
            made.backbone.norm.norm(route).bias.fill_(0.3 * n)
    return made


def test_rows_go_by_their_parity() -> None:
    method, batch = DAQSDP(), images(3)
    networks = Networks(distinct(method))
    found = by_parity(batch, torch.arange(6), *on_routes(networks, ("weak", "strong"))).features
    torch.testing.assert_close(found[0::2], networks(batch[0::2], "weak").features)
    torch.testing.assert_close(found[1::2], networks(batch[1::2], "strong").features)
    assert not torch.allclose(found[1::2], networks(batch[1::2], "weak").features)


def test_the_two_versions_of_a_view_share_a_batch_of_batch_norm_in_deacl() -> None:
    target, views, adversarial = learner(DeACL()), images(3), images(4)
    expected = copy.deepcopy(target.network).train()
    expected(torch.cat([views, adversarial]), "normal")
    target.update(views, adversarial)
    for own, other in zip(statistics(target.network, "normal"), statistics(expected, "normal"), strict=True):
        torch.testing.assert_close(own, other)


def test_each_route_of_daq_sdp_follows_its_own_views() -> None:
    # the perturbation's own passes leave the statistics as they are
    target, views, adversarial = learner(DAQSDP(gamma=0.0)), images(3), images(4)
    before, teacher = copy.deepcopy(target.network), copy.deepcopy(target.others["teacher"].state_dict())
    target.update(views, adversarial)
    streams = {
        "nature": views[0::2],
        "strongnature": views[1::2],
        "weak": adversarial[0::2],
        "strong": adversarial[1::2],
    }
    for route, stream in streams.items():
        expected = copy.deepcopy(before).train()
        expected(stream, route)
        for own, other in zip(statistics(target.network, route), statistics(expected, route), strict=True):
            assert torch.equal(own, other)
        for idle in set(streams) - {route}:
            for own, old in zip(statistics(expected, idle), statistics(before, idle), strict=True):
                assert torch.equal(own, old)
    assert all(torch.equal(value, teacher[name]) for name, value in target.others["teacher"].state_dict().items())


def statistics(network: TargetNetwork, route: str) -> list[Tensor]:
    state = network.state_dict()
    return [value for name, value in state.items() if f".{route}.running_" in name]


@pytest.mark.parametrize(("epochs", "steps"), [(1, 10), (3, 4), (5, 7), (20, 3), (100, 7), (77, 13), (3, 5), (9, 10)])
def test_weights_are_perturbed_in_the_last_two_fifths(epochs: int, steps: int) -> None:
    method, plan = DAQSDP(), TrainingPlan(epochs, steps)
    gammas = [method.weight_perturbation(plan.moment(step)) for step in range(plan.total)]
    first = -(-6 * plan.total // 10)
    assert gammas == [0.0] * first + [0.002] * (plan.total - first)
    for tenths in (2, 8, 9):
        gammas = [
            DAQSDP(perturbed_from=tenths / 10).weight_perturbation(plan.moment(step)) for step in range(plan.total)
        ]
        assert gammas.count(0.0) == -(-tenths * plan.total // 10)
    if epochs == 100:
        assert plan.moment(first).epoch == 60 and first == 60 * steps
    assert not any(DAQSDP(perturbed_from=1.0).weight_perturbation(plan.moment(step)) for step in range(plan.total + 1))
    assert DAQSDP(perturbed_from=0.0).weight_perturbation(plan.moment(0)) == 0.002
    assert DeACL().weight_perturbation(plan.moment(first)) == 0.0


def test_an_update_under_perturbed_weights_is_another_one() -> None:
    views, adversarial = images(3), images(4)
    late = Moment(step=9, epoch=9, epochs=10, progress=0.9)
    before, without = learner(DAQSDP(gamma=0.0), moment=late), learner(DAQSDP(gamma=0.0), moment=late)
    perturbed, early = learner(DAQSDP(gamma=0.1), moment=late), learner(DAQSDP(gamma=0.1), moment=Moment())
    losses = [each.update(views, adversarial) for each in (without, early, perturbed)]
    assert losses[0] == losses[1]
    weak = [each["nature"] + 2 * each["weak"] for each in losses]
    assert weak[2] > weak[0]
    weights = [each.network.backbone.conv.weight for each in (before, without, perturbed)]
    assert not torch.equal(weights[1], weights[2])
    assert (weights[2] - weights[0]).norm() < 3 * (weights[1] - weights[0]).norm()


@pytest.mark.parametrize("method", BOTH)
def test_updates_descend(method: Distillation) -> None:
    target, views = learner(method), images(3)
    first = target.update(views, views.flip(3))["total"]
    for _ in range(10):
        last = target.update(views, views.flip(3))["total"]
    assert last < first


def test_an_update_in_chunks_keeps_the_two_versions_together() -> None:
    views, adversarial = images(3, 8), images(4, 8)
    target = learner(DeACL())
    target.update_chunks = 2
    expected = copy.deepcopy(target.network).train()
    features = [
        expected(torch.cat([views[part], adversarial[part]]), "normal").features for part in (slice(4), slice(4, 8))
    ]
    clean, attacked = (torch.cat([each[:4] for each in features]), torch.cat([each[4:] for each in features]))
    found = target.update(views, adversarial)["adversarial"]
    assert found == pytest.approx(-cosines(attacked.detach().numpy(), clean.detach().numpy()).mean(), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (DeACL, {"trades_weight": -1}, "trades_weight is -1"),
        (DeACL, {"trades_weight": float("nan")}, "trades_weight is nan"),
        (DeACL, {"trades_weight": "2"}, "trades_weight is '2'"),
        (DeACL, {"scratch": 1}, "scratch is 1: expected true or false"),
        (DAQSDP, {"gamma": -0.1}, "gamma is -0.1"),
        (DAQSDP, {"perturbed_from": 60}, "perturbed_from is 60"),
    ],
)
def test_bad_options_are_refused(kind: type[Distillation], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused() -> None:
    target = learner(DeACL())
    with pytest.raises(ValueError, match="none were given"):
        target.update(images(3), None)
    with pytest.raises(ValueError, match="features of the same length"):
        target.objective(images(3))(torch.zeros(6, 5))
    with pytest.raises(NotImplementedError, match="objective_for"):
        DeACL().objective(torch.zeros(6, 5))
