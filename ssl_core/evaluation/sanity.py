"""Sanity checks of an evaluation: whatever would invalidate its results is an error with the values.

Findings that are not errors are returned as notes, plain sentences with values. `masking` does the same for a
classifier and its gradients.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise

import torch
from torch import Tensor

from astra_gym.ssl_core.data.image_digests import ImageDigests, RunImages, digest_images, short_path
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.evaluation.results import Row, radius_text

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
"""AutoAttack's attacks in order; each row counts the images that are right after all attacks up to this one."""
STRENGTH = ("fgsm", "pgd20", "autoattack-quick", "autoattack")
"""Attacks from the weakest to the strongest."""
MASKING = "which is a sign of gradient masking"
_PIECE = 1000
_EXAMPLES = 3


class SanityError(RuntimeError):
    """Results are invalid: they contradict each other, or the data or the model are not what they seem."""


class TrainedOnError(SanityError):
    """Test images were used for training.

    Attributes:
        shared: names of these images, with those of the equal training images where known.
    """

    def __init__(self, message: str, shared: Sequence[str]) -> None:
        super().__init__(message)
        self.shared = shared


def tolerated(n: int) -> float:
    """Percentage points by which two attacks on the same n images may differ by chance: two images, or half a point."""
    return max(200 / n, 0.5)


def check_rows(rows: Sequence[Row]) -> list[str]:
    """Raise unless the rows of one classifier agree with each other.

    Compared are SA and RA without a condition, and only rows with the same number of images:

    - RA is never above SA and equals it at epsilon 0;
    - RA of an attack does not rise with epsilon, since a larger ball contains the smaller one;
    - `worst` is at most the RA of every attack of its norm and epsilon;
    - AutoAttack's stages are cumulative: each is at most the one before it, and the last equals `autoattack`;
    - a stronger attack leaves no more images right than a weaker one (`STRENGTH`; more restarts are stronger). A single
      step that beats twenty shows that the gradients mislead (Athalye et al. 2018, section 3.1).

    The second and the last check have a tolerance of two images or half a point, whichever is more, because a random
    start may move a few images either way.

    Args:
        rows: rows of one protocol, label fraction and checkpoint; metrics other than SA and RA are ignored.

    Returns:
        Sentences about violations within the tolerance and rows that could not be compared.

    Raises:
        ValueError: if SA and RA are of several classifiers.
        SanityError: with the values, if they contradict each other, or there is not exactly one SA.
    """
    rows = [row for row in rows if row.metric in ("SA", "RA") and not row.condition]
    origins = {
        (row.protocol, row.label_fraction, row.checkpoint, row.checkpoint_hash, row.dataset, row.route) for row in rows
    }
    if len(origins) > 1:
        found = "; ".join(" ".join(map(str, origin)) for origin in sorted(origins))
        raise ValueError(f"the rows are of {len(origins)} classifiers ({found}): check those of each one alone")
    clean = [row for row in rows if row.metric == "SA"]
    if len(clean) != 1:
        figures = ", ".join(f"{row.value:.2f} % of {row.n}" for row in clean)
        raise SanityError(f"there are {len(clean)} clean accuracies ({figures or 'none'}): expected one")
    robust = sorted((row for row in rows if row.metric == "RA"), key=lambda row: (row.norm, row.n, row.epsilon))
    _check_against_clean(clean[0], [row for row in robust if row.n == clean[0].n])
    notes = [
        f"{_figures(row)} is of {row.n} images and the clean accuracy of {clean[0].n}: they were not compared"
        for row in robust
        if row.n != clean[0].n
    ]
    # rows of one attack may have different deviations, such as PGD's step size at each epsilon; the worst case is left
    # out, since it may combine other attacks at each epsilon
    for attack in sorted({_attack(row)[:-1] for row in robust if row.attack != "worst"}):
        same = [row for row in robust if _attack(row)[:-1] == attack]
        notes += _falling(same, "rises with epsilon", "the attack fails")
    for _, group in groupby(robust, key=lambda row: (row.norm, row.n, row.epsilon)):
        notes += _check_attacks(list(group))
    return notes


def _figures(row: Row) -> str:
    restarts = f", {row.restarts} restarts" if row.restarts > 1 else ""
    radius = radius_text(row.norm, row.epsilon)
    return f"robust accuracy under {row.attack}{restarts} is {row.value:.2f} % at epsilon {radius}"


def _attack(row: Row) -> tuple[str, str, int, int, tuple[str, ...]]:
    return row.attack, row.norm, row.n, row.restarts, row.deviations


def _check_against_clean(clean: Row, robust: Sequence[Row]) -> None:
    for row in robust:
        if row.value > clean.value:
            raise SanityError(f"{_figures(row)}, above the clean accuracy of {clean.value:.2f} %")
        if row.epsilon == 0 and row.value != clean.value:
            raise SanityError(f"{_figures(row)}, but the clean accuracy is {clean.value:.2f} %")


