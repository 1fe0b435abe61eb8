import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import Budget, ConstantBudget
from astra_gym.ssl_core.losses.contrastive import mixed_nt_xent, nt_xent
from astra_gym.ssl_core.methods import Method, Networks, Routes, make_method
from astra_gym.ssl_core.methods.contrastive import ACL, ASTrA, ASTrAPlus, SimCLR
from astra_gym.ssl_core.models.target_network import Encoded, TargetNetwork
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from tests.helpers.draws import generator
from tests.helpers.tiny_networks import tiny_network, unlike_routes

FAMILY = [SimCLR(), ACL(), ACL(streams="a2a"), ACL(streams="a2s"), ASTrA(), ASTrAPlus()]


def network(routes: tuple[str, ...] = ("normal", "pgd")) -> TargetNetwork:
    return (unlike_routes() if "pgd" in routes else tiny_network(routes=routes)).eval()


def views(seed: int, n: int = 8) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=generator(seed))


def learner(method: Method) -> TargetLearner:
    target = network(method.routes.names)
    return TargetLearner(target, method, make_optimizer("sgd", target, 0.1, 0.0), lambda step: 0.1)


def statistics(target: TargetNetwork, route: str) -> list[Tensor]:
    return [value.clone() for name, value in target.named_buffers() if f".{route}.running" in name]


