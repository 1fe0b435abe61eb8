"""Auto-PGD as pyautoattack has it, but for images that it has fooled already, which it would compute on to its end."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZES = 8
"""The number of images computed at once is rounded up to a multiple of this: a processor prepares itself for each new
size, so few should occur."""


class _Unfooled:
    """A classifier as one run of Auto-PGD may see it: an image that was misclassified once is not computed again.

    From then on it seems to be classified right, with logits that do not depend on it: the run keeps the point that
    fooled the classifier and moves on without a gradient.

    Args:
        classifier: each image's logits on their own.
        labels: int64 (n,).
    """

    def __init__(self, classifier: nn.Module, labels: Tensor) -> None:
        self.classifier = classifier
        self.labels = labels
        self.fooled = torch.zeros_like(labels, dtype=torch.bool)
        self.right = torch.empty(0)
        """(n, classes), 1 for the label and 0 elsewhere, once the classes are known."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W), in the order of the labels, to logits (n, classes)."""
        order = torch.argsort(self.fooled, stable=True)
        left = len(order) - int(self.fooled.sum())
        if left == len(order):
            logits = self.classifier(images)
            self.fooled = logits.detach().argmax(1) != self.labels
            self.right = F.one_hot(self.labels, logits.shape[1]).to(logits.dtype)
            return logits
        if not left:
            # a gradient, of zero, is asked for all the same
            return self.right + 0 * images.flatten(1)[:, :1]
        logits = self.classifier(images[order[: -(-left // SIZES) * SIZES]])[:left]
        rows = order[:left]
        self.fooled[rows] = logits.detach().argmax(1) != self.labels[rows]
        return self.right.index_copy(0, rows, logits)


def leave_out_fooled(attack: Any) -> None:
    """Makes one of the library's Auto-PGDs leave out what it has fooled; what it says of an image stays the same.

    An image counts as fooled if the classifier is wrong on any point of the run, and nothing that comes after can
    change that. Each image moves by its own logits alone, so that the others move as before, up to the rounding of
    other batches. In L1 a run begins in larger balls, where being misclassified does not count, and is left as it is.

    Args:
        attack: a pyautoattack `APGDAttack`, which is changed.
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
