"""Clean accuracy, and accuracy under PGD and FGSM, of a classifier of images in [0, 1]."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget, pgd
from astra_gym.ssl_core.distributed.helping import divided
from astra_gym.ssl_core.models.encoder import held
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.finite import check_number

STEP_SIZE = 2 / 255
"""Step size of the protocol."""


def step_size_for(epsilon: float) -> float:
    """Return PGD-20's step size: the protocol's 2/255 for epsilon from 4/255 to 16/255, half of epsilon below that
    range, an eighth of epsilon above it.

    With 2/255 in a smaller ball every step would end on its surface, and most would only jump between corners. From a
    random start the worst corner may be 2 epsilon away: twenty steps of 2/255 cover 40/255, too little for a ball above
    20/255. An eighth is 2.5 epsilon / 20 (Madry et al. 2018 take a hundred steps of 2.5 epsilon / 100).
    """
    return max(min(STEP_SIZE, epsilon / 2), epsilon / 8)


def clean_accuracy(classifier: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 256) -> Tensor:
    """Find which images are classified correctly.

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
    check_arguments(classifier, images, labels)
    device = device_of(classifier)
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    with held(classifier):
        return torch.cat([is_correct(classifier, as_float(x.to(device)), y.to(device)) for x, y in batches])


def pgd_accuracy(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    generator: torch.Generator,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    batch_size: int = 256,
    clean: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Find which images are classified correctly both clean and under PGD on the cross entropy.

    L-infinity PGD (Madry et al. 2018) from random starts in the whole ball. An image is robust if it is classified
    correctly after every one of them; a misclassified image, attacked or clean, is not attacked (again).

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes), in eval mode.
        images: uint8 (n, 3, H, W).
        labels: int64 (n,).
        epsilon: radius as a fraction, in [0, 1]; 0 gives the clean result itself.
        generator: source of the random starts, on the classifier's device; the result depends on it and on
            `batch_size`.
        steps: number of steps.
        step_size: step size as a fraction; None: `step_size_for(epsilon)`.
        restarts: number of random starts; the first ones do not depend on it.
        batch_size: images attacked together.
        clean: the result of `clean_accuracy`, if known.
        progress: called with the images attacked so far and their maximum, which falls with every fooled image.

    Returns:
        Bool (n,), on the CPU; its mean is the robust accuracy.

    Raises:
        ValueError: if an argument is not as above.
        RuntimeError: if a logit is not finite, or an attacked image has left its ball or [0, 1].
    """
    step = step_size_for(epsilon) if step_size is None else step_size
    attack = partial(_is_right_attacked, classifier, epsilon, step, steps)
    return _survivors(classifier, images, labels, epsilon, attack, generator, restarts, batch_size, clean, progress)


def fgsm_accuracy(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    batch_size: int = 256,
    clean: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Find which images are classified correctly both clean and under FGSM on the cross entropy.

    The fast gradient sign method (Goodfellow et al. 2015): one step of size epsilon from the image itself, without
    randomness. Arguments, result and errors are those of `pgd_accuracy`.
    """
    attack = partial(_is_right_attacked, classifier, epsilon, epsilon, 1)
    return _survivors(classifier, images, labels, epsilon, attack, None, 1, batch_size, clean, progress)


