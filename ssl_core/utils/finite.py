"""Checks that numbers are finite and within their range, by name, and their errors."""

import math
import numbers as kinds
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_gym.ssl_core.utils.messages import shown


class NonFiniteError(FloatingPointError):
    """Error for NaN or infinite numbers that all later ones depend on."""


class NonFiniteValueError(NonFiniteError, ValueError):
    """Error for NaN or infinite inputs or outputs of an agent."""


def not_finite(numbers: Any) -> list[str]:
    """List the entries with NaN or infinite values.

    This waits for each device once, and copies nothing.

    Args:
        numbers: nested dicts, lists and tuples of tensors, arrays and plain values; all but floating-point numbers
            count as finite.

    Returns:
        The places of these entries, "a/b/0", in order; empty if all are finite.
    """
    names: list[str] = []
    bad: set[str] = set()
    ends: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    for name, value in _leaves(numbers, ""):
        names.append(name)
        if not isinstance(value, Tensor):
            bad |= set() if math.isfinite(value) else {name}
        elif value.is_floating_point() and value.numel():
            # with a NaN among the values, both ends are NaN
            ends.setdefault((value.device, value.dtype), {})[name] = torch.stack(torch.aminmax(value.detach()))
    for pairs in ends.values():
        finite = torch.stack(list(pairs.values())).isfinite().all(dim=1).tolist()
        bad |= {name for name, good in zip(pairs, finite, strict=True) if not good}
    return [name for name in names if name in bad]


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Tensor | float]]:
    """Yield tensors and floats by their place; an array gives one float, which is not finite if a value is not."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{name}/{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{name}/{index}" if name else str(index))
    elif isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, np.ndarray):
        if value.dtype.kind == "f" and value.size:
            yield name, float(value.min()) if math.isfinite(value.max()) else math.inf
    elif isinstance(value, float | np.floating):
        yield name, float(value)


def is_number(value: object, whole: bool = False) -> bool:
    """Whether a value is a finite number, with `whole` an integer; not a bool, nor a number too large for a float."""
    try:
        real = isinstance(value, kinds.Integral if whole else kinds.Real) and not isinstance(value, bool)
        return real and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


def check_number(
    name: str,
    value: object,
    low: float = 0.0,
    high: float = math.inf,
    expected: str = "",
    *,
    whole: bool = False,
    above: bool = False,
    below: bool = False,
) -> None:
    """Check a setting's value.

    Args:
        name: name of the setting, for the error.
        value: the given value.
        low, high: the range, with both ends.
        expected: the expected value in words; by default from the range.
        whole: whether it has to be an integer.
        above, below: whether `low`, and `high`, are outside the range.

    Raises:
        ValueError: if the value is not a finite number in the range.
    """
    good = is_number(value, whole) and low <= value <= high  # type: ignore[operator]
    if not good or (above and value == low) or (below and value == high):
        kind = "an integer" if whole else "a finite number"
        bound = f"above {low:g}" if above else f"of {low:g} or more"
        if high < math.inf:
            bound = f"in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
        if whole and high < math.inf:
            bound = f"from {low:,} to {high:,}"
        raise ValueError(f"{name} is {shown(value)}: expected {expected or f'{kind} {bound}'}")
