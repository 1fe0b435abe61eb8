"""Modes of networks: eval or train, with or without gradients of parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(module: nn.Module, training: bool = False) -> Iterator[None]:
    """Eval mode (or train mode) and no parameter gradients inside; every training flag and `requires_grad` is put back
    afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        module.train(training).requires_grad_(False)
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)
