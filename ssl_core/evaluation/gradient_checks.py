"""Checks of a classifier's gradients: finite, not zero, and equal to the change of its logits when images move.

Sources: Athalye et al. 2018, "Obfuscated gradients give a false sense of security", section 3.1; Carlini et al. 2019,
"On evaluating adversarial robustness", section 5. `masking` checks what else an attack needs.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_gym.ssl_core.evaluation.robustness import logits_of
from astra_gym.ssl_core.evaluation.sanity import MASKING, SanityError
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.utils.rng import Streams

EPSILON = 8 / 255
TURNED = 0.7
"""Smallest accepted cosine with the exact gradient. In bfloat16 its median is 0.99."""
DISAGREES = 0.1
"""Largest accepted relative error of a derivative; for ReLU, max-pooling and kNN at most 0.07 on 90 % of images."""
HIDDEN = 0.5
"""Rounding above this, relative to the derivative, hides the derivative."""
ROUNDING_LOW = 5e-2
"""Largest change of logits by bfloat16, relative to their spread."""
STEPS = (1e-7, 1e-5, 1e-4, 1e-3, 4e-3)
"""Half-widths of the central differences, as fractions of the pixels' range; for each image the best one counts.

Small ones cross no kink of a ReLU or max-pooling network and no jump of a kNN vote. Large ones exceed the rounding of
float32, for which the first is too small.
"""
FEW = 8
"""Minimum number of images of which a share is evidence."""
_DIRECTIONS = 2
_POINTS = 3
_NUDGE = 1e-3
"""Distance of the points where rounding is estimated: enough for a new rounding in bfloat16."""

Objective = Callable[[Tensor, Tensor], Tensor]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Label's logit minus the largest other: (n, classes), (n,) -> (n,); positive if classified correctly."""
    label = labels[:, None]
    return (logits.gather(1, label) - logits.scatter(1, label, -torch.inf).amax(1, keepdim=True)).squeeze(1)


def logit_spread(logits: Tensor) -> float:
    """Median over images of largest minus median logit: a class masked with -1e9 does not change it."""
    return float((logits.amax(1) - logits.median(1).values).median()) or 1.0


def telling(count: int, n: int, share: float) -> bool:
    """Whether `count` of n images is evidence: more than two and more than `share`, with n at least `FEW`."""
    return n >= FEW and count > max(2, share * n)


def check_gradients(
    classifier: nn.Module, x: Tensor, y: Tensor, correct: Tensor, streams: Streams, *, sign_attacks: bool = True
) -> list[str]:
    """Raise if gradients would mislead an attack, by the criteria of `evaluation.masking.check_classifier`.

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> float logits (n, classes), in eval mode.
        x: images (n, 3, H, W) in [0, 1], on the classifier's device.
        y: their labels, int64 (n,).
        correct: bool (n,), which are classified correctly; saturation and zeros are counted among these, or among all
            if there are none.
        streams: random streams of the points and directions.
        sign_attacks: whether PGD or FGSM on the cross entropy will be run, which saturation would invalidate.

    Returns:
        Notes, plain sentences.

    Raises:
        SanityError: with the values.
    """
    draw = streams["masking/start"]
    start = (x + EPSILON * (2 * torch.rand(x.shape, generator=draw) - 1).to(x.device)).clamp_(0, 1)
    # inside [0, 1], so that the differences stay there too, since a classifier may clip its input
    inset = 2 * max(STEPS)
    start = start * (1 - 2 * inset) + inset
    logits = logits_of(classifier, start)
    gradient = gradient_of(classifier, start, y, margin)
    if broken := int((~gradient.flatten(1).isfinite().all(1)).sum()):
        raise SanityError(f"the gradients of {broken} of {len(x)} images are not finite")
    notes = []
    asked = correct if bool(correct.any()) else torch.ones_like(correct)
    total, zero = int(asked.sum()), gradient.flatten(1).abs().amax(1) == 0
    flat = int((zero & asked).sum())
    figures = f"the margin's gradient is zero for {flat} of {total} images, which no attack by gradients can move"
    # two images are tolerated, as in `sanity.check_rows`
    if flat > 2:
        raise SanityError(f"{figures}: {MASKING}")
    if flat:
        notes.append(figures)
    notes += _check_differences(classifier, start, y, gradient, logits, streams)
    return notes + _saturation(classifier, start, y, asked, zero, logits, sign_attacks)


