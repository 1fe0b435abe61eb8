"""An evaluation that distrusts itself: whatever would make its figures void is an error with the figures."""

from collections.abc import Mapping, Sequence

from ssl_core.results import Row


class SanityError(RuntimeError):
    """The figures contradict one another, or what they were measured on is not what it seems: they are void."""


def check_rows(rows: Sequence[Row]) -> None:
    """Raise unless the rows of one classifier agree with one another.

    RA must not exceed SA and must equal it at epsilon 0. It must not rise with epsilon by more than two images or half
    a point, whichever is more: a larger ball holds the smaller one, so a rise shows that the attack fails (gradient
    masking), while a few images may go either way by the random start.

    Raises:
        SanityError: with the figures.
    """
    (clean,) = (row for row in rows if row.metric == "SA")
    tolerance = max(200 / clean.n, 0.5)
    lowest = clean
    for row in sorted((row for row in rows if row.metric == "RA"), key=lambda row: row.epsilon):
        figures = f"{row.value:.2f} % at epsilon {255 * row.epsilon:g}/255"
        if row.value > clean.value:
            raise SanityError(f"robust accuracy is {figures}, above the clean accuracy of {clean.value:.2f} %")
        if row.epsilon == 0 and row.value != clean.value:
            raise SanityError(f"robust accuracy is {figures}, but the clean accuracy is {clean.value:.2f} %")
        if row.value > lowest.value + tolerance:
            raise SanityError(
                f"robust accuracy rises with epsilon: it is {figures}, but {lowest.value:.2f} % at "
                f"{255 * lowest.epsilon:g}/255 (n = {row.n}, tolerance {tolerance:.2f} points); the attack fails, "
                "which is a sign of gradient masking"
            )
        lowest = min(lowest, row, key=lambda one: one.value)


def check_frozen(before: Mapping[str, str], after: Mapping[str, str], when: str) -> None:
    """Raise unless two `ssl_core.fingerprints.fingerprint`s of an encoder are equal.

    Args:
        before, after: digests by name.
        when: what happened in between, for the message.

    Raises:
        SanityError: with the names of the tensors that changed.
    """
    if changed := sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)):
        raise SanityError(
            f"the encoder was not frozen {when}: {len(changed)} of {len(before)} tensors changed "
            f"({', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}), so the result would be void"
        )