def _falling(rows: Sequence[Row], fault: str, means: str) -> list[str]:
    """Check that values of rows of equal n do not rise: notes within the tolerance, a SanityError beyond it."""
    notes = []
    for index in range(1, len(rows)):
        # compared with the lowest value, not the previous one, since many small steps are a rise as well
        lowest, row = min(rows[:index], key=lambda one: one.value), rows[index]
        if row.value <= lowest.value:
            continue
        other = f"{lowest.value:.2f} % at {radius_text(lowest.norm, lowest.epsilon)}" + (
            f" under {lowest.attack}, {lowest.restarts} restarts" if _attack(lowest)[:-1] != _attack(row)[:-1] else ""
        )
        allowed = tolerated(row.n)
        figures = f"{_figures(row)}, but {other} (n = {row.n}, tolerance {allowed:.2f} points)"
        if row.value > lowest.value + allowed:
            raise SanityError(f"robust accuracy {fault}: {figures}; {means}, {MASKING}")
        notes.append(f"{figures}: within the tolerance")
    return notes


def _check_attacks(rows: Sequence[Row]) -> list[str]:
    """Compare the attacks of one norm, epsilon and n."""
    for one, other in pairwise(sorted(rows, key=_attack)):
        if _attack(one) == _attack(other) and one.value != other.value:
            raise SanityError(f"{_figures(one)} in one row and {other.value:.2f} % in another")
    for worst in (row for row in rows if row.attack == "worst"):
        for row in rows:
            if row.value < worst.value:
                raise SanityError(f"{_figures(worst)}, above an attack that it is the worst case of: {_figures(row)}")
    by_attack = {row.attack: row for row in rows}
    stages = [by_attack[name] for name in (*STAGES, "autoattack") if name in by_attack]
    for before, after in pairwise(stages):
        if after.value > before.value:
            raise SanityError(f"AutoAttack's attacks are cumulative, but {_figures(after)}, after {_figures(before)}")
    if {"square", "autoattack"} <= by_attack.keys() and by_attack["square"].value != by_attack["autoattack"].value:
        last, whole = by_attack["square"], by_attack["autoattack"]
        raise SanityError(f"AutoAttack ends with Square, but {_figures(whole)} and {_figures(last)}")
    chain = [row for row in rows if row.attack in STRENGTH]
    # value is the last key, since rows of one attack with different deviations have no order of strength
    chain.sort(key=lambda row: (STRENGTH.index(row.attack), row.restarts, -row.value))
    return _falling(chain, "is higher under the stronger attack", "the stronger attack fails")


def square_drops(rows: Sequence[Row]) -> list[str]:
    """Note each drop by Square, which needs no gradients, that is larger than `tolerated`: a sign of gradient masking.

    The drop is from the accuracy after the attacks with gradients.
    """
    left = {(row.norm, row.epsilon, row.n): row.value for row in rows if row.attack == "fab-t" and not row.condition}
    notes = []
    for row in (row for row in rows if row.attack == "square" and not row.condition):
        before = left.get((row.norm, row.epsilon, row.n), row.value)
        if before - row.value > tolerated(row.n):
            notes.append(
                f"{_figures(row)}, but {before:.2f} % were left by the attacks with gradients, which Square does not "
                f"need (n = {row.n}), {MASKING}"
            )
    return notes


def check_images(images: Tensor, what: str) -> None:
    """Raise unless images have the values that a classifier of this project expects.

    Args:
        images: float in [0, 1] or uint8, of any shape; a large mapped tensor is read in pieces.
        what: name of the images, for the message.

    Raises:
        ValueError: if they have another dtype, or there is no image.
        SanityError: if floats are not finite or outside [0, 1], all values are at most 1/128 (divided by 255 twice), or
            uint8 images have only 0 and 1 (floats in [0, 1] truncated to uint8).
    """
    if not (images.dtype == torch.uint8 or images.is_floating_point()) or images.numel() == 0:
        raise ValueError(f"{what}: images are {images.dtype} {tuple(images.shape)}, expected uint8 or floats, not none")
    extremes = [torch.aminmax(piece) for piece in images.split(_PIECE)]
    low = torch.stack([piece.min for piece in extremes]).min().item()
    high = torch.stack([piece.max for piece in extremes]).max().item()
    span = f"{what}: values span [{low:g}, {high:g}]"
    if images.dtype == torch.uint8:
        if high <= 1:
            raise SanityError(f"{span} of 0..255, as if floats in [0, 1] had been cut to uint8: multiply by 255 first")
    # a comparison with NaN is false; aminmax propagates NaN
    elif not (low >= 0 and high <= 1):
        advice = "remove what is not finite"
        if low >= 0 and high <= 255:
            advice = "these look like 0..255, so divide by 255 once"
        elif low > -float("inf") and high < float("inf"):
            advice = "normalization is a layer of the network, so leave it out of the images"
        raise SanityError(f"{span}, expected finite pixels in [0, 1]: {advice}")
    elif high <= 1 / 128:
        raise SanityError(f"{span}, almost black, as if pixels had been divided by 255 twice: divide once")


