"""What is asked of every method alike: gradients, batch-norm statistics, and that the order of the images is no matter.

Networks are tiny and in float64, so that finite differences are exact to many digits.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.methods import METHODS, Method, make_method
from astra_gym.ssl_core.methods.advcl import AdvCL
from astra_gym.ssl_core.methods.air import ACLAIR
from astra_gym.ssl_core.methods.contrastive import ACL, SimCLR
from astra_gym.ssl_core.methods.distillation import DAQSDP, DeACL
from astra_gym.ssl_core.methods.dynacl import DynACL
from astra_gym.ssl_core.methods.emp import EMPSSL
from astra_gym.ssl_core.methods.rocl import RoCL
from astra_gym.ssl_core.methods.siamese import Siamese
from astra_gym.ssl_core.methods.taro import TARO
from astra_gym.ssl_core.models.heads import build_heads
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.route_norm import Untracked
from astra_gym.ssl_core.models.target_network import TargetNetwork, build_network
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import Moment
from tests.helpers.draws import generator

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "simclr": ("simclr", {}),
    # released 256: the regulariser would be lost beside the other term
    "rocl": ("rocl", {"regulariser": 2.0}),
    "acl-ds": ("acl", {}),
    "acl-a2a": ("acl", {"streams": "a2a"}),
    "acl-a2s": ("acl", {"streams": "a2s"}),
    "advcl": ("advcl", {"clusters": (2, 3)}),
    "deacl": ("deacl", {}),
    "dynacl": ("dynacl", {}),
    "dynacl++": ("dynacl++", {}),
    "acl-air-released": ("acl-air", {}),
    "acl-air-kl": ("acl-air", {"form": "kl"}),
    "dynacl-air-released": ("dynacl-air", {}),
    "dynacl-air-kl": ("dynacl-air", {"form": "kl"}),
    "dynacl-air++": ("dynacl-air++", {}),
    "taro": ("taro", {"predictor_hidden": 6, "w2": 0.6}),
    "daq-sdp": ("daq-sdp", {}),
    "astra-pairs": ("astra", {}),
    "astra-views": ("astra", {"mixed_reading": "views"}),
    "astra++": ("astra++", {}),
    "emp-ssl": ("emp-ssl", {"crops": 4}),
    "cf-amc-ssl": ("cf-amc-ssl", {"crops": 4}),
    "byol-ds": ("byol", {"predictor_hidden": 6}),
    "byol-a2a": ("byol", {"predictor_hidden": 6, "streams": "a2a"}),
    "simsiam-ds": ("simsiam", {"predictor_hidden": 6}),
    "simsiam-a2a": ("simsiam", {"predictor_hidden": 6, "streams": "a2a"}),
}
PROJECTORS = {"rocl": "rocl", "advcl": "advcl", "taro": "simsiam-2", "byol": "mlp", "simsiam": "simsiam-3"}
PROJECTORS |= {"emp-ssl": "mlp", "cf-amc-ssl": "mlp"}
STOPPED = [case for case, (name, _) in CASES.items() if name in ("rocl", "taro", "simsiam")]
"""Whose loss has a stop-gradient; BYOL's targets are another network's, which no weight of the target's moves."""
MODES = [(case, "eval") for case in CASES if case != "simclr"]
MODES += [(case, "train") for case in ("advcl", "emp-ssl", "cf-amc-ssl")]
"""Cases with an attack, and the network's mode under it; "eval" is no method's own where "train" is."""
IMAGES = 5
STEP = 1e-7
"""Of finite differences: smaller than the way to the next place where a ReLU bends."""
MOMENT = Moment(step=2, epoch=2, epochs=4, progress=0.5)

EVERY = pytest.mark.parametrize("case", CASES)
Pass = tuple[str, str, Tensor]
"""Network ("target", "momentum"), route and images of a forward pass."""