def check_arguments(classifier: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Raise a ValueError unless the arguments are as `clean_accuracy` expects."""
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: expected uint8 (n, 3, H, W) with n >= 1")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}: expected int64 ({len(images)},)")
    if training := [name or "itself" for name, module in classifier.named_modules() if module.training]:
        raise ValueError(f"the classifier is in train mode ({training[0]}): call its eval() first")


def device_of(classifier: nn.Module) -> torch.device:
    """Device of the classifier's parameters, else of its buffers, else the CPU."""
    held = chain(classifier.parameters(), classifier.buffers())
    return next((tensor.device for tensor in held), torch.device("cpu"))


@torch.no_grad()
def logits_of(classifier: nn.Module, images: Tensor) -> Tensor:
    """Compute logits (n, classes) of images (n, 3, H, W) in [0, 1]; raise a RuntimeError if one is not finite."""
    return _checked(classifier(images), len(images))


def is_correct(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Whether images (n, 3, H, W) in [0, 1] are classified as their labels (n,): bool (n,), on the CPU."""
    return _agree(logits_of(classifier, images), labels)


def _agree(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).cpu()


def _checked(logits: object, n: int) -> Tensor:
    """Return the logits of n images; raise a RuntimeError if they are not finite logits (n, classes)."""
    if not isinstance(logits, Tensor):
        raise RuntimeError(f"the classifier gave a {type(logits).__name__}: expected a tensor of logits")
    if logits.ndim != 2 or len(logits) != n or not bool(logits.isfinite().all()):
        raise RuntimeError(
            f"the classifier gave {tuple(logits.shape)} logits with {int((~logits.isfinite()).sum())} that are not "
            f"finite: expected finite ones ({n}, classes)"
        )
    return logits


class _Batch(NamedTuple):
    """Images uint8 (n, 3, H, W) and labels (n,); the generator's state before their random start, None for no such."""

    images: Tensor
    labels: Tensor
    start: Tensor | None


def _is_right_attacked(classifier: nn.Module, epsilon: float, step_size: float, steps: int, batch: _Batch) -> Tensor:
    """Attack a batch by its cross entropy; return whether each image is still classified correctly, bool (n,)."""
    device = device_of(classifier)
    x, y = as_float(batch.images.to(device)), batch.labels.to(device)
    generator = None
    if batch.start is not None:
        generator = torch.Generator(device)
        generator.set_state(batch.start)
    with held(classifier):
        attacked, logits = pgd(
            lambda moved, _: classifier(moved),
            lambda logits: F.cross_entropy(logits, y, reduction="none"),
            x,
            Budget.uniform(len(x), epsilon=epsilon, step_size=step_size, steps=steps, device=device),
            generator=generator,
            start="zero" if generator is None else "uniform",
        )
    distance = float((attacked - x).abs().max())
    if distance > epsilon + 1e-6 or float(attacked.min()) < 0 or float(attacked.max()) > 1:
        raise RuntimeError(
            f"the attack broke its own rules, so its accuracy would be void: distance {distance:g} with "
            f"epsilon {epsilon:g}, pixels in [{float(attacked.min()):g}, {float(attacked.max()):g}]"
        )
    return _agree(_checked(logits, len(x)), y)


def _batches(
    images: Tensor, labels: Tensor, parts: Iterable[Tensor], generator: torch.Generator | None
) -> Iterator[_Batch]:
    """Make a batch of each part, rows; the generator then stands where the batch's own start will leave it."""
    for rows in parts:
        own, start = images[rows], None
        if generator is not None:
            start = generator.get_state()
            torch.rand(own.shape, generator=generator, device=generator.device)
        yield _Batch(own, labels[rows], start)


def _survivors(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    attack: Callable[[_Batch], Tensor],
    generator: torch.Generator | None,
    restarts: int,
    batch_size: int,
    clean: Tensor | None,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """Find which images are right both clean and after each of `restarts` rounds of the attack."""
    check_arguments(classifier, images, labels)
    check_number("epsilon", epsilon, 0, 1, "a fraction in [0, 1], such as 8/255 and not 8")
    check_number("restarts", restarts, 1, whole=True)
    robust = (clean_accuracy(classifier, images, labels, batch_size) if clean is None else clean).clone()
    if robust.shape != labels.shape or robust.dtype != torch.bool:
        raise ValueError(f"clean is {robust.dtype} {tuple(robust.shape)}: expected bool {tuple(labels.shape)}")
    if epsilon == 0:
        # in other batches a device may round a near tie differently
        return robust
    done = 0
    with held(classifier):
        for later in reversed(range(restarts)):
            targets = robust.nonzero().flatten()
            left = len(targets)
            parts = targets.split(batch_size) if left else ()
            outcomes = divided(attack, _batches(images, labels, parts, generator))
            for rows, right in zip(parts, outcomes, strict=True):
                robust[rows] = right
                done, left = done + len(rows), left - len(rows)
                if progress is not None:
                    progress(done, done + left + later * int(robust.sum()))
    return robust
