"""Whether numbers are finite, by name, and the error for where they are not."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class NonFiniteError(FloatingPointError):
    """Numbers that all later ones depend on are NaN or infinite."""


class NonFiniteValueError(NonFiniteError, ValueError):
    """What an agent is given, or makes of it, is NaN or infinite."""


def not_finite(numbers: Any) -> list[str]:
    """Find what holds NaN or infinite values.

    Each device is waited for once; nothing is copied.

    Args:
        numbers: dicts, lists and tuples, one in the other, of tensors, arrays and plain values; all but floating-point
            numbers are finite by nature.

    Returns:
        The places of what is not finite, "a/b/0", in order; empty if all is well.
    """
    names: list[str] = []
    bad: set[str] = set()
    ends: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    for name, value in _leaves(numbers, ""):
        names.append(name)
        if not isinstance(value, Tensor):
            bad |= set() if math.isfinite(value) else {name}
        elif value.is_floating_point() and value.numel():
            # of values with a NaN, both ends are NaN
            ends.setdefault((value.device, value.dtype), {})[name] = torch.stack(torch.aminmax(value.detach()))
    for pairs in ends.values():
        finite = torch.stack(list(pairs.values())).isfinite().all(dim=1).tolist()
        bad |= {name for name, good in zip(pairs, finite, strict=True) if not good}
    return [name for name in names if name in bad]


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Tensor | float]]:
    """Tensors and floats by their place; an array gives its ends."""
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
