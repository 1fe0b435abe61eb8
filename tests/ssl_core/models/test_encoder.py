"""What a held classifier computes by, and who is left alone."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.models import encoder as module
from astra_gym.ssl_core.models.encoder import FrozenEncoderClassifier, fast_features, held
from astra_gym.ssl_core.models.folding import FoldedNetwork
from astra_gym.ssl_core.models.target_network import TargetNetwork
from tests.helpers.draws import generator
from tests.helpers.tiny_networks import tiny_network


@pytest.fixture
def network() -> TargetNetwork:
    """In float64, with batch-norm statistics of data."""
    made = tiny_network().double().train()
    with torch.no_grad():
        made(images(), "pgd")
    return made.eval()


def images() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=generator(5), dtype=torch.float64)


class Sums(FrozenEncoderClassifier):
    """The sums of the even features and of the odd ones."""

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).unflatten(1, (-1, 2)).sum(1)


@contextmanager
def folded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TargetNetwork]]:
    """The networks that are folded meanwhile."""
    found: list[TargetNetwork] = []

    class Watched(FoldedNetwork):
        def __init__(self, network: TargetNetwork, passes: int) -> None:
            assert passes > 1
            found.append(network)
            super().__init__(network, passes)

    with monkeypatch.context() as patched:
        patched.setattr(module, "FoldedNetwork", Watched)
        yield found


def test_a_held_classifier_is_folded_wherever_it_lies_and_the_same_function(
    network: TargetNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Sums(network, "pgd").eval().requires_grad_(False)
    wrapped = nn.Sequential(classifier, nn.Identity()).eval()
    x = images().requires_grad_()

    def found() -> tuple[Tensor, Tensor]:
        logits = wrapped(x)
        return logits.detach(), torch.autograd.grad(logits.square().sum(), x)[0]

    plain = found()
    with folded(monkeypatch) as networks, held(wrapped), held(classifier):
        fast = found()
    assert networks == [network]
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert not torch.equal(one, other)  # rounding, which shows that it is another way
    assert all(map(torch.equal, found(), plain))


def test_what_is_copied_or_converted_while_held_goes_by_its_own_weights(network: TargetNetwork) -> None:
    classifier = Sums(network, "pgd")
    with held(classifier):
        twin, moved = copy.deepcopy(classifier), copy.deepcopy(classifier).float()
        twin.encoder.get_parameter("backbone.conv.weight").data.mul_(2)
        expected = twin.encoder.features(images(), "pgd")
        assert torch.equal(twin.features(images()), expected)
        assert (expected - classifier.features(images())).abs().max() > 0.01 * expected.abs().max()
        assert moved(images().float()).dtype == torch.float32
        classifier.float()
        assert torch.equal(classifier(images().float()), moved(images().float()))


class Doubled(TargetNetwork):
    """It has features of its own."""

    def features(self, images: Tensor, route: str) -> Tensor:
        return 2 * super().features(images, route)


def test_a_module_that_may_compute_something_else_is_left_alone(
    network: TargetNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Doubled(**network.arguments).double().eval()
    other.load_state_dict(network.state_dict())
    hooked = copy.deepcopy(network)
    hooked.backbone.conv.register_forward_hook(lambda module, inward, outward: 2 * outward)
    with folded(monkeypatch) as networks:
        for encoder in (other, hooked):
            with held(Sums(encoder, "pgd")):
                assert torch.equal(fast_features(encoder)(images(), "pgd"), encoder.features(images(), "pgd"))
    assert networks == []
    assert not torch.equal(hooked.features(images(), "pgd"), network.features(images(), "pgd"))