def gradient_of(classifier: nn.Module, x: Tensor, y: Tensor, objective: Objective) -> Tensor:
    """Return the gradient of the objective's sum with respect to images (n, 3, H, W).

    Raises:
        SanityError: if the logits are detached.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = objective(classifier(x), y).sum()
        gradient = torch.autograd.grad(value, x, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        raise SanityError(f"the logits carry no gradient to the images: they were detached, {MASKING}")
    return gradient


def _check_differences(
    classifier: nn.Module, x: Tensor, y: Tensor, gradient: Tensor, logits: Tensor, streams: Streams
) -> list[str]:
    n = len(x)
    exact, reason, differs = _in_double(classifier, x, logits)
    model = exact or classifier
    notes = [] if exact else [f"the gradients' central differences are taken in float32, since {reason}"]
    wide = x.double() if exact else x

    def signs(name: str, count: int) -> list[Tensor]:
        return list(torch.randint(2, (count, *x.shape), generator=streams[name]).mul_(2).sub_(1).to(wide))

    # without float64, rounding is estimated by how the same comparison varies between nearby points
    points = [wide] if exact else [wide + _NUDGE * nudge for nudge in signs("masking/points", _POINTS)]
    slopes = torch.stack([gradient_of(model, point, y, margin) for point in points])
    # attacks use the classifier, not the copy; bfloat16 turns a gradient by far less than a right angle
    if exact:
        cosines = F.cosine_similarity(slopes[0].flatten(1), gradient.to(slopes).flatten(1))
        turned = int((cosines < TURNED).sum())
        figures = (
            f"the gradients of {turned} of {n} images point elsewhere than those of a copy in float64: the cosine is "
            f"{float(cosines.median()):.2f} in the median, {MASKING}"
        )
        notes += _verdict(figures, turned, n)
    # along random signs the derivative is of the size of the gradient's norm, but may be near zero for some
    floor = 0.1 * slopes.flatten(2).norm(dim=2).mean(0)
    errors = []
    for step in STEPS if exact else STEPS[1:]:
        by_direction = []
        for direction in (slopes[0].sign(), *signs(f"masking/direction/{step!r}", _DIRECTIONS)):
            move = step * direction
            change = [margin(logits_of(model, at + move), y) - margin(logits_of(model, at - move), y) for at in points]
            expected, measured = (slopes * direction).flatten(2).sum(2), torch.stack(change) / (2 * step)
            scale = torch.maximum(torch.maximum(expected.mean(0).abs(), measured.mean(0).abs()), floor)
            difference = expected - measured
            noise = difference.amax(0) - difference.amin(0)  # 0 for a single point
            error = ((difference.mean(0).abs() - noise).clamp(min=0) / scale).nan_to_num(0)  # 0 / 0: known to be flat
            by_direction.append(error.masked_fill(noise > HIDDEN * scale, torch.nan))
        # along the sign the derivative is largest, so if rounding hides this one, it hides all
        worst = torch.stack(by_direction).nan_to_num(0).amax(0)
        errors.append(worst.masked_fill(by_direction[0].isnan(), torch.inf))
    best = torch.stack(errors).amin(0)
    seen = best.isfinite()
    if hidden := int((~seen).sum()):
        notes.append(f"rounding hides the derivatives of {hidden} of {n} images, so nothing can be said about them")
    off = int((best[seen] > DISAGREES).sum())
    figures = (
        f"the gradients of {off} of {n} images differ from central differences by more than {100 * DISAGREES:g} % "
        f"({100 * float(best.median()):.1f} % in the median), {MASKING}: is something rounded, clipped, detached or "
        "rescaled?"
    )
    # votes that depend on rounding jump at larger steps, and the slope between the jumps cannot be measured
    if differs:
        return notes + [figures] * (off > n / 3)
    return notes + _verdict(figures, off, n)


def _verdict(figures: str, count: int, n: int) -> list[str]:
    """Raise if more than half of the images, and so the median, are at fault; note more than a third."""
    if telling(count, n, 1 / 2):
        raise SanityError(figures)
    return [figures] if count > n / 3 else []


def _in_double(classifier: nn.Module, x: Tensor, logits: Tensor) -> tuple[nn.Module | None, str, bool]:
    """Copy the classifier to float64; return the copy or None, why not, and whether it runs but gives other logits."""
    try:
        model = copy.deepcopy(classifier).double()
        for network in (part for part in model.modules() if isinstance(part, TargetNetwork)):
            network.precision = "fp32"  # no autocast and no rounding to float32
        found = logits_of(model, x.double())
    # the user's code may refuse a copy or float64 with any error, even an assert
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        return None, f"a copy does not run in float64 ({type(error).__name__}: {first[:100]})", False
    if found.dtype != torch.float64:
        return None, f"a copy in float64 gives logits in {found.dtype}", False
    difference = float(((found - logits).abs().amax(1) / logit_spread(logits)).median())
    if difference > ROUNDING_LOW:
        return None, f"a copy in float64 gives logits that differ by {100 * difference:.1f} % of their spread", True
    return model, "", False


def _saturation(
    classifier: nn.Module, x: Tensor, y: Tensor, asked: Tensor, zero: Tensor, logits: Tensor, sign_attacks: bool
) -> list[str]:
    """Check the cross entropy for saturation; its derivative in the label's logit is the softmax minus 1."""
    saturated = asked & (logits.softmax(1).gather(1, y[:, None]).squeeze(1) == 1)
    if not bool(saturated.any()):
        return []
    gradient = gradient_of(classifier, x, y, lambda z, labels: F.cross_entropy(z, labels, reduction="none"))
    lost = int((asked & ~zero & (gradient.flatten(1).abs().amax(1) == 0)).sum())
    total = int(asked.sum())
    figures = (
        f"the softmax of {int(saturated.sum())} of {total} images rounds to 1 (median margin "
        f"{float(margin(logits, y)[asked].median()):.1f}): there PGD on the cross entropy has a part of the gradient "
        f"only, and for {lost} none, though the margin has one; AutoAttack's targeted attack does not depend on the "
        "logits' scale"
    )
    if sign_attacks and telling(lost, total, 1 / 2):
        raise SanityError(f"{figures}; the figures of PGD would be void")
    return [figures]
