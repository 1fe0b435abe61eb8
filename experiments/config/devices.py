"""The devices of `--device`, and how a run computes on its own."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from astra_gym.ssl_core.utils.device import deterministic, float32_of, usable_device
from astra_gym.ssl_core.utils.registry import pick

DEVICES = {"auto": "a GPU where there is one", "cpu": "the CPU", "cuda": "a GPU (cuda:1: the second), or an error"}


def check_device(name: str) -> None:
    """Raises a ValueError unless `--device` takes the name; whether there is such a device is another question."""
    if not (isinstance(name, str) and re.fullmatch("cuda:[0-9]{1,3}", name)):
        pick(name, DEVICES, "device")


def resolve_device(name: str) -> torch.device:
    """The device of `--device`, of a GPU with its number.

    Raises:
        ValueError: if the name is unknown, or a GPU is asked for that torch does not see.
    """
    check_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return usable_device(name)


def on_repeating(device: torch.device, repeatable: bool) -> str:
    """A line that says where a run will not give the same numbers again, to be put behind others; or nothing."""
    if device.type == "cpu" or repeatable:
        return ""
    return "\na GPU adds in any order: the same run gives other last digits, without --deterministic true (slower)"


@contextmanager
def arithmetic(precision: str, repeatable: bool) -> Iterator[None]:
    """How a run computes.

    Args:
        precision: of its settings; `fp32` is IEEE's float32 on a GPU, too.
        repeatable: whether its figures are to be the same in every run on a GPU (`--deterministic`).
    """
    with float32_of(precision), deterministic() if repeatable else nullcontext():
        yield
