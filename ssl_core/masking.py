"""Whether a classifier can be attacked at all: what would make an attack by gradients fail, and evidence that it works.

Sources: Athalye et al. 2018, "Obfuscated gradients give a false sense of security", section 3.1; Carlini et al. 2019,
"On evaluating adversarial robustness", section 5; Croce & Hein 2020 (AutoAttack), whose checks warn of randomness and
of zero gradients.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.attacks import Budget, pgd
from ssl_core.fingerprints import fingerprint
from ssl_core.networks import TargetNetwork
from ssl_core.results import Row, wilson_interval
from ssl_core.rng import Streams
from ssl_core.sanity import MASKING, SanityError, check_frozen, check_images, square_drops, tolerated
from ssl_core.views import as_float

EPSILON = 8 / 255
UNBOUNDED = 128 / 255
"""From any image this reaches uniform grey, on which no classifier can be better than chance."""
TURNED = 0.7
"""A cosine. In bfloat16 gradients have 0.99 in the median with the exact ones."""
DISAGREES = 0.1
"""In parts of a derivative. ReLU, max-pooling and kNN networks have at most 0.07 for nine images of ten."""
ROUNDING_LOW = 5e-2
"""How far bfloat16 may move logits, in parts of their spread."""
STEPS = (1e-5, 1e-4, 1e-3, 4e-3)
"""Half-widths of the central differences, as fractions of the pixels' range: the best of them counts for each image.

Small ones cross no kink of a ReLU or max-pooling network, large ones stand above the rounding of float32.
"""
_DIRECTIONS = 2
_ALONE = 8

Objective = Callable[[Tensor, Tensor], Tensor]


def check_classifier(
    classifier: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0, limit: int = 64
) -> list[str]:
    """Raise where attacks on a classifier would say nothing about it.

    Tried on up to `limit` images, correctly classified ones first, which are the ones that get attacked:

    - it is in eval mode, and its logits are finite, (n, classes), and not probabilities: of these the cross entropy is
      nearly flat (log-probabilities are fine, since their softmax is the probabilities);
    - it is not random: equal logits, on the CPU bit for bit, whatever the state of torch's global generator, of which
      it takes nothing;
    - an image's logits do not depend on the rest of its batch;
    - it does not change itself;
    - the gradient of the margin (the label's logit less the largest other) is finite, is zero for at most two images,
      since each of those counts as robust whatever it is, and agrees with central differences along its sign and along
      random directions, which see what the gradient leaves out. Of three images one may disagree. It is taken where
      PGD begins, at a random point within 8/255, with all pixels a little inside [0, 1].

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes).
        images: uint8 (n, 3, H, W).
        labels: int64 (n,).
        seed: of the random points and directions.
        limit: how many images are tried at most.

    Returns:
        Notes: images without a gradient, saturation (the softmax rounds to 1, so that the cross entropy's gradient
        loses a part or all), differences that had to be taken in float32.

    Raises:
        ValueError: if images or labels are not as above.
        SanityError: with the figures.
    """
    if training := [name or "itself" for name, module in classifier.named_modules() if module.training]:
        raise SanityError(f"the classifier is in train mode ({', '.join(training[:3])}): call its eval() first")
    device = _device(classifier)
    streams = Streams(seed, device)
    before = fingerprint(classifier)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        x, y, correct = _chosen(classifier, images, labels, limit)
        logits = _logits(classifier, x)
        _check_kind(logits, labels)
        _check_repeats(classifier, x, logits, streams)
        _check_alone(classifier, x, logits)
        notes = [] if bool(correct.any()) else [f"none of the {len(x)} images tried is classified correctly"]
        notes += _check_gradients(classifier, x, y, correct, streams)
        check_frozen(before, fingerprint(classifier), "while it was checked", "classifier")
        if training := [name or "itself" for name, module in classifier.named_modules() if module.training]:
            raise SanityError(f"the classifier went to train mode by itself ({', '.join(training[:3])})")
        _check_equal(logits, _logits(classifier, x), "after its gradients were taken: it changes itself")
    return notes


def masking_evidence(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    rows: Sequence[Row] = (),
    *,
    seed: int = 0,
    limit: int = 64,
    steps: int = 40,
) -> list[str]:
    """Raise where PGD on the cross entropy fails though it cannot, on up to `limit` correctly classified images.

    With epsilon 128/255 every image can be made uniformly grey, so that no more images stay right than there are of one
    class. With 8/255, random points of the ball, as many as PGD takes steps, must not find more than PGD-20.

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes), in eval mode.
        images: uint8 (n, 3, H, W).
        labels: int64 (n,).
        rows: the classifier's robust accuracies, with AutoAttack's stages.
        seed: of the random starts.
        limit: how many images are attacked at most.
        steps: of the attack with epsilon 128/255.

    Returns:
        The figures of both tests, as sentences, and one for every drop by Square, which needs no gradients, below what
        the attacks by gradients had left, where it is more than two images or half a point.

    Raises:
        ValueError: if images or labels are not as above.
        SanityError: if more images stay right under 128/255 than chance explains (the lower end of the 95 % interval is
            above the share of the commonest class), or random points find more than PGD by more than two images or
            half a point.
    """
    notes = square_drops(rows)
    streams = Streams(seed, _device(classifier))
    x, y, correct = _chosen(classifier, images, labels, limit)
    if not bool(correct.any()):
        return [*notes, f"none of the {len(x)} images tried is classified correctly: there is nothing to attack"]
    x, y = x[correct], y[correct]
    n = len(x)

    def stay_right(epsilon: float, step_size: float, steps: int) -> Tensor:
        attacked = pgd(
            lambda moved, _: classifier(moved),
            lambda logits: F.cross_entropy(logits, y, reduction="none"),
            x,
            Budget.uniform(n, epsilon, step_size, steps, x.device),
            generator=streams.on_device(f"masking/pgd/{epsilon!r}"),
        )
        return attacked.embeddings.argmax(1) == y

    left = int(stay_right(UNBOUNDED, 2.5 * UNBOUNDED / steps, steps).sum())
    chance = float(y.bincount().max()) / n
    unbounded = f"PGD with epsilon 128/255, {steps} steps: {100 * left / n:.1f} % of {n} images stay right"
    if wilson_interval(left, n)[0] > 100 * chance:
        raise SanityError(
            f"{unbounded}, but no more than {100 * chance:.1f} %, the share of the commonest class, can withstand an "
            f"attack that may erase the image: the attack fails, {MASKING}"
        )
    by_pgd = int(stay_right(EPSILON, 2 / 255, 20).sum())
    noise, found = streams.on_device("masking/noise"), torch.ones_like(y, dtype=torch.bool)
    for _ in range(20):
        moved = x + EPSILON * (2 * torch.rand(x.shape, generator=noise, device=x.device) - 1)
        found &= _logits(classifier, moved.clamp_(0, 1)).argmax(1) == y
    by_noise = int(found.sum())
    bounded = (
        f"epsilon 8/255: {100 * by_pgd / n:.1f} % of {n} images stay right under PGD-20, {100 * by_noise / n:.1f} % at "
        "20 random points"
    )
    if 100 * (by_pgd - by_noise) / n > tolerated(n):
        raise SanityError(f"{bounded}: chance finds more than the attack, {MASKING}")
    return [*notes, unbounded, bounded]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit less the largest other one: (n, classes), (n,) -> (n,); positive where the image is right."""
    label = labels[:, None]
    return (logits.gather(1, label) - logits.scatter(1, label, -torch.inf).amax(1, keepdim=True)).squeeze(1)


