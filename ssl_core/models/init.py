"""Initial weights from an explicit generator."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Drawn(ABC):
    """A module that draws its own weights and buffers, of its own parts too."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> None:
        """Draw them from the generator, on the CPU."""


def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight anew from the generator: He's scheme for convolutions, torch's default for linear layers.

    A `Drawn` part comes last, since it may overwrite its own linear layers.
    """
    drawn = [part for part in module.modules() if isinstance(part, Drawn)]
    theirs = {part for own in drawn for part in own.modules()}
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(part, nn.Linear):
            bound = 1 / math.sqrt(part.in_features)
            nn.init.uniform_(part.weight, -bound, bound, generator=generator)
            if part.bias is not None:
                nn.init.uniform_(part.bias, -bound, bound, generator=generator)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.reset_parameters()
        elif part not in theirs and next(part.parameters(recurse=False), None) is not None:
            raise ValueError(f"no initialization is known for {type(part).__name__}")
    for own in drawn:
        own.draw(generator)


def build_module(generator: torch.Generator, factory: Callable[[], M]) -> M:
    """Build the factory's module with weights from the generator; torch's global generator keeps its state.

    Args:
        generator: source of the weights, on the CPU.
        factory: function that makes the module, on the CPU.

    Raises:
        ValueError: if `initialize` knows no initialization for a part of the module.
    """
    # the layers' constructors draw weights from the global generator: discard them and restore its state
    with torch.random.fork_rng(devices=[]):
        module = factory()
    initialize(module, generator)
    return module
