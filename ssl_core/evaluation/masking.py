"""Checks that a classifier can be attacked: what makes gradient attacks fail, and evidence that they work.

Sources: Athalye et al. 2018, "Obfuscated gradients give a false sense of security", section 3.1; Carlini et al. 2019,
"On evaluating adversarial robustness", section 5; Croce & Hein 2020 (AutoAttack warns of randomness and
of zero gradients).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget, pgd
from astra_gym.ssl_core.evaluation.gradient_checks import (
    EPSILON,
    ROUNDING_LOW,
    check_gradients,
    gradient_of,
    logit_spread,
    telling,
)
from astra_gym.ssl_core.evaluation.results import wilson_interval
from astra_gym.ssl_core.evaluation.robustness import device_of, logits_of
from astra_gym.ssl_core.evaluation.sanity import MASKING, SanityError, check_frozen, check_images, tolerated
from astra_gym.ssl_core.models.encoder import held
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.device import convolves_in_tf32
from astra_gym.ssl_core.utils.hashing import fingerprint
from astra_gym.ssl_core.utils.rng import Streams, global_generators_kept

UNBOUNDED = 128 / 255
"""Radius that reaches uniform gray from any image; no classifier can be better than chance on it."""
FLAT = 0.05
"""Largest share of images without a gradient for which PGD's robust accuracy is still told."""
_ALONE = 8
_MOVES = tuple(
    sign * digit * power for power in (1e-5, 1e-4, 1e-3) for digit in (1, 2, 3, 5, 7, 10) for sign in (1, -1)
)
"""Fractions by which images are moved towards gray, or away from it. If features hardly differ, the smallest moves do
nothing, and chance decides which larger one changes a rounding: on some processors a few moves missed it."""
_SMOOTH = 30
"""Largest change of logits, relative to their spread and to the move of the image, that is not called a jump."""


@global_generators_kept()
def check_classifier(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    limit: int = 64,
    sign_attacks: bool = True,
) -> list[str]:
    """Raise if attacks on a classifier would be meaningless.

    Checked on up to `limit` images, correctly classified ones first, since only these are attacked:

    - It is in eval mode, and its logits are finite, (n, classes), and float32 or float64, since with fewer bits an
      attack's differences are rounded away. They are not probabilities, for which the cross entropy is nearly flat
      (log-probabilities are fine, since their softmax is the probabilities).
    - It is not random: its logits are equal, on the CPU bit for bit, for any state of torch's global generator, and it
      draws nothing from that generator.
    - An image's logits do not depend on the rest of its batch, unless they depend on rounding: then they also jump when
      the image moves by a hundredth or less, alone in its batch.
    - It does not change itself.
    - The gradient of the margin (the label's logit minus the largest other) is finite. It is zero for at most two
      images: an image without a gradient counts as robust anyway. For at least half of the images it agrees with
      central differences along its sign and along random directions, which show what it leaves out. It is taken where
      PGD starts, at a random point within 8/255, with all pixels a little inside [0, 1]. The differences are taken on a
      copy in float64; without one, rounding is estimated, and differences below it are ignored.

    A finding on one or two images, or a share of fewer than eight, is only a note. The global generators of torch,
    NumPy and Python are restored.

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes).
        images: uint8 (n, 3, H, W).
        labels: int64 (n,).
        seed: seed of the random points and directions.
        limit: maximum number of images checked, 1 or more.
        sign_attacks: whether PGD or FGSM on the cross entropy will be run. If so, a gradient of it that is zero only by
            saturation for over half of the images is an error. If not, it is a note.

    Returns:
        Notes: images without a gradient, logits that may be a sigmoid's, saturation (the softmax rounds to 1, and the
        cross entropy's gradient loses a part or all), differences without a copy in float64, and findings that would
        be errors for more images.

    Raises:
        ValueError: if images or labels are not as above.
        SanityError: with the values, if a check fails.
        RuntimeError: if a logit is not finite.
    """
    if training := [name or "itself" for name, module in classifier.named_modules() if module.training]:
        raise SanityError(f"the classifier is in train mode ({', '.join(training[:3])}): call its eval() first")
    with held(classifier):
        streams = Streams(seed, device_of(classifier))
        before = fingerprint(classifier)
        x, y, correct = _chosen(classifier, images, labels, limit)
        logits = logits_of(classifier, x)
        notes = _check_kind(logits, labels)
        _check_repeats(classifier, x, logits, streams)
        notes += _check_alone(classifier, x, logits)
        if not bool(correct.any()):
            notes.append(f"none of the {len(x)} images tried is classified correctly")
        notes += check_gradients(classifier, x, y, correct, streams, sign_attacks=sign_attacks)
        check_frozen(before, fingerprint(classifier), "while it was checked", "classifier")
        if training := [name or "itself" for name, module in classifier.named_modules() if module.training]:
            raise SanityError(f"the classifier went to train mode by itself ({', '.join(training[:3])})")
        _check_equal(logits, logits_of(classifier, x), "after its gradients were taken: it changes itself")
    return notes


