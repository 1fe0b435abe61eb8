"""Probes: turn a frozen encoder into a classifier, to evaluate its features."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget, pgd
from astra_gym.ssl_core.data.datasets import DATASETS
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.evaluation.sanity import check_frozen
from astra_gym.ssl_core.models.encoder import Encoder, FrozenEncoderClassifier, fast_features
from astra_gym.ssl_core.transforms.views import ViewSettings, as_float, weak_views
from astra_gym.ssl_core.utils.device import ieee_fp32
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.hashing import fingerprint
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.rng import Streams

PROBE_LR: Mapping[str, float] = {name: spec.probe_lr for name, spec in DATASETS.items() if spec.probe_lr is not None}
"""Published learning rates of a linear head by data set, see `DatasetSpec`."""
OTHER_LR = 0.1
"""Learning rate for other data sets, such as STL-10: high, since 25 epochs of a small set are few steps for a head that
starts at zero."""


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of a linear head, for SLF or ALF; the defaults are the protocol of DynACL and ASTrA on CIFAR-10.

    Args:
        epochs: passes over the labeled images.
        lr: learning rate of SGD (`PROBE_LR`).
        batch_size: images per step; the last batch of an epoch may be smaller.
        milestones: numbers of epochs after which the learning rate is divided by ten.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD.
        augment: random crop and flip; without it, SLF computes every image's features once.

    Raises:
        ValueError: if a value is out of its range.
    """

    epochs: int = 25
    lr: float = 0.01
    batch_size: int = 512
    milestones: tuple[int, ...] = (10, 20)
    momentum: float = 0.9
    weight_decay: float = 2e-4
    augment: bool = True

    def __post_init__(self) -> None:
        check_number("the probe's epochs", self.epochs, 1, whole=True)
        check_number("the probe's lr", self.lr, above=True)
        check_number("the probe's batch_size", self.batch_size, 1, whole=True)
        check_number("the probe's momentum", self.momentum, 0, 1, below=True)
        check_number("the probe's weight_decay", self.weight_decay)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"the probe's milestones is {shown(self.milestones)}: expected epochs in rising order")


@dataclass(frozen=True)
class TrainingAttack:
    """Attack during the training of a classifier: L-infinity PGD; the defaults are those of ALF and AFF.

    Args:
        epsilon: radius, in the unit of pixels in [0, 1] (8/255, not 8).
        step_size: size of one step, in the same unit.
        steps: number of steps.

    Raises:
        ValueError: if a value is out of its range.
    """

    epsilon: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10

    def __post_init__(self) -> None:
        for name in ("epsilon", "step_size"):
            expected = "a fraction in (0, 1], such as 8/255 and not 8"
            check_number(f"the training attack's {name}", getattr(self, name), 0, 1, expected, above=True)
        check_number("the training attack's steps", self.steps, 1, whole=True)

    def budget(self, n: int, device: torch.device | str) -> Budget:
        """Budget of n images, the same for each."""
        return Budget.uniform(n, epsilon=self.epsilon, step_size=self.step_size, steps=self.steps, device=device)


def standard_probe(dataset: str) -> ProbeSettings:
    """Published settings of SLF and ALF on a data set.

    Only the learning rate depends on it: `PROBE_LR`, or `OTHER_LR` for a data set without a published protocol.
    """
    return ProbeSettings(lr=PROBE_LR.get(dataset, OTHER_LR))


def departures(settings: Any, standard: Any) -> tuple[str, ...]:
    """Differences between two dataclasses of one type, a text for each field, as "epochs 5, not 25".

    Raises:
        ValueError: if the two are of different types.
    """
    if type(settings) is not type(standard):
        raise ValueError(
            f"{type(settings).__name__} cannot be compared with {type(standard).__name__}: expected one type"
        )
    pairs = ((item.name, getattr(settings, item.name), getattr(standard, item.name)) for item in fields(settings))
    return tuple(f"{name} {_text(ours)}, not {_text(theirs)}" for name, ours, theirs in pairs if ours != theirs)


