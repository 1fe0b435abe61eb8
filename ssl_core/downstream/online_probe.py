"""A fast probe during training: clean and attacked accuracy in about a second, without test images."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.downstream.linear_probe import Classifier
from astra_gym.ssl_core.evaluation.robustness import clean_accuracy, pgd_accuracy
from astra_gym.ssl_core.models.encoder import Encoder, held
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.finite import NonFiniteError
from astra_gym.ssl_core.utils.rng import Streams

EPSILON, STEPS = 8 / 255, 10
SHARE = 10
"""One image of this many is measured; the head is fitted to the others."""
MOST_MEASURED, MOST_FITTED = 500, 5000
RIDGE = 0.01
"""Weight of the ridge penalty, in units of the features' mean variance."""
SCALE = 10.0
"""Factor from regression values, in [0, 1] or near it, to logits for a softmax."""


class OnlineProbe:
    """Probe by a ridge-regression head on a frozen encoder's features, clean and under PGD-10 with epsilon 8/255.

    The head is fitted to one part of the training images and measured on another. Parts and random starts are the same
    in every call. Choosing by these accuracies uses no test image. The features are computed in the precision of
    training, such as bfloat16. The network does not change, and no random stream of a run advances.

    A call costs at most `MOST_MEASURED` attacked and `MOST_FITTED` encoded images.

    Args:
        train: labeled images, at least 2.
        seed: seed of the parts and the random starts.

    Raises:
        ValueError: if there are no labels, or too few images.
    """

    def __init__(self, train: ImageSet, seed: int) -> None:
        labels = required_labels(train, "the probe of --probe_every")
        if len(train) < 2:
            raise ValueError(f"{train.name} has {len(train)} image: the probe of --probe_every needs 2 or more")
        order = torch.randperm(len(train), generator=Streams(seed)["probe/rows"])
        count = min(max(len(train) // SHARE, 1), MOST_MEASURED)
        measured, fitted = order[:count], order[count : count + MOST_FITTED]
        self._measured = train.images[measured], labels[measured]
        self._fitted = train.images[fitted], labels[fitted]
        self._classes = len(train.classes)
        self._seed = seed

    def measure(self, encoder: TargetNetwork, route: str) -> dict[str, float]:
        """Measure accuracies in percent: `SA` and `RA_8_255` on the measured part, `SA_fitted` on the other.

        Args:
            encoder: network on any device; its mode and its gradients are restored.
            route: batch-norm route of the features.

        Raises:
            NonFiniteError: if a feature is not finite.
            RuntimeError: if a logit is not finite.
        """
        device = encoder.mean.device
        images, labels = self._measured
        noise = Streams(self._seed, device).on_device("probe/noise")
        with frozen(encoder):
            classifier, fitted = ridge_classifier(encoder, route, *self._fitted, self._classes, device)
            clean = clean_accuracy(classifier, images, labels)
            robust = pgd_accuracy(classifier, images, labels, EPSILON, generator=noise, steps=STEPS, clean=clean)
        figures = {"SA": clean, f"RA_{255 * EPSILON:g}_255": robust, "SA_fitted": fitted}
        return {name: 100 * right.double().mean().item() for name, right in figures.items()}


@torch.no_grad()
def ridge_classifier(
    encoder: nn.Module, route: str, images: Tensor, labels: Tensor, classes: int, device: torch.device
) -> tuple[Classifier, Tensor]:
    """Fit a ridge-regression head to a frozen encoder's features of labeled images.

    Args:
        encoder: an `Encoder` in eval mode, such as a `TargetNetwork`.
        route: batch-norm route of the features.
        images, labels: uint8 (n, 3, H, W) and int64 (n,).
        classes: number of classes.
        device: the encoder's device.

    Returns:
        The classifier, and which of the images it classifies correctly: bool (n,).

    Raises:
        NonFiniteError: if a feature is not finite.
    """
    dtype = next((weight.dtype for weight in encoder.parameters()), torch.float32)
    head = nn.utils.skip_init(nn.Linear, cast(Encoder, encoder).feature_dim, classes, device=device, dtype=dtype)
    classifier = Classifier(encoder, route, head)
    with held(classifier):
        pieces = [classifier.features(as_float(piece.to(device))) for piece in images.split(256)]
    features = torch.cat(pieces).double()
    if not bool(features.isfinite().all()):
        raise NonFiniteError("the encoder gave features that are not finite")
    labels = labels.to(features.device)
    weight, bias = ridge_head(features, F.one_hot(labels, classes).double())
    head.weight.copy_(SCALE * weight)
    head.bias.copy_(SCALE * bias)
    return classifier, (features @ weight.T + bias).argmax(1) == labels


def ridge_head(features: Tensor, targets: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Fit weights (k, d) and biases (k,) to targets (n, k) by ridge regression (Hoerl and Kennard 1970).

    They minimize the mean squared error of the targets by features (n, d), plus `ridge` times the features' mean
    variance times the squared weights; the biases are not penalized.
    """
    center, middle = features.mean(0), targets.mean(0)
    centered = features - center
    gram = centered.T @ centered / len(features)
    # features that are all alike have no variance
    penalty = (ridge * gram.diagonal().mean()).clamp_min(torch.finfo(gram.dtype).tiny ** 0.5)
    gram.diagonal().add_(penalty)
    weight = torch.linalg.solve(gram, centered.T @ (targets - middle) / len(features)).T
    return weight, middle - weight @ center