@global_generators_kept()
def masking_evidence(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    limit: int = 64,
    steps: int = 40,
) -> list[str]:
    """Raise if PGD on the cross entropy fails where it must succeed, on up to `limit` correctly classified images.

    With epsilon 128/255 every image can be made uniformly gray, so only images of one class can stay right. With 8/255,
    20 random points of the ball must not fool more images than the 20 steps of PGD-20. Both tests concern attacks like
    PGD only, and are not needed without them. The global generators of torch, NumPy and Python are restored.

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes), in eval mode.
        images: uint8 (n, 3, H, W).
        labels: int64 (n,).
        seed: seed of the random starts.
        limit: maximum number of images attacked, 1 or more.
        steps: steps of the attack with epsilon 128/255.

    Returns:
        The results of both tests, as sentences.

    Raises:
        ValueError: if images or labels are not as above.
        SanityError: if more images stay right under 128/255 than chance explains: the lower end of the 95 % interval is
            above the share of the most common class. Also if random points fool more images than PGD does, by more than
            two images or half a point.
        RuntimeError: if a logit is not finite.
    """
    with held(classifier):
        streams = Streams(seed, device_of(classifier))
        x, y, correct = _chosen(classifier, images, labels, limit)
        if not bool(correct.any()):
            return [f"none of the {len(x)} images tried is classified correctly: there is nothing to attack"]
        x, y = x[correct], y[correct]
        n = len(x)

        def stay_right(epsilon: float, step_size: float, steps: int) -> Tensor:
            attacked = pgd(
                lambda moved, _: classifier(moved),
                lambda logits: F.cross_entropy(logits, y, reduction="none"),
                x,
                Budget.uniform(n, epsilon=epsilon, step_size=step_size, steps=steps, device=x.device),
                generator=streams.on_device(f"masking/pgd/{epsilon!r}"),
            )
            return attacked.embeddings.argmax(1) == y

        left = int(stay_right(UNBOUNDED, 2.5 * UNBOUNDED / steps, steps).sum())
        chance = float(y.bincount().max()) / n
        unbounded = f"PGD with epsilon 128/255, {steps} steps: {100 * left / n:.1f} % of {n} images stay right"
        if wilson_interval(left, n)[0] > 100 * chance:
            raise SanityError(
                f"{unbounded}, but no more than {100 * chance:.1f} %, the share of the commonest class, can withstand "
                f"an attack that may erase the image: the attack fails, {MASKING}"
            )
        by_pgd = int(stay_right(EPSILON, 2 / 255, 20).sum())
        noise, found = streams.on_device("masking/noise"), torch.ones_like(y, dtype=torch.bool)
        for _ in range(20):
            moved = x + EPSILON * (2 * torch.rand(x.shape, generator=noise, device=x.device) - 1)
            found &= logits_of(classifier, moved.clamp_(0, 1)).argmax(1) == y
        by_noise = int(found.sum())
        bounded = (
            f"epsilon 8/255: {100 * by_pgd / n:.1f} % of {n} images stay right under PGD-20, "
            f"{100 * by_noise / n:.1f} % at 20 random points"
        )
        if 100 * (by_pgd - by_noise) / n > tolerated(n):
            raise SanityError(f"{bounded}: chance finds more than the attack, {MASKING}")
        return [unbounded, bounded]