def images(n: int, seed: int) -> Tensor:
    # float32, which AdvCL's high frequencies ask for; the network takes them on in float64
    return torch.rand(n, 3, 8, 8, generator=generator(seed))


def network(name: str, routes: tuple[str, ...], seed: int) -> TargetNetwork:
    sizes: dict[str, Any] = {"projector_hidden": 6, "projector_dim": 5, "neck": 6 if "ssl" in name else 0}
    kind = PROJECTORS.get(name, "acl")
    made = build_network(generator(seed), arch="resnet10", width=2, routes=routes, projector=kind, **sizes).double()
    unlike(made, seed)
    return made


def unlike(module: nn.Module, seed: int) -> None:
    """Every route gets parameters and statistics of its own."""
    draw = generator(seed + 100)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            shape = part.running_mean.shape
            part.running_mean.copy_(0.3 * torch.randn(shape, generator=draw))
            part.running_var.copy_(0.5 + torch.rand(shape, generator=draw))
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 1.5, generator=draw)
                nn.init.uniform_(part.bias, -0.3, 0.5, generator=draw)


class World:
    """A method, its learner, and a batch of views with attacked ones."""

    def __init__(self, case: str) -> None:
        name, options = CASES[case]
        self.case, self.method = case, make_method(name, options)
        target = network(name, self.method.routes, 0)
        made = self.method.make_heads(target.feature_dim, target.embedding_dim)
        heads = {key: head.double() for key, head in build_heads(Streams(2), made).items()}
        for head in heads.values():
            unlike(head, 7)
        # the teacher has other routes than its student
        routes = {"momentum": self.method.routes, "teacher": ("normal",)}
        others = {key: network(name, routes[key], 1).eval() for key in self.method.others}
        optimizer = make_optimizer("sgd", target, 0.1, 0.0, heads=[(head, False) for head in heads.values()])
        self.learner = TargetLearner(
            target, self.method, optimizer, lambda step: 0.1, heads=heads, others=others, moment=lambda step: MOMENT
        )
        self.learner.make_tables((images(20, 9) * 255).to(torch.uint8), Streams(5))
        self.trained = nn.ModuleList([target, self.learner.heads])
        self.views = images(self.method.views_per_image * IMAGES, 3)
        number = self.method.num_attacked(IMAGES)
        self.adversarial = images(number, 4) if number else None

    def train(self) -> None:
        """The modes of an update."""
        self.trained.train()
        for name, other in self.learner.others.items():
            other.train(name == "momentum")

    def total(self) -> Tensor:
        """The training loss, as `TargetLearner.update` composes it."""
        terms = self.method.losses(self.learner.plain(), self.views, self.adversarial)
        weights = self.method.weights_at(MOMENT)
        return torch.stack([weights[name] * values.mean() for name, values in terms.items()]).sum()

    def passes(self) -> list[Pass]:
        return passes(self.method, self.views, self.views if self.adversarial is None else self.adversarial)


