"""Probes: turn a frozen encoder into a classifier, to measure what its features are worth."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.fingerprints import fingerprint
from ssl_core.images import ImageSet
from ssl_core.rng import Streams
from ssl_core.sanity import check_frozen
from ssl_core.views import ViewSettings, as_float, weak_views


class Encoder(Protocol):
    """What a probe asks of a module: backbone features (n, feature_dim) of images (n, 3, H, W) in [0, 1]."""

    feature_dim: int

    def features(self, images: Tensor, route: str) -> Tensor: ...


@dataclass(frozen=True)
class ProbeSettings:
    """Standard linear fine-tuning; the defaults are the protocol of DynACL and ASTrA on CIFAR-10.

    Args:
        epochs: passes over the labelled images.
        lr: learning rate of SGD (DynACL: 0.01 for CIFAR-10, 0.05 for CIFAR-100, 0.1 for STL-10).
        batch_size: images a step; the last batch of an epoch may be smaller.
        milestones: epochs at whose start the learning rate is divided by ten.
        momentum: of SGD.
        weight_decay: of SGD.
        augment: random crop and flip; without it every image's features are computed once.

    Raises:
        ValueError: if a figure is out of its range.
    """

    epochs: int = 25
    lr: float = 0.01
    batch_size: int = 512
    milestones: tuple[int, ...] = (10, 20)
    momentum: float = 0.9
    weight_decay: float = 2e-4
    augment: bool = True

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("lr", self.lr > 0, "above 0"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("milestones", list(self.milestones) == sorted(set(self.milestones)), "epochs in rising order"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
        ):
            if not valid:
                raise ValueError(f"the probe's {name} is {getattr(self, name)!r}: expected {expected}")


class RawPixels(nn.Module):
    """The trivial encoder, as a control: an image's features are its pixels, moved to [-0.5, 0.5].

    Args:
        shape: (channels, height, width) of the images.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.feature_dim = shape[0] * shape[1] * shape[2]

    def features(self, images: Tensor, route: str) -> Tensor:
        """(n, 3, H, W) -> (n, 3HW); there are no routes to choose from."""
        return images.flatten(1) - 0.5


class Classifier(nn.Module):
    """A frozen encoder with a linear head: images (n, 3, H, W) in [0, 1] -> logits (n, classes).

    It stays in eval mode whatever `train()` is asked for, and no parameter takes gradients; the images may.
    """

    def __init__(self, encoder: nn.Module, route: str, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.route = route
        self.head = head
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Classifier":
        """Stay in eval mode: batch statistics in a classifier would couple the images of a batch."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(cast(Encoder, self.encoder).features(images, self.route)))


def train_probe(
    encoder: nn.Module,
    route: str,
    train: ImageSet,
    settings: ProbeSettings,
    views: ViewSettings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Classifier:
    """Standard linear fine-tuning (SLF): train a zero-initialised linear head on frozen backbone features.

    The protocol of DynACL's and ASTrA's `test_LF.py`: encoder in eval mode, cross entropy, SGD, last epoch. The
    probe works on a copy, so `encoder` is left as it is, and the classifier does not change when `encoder` learns on.
    The same arguments give the same head bit for bit on the CPU.

    Args:
        encoder: module with `feature_dim` and `features(images, route)`, such as a `TargetNetwork` or `RawPixels`.
        route: batch-norm route of the features.
        train: labelled images.
        settings: of the probe.
        views: `padding` and `flip` of the augmentation.
        seed: of the order of the images and of the augmentation.
        device: where to work.
        progress: called after every epoch with the epochs done and their total.

    Raises:
        ValueError: if `train` has no labels, or labels that are no classes of its own.
        RuntimeError: if the head diverges.
        SanityError: if a parameter or buffer of the encoder changed: then the result would be void.
    """
    if train.labels is None:
        raise ValueError(
            f"data set {train.name!r} has no labels, and a linear probe needs them: put the images into one folder "
            "for each class, or leave the evaluation out"
        )
    low, high = int(train.labels.min()), int(train.labels.max())
    if low < 0 or high >= len(train.classes):
        raise ValueError(f"data set {train.name!r} has labels in {low}..{high}: expected 0..{len(train.classes) - 1}")
    encoder = copy.deepcopy(encoder).to(device).eval().requires_grad_(False)
    before = fingerprint(encoder)
    extract = cast(Encoder, encoder).features
    streams = Streams(seed)
    order, noise = streams["probe/order"], streams["probe/views"]
    # skip_init: nn.Linear's own initialisation would draw from the global generator.
    head = nn.utils.skip_init(nn.Linear, cast(Encoder, encoder).feature_dim, len(train.classes), device=device)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    optimiser = torch.optim.SGD(
        head.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(settings.milestones), gamma=0.1)
    labels = train.labels.to(device)

    @torch.no_grad()
    def features(rows: Tensor) -> Tensor:
        images = as_float(train.images[rows].to(device))
        return extract(weak_views(images, views, noise) if settings.augment else images, route)

    fixed = None
    if not settings.augment:
        fixed = torch.cat([features(rows) for rows in torch.arange(len(train)).split(settings.batch_size)])
    for epoch in range(settings.epochs):
        for rows in torch.randperm(len(train), generator=order).split(settings.batch_size):
            z = features(rows) if fixed is None else fixed[rows.to(device)]
            loss = F.cross_entropy(head(z), labels[rows.to(device)])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if not all(bool(parameter.isfinite().all()) for parameter in head.parameters()):
            raise RuntimeError(
                f"the probe diverged in epoch {epoch + 1} of {settings.epochs} at learning rate "
                f"{optimiser.param_groups[0]['lr']:g}: lower its lr, or check that the features are finite"
            )
        schedule.step()
        if progress is not None:
            progress(epoch + 1, settings.epochs)
    check_frozen(before, fingerprint(encoder), "while its probe was trained")
    return Classifier(encoder, route, head)
