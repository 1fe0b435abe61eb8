"""A score of an encoder in about a second, to choose among many: mean margins of a ridge probe, clean and attacked."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.attacks.pgd import pgd, strided_budget
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.downstream.linear_probe import Classifier
from astra_gym.ssl_core.downstream.online_probe import SCALE, ridge_classifier
from astra_gym.ssl_core.models.encoder import held
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.device import float32_of
from astra_gym.ssl_core.utils.finite import NonFiniteError, check_number
from astra_gym.ssl_core.utils.rng import Streams

STEPS = 10
BATCH = 256


class QuickScore(NamedTuple):
    """Values of one encoder on the measured images.

    `SA` and `RA` are accuracies in percent, clean and under PGD-10. The margins are means over images of the regression
    value of the true class minus the largest of another class, in [-1, 1] or near it: clean, and on the attacked image.
    Margins change with every image, so they rank encoders by fewer images than accuracies do.
    """

    SA: float
    RA: float
    clean_margin: float
    margin: float


def quick_score(
    encoder: TargetNetwork, route: str, fitted: ImageSet, measured: ImageSet, epsilon: float, seed: int = 0
) -> QuickScore:
    """Fit a ridge-regression head to one set of images and measure it on another, clean and under PGD-10.

    It is for screening; a linear probe (SLF) and PGD-20 have to decide between encoders of nearly equal score.

    Args:
        encoder: network on any device; its mode and its gradients are restored.
        route: batch-norm route of the features.
        fitted, measured: labeled images of the same classes.
        epsilon: radius of the attack, a fraction in (0, 1].
        seed: seed of the attack's random starts.

    Raises:
        ValueError: if there are no labels, or the radius is out of its range.
        NonFiniteError: if a feature or a logit is not finite.
    """
    check_number("epsilon", epsilon, 0, 1, above=True)
    parts = [(images.images, required_labels(images, "the quick score")) for images in (fitted, measured)]
    device = encoder.mean.device
    noise = Streams(seed, device).on_device("quick_score/noise")
    correct, margins = [], []
    with frozen(encoder), float32_of("fp32"):
        classifier, _ = ridge_classifier(encoder, route, *parts[0], len(fitted.classes), device)
        with held(classifier):
            for images, labels in zip(*(values.split(BATCH) for values in parts[1]), strict=True):
                images, labels = as_float(images.to(device)), labels.to(device)
                with torch.no_grad():
                    logits = [classifier(images), _attacked(classifier, images, labels, epsilon, noise)]
                margins.append(torch.stack([_margins(values, labels) for values in logits]))
                correct.append(torch.stack([values.argmax(1) == labels for values in logits]))
    found = torch.cat(margins, dim=1).double().mean(1) / SCALE
    if not bool(found.isfinite().all()):
        raise NonFiniteError("the encoder gave logits that are not finite")
    right = 100 * torch.cat(correct, dim=1).double().mean(1)
    return QuickScore(*right.tolist(), *found.tolist())


def _attacked(classifier: Classifier, images: Tensor, labels: Tensor, epsilon: float, noise: torch.Generator) -> Tensor:
    """Return the logits (n, classes) of images attacked by their cross entropy."""
    budget = strided_budget(epsilon, STEPS).expand(len(images))
    attacked = pgd(
        lambda moved, _: classifier(moved),
        lambda logits: F.cross_entropy(logits, labels, reduction="none"),
        images,
        budget,
        generator=noise,
    )
    return attacked.embeddings


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    true = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return true - others.amax(1)
