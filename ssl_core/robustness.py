"""Clean accuracy and accuracy under PGD of any classifier of images in [0, 1], as typed rows."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.attacks import Budget, pgd
from ssl_core.images import ImageSet
from ssl_core.results import Origin, Row
from ssl_core.rng import Streams
from ssl_core.sanity import check_rows
from ssl_core.views import as_float

STEP_SIZE = 2 / 255


class Evaluation(NamedTuple):
    """Accuracies as rows, and which test images were right: bool (n,) by epsilon, 0.0 for the clean images."""

    rows: list[Row]
    correct: dict[float, Tensor]


def step_size_for(epsilon: float) -> float:
    """PGD's step: 2/255 from epsilon 4/255 on, as the protocol says, and half of epsilon below.

    With 2/255 in a smaller ball every step would land on its surface, and most would only jump between corners.
    """
    return min(STEP_SIZE, epsilon / 2)


def clean_accuracy(classifier: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 256) -> Tensor:
    """Which images are classified correctly.

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes), in eval mode.
        images: uint8 (n, 3, H, W).
        labels: int64 (n,).
        batch_size: images in one forward pass.

    Returns:
        Bool (n,), on the CPU; its mean is the accuracy.

    Raises:
        ValueError: if images or labels are not as above, or the classifier is in train mode.
        RuntimeError: if a logit is not finite.
    """
    _check(classifier, images, labels)
    device = _device(classifier)
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    return torch.cat([_correct(classifier, as_float(x.to(device)), y.to(device)) for x, y in batches])


def pgd_accuracy(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    generator: torch.Generator,
    steps: int = 20,
    step_size: float | None = None,
    batch_size: int = 256,
    clean: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Which images are classified correctly both as they are and under PGD on the cross entropy.

    L-infinity PGD (Madry et al. 2018) with one random start in the whole ball. An image that is misclassified without
    any attack counts as not robust and is not attacked.

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes), in eval mode.
        images: uint8 (n, 3, H, W).
        labels: int64 (n,).
        epsilon: radius as a fraction, in [0, 1]; 0 gives the clean result.
        generator: source of the random starts, on the classifier's device; the result depends on it and on
            `batch_size`.
        steps: number of steps.
        step_size: as a fraction; None for `step_size_for(epsilon)`.
        batch_size: images attacked at once.
        clean: what `clean_accuracy` gave, where it is known.
        progress: called with the images attacked so far and their total.

    Returns:
        Bool (n,), on the CPU; its mean is the robust accuracy.

    Raises:
        ValueError: if an argument is not as above.
        RuntimeError: if a logit is not finite, or an attacked image has left its ball or [0, 1].
    """
    _check(classifier, images, labels)
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon!r}: expected a fraction in [0, 1], such as 8/255 and not 8")
    step_size = step_size_for(epsilon) if step_size is None else step_size
    device = _device(classifier)
    robust = (clean_accuracy(classifier, images, labels, batch_size) if clean is None else clean).clone()
    if robust.shape != labels.shape or robust.dtype != torch.bool:
        raise ValueError(f"clean is {robust.dtype} {tuple(robust.shape)}: expected bool {tuple(labels.shape)}")
    targets = robust.nonzero().flatten()
    done = 0
    for rows in targets.split(batch_size) if len(targets) else ():
        x, y = as_float(images[rows].to(device)), labels[rows].to(device)
        attacked = pgd(
            lambda moved, _: classifier(moved),
            # The loop variable is bound as a default, since a closure would see a later batch's labels.
            lambda logits, y=y: F.cross_entropy(logits, y, reduction="none"),  # type: ignore[misc]
            x,
            Budget.uniform(len(rows), epsilon, step_size, steps, device),
            generator=generator,
        ).images
        distance = float((attacked - x).abs().max())
        if distance > epsilon + 1e-6 or float(attacked.min()) < 0 or float(attacked.max()) > 1:
            raise RuntimeError(
                f"the attack broke its own rules, so its accuracy would be void: distance {distance:g} with epsilon "
                f"{epsilon:g}, pixels in [{float(attacked.min()):g}, {float(attacked.max()):g}]"
            )
        robust[rows] = _correct(classifier, attacked, y)
        done += len(rows)
        if progress is not None:
            progress(done, len(targets))
    return robust


def evaluate(
    classifier: nn.Module,
    test: ImageSet,
    epsilons: Sequence[float],
    *,
    origin: Origin,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """SA, and RA under PGD-20 at each epsilon; evaluated twice on the CPU they are equal bit for bit.

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes), in eval mode.
        test: labelled images.
        epsilons: radii as fractions (8/255), all different.
        origin: of the rows; its seed is that of the random starts, of which each epsilon has a stream of its own, so
            that adding one does not change another.
        batch_size: images attacked at once.
        progress: called with the attacks done so far, in images, and their total.

    Raises:
        ValueError: if `test` has no labels, or an argument is not as above.
        RuntimeError: if the rows contradict one another (`check_rows`), or an attack fails (`pgd_accuracy`).
    """
    if test.labels is None:
        raise ValueError(
            f"data set {test.name!r} has no labels, and accuracy needs them: put the images into one folder for each "
            "class, or leave the evaluation out"
        )
    if len(set(epsilons)) != len(epsilons):
        raise ValueError(f"the epsilons are {list(epsilons)}: expected all different")
    streams = Streams(origin.seed, _device(classifier))
    clean = clean_accuracy(classifier, test.images, test.labels, batch_size)
    rows = [origin.accuracy("SA", int(clean.sum()), len(clean))]
    correct = {0.0: clean}
    for index, epsilon in enumerate(epsilons):

        def report(done: int, total: int, index: int = index) -> None:
            if progress is not None:
                progress(index * total + done, len(epsilons) * total)

        robust = pgd_accuracy(
            classifier,
            test.images,
            test.labels,
            epsilon,
            generator=streams.on_device(f"pgd20/{float(epsilon)!r}"),
            batch_size=batch_size,
            clean=clean,
            progress=report,
        )
        rows.append(origin.accuracy("RA", int(robust.sum()), len(robust), attack="pgd20", epsilon=float(epsilon)))
        correct[float(epsilon)] = robust
    check_rows(rows)
    return Evaluation(rows, correct)


def _check(classifier: nn.Module, images: Tensor, labels: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: expected uint8 (n, 3, H, W) with n >= 1")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}: expected int64 ({len(images)},)")
    if training := [name or "itself" for name, module in classifier.named_modules() if module.training]:
        raise ValueError(f"the classifier is in train mode ({training[0]}): call its eval() first")


def _device(classifier: nn.Module) -> torch.device:
    return next((parameter.device for parameter in classifier.parameters()), torch.device("cpu"))


@torch.no_grad()
def _correct(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    logits = classifier(images)
    if logits.ndim != 2 or not bool(logits.isfinite().all()):
        raise RuntimeError(
            f"the classifier gave {tuple(logits.shape)} logits with {int((~logits.isfinite()).sum())} that are not "
            f"finite: expected finite ones ({len(images)}, classes)"
        )
    return (logits.argmax(1) == labels).cpu()
