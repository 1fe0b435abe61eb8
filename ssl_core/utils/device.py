"""Devices as a user names them."""

import torch
from torch import Tensor


def usable_device(device: torch.device | str) -> torch.device:
    """The device, if torch can hold numbers there.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, or a `torch.device`.

    Raises:
        ValueError: if torch knows no such device, or cannot use it on this machine.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {str(device)[:40]!r}: expected cpu, cuda or cuda:N") from error
    name = str(found)
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device is {name!r}, but torch finds no GPU here: take cpu")
        if found.index is not None and found.index >= torch.cuda.device_count():
            raise ValueError(f"device is {name!r}, but torch finds {torch.cuda.device_count()} GPUs here, from cuda:0")
    elif found.type != "cpu":
        try:
            torch.zeros(1, device=found).tolist()
        except Exception as error:  # every kind of device has its own way to be missing
            raise ValueError(f"device is {name!r}, which torch cannot use here: take cpu or cuda") from error
    return found


def on_the_host(*values: Tensor) -> list[Tensor]:
    """Copies of floating-point tensors on the host, for which a device is waited for once."""
    together = torch.cat([value.detach().flatten() for value in values]).cpu()
    parts = together.split([value.numel() for value in values])
    return [part.view(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True)]
