"""Faster Auto-PGD of pyautoattack: images that already fool the classifier are not computed again."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZES = 8
"""Batch sizes are rounded up to a multiple of this: each new size costs a processor some preparation."""


class _Unfooled:
    """A classifier for one run of Auto-PGD: an image that was misclassified once is not computed again.

    From then on the run gets constant logits for it, which favor the right label. So the run keeps the point that
    fooled the classifier and continues without a gradient.

    Args:
        classifier: classifier whose logits of an image do not depend on other images.
        labels: int64 (n,).
    """

    def __init__(self, classifier: nn.Module, labels: Tensor) -> None:
        self.classifier = classifier
        self.labels = labels
        self.fooled = torch.zeros_like(labels, dtype=torch.bool)
        self.right = torch.empty(0)
        """Logits (n, classes), 1 for the label and 0 elsewhere; empty until the number of classes is known."""

    def __call__(self, images: Tensor) -> Tensor:
        """Classify images (n, 3, H, W), in the order of the labels: logits (n, classes)."""
        order = torch.argsort(self.fooled, stable=True)
        left = len(order) - int(self.fooled.sum())
        if left == len(order):
            logits = self.classifier(images)
            self.fooled = logits.detach().argmax(1) != self.labels
            self.right = F.one_hot(self.labels, logits.shape[1]).to(logits.dtype)
            return logits
        if not left:
            # the run needs a gradient, here zero
            return self.right + 0 * images.flatten(1)[:, :1]
        logits = self.classifier(images[order[: -(-left // SIZES) * SIZES]])[:left]
        rows = order[:left]
        self.fooled[rows] = logits.detach().argmax(1) != self.labels[rows]
        return self.right.index_copy(0, rows, logits)


def leave_out_fooled(attack: Any) -> None:
    """Make a pyautoattack Auto-PGD skip images that already fool the classifier, with the same result for each image.

    An image counts as fooled if the classifier is wrong on any point of the run; later points cannot change that. Each
    image moves by its own logits alone, so the others move as before, except for rounding that depends on the batch
    size. In L1 a run begins in larger balls, where a misclassification does not count, so such an attack is not
    changed.

    Args:
        attack: a pyautoattack `APGDAttack`, changed in place.
    """
    if attack.norm == "L1":
        return
    run, classifier = attack.attack_single_run, attack.model

    def run_unfooled(x: Tensor, y: Tensor, x_init: Tensor | None = None) -> Any:
        attack.model = _Unfooled(classifier, y)
        try:
            return run(x, y, x_init)
        finally:
            attack.model = classifier

    attack.attack_single_run = run_unfooled
