"""Modes of networks: eval or train, with or without gradients of parameters."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(module: nn.Module, training: bool = False) -> Iterator[None]:
    """Put a module in eval (or train) mode without parameter gradients; restore its flags on exit."""
    # one walk that changes only the flags that differ, since this runs several times per step
    parts = list(module.modules())
    switched = [part for part in parts if part.training != training]
    learned = [
        value for part in parts for value in part._parameters.values() if value is not None and value.requires_grad
    ]
    try:
        _switch(switched, training)
        for value in learned:
            value.requires_grad_(False)
        yield
    finally:
        _switch(switched, not training)
        for value in learned:
            value.requires_grad_(True)


def _switch(parts: Iterable[nn.Module], training: bool) -> None:
    for part in parts:
        if type(part).__setattr__ is nn.Module.__setattr__:
            # it looks for a parameter, a buffer and a module of this name first, which takes long
            object.__setattr__(part, "training", training)
        else:
            part.training = training
