"""What tests for a GPU share."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SIZES = {
    "batch_size": 4,
    "epochs": 3,
    "limit": 14,
    "test_limit": 20,
    "image_size": 16,
    "width": 2,
    "projector_hidden": 8,
    "projector_dim": 8,
}
"""A world small enough for a step in milliseconds: 3 updates an epoch."""


@contextmanager
def _watching(device: torch.device, mode: str) -> Iterator[None]:
    """Torch's mode of telling where a GPU is waited for; whatever happens within, it ends with the context."""
    if device.type == "cpu":
        yield
        return

    def set_mode(name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls the mode a prototype
            torch.cuda.set_sync_debug_mode(name)

    set_mode(mode)
    try:
        yield
    finally:
        set_mode("default")


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """A context in which it is an error to wait for the GPU."""
    with _watching(device, "error"):
        yield


@contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """Where the GPU is waited for within, to be read afterwards: files, lines and what torch says."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as said, _watching(device, "warn"):
        warnings.simplefilter("always")
        yield found
    found += [f"{each.filename}:{each.lineno}: {each.message}" for each in said]


def off(found: Tensor, exact: Tensor) -> float:
    """The largest difference, relative to the largest exact value."""
    exact = exact.detach().cpu().double()
    return float((found.detach().cpu().double() - exact).abs().max() / exact.abs().max())