def _text(value: object) -> str:
    """A short text that is unique for each value."""
    if not isinstance(value, float) or float(f"{value:g}") == value:
        return f"{value:g}" if isinstance(value, float) else str(value)
    of_255 = round(255 * value)
    return f"{of_255}/255" if of_255 / 255 == value else repr(value)


class RawPixels(nn.Module):
    """Trivial encoder, as a control: an image's features are its pixels, shifted to [-0.5, 0.5].

    Args:
        shape: (channels, height, width) of the images.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.feature_dim = shape[0] * shape[1] * shape[2]

    def features(self, images: Tensor, route: str) -> Tensor:
        """Flatten images (n, 3, H, W) to features (n, 3HW); the route is ignored."""
        return images.flatten(1) - 0.5


class PlainEncoder(nn.Module):
    """Any module as an encoder: images (n, 3, H, W) in [0, 1] -> features (n, d), (n, d, 1, 1) or (n, d, h, w).

    The mean over the last two dimensions makes the features (n, d), in the images' type. Any normalization that the
    module expects has to be part of it.

    Args:
        module: module to wrap, not copied; its mode does not change.
        shape: (channels, height, width) of the images.

    Attributes:
        feature_dim: d, found by encoding two gray images in eval mode.

    Raises:
        ValueError: if the module returns anything else, or if in eval mode an image's features depend on the other
            images of its batch: neither its accuracy nor an attack would then be well defined.
        RuntimeError: if a feature is not finite.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.module = module
        # a copy, so that statistics and modes of the user's module do not change
        trial = copy.deepcopy(module).eval()
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        images = torch.stack([torch.full(shape, grey, device=device) for grey in (0.25, 0.75)])
        given = images.clone()
        with torch.no_grad():
            together = _pooled(trial(given), 2)
            if not torch.equal(given, images):
                raise ValueError(
                    "the encoder changes the images that it is given: expected a forward that works on a copy, "
                    "x = x - 0.5 and not x.sub_(0.5)"
                )
            alone = torch.cat([_pooled(trial(image), 1) for image in images.split(1)])
        # far above the effect of rounding, even in bfloat16, and far below that of batch statistics
        if (together - alone).norm() > 0.1 * alone.norm():
            raise ValueError(
                "the encoder's features of an image depend on the other images of its batch even in eval mode: "
                "expected each image on its own, such as batch norm with running statistics"
            )
        self.feature_dim = together.shape[1]

    def features(self, images: Tensor, route: str) -> Tensor:
        """Encode images (n, 3, H, W) to features (n, feature_dim); the route is ignored."""
        # the module may compute in another type than the head
        return _pooled(self.module(images), len(images)).to(images.dtype)


def _pooled(output: object, n: int) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim not in (2, 4) or len(output) != n or not output.numel():
        got = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the encoder gave {got} for {n} images: expected features ({n}, d) or maps ({n}, d, h, w); wrap a module "
            "that gives anything else in one that picks its features"
        )
    features = output if output.ndim == 2 else output.mean((2, 3))
    if not bool(features.isfinite().all()):
        raise RuntimeError("the encoder gave features that are not finite: check its weights and what range it expects")
    return features


class Classifier(FrozenEncoderClassifier):
    """A frozen encoder with a linear head: images (n, 3, H, W) in [0, 1] -> logits (n, classes)."""

    def __init__(self, encoder: nn.Module, route: str, head: nn.Module) -> None:
        super().__init__(encoder, route)
        self.head = head
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.features(images)))