def reference(z: np.ndarray, temperature: float) -> np.ndarray:
    """NT-Xent of each of 2N rows by its equation, row by row."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    values = []
    for i in range(len(z)):
        near = [np.exp(z[i] @ z[j] / temperature) for j in range(len(z)) if j != i]
        values.append(np.log(sum(near)) - z[i] @ z[i + 1 - 2 * (i % 2)] / temperature)
    return np.array(values)


@pytest.mark.parametrize("method", FAMILY)
def test_every_method_says_what_a_learner_needs(method: Method) -> None:
    assert {method.routes.clean, method.routes.evaluation} <= set(method.routes.names)
    assert method.num_attacked(16) == (16 * method.attacked_per_image if method.attack.exists else 0)
    assert method.default_budget(0) == ConstantBudget(epsilon=8 / 255, step_size=2 / 255, steps=5)
    assert len(method.attacked(views(0))) == 4 * method.attacked_per_image
    adversarial = method.attacked(views(1)) if method.attack.exists else None
    terms = method.losses(Networks(network(method.routes.names)), views(0), adversarial)
    assert terms.keys() == method.weights.keys()
    assert all(values.shape == (8,) for values in terms.values())
    assert method.paper and 0 < len(method.summary) <= 90


def test_simclr_has_one_route_and_no_attack() -> None:
    method = make_method("simclr")
    assert method.routes == Routes.single("normal") and not method.attack.exists
    target = network(("normal",))
    expected = nt_xent(target(views(0), "normal").embeddings)
    torch.testing.assert_close(method.losses(Networks(target), views(0), None)["clean"].mean(), expected)


def test_acl_is_the_mean_of_two_streams_on_their_own_routes() -> None:
    method, target = make_method("acl"), network()
    terms = method.losses(Networks(target), views(0), views(1))
    torch.testing.assert_close(terms["clean"].mean(), nt_xent(target(views(0), "normal").embeddings))
    torch.testing.assert_close(terms["adversarial"].mean(), nt_xent(target(views(1), "pgd").embeddings))
    assert method.weights == {"clean": 0.5, "adversarial": 0.5}
    assert method.routes == Routes() and method.loss.paired
    assert method.attack.start_radius is None


def test_a2a_knows_attacked_views_only() -> None:
    method = ACL(temperature=0.2, streams="a2a")
    assert method.routes == Routes.single("pgd")
    target = network(method.routes.names)
    terms = method.losses(Networks(target), views(0), views(1))
    expected = reference(target(views(1), "pgd").embeddings.detach().double().numpy(), 0.2)
    np.testing.assert_allclose(terms["adversarial"].detach().numpy(), expected, rtol=1e-5)
    assert method.weights == {"adversarial": 1.0}
    assert torch.equal(method.losses(Networks(target), views(2), views(1))["adversarial"], terms["adversarial"])


def test_a2s_contrasts_the_attacked_first_with_the_clean_second_view() -> None:
    method, target, own = ACL(temperature=0.2, streams="a2s"), network(), views(0)
    adversarial = views(1, 4)
    values = method.losses(Networks(target), own, adversarial)["adversarial"]
    rows = torch.zeros(8, 8)
    rows[0::2] = target(adversarial, "pgd").embeddings.detach()
    rows[1::2] = target(own[1::2], "normal").embeddings.detach()
    np.testing.assert_allclose(values.detach().numpy(), reference(rows.double().numpy(), 0.2), rtol=1e-5)
    assert method.weights == {"adversarial": 1.0} and not method.loss.paired
    assert torch.equal(method.attacked(own), own[[0, 2, 4, 6]])


def test_a2s_attack_maximises_the_training_loss_with_the_partners_fixed() -> None:
    method = ACL(streams="a2s")
    target = learner(method)
    objective = target.objective(views(0))
    z = target.network.eval()(views(1, 4), "pgd").embeddings
    values = objective(z)
    assert values.shape == (4,)
    loss = method.losses(Networks(target.network), views(0), views(1, 4))["adversarial"]
    torch.testing.assert_close(values.mean(), loss.mean(), rtol=1e-4, atol=1e-5)  # the objective's networks are folded
    torch.testing.assert_close(values, loss.view(4, 2).mean(dim=1), rtol=1e-4, atol=1e-5)
    grid = torch.randn(4, 8, dtype=torch.float64, generator=generator(3))
    partner = torch.randn(4, 8, dtype=torch.float64, generator=generator(4))
    assert torch.autograd.gradcheck(method.crossed, (grid.requires_grad_(), partner.requires_grad_()))


def test_a2s_trains_both_branches_and_does_not_care_which_clean_first_views_there_are() -> None:
    method, target = ACL(streams="a2s"), network()
    other = views(0)
    other[0::2] = views(5, 4)
    first, second = (
        method.losses(Networks(target), each, views(1, 4))["adversarial"].sum() for each in (views(0), other)
    )
    assert torch.equal(first, second)
    first.backward()
    for route in ("normal", "pgd"):
        assert target.projector.norms[2].by_route[route].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", [ACL(), ACL(streams="a2a"), ACL(streams="a2s"), ASTrA()])
def test_the_attack_raises_what_it_maximises_and_each_route_sees_its_own_stream(method: Method) -> None:
    target = learner(method)
    number = method.num_attacked(4)
    attacked = target.attack(
        views(0), Budget.uniform(number, epsilon=8 / 255, step_size=2 / 255, steps=5), generator(2)
    )
    idle = target.attack(views(0), Budget.uniform(number, epsilon=8 / 255, step_size=2 / 255, steps=0), generator(2))
    objective = target.objective(views(0))
    assert objective(attacked.embeddings).mean() > objective(idle.embeddings).mean() + 1e-4
    look = target.encode_clean(views(0)).embeddings
    assert method.reward_terms(objective, look, attacked.embeddings)["clean"].shape == (number,)
    before = {route: statistics(target.network, route) for route in method.routes.names}
    whole = copy.deepcopy(target.network)
    target.update(views(0), attacked.images)
    for route, images in (("pgd", attacked.images), ("normal", views(0)[1::2] if number == 4 else views(0))):
        if route in method.routes.names:
            whole.train()(images, route)
            after = statistics(target.network, route)
            assert all(map(torch.equal, after, statistics(whole, route)))
            assert not all(map(torch.equal, after, before[route]))


def test_a2s_encodes_a_part_as_the_whole() -> None:
    method, target = ACL(streams="a2s"), network()
    rows = torch.tensor([2, 0])
    images = method.attacked(views(0))
    whole = method.encode(Networks(target))(images, torch.arange(4))
    part = method.encode(Networks(target))(images[rows], rows)
    torch.testing.assert_close(part, whole[rows])


@pytest.mark.parametrize("reading", ["pairs", "views"])
def test_astra_adds_the_mixed_loss(reading: str) -> None:
    method, target = make_method("astra", mixed_reading=reading, mixed_weight=0.7), network()
    clean, adversarial = target(views(0), "normal").embeddings, target(views(1), "pgd").embeddings
    terms = method.losses(Networks(target), views(0), views(1))
    torch.testing.assert_close(terms["mixed"].mean(), mixed_nt_xent(clean, adversarial, reading=reading))
    assert method.weights == {"clean": 0.5, "adversarial": 0.5, "mixed": 0.7}
    assert method.attack.start_radius == 8 / 255


def test_reward_terms_are_the_methods_own_losses() -> None:
    clean, adversarial = (torch.randn(8, 5, generator=generator(seed)) for seed in (0, 1))
    astra = make_method("astra", temperature=0.2)
    terms = astra.reward_terms(astra.objective, clean, adversarial)
    torch.testing.assert_close(terms["clean"], nt_xent(clean, 0.2, "none"))
    torch.testing.assert_close(terms["adversarial"], nt_xent(adversarial, 0.2, "none"))
    torch.testing.assert_close(terms["mixed"], mixed_nt_xent(clean, adversarial, 0.2, reduction="none"))
    acl = ACL()
    assert acl.reward_terms(acl.objective, clean, adversarial).keys() == {"clean", "adversarial"}


def test_astra_plus_is_astra_with_post_processing() -> None:
    plus, plain = ASTrAPlus(mixed_weight=0.7), ASTrA(mixed_weight=0.7)
    assert plus.post_processed and not plain.post_processed
    ours, theirs = (each.losses(Networks(network()), views(0), views(1)) for each in (plus, plain))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (plus.weights, plus.attack.start_radius) == (plain.weights, 8 / 255)


def chosen(method: Method, clean: Tensor, attacked: Tensor) -> dict[str, Tensor]:
    """The terms of a network that gives chosen embeddings (2N, d) of all clean and of all attacked views; "loss" is
    their weighted sum."""
    crossed = isinstance(method, ACL) and method.streams == "a2s"
    given = {"normal": clean[1::2] if crossed else clean, "pgd": attacked[0::2] if crossed else attacked}
    networks = Networks(lambda images, route: Encoded(given[route], given[route]))
    terms = method.losses(networks, views(0, len(clean)), method.attacked(views(1, len(clean))))
    return terms | {"loss": torch.stack([method.weights[name] * each.mean() for name, each in terms.items()]).sum()}


def stretched(directions: Tensor) -> Tensor:
    """Embeddings of these directions and of any length, which has to be no matter."""
    return directions * (0.1 + 5 * torch.rand(len(directions), 1, generator=generator(7), dtype=torch.float64))


def form(partner: float, ones: int, zeros: int, t: float = 0.5) -> float:
    """NT-Xent of a row with a partner of this cosine, and this many others (the partner too) of cosine 1 and 0."""
    return math.log(ones * math.exp(1 / t) + zeros) - partner / t


AXES = torch.eye(12, dtype=torch.float64)
EQUAL = AXES[:1].expand(6, -1)
"""All views of three images have one direction."""
APART, BEYOND = AXES[:6], AXES[6:]
"""All views are orthogonal, and these to those."""
TWINS = AXES[:3].repeat_interleave(2, dim=0)
"""The views of an image have one direction, the images are orthogonal."""
MIXED = {"pairs": 0.5, "views": 1.0}  # "views" adds two losses, at a weight of 0.5


@pytest.mark.parametrize("t", [0.5, 0.2])
@pytest.mark.parametrize(
    ("clean", "attacked", "own", "other", "crossed", "mixed"),
    [
        # rows are (partner, ones, zeros) of clean rows, attacked rows, a2s, and the mixed loss of all pairs and a view
        (EQUAL, EQUAL, (1, 5, 0), (1, 5, 0), (1, 5, 0), {"pairs": (1, 11, 0), "views": (1, 5, 0)}),
        (APART, BEYOND, (0, 0, 5), (0, 0, 5), (0, 0, 5), {"pairs": (0, 0, 11), "views": (0, 0, 5)}),
        (APART, APART, (0, 0, 5), (0, 0, 5), (0, 0, 5), {"pairs": (1, 1, 10), "views": (1, 1, 4)}),
        # the other view of an image is a negative in "pairs", clean and attacked, and no row at all in "views"
        (TWINS, TWINS, (1, 1, 4), (1, 1, 4), (1, 1, 4), {"pairs": (1, 3, 8), "views": (1, 1, 4)}),
        (TWINS, TWINS @ AXES.roll(6, 0), (1, 1, 4), (1, 1, 4), (0, 0, 5), {"pairs": (0, 1, 10), "views": (0, 0, 5)}),
        (TWINS, -TWINS, (1, 1, 4), (1, 1, 4), None, {}),
        (APART, EQUAL, (0, 0, 5), (1, 5, 0), None, {}),
    ],
)
def test_losses_of_equal_and_of_orthogonal_embeddings_have_closed_forms(
    clean: Tensor,
    attacked: Tensor,
    own: tuple[int, int, int],
    other: tuple[int, int, int],
    crossed: tuple[int, int, int] | None,
    mixed: dict[str, tuple[int, int, int]],
    t: float,
) -> None:
    both = stretched(clean), stretched(attacked)
    dual = (form(*own, t) + form(*other, t)) / 2
    assert chosen(SimCLR(t), *both)["loss"].item() == pytest.approx(form(*own, t))
    assert chosen(ACL(t), *both)["loss"].item() == pytest.approx(dual)
    assert chosen(ACL(t, streams="a2a"), *both)["loss"].item() == pytest.approx(form(*other, t))
    if crossed is not None:
        terms = chosen(ACL(t, streams="a2s"), *both)
        torch.testing.assert_close(terms["adversarial"], torch.full((6,), form(*crossed, t)).double())
        assert terms["loss"].item() == pytest.approx(form(*crossed, t))
    for reading, row in mixed.items():
        found = chosen(ASTrA(t, mixed_reading=reading), *both)["loss"].item()
        assert found == pytest.approx(dual + MIXED[reading] * form(*row, t))


@pytest.mark.parametrize("method", [*FAMILY, ASTrA(mixed_reading="views")])
def test_the_order_of_the_images_only_orders_the_rows(method: Method) -> None:
    clean, attacked = (torch.randn(8, 5, dtype=torch.float64, generator=generator(seed)) for seed in (3, 4))
    order = torch.tensor([4, 5, 0, 1, 6, 7, 2, 3])
    terms, moved = chosen(method, clean, attacked), chosen(method, clean[order], attacked[order])
    for name, values in terms.items():
        torch.testing.assert_close(moved[name], values if name == "loss" else values[order])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SimCLR, {}),
        (ACL, {}),
        (ACL, {"streams": "a2a"}),
        (ACL, {"streams": "a2s"}),
        (ASTrA, {}),
        (ASTrA, {"mixed_reading": "views"}),
    ],
)
def test_losses_in_the_limits_of_the_temperature(kind: type[Method], options: dict[str, str]) -> None:
    clean, attacked = (torch.randn(6, 5, dtype=torch.float64, generator=generator(seed)) for seed in (3, 4))
    hot, cold = (chosen(kind(temperature=t, **options), clean, attacked) for t in (1e7, 1e-3))
    scale = 2 if options.get("mixed_reading") == "views" else 1
    for name, values in hot.items():
        # all rows are alike: chance
        rows = 12 if name == "mixed" and scale == 1 else 6
        if name != "loss":
            expected = (scale if name == "mixed" else 1) * math.log(rows - 1)
            torch.testing.assert_close(values, torch.full_like(values, expected), rtol=1e-6, atol=0)
    # the nearest other row alone counts, against the partner
    given = {"clean": clean, "adversarial": attacked}
    if "streams" in options:
        crossed = torch.stack([attacked[0::2], clean[1::2]], dim=1).flatten(0, 1)
        given["adversarial"] = crossed if options["streams"] == "a2s" else attacked
    for name in given.keys() & cold.keys():
        z = torch.nn.functional.normalize(given[name], dim=1)
        cosine = (z @ z.T).fill_diagonal_(-2)
        expected = cosine.amax(dim=1) - cosine[torch.arange(6), torch.arange(6) ^ 1]
        torch.testing.assert_close(1e-3 * cold[name], expected, rtol=0, atol=1e-3 * math.log(5) + 1e-9)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'astra'"):
        make_method("astr")
    with pytest.raises(ValueError, match="temperature"):
        make_method("acl", temperature=0.0)
    with pytest.raises(ValueError, match=r"unknown streams of ACL 'a2'.*ds, a2a, a2s"):
        ACL(streams="a2")
    with pytest.raises(ValueError, match="unknown streams"):
        ACL(streams=2)  # type: ignore[arg-type]
    for weight in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="mixed_weight"):
            make_method("astra", {"mixed_weight": weight})
    with pytest.raises(ValueError, match=r"streams is 'a2s': ASTrA .*'ds' only; ds, a2a, a2s are choices of ACL"):
        ASTrA(streams="a2s")
    for streams in ("ds", "a2a", "a2s"):
        with pytest.raises(ValueError, match="none were given"):
            ACL(streams=streams).losses(Networks(network()), views(0), None)
