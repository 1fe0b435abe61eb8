"""The devices of `--device`, and how a run computes on its own."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from astra_gym.ssl_core.utils.device import deterministic, float32_of, usable_device
from astra_gym.ssl_core.utils.registry import pick

DEVICES = {"auto": "a GPU where there is one", "cpu": "the CPU", "cuda": "a GPU (cuda:1: the second), or an error"}


def check_device(name: str) -> None:
    """Raise a ValueError unless the name is a value of `--device`; the device itself may be missing."""
    if not (isinstance(name, str) and re.fullmatch("cuda:[0-9]{1,3}", name)):
        pick(name, DEVICES, "device")


def resolve_device(name: str) -> torch.device:
    """Return the device of `--device`; a GPU has its number.

    Raises:
        ValueError: if the name is unknown, or a GPU is asked for that torch does not see.
    """
    check_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return usable_device(name)


def check_own_gpus(name: str, ranks: int) -> None:
    """Raise a ValueError if a value of `--device` would put several ranks on one GPU."""
    if ranks > 1 and name.startswith("cuda:"):
        raise ValueError(
            f"device is {name}, one GPU for {ranks} ranks: give --device cuda, which takes the GPU of each rank's "
            "number, or choose GPUs by CUDA_VISIBLE_DEVICES"
        )


def on_repeating(device: torch.device, repeatable: bool) -> str:
    """Return a line that warns if the run is not repeatable, to append to other lines; else an empty text."""
    if device.type == "cpu" or repeatable:
        return ""
    return "\na GPU adds in any order: the same run gives other last digits, without --deterministic true (slower)"


@contextmanager
def arithmetic(precision: str, repeatable: bool) -> Iterator[None]:
    """Set how a run computes, while entered.

    Args:
        precision: precision of the run; `fp32` is IEEE float32, on a GPU too.
        repeatable: whether results on a GPU are the same in every run (`--deterministic`).
    """
    with float32_of(precision), deterministic() if repeatable else nullcontext():
        yield