def passes(method: Method, views: Tensor, attacked: Tensor) -> list[Pass]:
    """The forward passes of an update, by the methods' papers and released codes."""
    first, second = views[0::2], views[1::2]
    if isinstance(method, SimCLR):
        return [("target", "normal", views)]
    if isinstance(method, RoCL):
        pair, triple = torch.cat([attacked, second]), torch.cat([first, second, attacked])
        return [("target", "normal", pair), ("target", "normal", triple)]
    if isinstance(method, ACL):
        clean = {"ds": [("target", "normal", views)], "a2a": [], "a2s": [("target", "normal", second)]}
        return [*clean[method.streams], ("target", "pgd", attacked)]
    if isinstance(method, AdvCL):
        parts = method.parts(views)
        partners = [parts.first, parts.second, method.high(parts.weak)]
        own: list[Pass] = [("target", "pgd", attacked[0::2]), ("target", "pgd_ce", attacked[1::2])]
        return [*own, *(("target", "normal", each) for each in partners)]
    if isinstance(method, DeACL):
        return [("target", "normal", torch.stack([views, attacked], dim=1).flatten(0, 1))]
    if isinstance(method, DAQSDP):
        clean, own = zip(("nature", "strongnature"), (first, second), strict=True), (attacked[0::2], attacked[1::2])
        moved = zip(("weak", "strong"), own, strict=True)
        return [("target", route, each) for route, each in (*clean, *moved)]
    if isinstance(method, DynACL):
        of = {"target": slice(0, None, 2), "momentum": slice(1, None, 2)}
        streams = (("normal", views), ("pgd", attacked))
        return [(name, route, each[rows]) for route, each in streams for name, rows in of.items()]
    if isinstance(method, ACLAIR):
        strong, original = views[: 2 * IMAGES], views[2 * IMAGES :]
        return [("target", "normal", strong), ("target", "normal", original), ("target", "pgd", attacked)]
    if isinstance(method, TARO):
        return [("target", "normal", each) for each in (first, attacked[0::2], attacked[1::2])]
    if isinstance(method, EMPSSL):
        return [("target", "normal", attacked)]
    assert isinstance(method, Siamese)
    both = [*([("normal", views)] if method.streams == "ds" else []), ("pgd", attacked)]
    return [(name, route, each) for route, each in both for name in ("target", *method.others)]


def run(learner: TargetLearner, each: Sequence[Pass]) -> list[Tensor]:
    """Embeddings of each pass; where there is a predictor, the target's have predictions before them."""
    outputs = []
    for name, route, batch in each:
        made = learner.network if name == "target" else learner.others[name]
        z = made(batch, route).embeddings
        if name == "target" and "predictor" in learner.heads:
            z = torch.cat([learner.heads["predictor"](z, route), z], dim=1)
        outputs.append(z)
    return outputs


def slope(value: Callable[[], Tensor], places: Sequence[Tensor], directions: Sequence[Tensor]) -> float:
    """The derivative of a value along a direction in what it is computed from, by central differences."""
    before, found = [place.detach().clone() for place in places], []
    with torch.no_grad():
        for side in (STEP, -STEP):
            for place, old, direction in zip(places, before, directions, strict=True):
                place.copy_(old + side * direction)
            found.append(value().item())
        for place, old in zip(places, before, strict=True):
            place.copy_(old)
    return (found[0] - found[1]) / (2 * STEP)


def directions(gradients: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Random directions in which every tensor counts about alike, however small its gradient is beside others'."""
    draw = generator(seed)
    return [torch.randn(g.shape, generator=draw).double() / g.norm().clamp(min=0.05) for g in gradients]


def along(gradients: Sequence[Tensor], chosen: Sequence[Tensor]) -> float:
    return sum(float((g * d).sum()) for g, d in zip(gradients, chosen, strict=True))


def test_every_method_is_here_and_attacked_in_its_own_mode() -> None:
    assert {name for name, _ in CASES.values()} == METHODS.keys()
    methods = {case: make_method(name, options) for case, (name, options) in CASES.items()}
    assert {(case, each.attack_mode) for case, each in methods.items() if each.attacks} <= set(MODES)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in STOPPED])
def test_the_losss_gradient_in_train_mode_is_that_of_finite_differences(case: str) -> None:
    world = World(case)
    world.train()
    weights = list(world.trained.parameters())
    gradients = torch.autograd.grad(world.total(), weights, allow_unused=True, materialize_grads=True)
    for seed in range(3):
        chosen = directions(gradients, seed)
        assert slope(world.total, weights, chosen) == pytest.approx(along(gradients, chosen), rel=1e-5, abs=1e-5)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))