def check_disjoint(train: ImageSet, test: ImageSet, known: RunImages | None = None) -> list[str]:
    """Raise if the test set contains training images, pixel for pixel.

    Args:
        train, test: images of one size; mapped ones are read in pieces.
        known: digests of both, if known.

    Returns:
        A note on shared images, up to two or half a percent of the test set (none for image files: a user can correct a
        folder, but not a published test set), and one on images that the test set repeats, where every copy counts.

    Raises:
        ValueError: if the sizes differ.
        TrainedOnError: with the number and examples, if the sets share more.
    """
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = f"{tuple(train.images.shape[1:])} and {tuple(test.images.shape[1:])}"
        raise ValueError(f"{train.name} and {test.name} are of sizes {sizes}: expected one size")
    trained, tested = (known.train, known.test) if known else (digest_images(train), digest_images(test))
    first: dict[bytes, int] = {}
    copies = [(row, first[value]) for row, value in enumerate(tested) if first.setdefault(value, row) != row]
    rows: dict[bytes, int] = {}
    for row, value in enumerate(trained):
        if value in first:
            rows.setdefault(value, row)
    shared = [(row, rows[value]) for row, value in enumerate(tested) if value in rows]
    named = [f"{_called(test, one)} = {_called(train, other)}" for one, other in shared]
    where = f"are also among the {len(train)} of {train.name}"
    notes = _trained_on(test, named, where, "remove the copies, or keep them in one of the two sets")
    if copies:
        share = f"{len(copies)} of the {len(test)} images of {test.name} ({100 * len(copies) / len(test):.2f} %)"
        again = [f"{_called(test, one)} = {_called(test, other)}" for one, other in copies]
        notes.append(f"{share} repeat an earlier one of it: {_examples(test, again)}")
    return notes


def check_untrained(trained: ImageDigests, test: ImageSet, by: str) -> list[str]:
    """Raise if the test set contains images that an encoder was trained on.

    Args:
        trained: digests of the training images.
        test: images of the same size.
        by: the run that was trained on them, for the message: "the run small".

    Returns:
        A note if few images are shared, as from `check_disjoint`.

    Raises:
        ValueError: if the sizes differ.
        TrainedOnError: with the number and examples.
    """
    if not trained.values:
        return []
    tested = digest_images(test)
    if tested.shape != trained.shape:
        raise ValueError(f"{by} was trained on images of size {trained.shape}, {test.name} has {tested.shape}")
    seen = set(trained)
    named = [_called(test, row) for row, value in enumerate(tested) if value in seen]
    advice = (
        "restore the folder as it was then, or take them out of the test images" if test.paths else "test on others"
    )
    return _trained_on(test, named, f"were trained on by {by}", advice)


def _trained_on(test: ImageSet, named: Sequence[str], where: str, advice: str) -> list[str]:
    if not named:
        return []
    note = (
        f"{len(named)} of the {len(test)} images of {test.name} ({100 * len(named) / len(test):.2f} %) {where}: "
        f"{_examples(test, named)}"
    )
    if len(named) > (0 if test.paths else max(2, 0.005 * len(test))):
        raise TrainedOnError(f"{note}; test images were trained on: {advice}", named)
    return [note]


def _called(data: ImageSet, row: int) -> str:
    """Name of an image for a message: its file and folder, or its row."""
    return short_path(data.paths[row]) if data.paths else str(row)


def _examples(data: ImageSet, named: Iterable[str]) -> str:
    named = list(named)
    more = ", ..." if len(named) > _EXAMPLES else ""
    return f"{'' if data.paths else 'rows '}{', '.join(named[:_EXAMPLES])}{more}"


def check_frozen(before: Mapping[str, str], after: Mapping[str, str], when: str, what: str = "encoder") -> None:
    """Raise unless two fingerprints of a module (`astra_gym.ssl_core.utils.hashing.fingerprint`) are equal.

    Args:
        before, after: digests by name.
        when: event in between, for the message.
        what: name of the module, for the message.

    Raises:
        SanityError: with the names of the tensors that changed.
    """
    if changed := sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)):
        raise SanityError(
            f"the {what} was not frozen {when}: {len(changed)} of {len(before)} tensors changed "
            f"({', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}), so the result would be void"
        )
