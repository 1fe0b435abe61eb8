"""States of worlds and runs as nested dicts of tensors: whether two are the same."""

from typing import Any

import torch


def same(a: Any, b: Any) -> bool:
    """Whether two nested dicts and lists hold equal values, tensors bit for bit; NaN (what is not known yet) is NaN."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