@ieee_fp32()
def train_probe(
    encoder: nn.Module,
    route: str,
    train: ImageSet,
    settings: ProbeSettings,
    views: ViewSettings,
    *,
    seed: int,
    attack: TrainingAttack | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Classifier:
    """Train a zero-initialized linear head on frozen backbone features, by SLF or ALF.

    Standard linear fine-tuning (SLF) is the protocol of DynACL's and ASTrA's `test_LF.py`: encoder in eval mode, cross
    entropy, SGD, last epoch. Adversarial linear fine-tuning (ALF) is the same, but in every step PGD with a random
    start first attacks the images, to raise the cross entropy of the current head. (A head of zero gives no gradient,
    so the first step's images only move at random.)

    The probe works on a copy: `encoder` does not change, and the classifier does not change when `encoder` is trained
    further. The same arguments give the same head bit for bit on the CPU. A `TargetNetwork` is folded
    (`astra_gym.ssl_core.models.encoder.fast_features`), which changes its features by rounding.

    Args:
        encoder: module with `feature_dim` and `features(images, route)`, such as a `TargetNetwork`, a `PlainEncoder` or
            `RawPixels`.
        route: batch-norm route of the features.
        train: labeled images.
        settings: settings of the probe.
        views: `padding` and `flip` of the augmentation.
        seed: seed of separate streams for the order of the images, the augmentation and the attack's starts.
        attack: attack of ALF; None for SLF.
        device: device for the work.
        progress: called after every step of the optimizer with the steps done and their total.

    Raises:
        ValueError: if `train` has no labels, or labels outside its classes.
        RuntimeError: if the head diverges.
        SanityError: if a parameter or buffer of the encoder changed, which would invalidate the result.
    """
    labels = required_labels(train, "a linear probe").to(device)
    encoder = copy.deepcopy(encoder).to(device).eval().requires_grad_(False)
    before = fingerprint(encoder)
    streams = Streams(seed, device)
    order, noise = streams["probe/order"], streams["probe/views"]
    # skip_init, since nn.Linear's own initialization would draw from the global generator.
    head = nn.utils.skip_init(nn.Linear, cast(Encoder, encoder).feature_dim, len(train.classes), device=device)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(
        head.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(settings.milestones), gamma=0.1)
    extract, watch = _clean_features(encoder, route), torch.zeros((), device=device)
    if attack is not None:
        extract = _attacked_features(encoder, route, head, attack, streams.on_device("probe/noise"), watch)

    def features(rows: Tensor) -> Tensor:
        images = as_float(train.images[rows].to(device))
        return extract(weak_views(images, views, noise) if settings.augment else images, labels[rows.to(device)])

    fixed = None
    if not settings.augment and attack is None:
        fixed = torch.cat([features(rows) for rows in torch.arange(len(train)).split(settings.batch_size)])
    steps = -(-len(train) // settings.batch_size)
    for epoch in range(settings.epochs):
        batches = torch.randperm(len(train), generator=order).split(settings.batch_size)
        for done, rows in enumerate(batches, start=epoch * steps + 1):
            z = features(rows) if fixed is None else fixed[rows.to(device)]
            loss = F.cross_entropy(head(z), labels[rows.to(device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if progress is not None:
                progress(done, settings.epochs * steps)
        if not all(bool(values.isfinite().all()) for values in (*head.parameters(), watch)):
            raise RuntimeError(
                f"the probe diverged in epoch {epoch + 1} of {settings.epochs} at learning rate "
                f"{optimizer.param_groups[0]['lr']:g}: lower its lr, or check that the features are finite"
            )
        schedule.step()
    check_frozen(before, fingerprint(encoder), "while its probe was trained")
    return Classifier(encoder, route, head)


Extract = Callable[[Tensor, Tensor], Tensor]


def _clean_features(encoder: nn.Module, route: str) -> Extract:
    """Make a function (images, labels) -> features, without gradient."""
    features = fast_features(encoder)

    @torch.no_grad()
    def extract(images: Tensor, labels: Tensor) -> Tensor:
        return features(images, route)

    return extract


def _attacked_features(
    encoder: nn.Module, route: str, head: nn.Module, attack: TrainingAttack, noise: torch.Generator, watch: Tensor
) -> Extract:
    """Make a function (images, labels) -> features, without gradient, of images attacked to raise the head's cross
    entropy.

    `watch` is passed to `pgd`.
    """
    features = fast_features(encoder)

    def extract(images: Tensor, labels: Tensor) -> Tensor:
        # the head is part of the objective, not of the encoder, so the attack's embeddings are features for the head
        return pgd(
            lambda moved, _: features(moved, route),
            lambda z: F.cross_entropy(head(z), labels, reduction="none"),
            images,
            attack.budget(len(images), images.device),
            generator=noise,
            watch=watch,
        ).embeddings

    return extract
