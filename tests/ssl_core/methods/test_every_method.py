"""What is asked of every method alike: gradients, batch-norm statistics, and that the order of the images is no matter.

Networks are tiny and in float64, so that finite differences are exact to many digits.
"""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.methods import METHODS, Method, make_method
from astra_gym.ssl_core.methods.advcl import AdvCL
from astra_gym.ssl_core.methods.air import ACLAIR
from astra_gym.ssl_core.methods.rocl import RoCL
from astra_gym.ssl_core.methods.targets.dino import CleanDINO
from astra_gym.ssl_core.methods.targets.swav import CleanSwAV
from astra_gym.ssl_core.methods.taro import TARO
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.route_norm import Untracked
from astra_gym.ssl_core.training.learner import TargetLearner
from tests.helpers.draws import generator
from tests.helpers.method_worlds import CASES, IMAGES, World, run

CLEAN = [case for case, (name, options) in CASES.items() if not make_method(name, options).attack.exists]
STOPPED = [
    case for case, (name, _) in CASES.items() if name.removesuffix("-clean") in ("rocl", "taro", "simsiam", "swav")
]
"""Whose loss has a stop-gradient; BYOL's targets are another network's, which no weight of the target's moves."""
MODES = [(case, "eval") for case in CASES if case not in CLEAN]
MODES += [(case, "train") for case in ("advcl", "emp-ssl", "cf-amc-ssl")]
"""Cases with an attack, and the network's mode under it; "eval" is no method's own where "train" is."""
FROZEN = ("teacher", "initial")
"""Networks beside the target that never change."""
SWAP = [row + 1 - 2 * (row % 2) for row in range(2 * IMAGES)]
STEP = 1e-7
"""Of finite differences: smaller than the way to the next place where a ReLU bends."""

EVERY = pytest.mark.parametrize("case", CASES)


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
    return sum(float((g * d).sum().detach()) for g, d in zip(gradients, chosen, strict=True))


def test_every_method_is_here_and_attacked_in_its_own_mode() -> None:
    assert {name for name, _ in CASES.values()} == METHODS.keys()
    methods = {case: make_method(name, options) for case, (name, options) in CASES.items()}
    assert {(case, each.attack.mode) for case, each in methods.items() if each.attack.exists} <= set(MODES)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in STOPPED])
def test_the_losss_gradient_in_train_mode_is_that_of_finite_differences(case: str) -> None:
    world = World(case)
    world.train()
    weights = [value for value in world.trained.parameters() if value.requires_grad]
    gradients = torch.autograd.grad(world.total(), weights, allow_unused=True, materialize_grads=True)
    for seed in range(3):
        chosen = directions(gradients, seed)
        assert slope(world.total, weights, chosen) == pytest.approx(along(gradients, chosen), rel=1e-5, abs=1e-5)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))


def codes(scores: Tensor) -> Tensor:
    """SwAV's codes of all views, from scores that are held."""
    found = torch.zeros_like(scores)
    for view in (0, 1):
        q = (scores[view::2] / 0.05).exp()
        for _ in range(3):
            q = q / q.sum(dim=0)
            q = q / q.sum(dim=1, keepdim=True)
        found[view::2] = q
    return found[SWAP]


def by_hand(method: Method, own: Sequence[Tensor], held: Sequence[Tensor]) -> Tensor:
    """The losses with a stop-gradient, whose stopped operands are the held ones."""
    if isinstance(method, RoCL):
        total, scales = torch.zeros(()).double(), (1 / method.regularizer, 1.0)
        for scale, z, fixed in zip(scales, own, held, strict=True):
            logits = z / z.norm(dim=1, keepdim=True) @ (fixed / fixed.norm(dim=1, keepdim=True)).T / 0.5
            for i in range(len(z)):
                others = [j for j in range(len(z)) if j != i]
                own_image = [j for j in others if j % IMAGES == i % IMAGES]
                total = total + scale / len(z) * sum(
                    logits[i, others].exp().sum().log() - logits[i, j] for j in own_image
                )
        return total
    if isinstance(method, CleanSwAV):
        each = [(codes(fixed) * -(mine / 0.1).log_softmax(1)).sum(1) for mine, fixed in zip(own, held, strict=True)]
        return torch.stack(each).mean()
    p, z = [each[:, :5] for each in own], [each[:, 5:] for each in held]
    if isinstance(method, TARO):
        x1, a1, a2 = range(3)
        pairs = ((x1, a1, 1.0), (a2, a1, method.w2), (a2, x1, method.w2))
        each = [-w / 2 * (cosines(p[i], z[j]) + cosines(p[j], z[i])).mean() for i, j, w in pairs]
    else:
        each = [-cosines(mine, fixed[SWAP]).mean() / len(own) for mine, fixed in zip(p, z, strict=True)]
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
    """The attack's objective where what it detaches is held: other rows (RoCL), projections (TARO) or codes (SwAV)."""
    if isinstance(method, RoCL):
        alone = [torch.cat([held[:i], z[i : i + 1], held[i + 1 :]]) for i in range(len(z))]
        return torch.stack([objective(each)[i] for i, each in enumerate(alone)]).sum()
    if isinstance(method, CleanSwAV):
        return (codes(held) * -(z / 0.1).log_softmax(1)).sum()
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
    return {
        name: value.clone()
        for name, value in named
        if f".by_route.{route}." in name and not name.startswith(tuple(f"2.{frozen}" for frozen in FROZEN))
    }


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return bool(ours) and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
@EVERY
def test_a_routes_statistics_follow_its_own_stream_and_nothing_else(case: str) -> None:
    world = World(case)
    world.train()
    begun = copy.deepcopy(world.learner)
    each = world.passes()
    assert {route for _, route, _ in each} == set(world.method.routes.names)
    world.learner.update(world.views, world.adversarial)
    for route in world.method.routes.names:
        alike = copy.deepcopy(begun)
        run(alike, [one for one in each if one[1] == route])
        after = statistics(world.learner, route)
        assert equal(after, statistics(alike, route))
        assert not any(torch.equal(value, statistics(begun, route)[name]) for name, value in after.items())
        for other in set(world.method.routes.names) - {route}:
            assert equal(statistics(alike, other), statistics(begun, other))
    for frozen_one in set(FROZEN) & set(begun.others):
        before = begun.others[frozen_one].state_dict()
        assert all(torch.equal(v, before[name]) for name, v in world.learner.others[frozen_one].state_dict().items())


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
    local = method.views_per_image - 2
    blocks = {AdvCL: [2, 1, 1], ACLAIR: [2, 1], CleanDINO: [2, local] if local else [2]}
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