def by_hand(method: Method, own: Sequence[Tensor], held: Sequence[Tensor]) -> Tensor:
    """The losses with a stop-gradient, whose stopped operands are the held ones."""
    if isinstance(method, RoCL):
        total, scales = torch.zeros(()).double(), (1 / method.regulariser, 1.0)
        for scale, z, fixed in zip(scales, own, held, strict=True):
            logits = z / z.norm(dim=1, keepdim=True) @ (fixed / fixed.norm(dim=1, keepdim=True)).T / 0.5
            for i in range(len(z)):
                others = [j for j in range(len(z)) if j != i]
                own_image = [j for j in others if j % IMAGES == i % IMAGES]
                total = total + scale / len(z) * sum(
                    logits[i, others].exp().sum().log() - logits[i, j] for j in own_image
                )
        return total
    p, z = [each[:, :5] for each in own], [each[:, 5:] for each in held]
    if isinstance(method, TARO):
        x1, a1, a2 = range(3)
        pairs = ((x1, a1, 1.0), (a2, a1, method.w2), (a2, x1, method.w2))
        each = [-w / 2 * (cosines(p[i], z[j]) + cosines(p[j], z[i])).mean() for i, j, w in pairs]
    else:
        swap = [row + 1 - 2 * (row % 2) for row in range(2 * IMAGES)]
        each = [-cosines(mine, fixed[swap]).mean() / len(own) for mine, fixed in zip(p, z, strict=True)]
    return torch.stack(each).sum()


@pytest.mark.parametrize("case", STOPPED)
def test_a_stopped_operand_counts_as_a_constant(case: str) -> None:
    world = World(case)
    world.train()
    weights = list(world.trained.parameters())
    held = [z.detach() for z in run(world.learner, world.passes())]
    total = world.total()
    torch.testing.assert_close(total, by_hand(world.method, held, held))
    gradients = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
    for seed in range(3):
        chosen = directions(gradients, seed)
        expected = slope(lambda: by_hand(world.method, run(world.learner, world.passes()), held), weights, chosen)
        assert along(gradients, chosen) == pytest.approx(expected, rel=1e-5, abs=1e-5)
        # the loss itself has another slope, since its other operands move as well
        assert abs(slope(world.total, weights, chosen) - expected) > 1e-2


def held_objective(method: Method, objective: Callable[[Tensor], Tensor], z: Tensor, held: Tensor) -> Tensor:
    """The attack's objective where what it detaches is held: it detaches other rows (RoCL), or projections (TARO)."""
    if isinstance(method, RoCL):
        alone = [torch.cat([held[:i], z[i : i + 1], held[i + 1 :]]) for i in range(len(z))]
        return torch.stack([objective(each)[i] for i, each in enumerate(alone)]).sum()
    return objective(torch.cat([z[:, :5], held[:, 5:]], dim=1) if isinstance(method, TARO) else z).sum()


@pytest.mark.parametrize(("case", "mode"), MODES)
def test_the_attacks_gradient_is_that_of_finite_differences(case: str, mode: str) -> None:
    world = World(case)
    method, learner = world.method, world.learner
    assert world.adversarial is not None
    before = copy.deepcopy(learner._parts.state_dict())
    x, rows = world.adversarial.double().requires_grad_(), torch.arange(len(world.adversarial))
    objective = learner.objective(world.views)
    training = mode == "train"
    with frozen(world.trained, training), frozen(learner.others), Untracked(world.trained):
        encode = method.encode(learner.plain())
        z = encode(x, rows)
        (gradient,) = torch.autograd.grad(objective(z).sum(), x)
        assert bool(gradient.flatten(1).any(dim=1).all())
        for seed in range(3):
            chosen = directions([gradient], seed)
            expected = slope(lambda: held_objective(method, objective, encode(x, rows), z.detach()), [x], chosen)
            assert along([gradient], chosen) == pytest.approx(expected, rel=1e-5, abs=1e-5)
        if not training:  # and so is that of the folded networks, which the attack goes through
            (folded,) = torch.autograd.grad(objective(method.encode(learner._folded())(x, rows)).sum(), x)
            torch.testing.assert_close(folded, gradient)
    assert all(torch.equal(value, before[name]) for name, value in learner._parts.state_dict().items())