def _device(classifier: nn.Module) -> torch.device:
    return next((tensor.device for tensor in chain(classifier.parameters(), classifier.buffers())), torch.device("cpu"))


def _chosen(classifier: nn.Module, images: Tensor, labels: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images in [0, 1], labels and whether they are right, from the whole length of the set, the right ones first."""
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0 or limit < 1:
        got = f"{images.dtype} {tuple(images.shape)} and limit is {limit}"
        raise ValueError(f"images are {got}: expected uint8 (n, 3, H, W) with n >= 1, and a limit of 1 or more")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}: expected int64 ({len(images)},)")
    rows = torch.linspace(0, len(images) - 1, min(len(images), 4 * limit)).long()
    images, labels = images[rows], labels[rows]
    check_images(images, "the images of the check")
    device = _device(classifier)
    x, y = as_float(images.to(device)), labels.to(device)
    logits = torch.cat([_logits(classifier, piece) for piece in x.split(limit)])
    right = logits.argmax(1) == y
    first = torch.argsort(right.logical_not().byte(), stable=True)[:limit]
    return x[first], y[first], right[first]


@torch.no_grad()
def _logits(classifier: nn.Module, x: Tensor) -> Tensor:
    logits = classifier(x)
    if logits.ndim != 2 or len(logits) != len(x) or not bool(logits.isfinite().all()):
        raise SanityError(
            f"the classifier gave {tuple(logits.shape)} logits with {int((~logits.isfinite()).sum())} that are not "
            f"finite: expected finite ones ({len(x)}, classes)"
        )
    return logits


def _check_kind(logits: Tensor, labels: Tensor) -> None:
    classes, low, high = logits.shape[1], int(labels.min()), int(labels.max())
    if classes < 2 or low < 0 or high >= classes:
        raise SanityError(f"the classifier has {classes} logits, but the labels are in {low}..{high}")
    sums = logits.sum(1)
    if bool(((logits >= 0) & (logits <= 1)).all()) and bool(((sums - 1).abs() < 1e-3).all()):
        raise SanityError(
            f"the classifier gives probabilities: all {logits.numel()} outputs are in [0, 1], and the sums of the "
            f"{len(logits)} rows in [{float(sums.min()):.4f}, {float(sums.max()):.4f}]; their cross entropy is nearly "
            "flat, so hand over the logits, before the softmax"
        )


def _spread(logits: Tensor) -> float:
    return float((logits.amax(1) - logits.amin(1)).median()) or 1.0


def _check_equal(logits: Tensor, again: Tensor, when: str) -> None:
    """On a GPU sums may be in another order."""
    difference = float((again - logits).abs().max())
    if difference > (0 if logits.device.type == "cpu" else 1e-4 * _spread(logits)):
        raise SanityError(f"the logits of the same images differ by up to {difference:g} {when}")


def _check_repeats(classifier: nn.Module, x: Tensor, logits: Tensor, streams: Streams) -> None:
    cuda = x.device.type == "cuda"

    def state() -> list[Tensor]:
        return [torch.random.get_rng_state(), *([torch.cuda.get_rng_state(x.device)] if cuda else [])]

    _check_equal(logits, _logits(classifier, x), "from one pass to the next: the classifier is random")
    # a state that no pass has seen: after a pass that seeds the generator itself it would be the same each time
    torch.random.set_rng_state(streams["masking/state"].get_state())
    if cuda:
        torch.cuda.set_rng_state(streams.on_device("masking/state").get_state(), x.device)
    before = state()
    _check_equal(logits, _logits(classifier, x), "with the global generator's state: the classifier is random")
    if not all(map(torch.equal, before, state())):
        raise SanityError("the classifier draws from torch's global generator, or seeds it: it is random")


def _check_alone(classifier: nn.Module, x: Tensor, logits: Tensor) -> None:
    """Reversed, which a random number for each position does not survive; by halves; some one by one."""
    n, spread = len(x), _spread(logits)
    orders = [
        torch.arange(n).flip(0),
        torch.arange(0, n, 2),
        torch.arange(1, n, 2),
        *torch.arange(min(n, _ALONE)).split(1),
    ]
    worst = torch.zeros(n, device=x.device)
    for order in filter(len, orders):
        rows = order.to(x.device)
        worst[rows] = torch.maximum(worst[rows], (_logits(classifier, x[rows]) - logits[rows]).abs().amax(1) / spread)
    dependent = int((worst > _rounding(classifier, x.device)).sum())
    # a neighbour of a kNN classifier may change by rounding
    if dependent > n / 20:
        raise SanityError(
            f"the logits of {dependent} of {n} images depend on the rest of their batch, by up to "
            f"{100 * float(worst.max()):.1f} % of the logits' spread: is batch norm in train mode, or is there noise?"
        )


def _rounding(classifier: nn.Module, device: torch.device) -> float:
    """How far an image's logits may move, in parts of their spread, when the sums in it are done in another order."""
    networks = (part for part in classifier.modules() if isinstance(part, TargetNetwork))
    low = (torch.float16, torch.bfloat16)
    if any(part.precision != "fp32" for part in networks) or any(one.dtype in low for one in classifier.parameters()):
        return ROUNDING_LOW
    return 1e-3 if device.type == "cpu" else 1e-2  # a GPU's convolutions round to TF32


def _check_gradients(classifier: nn.Module, x: Tensor, y: Tensor, correct: Tensor, streams: Streams) -> list[str]:
    draw = streams["masking/start"]
    start = (x + EPSILON * (2 * torch.rand(x.shape, generator=draw) - 1).to(x.device)).clamp_(0, 1)
    # inside [0, 1], so that the differences stay there too: a classifier may clip its input
    inset = 2 * max(STEPS)
    start = start * (1 - 2 * inset) + inset
    logits = _logits(classifier, start)
    gradient = _gradient(classifier, start, y, margin)
    if broken := int((~gradient.flatten(1).isfinite().all(1)).sum()):
        raise SanityError(f"the gradients of {broken} of {len(x)} images are not finite")
    notes = []
    asked = correct if bool(correct.any()) else torch.ones_like(correct)
    total, zero = int(asked.sum()), gradient.flatten(1).abs().amax(1) == 0
    flat = int((zero & asked).sum())
    figures = f"the margin's gradient is zero for {flat} of {total} images, which no attack by gradients can move"
    # on 64 images as between rows: two; of fewer than four images not all that there are
    if flat > min(2, total // 2):
        raise SanityError(f"{figures}: {MASKING}")
    if flat:
        notes.append(figures)
    notes += _check_differences(classifier, start, y, gradient, logits, streams)
    return notes + _saturation(classifier, start, y, asked, zero, logits)


def _gradient(classifier: nn.Module, x: Tensor, y: Tensor, objective: Objective) -> Tensor:
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
    exact, reason = _in_double(classifier, x, logits)
    model = exact or classifier
    notes = [] if exact else [f"the gradients' central differences are taken in float32, since {reason}"]
    wide = x.double() if exact else x
    slope = _gradient(model, wide, y, margin)
    # what is attacked is not the copy; rounding in bfloat16 turns a gradient by far less than a right angle
    cosines = F.cosine_similarity(slope.flatten(1), gradient.to(slope).flatten(1))
    if (turned := int((cosines < TURNED).sum())) > len(x) / 3:
        raise SanityError(
            f"the gradients of {turned} of {len(x)} images point elsewhere than those of a copy in float64: the cosine "
            f"is {float(cosines.median()):.2f} in the median, {MASKING}"
        )
    signs = torch.randint(2, (_DIRECTIONS, *x.shape), generator=streams["masking/direction"]).mul_(2).sub_(1)
    directions = [slope.sign(), *signs.to(wide)]
    # along random signs the derivative is of the size of the gradient's norm, but may be near zero for some
    floor = 0.1 * slope.flatten(1).norm(dim=1)
    errors = []
    for step in STEPS:
        by_direction = []
        for direction in directions:
            move = step * direction
            change = margin(_logits(model, wide + move), y) - margin(_logits(model, wide - move), y)
            expected, measured = (slope * direction).flatten(1).sum(1), change / (2 * step)
            scale = torch.maximum(torch.maximum(expected.abs(), measured.abs()), floor)
            by_direction.append(((expected - measured).abs() / scale).nan_to_num(0))  # 0 / 0: flat, and known to be
        errors.append(torch.stack(by_direction).amax(0))
    best = torch.stack(errors).amin(0)
    off = int((best > DISAGREES).sum())
    if off > len(x) / 3:
        raise SanityError(
            f"the gradients of {off} of {len(x)} images differ from central differences by more than "
            f"{100 * DISAGREES:g} % ({100 * float(best.median()):.1f} % in the median), {MASKING}: is something "
            "rounded, clipped, detached or rescaled?"
        )
    return notes


def _in_double(classifier: nn.Module, x: Tensor, logits: Tensor) -> tuple[nn.Module | None, str]:
    """A copy that computes the same in float64, or None and why not."""
    try:
        model = copy.deepcopy(classifier).double()
        for network in (part for part in model.modules() if isinstance(part, TargetNetwork)):
            network.precision = "fp32"  # which is to say, no autocast and no rounding to float32
        found = _logits(model, x.double())
    except (RuntimeError, TypeError, ValueError) as error:
        return None, f"a copy does not run in float64 ({str(error).splitlines()[0][:100]})"
    if found.dtype != torch.float64:
        return None, f"a copy in float64 gives logits in {found.dtype}"
    difference = float(((found - logits).abs().amax(1) / _spread(logits)).median())
    if difference > ROUNDING_LOW:
        return None, f"a copy in float64 gives logits that differ by {100 * difference:.1f} % of their spread"
    return model, ""


def _saturation(classifier: nn.Module, x: Tensor, y: Tensor, asked: Tensor, zero: Tensor, logits: Tensor) -> list[str]:
    """On the cross entropy, whose derivative by the label's logit is the softmax less 1."""
    saturated = asked & (logits.softmax(1).gather(1, y[:, None]).squeeze(1) == 1)
    if not bool(saturated.any()):
        return []
    gradient = _gradient(classifier, x, y, lambda z, labels: F.cross_entropy(z, labels, reduction="none"))
    lost = int((asked & ~zero & (gradient.flatten(1).abs().amax(1) == 0)).sum())
    total = int(asked.sum())
    figures = (
        f"the softmax of {int(saturated.sum())} of {total} images rounds to 1 (median margin "
        f"{float(margin(logits, y)[asked].median()):.1f}): there PGD on the cross entropy has a part of the gradient "
        f"only, and for {lost} none, though the margin has one; AutoAttack's targeted attack does not depend on the "
        "logits' scale"
    )
    if lost > total / 2:
        raise SanityError(f"{figures}; the figures of PGD would be void")
    return [figures]
