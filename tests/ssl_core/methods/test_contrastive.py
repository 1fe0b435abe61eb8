import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_core.attacks import Budget
from ssl_core.learner import TargetLearner
from ssl_core.losses import mixed_nt_xent, nt_xent
from ssl_core.methods import Method, Networks, make_method
from ssl_core.methods.contrastive import ACL, ASTrA, ASTrAPlus, SimCLR
from ssl_core.networks import TargetNetwork, build_network
from ssl_core.optim import make_optimizer

FAMILY = [SimCLR(), ACL(), ACL(streams="a2a"), ACL(streams="a2s"), ASTrA(), ASTrAPlus()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(routes: tuple[str, ...] = ("normal", "pgd")) -> TargetNetwork:
    target = build_network(generator(), arch="resnet10", width=4, routes=routes, projector_dim=8).eval()
    if "pgd" in routes:  # the routes differ
        torch.nn.init.constant_(target.projector.norms[2].by_route["pgd"].bias, 0.3)
    return target


def views(seed: int, n: int = 8) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=generator(seed))


def learner(method: Method) -> TargetLearner:
    target = network(method.routes)
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
    assert {method.clean_route, method.evaluation_route} <= set(method.routes)
    assert method.num_attacked(16) == (16 * method.attacked_per_image if method.attacks else 0)
    assert method.default_budget(0) == (8 / 255, 2 / 255, 5)
    assert len(method.attacked(views(0))) == 4 * method.attacked_per_image
    adversarial = method.attacked(views(1)) if method.attacks else None
    terms = method.losses(Networks(network(method.routes)), views(0), adversarial)
    assert terms.keys() == method.weights.keys()
    assert all(values.shape == (8,) for values in terms.values())
    assert method.paper and 0 < len(method.summary) <= 90


def test_simclr_has_one_route_and_no_attack() -> None:
    method = make_method("simclr")
    assert (method.routes, method.evaluation_route, method.attacks) == (("normal",), "normal", False)
    target = network(("normal",))
    expected = nt_xent(target(views(0), "normal").embeddings)
    torch.testing.assert_close(method.losses(Networks(target), views(0), None)["clean"].mean(), expected)


def test_acl_is_the_mean_of_two_streams_on_their_own_routes() -> None:
    method, target = make_method("acl"), network()
    terms = method.losses(Networks(target), views(0), views(1))
    torch.testing.assert_close(terms["clean"].mean(), nt_xent(target(views(0), "normal").embeddings))
    torch.testing.assert_close(terms["adversarial"].mean(), nt_xent(target(views(1), "pgd").embeddings))
    assert method.weights == {"clean": 0.5, "adversarial": 0.5}
    assert method.routes == ("normal", "pgd") and method.clean_route == "normal" and method.paired
    assert method.start_radius is None


def test_a2a_knows_attacked_views_only() -> None:
    method = ACL(temperature=0.2, streams="a2a")
    assert method.routes == ("pgd",) and method.clean_route == "pgd"
    target = network(method.routes)
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
    assert method.weights == {"adversarial": 1.0} and not method.paired
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
    attacked = target.attack(views(0), Budget.uniform(number, 8 / 255, 2 / 255, 5), generator(2))
    idle = target.attack(views(0), Budget.uniform(number, 8 / 255, 2 / 255, 0), generator(2))
    objective = target.objective(views(0))
    assert objective(attacked.embeddings).mean() > objective(idle.embeddings).mean() + 1e-4
    look = target.look(views(0)).embeddings
    assert method.reward_terms(objective, look, attacked.embeddings)["clean"].shape == (number,)
    before = {route: statistics(target.network, route) for route in method.routes}
    whole = copy.deepcopy(target.network)
    target.update(views(0), attacked.images)
    for route, images in (("pgd", attacked.images), ("normal", views(0)[1::2] if number == 4 else views(0))):
        if route in method.routes:
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
    assert method.start_radius == 8 / 255


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
    assert (plus.weights, plus.start_radius) == (plain.weights, 8 / 255)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'astra'"):
        make_method("astr")
    with pytest.raises(ValueError, match="temperature"):
        make_method("acl", temperature=0.0)
    with pytest.raises(ValueError, match=r"unknown streams of ACL 'a2'.*ds, a2a, a2s"):
        ACL(streams="a2")
    with pytest.raises(ValueError, match="unknown streams"):
        ACL(streams=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"streams is 'a2s': ASTrA .*'ds' only; ds, a2a, a2s are choices of ACL"):
        ASTrA(streams="a2s")
    for streams in ("ds", "a2a", "a2s"):
        with pytest.raises(ValueError, match="none were given"):
            ACL(streams=streams).losses(Networks(network()), views(0), None)
