"""The check that an update's loss, and what was watched before it, are finite."""

import math
from collections.abc import Sequence

from astra_gym.ssl_core.utils.finite import NonFiniteError


class NonFiniteLossError(NonFiniteError):
    """Loss, gradients or weights of an update are not finite: training cannot continue."""


def checked_losses(
    figures: Sequence[float], terms: Sequence[str], watched: Sequence[str], update: int
) -> dict[str, float]:
    """Name the values of loss terms, once they and the watched values are known to be finite.

    Args:
        figures: values of the terms, then of what is watched.
        terms: names of the terms; "total" is among them.
        watched: names of what is watched.
        update: number of the update, from 1, for the message.

    Raises:
        NonFiniteLossError: if a watched value or the total is not finite.
    """
    losses = dict(zip(terms, figures, strict=False))
    for name, value in zip(watched, figures[len(terms) :], strict=True):
        if not math.isfinite(value):
            raise NonFiniteLossError(f"{name} of update {update} are not finite")
    if not math.isfinite(losses["total"]):
        raise NonFiniteLossError(f"the loss of update {update} is not finite: {losses}")
    return losses