def statistics(learner: TargetLearner, route: str) -> dict[str, Tensor]:
    """Of target, heads and momentum network: means, variances and how often they followed."""
    named = learner._parts.named_buffers()
    return {name: value.clone() for name, value in named if f".by_route.{route}." in name and "teacher" not in name}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return bool(ours) and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
@EVERY
def test_a_routes_statistics_follow_its_own_stream_and_nothing_else(case: str) -> None:
    world = World(case)
    world.train()
    begun = copy.deepcopy(world.learner)
    each = world.passes()
    assert {route for _, route, _ in each} == set(world.method.routes)
    world.learner.update(world.views, world.adversarial)
    for route in world.method.routes:
        alike = copy.deepcopy(begun)
        run(alike, [one for one in each if one[1] == route])
        after = statistics(world.learner, route)
        assert equal(after, statistics(alike, route))
        assert not any(torch.equal(value, statistics(begun, route)[name]) for name, value in after.items())
        for other in set(world.method.routes) - {route}:
            assert equal(statistics(alike, other), statistics(begun, other))
    if "teacher" in begun.others:
        teacher = begun.others["teacher"].state_dict()
        assert all(torch.equal(v, teacher[name]) for name, v in world.learner.others["teacher"].state_dict().items())


def test_advcls_shared_projector_norm_follows_all_streams_in_turn() -> None:
    world = World("advcl")
    world.train()
    alike = copy.deepcopy(world.learner)
    run(alike, world.passes())
    world.learner.update(world.views, world.adversarial)
    found = statistics(world.learner, "shared")
    # x_ce's logits need no embedding, but its pass goes through the projector too
    assert found["0.projector.norms.0.by_route.shared.num_batches_tracked"] == 5
    assert equal(found, statistics(alike, "shared"))


@EVERY
def test_networks_beside_the_target_get_no_gradient_even_where_they_could(case: str) -> None:
    world = World(case)
    world.train()
    world.learner.others.requires_grad_(True)
    world.total().backward()
    assert any(parameter.grad is not None for parameter in world.learner.network.parameters())
    # zeros are none: BYOL's targets are cut off behind the place where they lie beside predictions
    found = [parameter.grad for parameter in world.learner.others.parameters()]
    assert all(gradient is None or not gradient.any() for gradient in found)


def reordered(x: Tensor, blocks: Sequence[int], order: Tensor) -> Tensor:
    """The rows of images in another order; a block holds so many rows of every image, one image after the other."""
    parts = x.split([IMAGES * count for count in blocks])
    return torch.cat([part.unflatten(0, (-1, n))[order].flatten(0, 1) for part, n in zip(parts, blocks, strict=True)])


@EVERY
def test_the_order_of_the_images_changes_neither_loss_nor_objective(case: str) -> None:
    world, order = World(case), torch.tensor([3, 0, 4, 1, 2])
    method, learner = world.method, world.learner
    blocks = {AdvCL: [2, 1, 1], ACLAIR: [2, 1]}
    own = next((found for kind, found in blocks.items() if isinstance(method, kind)), [method.views_per_image])
    attacked = [method.attacked_per_image]
    moved = copy.copy(world)
    moved.views = reordered(world.views, own, order)
    if world.adversarial is not None:
        moved.adversarial = reordered(world.adversarial, attacked, order)
        torch.testing.assert_close(
            method.attacked(moved.views), reordered(method.attacked(world.views), attacked, order)
        )
        with frozen(learner._parts):
            rows = torch.arange(len(world.adversarial))
            z = method.encode(learner.plain())(world.adversarial, rows)
            values = learner.objective(moved.views)(reordered(z, attacked, order))
            torch.testing.assert_close(values, reordered(learner.objective(world.views)(z), attacked, order))
    world.train()
    with torch.no_grad():
        torch.testing.assert_close(moved.total(), world.total())
