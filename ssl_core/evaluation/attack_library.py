"""The attacks of the library pyautoattack, with what this project changes in them.

In a faster Auto-PGD, images that already fool the classifier are not computed again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pyautoattack import AutoAttack
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


def check_class_count(classes: int) -> None:
    """Raise a ValueError unless AutoAttack can attack a classifier with this number of classes."""
    if classes < 4:
        raise ValueError(
            f"the classifier has {classes} classes: AutoAttack's targeted Auto-PGD compares four logits (targeted DLR "
            "loss), so it needs at least 4; use pgd20"
        )


def library_of(
    classifier: nn.Module, epsilon: float, norm: str, classes: int, seed: int, device: torch.device
) -> AutoAttack:
    """Set up the library's attacks; the targeted ones have at most all other classes as targets.

    Raises:
        ValueError: as `check_class_count`.
    """
    check_class_count(classes)
    made = AutoAttack(classifier, norm=norm, eps=float(epsilon), version="standard", seed=seed, device=device)
    for attack in (made.apgd_targeted, made.fab):
        attack.n_target_classes = min(attack.n_target_classes, classes - 1)
    made.apgd.loss = "ce"
    made.fab.targeted = True
    for attack in (made.apgd, made.apgd_targeted):
        leave_out_fooled(attack)
    return made


def attack_of(library: AutoAttack, name: str) -> Any:
    """Return one of the library's attacks; each call seeds torch with the attack's seed."""
    return {
        "apgd-ce": library.apgd,
        "apgd-t": library.apgd_targeted,
        "fab-t": library.fab,
        "square": library.square,
    }[name]


def targets_of(library: AutoAttack) -> dict[str, int]:
    """Return the number of target classes of each targeted attack."""
    return {"apgd-t": library.apgd_targeted.n_target_classes, "fab-t": library.fab.n_target_classes}


def passes_of(library: AutoAttack, names: Sequence[str]) -> dict[str, int]:
    """Cost of each attack for an image that survives it, in forward passes.

    By the attacks' definitions: a step of Auto-PGD is a forward and a backward pass, a step of FAB one forward pass
    more, a query of Square one forward pass. A backward pass to the image alone has about as many products as a forward
    pass. Measured on a ResNet-18 of 32 x 32 images, one CPU thread: 201, 1973, 3304 and 4499 times the duration of a
    forward pass, where this function gives 200, 1800, 2700 and 5000.
    """
    first, targeted, fab = library.apgd, library.apgd_targeted, library.fab
    cost = {
        "apgd-ce": 2 * first.n_iter_orig * first.n_restarts,
        "apgd-t": 2 * targeted.n_iter_orig * targeted.n_target_classes,
        "fab-t": 3 * fab.n_iter * fab.n_target_classes,
        "square": library.square.n_queries,
    }
    return {name: cost[name] for name in names}
