import pytest
import torch

from ssl_core.losses import mixed_nt_xent, nt_xent
from ssl_core.methods import METHODS, make_method
from ssl_core.networks import TargetNetwork, build_network


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(routes: tuple[str, ...] = ("normal", "pgd")) -> TargetNetwork:
    return build_network(generator(), arch="resnet10", width=4, routes=routes, projector_dim=8).eval()


def views(seed: int) -> torch.Tensor:
    return torch.rand(8, 3, 8, 8, generator=generator(seed))


def test_every_method_says_what_a_learner_needs() -> None:
    for name in METHODS:
        method = make_method(name)
        assert {method.clean_route, method.evaluation_route} <= set(method.routes)
        assert method.num_attacked(16) == (32 if method.attacks else 0)
        assert method.default_budget(0) == (8 / 255, 2 / 255, 5)
        adversarial = views(1) if method.attacks else None
        terms = method.losses(network(method.routes), views(0), adversarial)
        assert terms.keys() == method.weights.keys()
        assert all(values.shape == (8,) for values in terms.values())


def test_simclr_has_one_route_and_no_attack() -> None:
    method = make_method("simclr")
    assert (method.routes, method.evaluation_route, method.attacks) == (("normal",), "normal", False)
    target = network(("normal",))
    expected = nt_xent(target(views(0), "normal").embeddings)
    torch.testing.assert_close(method.losses(target, views(0), None)["clean"].mean(), expected)


def test_acl_is_the_mean_of_two_streams_on_their_own_routes() -> None:
    method, target = make_method("acl"), network()
    torch.nn.init.constant_(target.projector.norms[2].by_route["pgd"].bias, 0.3)
    terms = method.losses(target, views(0), views(1))
    torch.testing.assert_close(terms["clean"].mean(), nt_xent(target(views(0), "normal").embeddings))
    torch.testing.assert_close(terms["adversarial"].mean(), nt_xent(target(views(1), "pgd").embeddings))
    assert method.weights == {"clean": 0.5, "adversarial": 0.5}
    assert method.start_radius is None


@pytest.mark.parametrize("reading", ["pairs", "views"])
def test_astra_adds_the_mixed_loss(reading: str) -> None:
    method, target = make_method("astra", mixed_reading=reading, mixed_weight=0.7), network()
    clean, adversarial = target(views(0), "normal").embeddings, target(views(1), "pgd").embeddings
    terms = method.losses(target, views(0), views(1))
    torch.testing.assert_close(terms["mixed"].mean(), mixed_nt_xent(clean, adversarial, reading=reading))
    assert method.weights == {"clean": 0.5, "adversarial": 0.5, "mixed": 0.7}
    assert method.start_radius == 8 / 255


def test_reward_terms_are_the_methods_own_losses() -> None:
    clean, adversarial = (torch.randn(8, 5, generator=generator(seed)) for seed in (0, 1))
    terms = make_method("astra", temperature=0.2).reward_terms(clean, adversarial)
    torch.testing.assert_close(terms["clean"], nt_xent(clean, 0.2, "none"))
    torch.testing.assert_close(terms["adversarial"], nt_xent(adversarial, 0.2, "none"))
    torch.testing.assert_close(terms["mixed"], mixed_nt_xent(clean, adversarial, 0.2, reduction="none"))
    assert make_method("acl").reward_terms(clean, adversarial).keys() == {"clean", "adversarial"}


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'astra'"):
        make_method("astr")
    with pytest.raises(ValueError, match="temperature"):
        make_method("acl", temperature=0.0)
    with pytest.raises(ValueError, match="none were given"):
        make_method("acl").losses(network(), views(0), None)
