import copy

import pytest
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.weight_perturbation import perturbed
from astra_gym.ssl_core.utils.hashing import fingerprint
from tests.helpers.draws import generator
from tests.helpers.tiny_networks import tiny_network

IMAGES = torch.rand(6, 3, 8, 8, generator=generator(1))


def linear() -> nn.Linear:
    module = nn.utils.skip_init(nn.Linear, 3, 2, dtype=torch.float64)
    nn.init.normal_(module.weight, generator=generator(2))
    nn.init.normal_(module.bias, generator=generator(3))
    return module


def test_the_step_in_closed_form() -> None:
    """Of the loss a.w, the gradient is a."""
    module, slope = linear(), torch.randn(2, 3, generator=generator(4), dtype=torch.float64)
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    with perturbed(module, lambda: (slope * module.weight).sum() + module.bias.sum(), 0.1):
        expected = weight.numpy() + 0.1 * (weight.numpy() ** 2).sum() ** 0.5 / (slope.numpy() ** 2).sum() ** 0.5 * (
            slope.numpy()
        )
        torch.testing.assert_close(module.weight.detach(), torch.from_numpy(expected))
        assert torch.equal(module.bias, bias)
    assert torch.equal(module.weight, weight)


def test_only_tensors_of_more_than_one_dimension_move_each_by_its_own_norm() -> None:
    target = tiny_network()
    before = {name: p.detach().clone() for name, p in target.named_parameters()}

    def loss() -> Tensor:
        return target(IMAGES, "pgd").features.square().sum()

    with perturbed(target, loss, 0.05):
        for name, p in target.named_parameters():
            moved = float((p.detach() - before[name]).norm() / before[name].norm().clamp(min=1e-12))
            backbone = p.ndim > 1 and name.startswith("backbone.")
            assert moved == pytest.approx(0.05 if backbone else 0, rel=1e-4), name
    assert all(torch.equal(p, before[name]) for name, p in target.named_parameters())


def test_the_loss_rises_inside_and_is_what_it_was_after() -> None:
    target = tiny_network().eval()

    def loss() -> Tensor:
        return target(IMAGES, "pgd").embeddings.square().mean()

    outside = loss().item()
    inside = []
    for gamma in (0.0, 0.005, 0.01):
        with perturbed(target, loss, gamma):
            inside.append(loss().item())
    assert inside[0] == outside and outside < inside[1] < inside[2]
    assert loss().item() == outside


def test_gradients_and_statistics_are_left_alone() -> None:
    target = tiny_network()
    target(IMAGES, "normal").embeddings.sum().backward()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in target.named_parameters()}
    before = fingerprint(target)
    with perturbed(target, lambda: target(IMAGES, "pgd").embeddings.square().mean(), 0.01):
        pass
    assert fingerprint(target) == before
    for name, p in target.named_parameters():
        kept = gradients[name]
        assert (p.grad is None) if kept is None else torch.equal(p.grad, kept)  # type: ignore[arg-type]
    # the body's own passes do count
    with perturbed(target, lambda: target(IMAGES, "pgd").embeddings.square().mean(), 0.01):
        target(IMAGES, "pgd")
    assert fingerprint(target) != before


def test_a_gradient_taken_inside_is_that_of_the_moved_weights() -> None:
    module, x = linear(), torch.randn(5, 3, generator=generator(5), dtype=torch.float64)

    def loss(of: nn.Module) -> Tensor:
        return of(x).square().mean()

    with perturbed(module, lambda: loss(module), 0.2):
        moved = copy.deepcopy(module)
        loss(module).backward()
    (expected,) = torch.autograd.grad(loss(moved), [moved.weight])
    assert module.weight.grad is not None
    torch.testing.assert_close(module.weight.grad, expected)


def test_weights_come_back_when_the_body_raises() -> None:
    target = tiny_network()
    before = fingerprint(target)
    with (
        pytest.raises(KeyError),
        perturbed(target, lambda: target(IMAGES, "pgd").embeddings.square().mean(), 0.3),
    ):
        assert fingerprint(target) != before
        raise KeyError
    assert fingerprint(target) == before


def test_no_gradient_no_perturbation() -> None:
    module = linear()
    before = fingerprint(module)
    with perturbed(module, lambda: (0 * module.weight).sum(), 0.5):
        assert fingerprint(module) == before
    module.weight.data.zero_()
    with perturbed(module, lambda: module.weight.sum(), 0.5):
        assert not module.weight.any()


def test_tiny_and_huge_gradients_give_the_same_step() -> None:
    module, found = linear(), []
    for scale in (1e-150, 1.0, 1e150):
        with perturbed(module, lambda s=scale: s * module.weight.sum(), 0.1):  # type: ignore[misc]
            found.append(module.weight.detach().clone())
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], found[1])


def test_frozen_weights_stay() -> None:
    target = tiny_network()
    target.projector.requires_grad_(False)
    before = fingerprint(target.projector)
    with perturbed(target, lambda: target(IMAGES, "pgd").embeddings.square().mean(), 0.1):
        assert fingerprint(target.projector) == before


def test_what_does_not_fit_is_refused() -> None:
    module = linear()
    for gamma in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="gamma is"), perturbed(module, lambda: module.weight.sum(), gamma):
            pass
    with (
        pytest.raises(ValueError, match=r"shape \(2, 3\): expected a scalar"),
        perturbed(module, lambda: module.weight, 1),
    ):
        pass
    for loss in (lambda: torch.ones(()), lambda: module.bias.sum()):
        with pytest.raises(ValueError, match="depends on no trainable weight"), perturbed(module, loss, 0.1):
            pass
