import pytest
import torch

from ssl_core.attacks import Budget, pgd
from ssl_core.folding import FoldedNetwork
from ssl_core.losses import nt_xent
from ssl_core.networks import TargetNetwork, build_network


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(dtype: torch.dtype, **arguments) -> TargetNetwork:
    """A network whose batch-norm statistics and parameters are no longer the initial ones."""
    sizes = {"arch": "resnet10", "width": 8, "projector_dim": 16} | arguments
    network = build_network(generator(), **sizes).to(dtype).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    for step in range(3):
        views = torch.rand(16, 3, 16, 16, generator=generator(step), dtype=dtype)
        loss = nt_xent(network(views, "pgd").embeddings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("arch", ["resnet10", "resnet18", "resnet50"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_it_is_the_same_function_with_the_same_gradient(arch: str, stem: str) -> None:
    network = trained(torch.float64, arch=arch, stem=stem, width=4)
    images = torch.rand(6, 3, 16, 16, generator=generator(9), dtype=torch.float64).requires_grad_()
    folded = FoldedNetwork(network)
    for route in ("normal", "pgd"):
        mine, plain = folded(images, route), network(images, route)
        torch.testing.assert_close(mine.features, plain.features)
        torch.testing.assert_close(mine.embeddings, plain.embeddings)
        gradients = [torch.autograd.grad(out.embeddings.square().sum(), images)[0] for out in (mine, plain)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_attack_through_it_attains_the_same_loss(dtype: torch.dtype) -> None:
    network = trained(dtype)
    images = torch.rand(32, 3, 16, 16, generator=generator(5), dtype=dtype)
    budget = Budget(torch.full((32,), 8 / 255), torch.full((32,), 2 / 255), torch.arange(32) % 9)
    start = (torch.rand(images.shape, generator=generator(6), dtype=dtype) * 2 - 1) * 8 / 255
    attacked = [
        pgd(
            lambda x, rows, encoder=encoder: encoder(x, "pgd").embeddings,
            lambda z: nt_xent(z, reduction="none"),
            images,
            budget,
            start=start,
        )
        for encoder in (FoldedNetwork(network), network)
    ]
    losses = [nt_xent(network(each.images, "pgd").embeddings).item() for each in attacked]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    if dtype == torch.float64:
        torch.testing.assert_close(attacked[0].images, attacked[1].images)


def test_it_is_a_copy_and_leaves_the_network_alone() -> None:
    network = trained(torch.float32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.rand(4, 3, 16, 16, generator=generator(5))
    folded = FoldedNetwork(network)
    first = folded(images, "pgd").features
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.backbone.conv.weight.add_(1.0)
    assert torch.equal(first, folded(images, "pgd").features)


def test_train_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="train mode"):
        FoldedNetwork(trained(torch.float32).train())