@global_generators_kept()
def check_attack(
    classifier: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0, limit: int = 64, most: int = 256
) -> None:
    """Raise if PGD's robust accuracy would say nothing: `masking_evidence`, or too few images have a gradient.

    Both are quick. The cross entropy has no gradient where, for example, logits are so far apart that the softmax
    rounds to 1. This is counted among up to `most` correctly classified images; two, or `FLAT` of them, may have none.

    Args:
        classifier, images, labels, seed, limit: as for `masking_evidence`.
        most: maximum number of images whose gradient is computed, 1 or more.

    Raises:
        ValueError, RuntimeError: as `masking_evidence`.
        SanityError: with the values.
    """
    masking_evidence(classifier, images, labels, seed=seed, limit=limit)
    with held(classifier):
        x, y, correct = _chosen(classifier, images, labels, most)
        gradient = gradient_of(classifier, x, y, partial(F.cross_entropy, reduction="none"))
        flat = int((correct & (gradient.flatten(1).abs().amax(1) == 0)).sum())
    # two images are tolerated, as elsewhere
    if flat > max(2, FLAT * (total := int(correct.sum()))):
        raise SanityError(f"the cross entropy of {flat} of {total} images has no gradient: PGD cannot move them")


def _chosen(classifier: nn.Module, images: Tensor, labels: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose images from the whole set, correct ones first: images in [0, 1], labels and whether they are correct."""
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0 or limit < 1:
        got = f"{images.dtype} {tuple(images.shape)} and limit is {limit}"
        raise ValueError(f"images are {got}: expected uint8 (n, 3, H, W) with n >= 1, and a limit of 1 or more")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}: expected int64 ({len(images)},)")
    rows = torch.linspace(0, len(images) - 1, min(len(images), 4 * limit)).long()
    images, labels = images[rows], labels[rows]
    check_images(images, "the images of the check")
    device = device_of(classifier)
    x, y = as_float(images.to(device)), labels.to(device)
    logits = torch.cat([logits_of(classifier, piece) for piece in x.split(limit)])
    if not torch.equal(x, as_float(images.to(device))):
        raise SanityError(
            "the classifier changes the images that it is given: expected a forward that works on a copy, x = x - 0.5 "
            "and not x.sub_(0.5)"
        )
    right = logits.argmax(1) == y
    first = torch.argsort(right.logical_not().byte(), stable=True)[:limit]
    return x[first], y[first], right[first]


def _check_kind(logits: Tensor, labels: Tensor) -> list[str]:
    classes, low, high = logits.shape[1], int(labels.min()), int(labels.max())
    if classes < 2 or low < 0 or high >= classes:
        raise SanityError(f"the classifier has {classes} logits, but the labels are in {low}..{high}")
    if logits.dtype not in (torch.float32, torch.float64):
        raise SanityError(
            f"the classifier gives logits in {logits.dtype}, which rounds away what attacks go by: return them in "
            "float32, and leave autocast off for an evaluation"
        )
    if not bool(((logits >= 0) & (logits <= 1)).all()):
        return []
    sums = logits.sum(1)
    if bool(((sums - 1).abs() < 1e-3).all()):
        raise SanityError(
            f"the classifier gives probabilities: all {logits.numel()} outputs are in [0, 1], and the sums of the "
            f"{len(logits)} rows in [{float(sums.min()):.4f}, {float(sums.max()):.4f}]; their cross entropy is nearly "
            "flat, so hand over the logits, before the softmax"
        )
    return [
        f"all {logits.numel()} outputs are in [0, 1], as if they were a sigmoid's: if so, hand over the logits before "
        "it, since attacks on the cross entropy are weak on these"
    ]


def _check_equal(logits: Tensor, again: Tensor, when: str) -> None:
    """Raise unless logits are equal; on a GPU sums may be in another order."""
    difference = float((again - logits).abs().max())
    if difference > (0 if logits.device.type == "cpu" else 1e-4 * logit_spread(logits)):
        raise SanityError(f"the logits of the same images differ by up to {difference:g} {when}")


def _check_repeats(classifier: nn.Module, x: Tensor, logits: Tensor, streams: Streams) -> None:
    cuda = x.device.type == "cuda"

    def state() -> list[Tensor]:
        return [torch.random.get_rng_state(), *([torch.cuda.get_rng_state(x.device)] if cuda else [])]

    _check_equal(logits, logits_of(classifier, x), "from one pass to the next: the classifier is random")
    # a new state, since a pass that seeds the generator itself would leave the same state each time
    torch.random.set_rng_state(streams["masking/state"].get_state())
    if cuda:
        torch.cuda.set_rng_state(streams.on_device("masking/state").get_state(), x.device)
    before = state()
    _check_equal(logits, logits_of(classifier, x), "with the global generator's state: the classifier is random")
    if not all(map(torch.equal, before, state())):
        raise SanityError("the classifier draws from torch's global generator, or seeds it: it is random")


def _check_alone(classifier: nn.Module, x: Tensor, logits: Tensor) -> list[str]:
    """Check batches in reverse order (which detects random numbers by position), in halves, and some images alone."""
    n, scale, limit = len(x), logit_spread(logits), _rounding(classifier, x.device)
    orders = [
        torch.arange(n).flip(0),
        torch.arange(0, n, 2),
        torch.arange(1, n, 2),
        *torch.arange(min(n, _ALONE)).split(1),
    ]
    worst = torch.zeros(n, device=x.device, dtype=logits.dtype)
    for order in filter(len, orders):
        rows = order.to(x.device)
        moved = (logits_of(classifier, x[rows]) - logits[rows]).abs().amax(1) / scale
        worst[rows] = torch.maximum(worst[rows], moved)
    dependent = (worst > limit).nonzero().flatten().tolist()
    # logits may jump, for example, in a vote of nearest neighbors at distances that rounding makes equal
    fickle = [row for row in dependent if _jumps(classifier, x[row : row + 1], scale, float(worst[row]) / 8)]
    notes = []
    if fickle:
        notes.append(
            f"the logits of {len(fickle)} of {n} images change by up to {100 * float(worst[fickle].max()):.1f} % of "
            "the logits' spread with the rest of their batch, but they also jump when their pixels move by 1e-2 or "
            "less: rounding decides them"
        )
    if left := [row for row in dependent if row not in fickle]:
        figures = (
            f"the logits of {len(left)} of {n} images depend on the rest of their batch, by up to "
            f"{100 * float(worst[left].max()):.1f} % of the logits' spread: is batch norm in train mode, or is there "
            "noise?"
        )
        if telling(len(left), n, 1 / 20):
            raise SanityError(figures)
        notes.append(figures)
    return notes


def _jumps(classifier: nn.Module, image: Tensor, scale: float, least: float) -> bool:
    """Whether the logits of a single image (1, 3, H, W) jump by `least` times `scale` when it moves by `_MOVES`."""
    logits = logits_of(classifier, image)
    for size in _MOVES:
        moved = logits_of(classifier, (image + size * (0.5 - image)).clamp(0, 1))
        if float((moved - logits).abs().max()) / scale > max(least, _SMOOTH * abs(size)):
            return True
    return False


def _rounding(classifier: nn.Module, device: torch.device) -> float:
    """Largest change of logits, relative to their spread, when sums are computed in another order."""
    networks = (part for part in classifier.modules() if isinstance(part, TargetNetwork))
    low = (torch.float16, torch.bfloat16)
    if any(part.precision != "fp32" for part in networks) or any(one.dtype in low for one in classifier.parameters()):
        return ROUNDING_LOW
    return 1e-2 if convolves_in_tf32(device) else 1e-3
