"""Nearest neighbors in a frozen encoder's feature space: a classifier without trained parameters."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.evaluation.sanity import check_frozen
from astra_gym.ssl_core.models.encoder import FrozenEncoderClassifier, fast_features
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.hashing import fingerprint


@dataclass(frozen=True)
class NeighborSettings:
    """Settings of weighted nearest neighbors, by default of Wu et al. 2018 (instance discrimination, section 3.4).

    Args:
        k: number of neighbors that vote, 1 or more.
        temperature: positive; a neighbor of cosine similarity s has exp(s / temperature) votes.

    Raises:
        ValueError: if a value is out of its range.
    """

    k: int = 200
    temperature: float = 0.07

    def __post_init__(self) -> None:
        check_number("the neighbors' k", self.k, 1, whole=True)
        check_number("the neighbors' temperature", self.temperature, above=True)


class NeighborClassifier(FrozenEncoderClassifier):
    """A frozen encoder and its features of the training images: images (n, 3, H, W) in [0, 1] -> logits (n, classes).

    The k training images with the largest cosine similarity s to the image's features vote for their classes, with
    exp(s / temperature) votes each. If similarities are equal at the k-th place, the lower class votes, and within a
    class the earlier training image; if votes are equal, `argmax` takes the lower class.

    A class's logit is the logarithm of its votes. The votes themselves reach 1e8: the softmax of a cross entropy would
    be exactly 0 or 1 and its gradient 0. Shares of votes would be probabilities, and a cross entropy would take their
    softmax a second time. A class without a neighbor has no votes and no logarithm: its logit is that of half the
    vote of its nearest training image. That is below any class with votes, so it does not affect the outcome, but it
    has a gradient. With a constant instead, an image with all neighbors in one class would have no gradient that
    float32 distinguishes from 0, and would seem robust only for that reason. (A class without training images counts as
    having one of similarity -1.)

    Args:
        encoder: module with `features(images, route)`.
        route: batch-norm route of the features.
        features: features of the training images, (N, d).
        labels: labels of the training images, int64 (N,).
        classes: number of classes.
        settings: settings with a k of at most N.

    Attributes:
        settings: the settings in use.
    """

    bank: Tensor
    labels: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        route: str,
        features: Tensor,
        labels: Tensor,
        classes: int,
        settings: NeighborSettings,
    ) -> None:
        super().__init__(encoder, route)
        if not settings.k <= len(features):
            raise ValueError(f"k is {settings.k}: expected at most {len(features)}, the number of training images")
        self.settings = settings
        by_class = labels.argsort(stable=True)
        self.register_buffer("bank", F.normalize(features.detach()[by_class], dim=1))
        self.register_buffer("labels", labels[by_class])
        self.sizes = torch.bincount(labels, minlength=classes).tolist()
        """Number of training images by class; the bank is sorted by class."""
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        similarity = F.normalize(_finite(self.features(images)), dim=1) @ self.bank.T
        temperature = self.settings.temperature
        nearest = torch.stack([_largest(part) for part in similarity.split(self.sizes, 1)], 1)
        best = nearest.detach().amax(1, keepdim=True)
        rows = _neighbors(similarity.detach(), self.settings.k)
        # relative to the best neighbor, so that exp cannot overflow at any temperature
        weights = ((similarity.gather(1, rows) - best) / temperature).exp()
        votes = torch.zeros_like(nearest).scatter_add(1, self.labels[rows], weights)
        voted = votes > 0
        return torch.where(
            voted,
            votes.where(voted, 1).log() + best / temperature,
            nearest / temperature - math.log(2),
        )


def nearest_neighbors(
    encoder: nn.Module,
    route: str,
    train: ImageSet,
    settings: NeighborSettings,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> NeighborClassifier:
    """Make a nearest-neighbor classifier; the un-augmented training images are encoded once.

    The classifier holds a copy: `encoder` does not change, and may be trained further. Nothing is random.

    Args:
        encoder: module with `features(images, route)`, such as a `TargetNetwork`.
        route: batch-norm route of the features.
        train: labeled images.
        settings: settings; a k above the number of training images is lowered to it in the classifier's `settings`.
        device: device for the work.
        batch_size: images in one forward pass.
        progress: called after every batch with the images encoded so far and their total.

    Raises:
        ValueError: if `train` has no labels, or labels outside its classes.
        RuntimeError: if a feature is not finite.
        SanityError: if a parameter or buffer of the encoder changed, which would invalidate the result.
    """
    labels = required_labels(train, "a vote of the nearest neighbors").to(device)
    encoder = copy.deepcopy(encoder).to(device).eval().requires_grad_(False)
    before, features = fingerprint(encoder), fast_features(encoder)
    parts: list[Tensor] = []
    for images in train.images.split(batch_size):
        with torch.no_grad():
            parts.append(_finite(features(as_float(images.to(device)), route)))
        if progress is not None:
            progress(sum(map(len, parts)), len(train))
    check_frozen(before, fingerprint(encoder), "while its training images were encoded")
    used = replace(settings, k=min(settings.k, len(train)))
    return NeighborClassifier(encoder, route, torch.cat(parts), labels, len(train.classes), used)


def _finite(features: Tensor) -> Tensor:
    if not bool(features.isfinite().all()):
        raise RuntimeError("the encoder gave features that are not finite, which have no nearest neighbors")
    return features


def _largest(similarity: Tensor) -> Tensor:
    """Largest value of each row, (n, m) -> (n,); -1 where m is 0."""
    return similarity.amax(1) if similarity.shape[1] else similarity.new_full((len(similarity),), -1.0)


def _neighbors(similarity: Tensor, k: int) -> Tensor:
    """Columns of the k largest values of each row of (n, N), in rising order; of equal ones the first, unlike topk."""
    last = similarity.topk(k, dim=1).values[:, -1:]
    above, equal = similarity > last, similarity == last
    wanted = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1) <= wanted))
    return chosen.nonzero()[:, 1].view(-1, k)
