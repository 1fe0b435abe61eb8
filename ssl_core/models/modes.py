"""Modes of networks: eval or train, with or without gradients of parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(module: nn.Module, training: bool = False) -> Iterator[None]:
    """Put a module in eval (or train) mode without parameter gradients; restore its flags on exit."""
    # one walk that changes only the flags that differ, since this runs several times per step
    parts = list(module.modules())
    switched = [part for part in parts if part.training != training]
    learned = [value for part in parts for value in part.parameters(recurse=False) if value.requires_grad]
    try:
        for part in switched:
            part.training = training
        for value in learned:
            value.requires_grad_(False)
        yield
    finally:
        for part in switched:
            part.training = not training
        for value in learned:
            value.requires_grad_(True)
