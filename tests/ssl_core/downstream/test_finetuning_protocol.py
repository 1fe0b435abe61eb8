"""Full fine-tuning against the published protocol written out in plain torch (DynACL's and ASTrA's `test_AFF.py`)."""

import copy
from dataclasses import replace
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.downstream.finetuning import FineTuneSettings, fine_tune
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import as_float, weak_views
from astra_gym.ssl_core.utils.rng import Streams
from tests.helpers.finetuned import BOTH, VIEWS, encoder_of, head_of, image_set, recorded, tiny


def plain_fine_tuning(
    network: TargetNetwork,
    head: nn.Linear,
    routes: tuple[str, str],
    train: ImageSet,
    seed: int,
    lrs: tuple[float, ...],
    decay: float,
    noise: float,
) -> tuple[TargetNetwork, nn.Linear]:
    """One step for each learning rate, on all images: 10 steps of 2/255 in 8/255, beta 6, torch's own KL."""
    network, head = copy.deepcopy(network), copy.deepcopy(head)
    named: dict[str, Tensor]
    other = tuple(f".{route}." for route in network.routes if route not in routes)
    named = {
        f"encoder.{name}": p
        for name, p in network.named_parameters()
        if name.startswith("backbone.") and not any(route in name for route in other)
    }
    named |= {f"head.{name}": p.requires_grad_() for name, p in head.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in named.items()}
    streams = Streams(seed)
    for lr in lrs:
        rows = torch.randperm(len(train), generator=streams["finetuning/order"])
        x = weak_views(as_float(train.images[rows]), VIEWS, streams["finetuning/views"])
        y = cast(Tensor, train.labels)[rows]

        network.eval()
        target = F.softmax(head(network.features(x, routes[0])), dim=1).detach()
        moved = x + noise * torch.randn(x.shape, generator=streams.on_device("finetuning/noise"))
        moved = moved.clamp(0, 1)
        for _ in range(10):
            moved = moved.detach().requires_grad_()
            answer = F.log_softmax(head(network.features(moved, routes[1])), dim=1)
            (gradient,) = torch.autograd.grad(F.kl_div(answer, target, reduction="sum"), moved)
            moved = moved + 2 / 255 * gradient.sign()
            moved = torch.minimum(torch.maximum(moved, x - 8 / 255), x + 8 / 255).clamp(0, 1)

        network.train()
        clean = head(network.features(x, routes[0]))
        attacked = F.log_softmax(head(network.features(moved.detach(), routes[1])), dim=1)
        divergence = F.kl_div(attacked, F.softmax(clean, dim=1), reduction="batchmean")
        loss = F.cross_entropy(clean, y) + 6 * divergence
        gradients = torch.autograd.grad(loss, list(named.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(named.items(), gradients, strict=True):
                velocity[name] = 0.9 * velocity[name] + gradient + decay * weight
                weight -= lr * velocity[name]
    return network, head


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "routes", "noise"),
    [(BOTH, BOTH, 0.0), (BOTH, BOTH, 0.001), (BOTH, ("pgd", "pgd"), 0.001), (("normal",), ("normal", "normal"), 0.001)],
)
def test_three_steps_are_those_of_the_protocol_written_out(
    own: tuple[str, ...], routes: tuple[str, str], noise: float
) -> None:
    """Weights and running statistics of everything, on two routes and on one, with the learning rate's fall.

    In float64: so near to the divergence's minimum the signs of a float32 gradient hang on the order of operations.
    """
    exact = 1e-12 if routes == BOTH else 1e-5
    data, network, head = image_set(12), tiny(own).double(), nn.utils.skip_init(nn.Linear, 32, 3).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(4))
    # routes as a training leaves them: while they are alike, the clean image is the divergence's minimum on two as well
    generator = torch.Generator().manual_seed(3)
    for name, statistic in network.named_buffers():
        if ".pgd." in name and "running" in name:
            statistic.add_(0.2 * torch.rand(statistic.shape, generator=generator, dtype=torch.float64))
    settings = FineTuneSettings(epochs=3, lr=0.05, batch_size=12, milestones=(2,), weight_decay=0.01)
    if noise:
        settings = replace(settings, start_noise=noise)
    got = fine_tune(network, routes, data, settings, VIEWS, seed=5, head=head)
    expected, expected_head = plain_fine_tuning(network, head, routes, data, 5, (0.05, 0.05, 0.005), 0.01, noise)
    state = encoder_of(got).state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=exact)
    torch.testing.assert_close(head_of(got).weight, expected_head.weight, rtol=0, atol=exact)
    torch.testing.assert_close(head_of(got).bias, expected_head.bias, rtol=0, atol=exact)
    # and the two differ from where they came from by far more than that
    assert float((head_of(got).weight - head.weight).detach().abs().max()) > 1e-2


def test_the_published_attack_starts_at_the_clean_image() -> None:
    clean, start = (call[0] for call in recorded(FineTuneSettings(epochs=1, milestones=())).calls[:2])
    assert torch.equal(clean, start)
