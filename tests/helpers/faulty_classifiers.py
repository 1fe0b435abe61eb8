"""Classifiers with a fault, and honest ones, for the checks of what an attack can do."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_gym.ssl_core.downstream.linear_probe import Classifier, ProbeSettings
from astra_gym.ssl_core.models.target_network import TargetNetwork
from tests.helpers.tiny_networks import tiny_network

PROBE = ProbeSettings(epochs=10, lr=0.1, augment=False)


class Pooled(nn.Module):
    """Two convolutions with max-pooling, and features from any encoder's place."""

    feature_dim = 64

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(0.4 * torch.randn(8, 3, 3, 3, generator=generator))
        self.second = nn.Parameter(0.2 * torch.randn(16, 8, 3, 3, generator=generator))

    def features(self, images: Tensor, route: str) -> Tensor:
        x = F.max_pool2d(F.conv2d(images - 0.5, self.first, padding=1).relu(), 2)
        return F.max_pool2d(F.conv2d(x, self.second, padding=1).relu(), 2).flatten(1)


def network(seed: int, **more: Any) -> TargetNetwork:
    return tiny_network(seed, **more).eval()


def scaled(classifier: Classifier, factor: float) -> Classifier:
    classifier = copy.deepcopy(classifier)
    for parameter in classifier.head.parameters():
        parameter.data *= factor
    return classifier


class Wrapped(nn.Module):
    """A fault around an honest classifier."""

    def __init__(self, classifier: nn.Module, act: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.classifier = classifier
        self.act = act
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.classifier, images)


def noisy(model: nn.Module, x: Tensor) -> Tensor:
    logits = model(x)
    return logits + torch.randn_like(logits)


def seeded(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return noisy(model, x)


def seeded_in_secret(model: nn.Module, x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return seeded(model, x)


def normalized_over_the_batch(model: nn.Module, x: Tensor) -> Tensor:
    return model((x - x.mean(0)) / (x.std(0, correction=0) + 0.1))


def halved(model: nn.Module, x: Tensor) -> Tensor:
    return model(0.5 * x + 0.5 * x.detach())


def clamped(model: nn.Module, x: Tensor) -> Tensor:
    if x.requires_grad:
        x = x.clone()
        x.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    return model(x)


def detached(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.detach())


def half_detached(model: nn.Module, x: Tensor) -> Tensor:
    return model(torch.cat([x[..., :4], x[..., 4:].detach()], -1))


def straight_through(model: nn.Module, x: Tensor) -> Tensor:
    return model(x + ((8 * x).round() / 8 - x).detach())


def turned_in_float32(model: nn.Module, x: Tensor) -> Tensor:
    return model(2 * x.detach() - x if x.dtype == torch.float32 else x)


def not_finite(model: nn.Module, x: Tensor) -> Tensor:
    return model(x) + 0 * (x - x.detach()).abs().sqrt().sum((1, 2, 3))[:, None]


def with_a_masked_class(logits: Tensor) -> Tensor:
    return torch.cat([logits, logits.new_full((len(logits), 1), -1e9)], 1)


def autocast(model: nn.Module) -> nn.Module:
    def act(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()

    return Wrapped(model, act)
