"""Small networks and images for fine-tuning."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.downstream.finetuning import FineTuneSettings, fine_tune
from astra_gym.ssl_core.downstream.linear_probe import Classifier
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import ViewSettings
from tests.helpers.tiny_networks import tiny_network

VIEWS = ViewSettings(padding=1, flip=0.5)
CLASSES = ("red", "green", "blue")
BOTH = ("normal", "pgd")


def image_set(n: int = 48, seed: int = 0, tint: int = 30) -> ImageSet:
    """Noise on grey with a tint of the class's own color."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(60, 190, (n, 3, 8, 8), generator=generator)
    images = images + tint * F.one_hot(labels, 3).view(-1, 3, 1, 1)
    return ImageSet(images.to(torch.uint8), labels, CLASSES, "tints")


def tiny(routes: tuple[str, ...] = BOTH, seed: int = 0) -> TargetNetwork:
    return tiny_network(seed, routes=routes)


def encoder_of(classifier: Classifier) -> TargetNetwork:
    return cast(TargetNetwork, classifier.encoder)


def head_of(classifier: Classifier) -> nn.Linear:
    return cast(nn.Linear, classifier.head)


class Recorder(nn.Module):
    """A linear encoder that keeps what it is asked, with its mode; the list is shared with its copies."""

    feature_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 64, 4)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.linear.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)
        self.calls: list[tuple[Tensor, str, bool, bool]] = []

    def __deepcopy__(self, memo: dict[int, object]) -> "Recorder":
        fresh = Recorder()
        fresh.load_state_dict(self.state_dict())
        fresh.calls = self.calls
        return fresh

    def features(self, images: Tensor, route: str) -> Tensor:
        self.calls.append((images.detach().clone(), route, self.training, self.linear.weight.requires_grad))
        return cast(Tensor, self.linear(images.flatten(1)))


def recorded(settings: FineTuneSettings, n: int = 12, views: ViewSettings = VIEWS) -> Recorder:
    with torch.random.fork_rng(devices=[]):
        recorder = Recorder()
    fine_tune(recorder, BOTH, image_set(n), settings, views, seed=0)
    return recorder
