"""Devices as a user names them, and how a GPU computes."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

EXPECTED = "expected cpu, cuda or cuda:N"


def usable_device(device: torch.device | str) -> torch.device:
    """The device, if the project runs there; of a GPU always with its number, so that it equals its tensors' device.

    Args:
        device: `cpu`, `cuda` (the present GPU, the first one where nobody chose), `cuda:1`, or a `torch.device`.

    Raises:
        ValueError: if it is another kind of device, or is not in this machine.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {str(device)[:40]!r}: {EXPECTED}") from error
    name = str(found)
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}: {EXPECTED}")
    if found.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch finds no GPU here: take cpu")
    if found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if found.index >= torch.cuda.device_count():
        raise ValueError(f"device is {name!r}, but torch finds {torch.cuda.device_count()} GPUs here, from cuda:0")
    return found


def on_the_host(*values: Tensor) -> list[Tensor]:
    """Copies of floating-point tensors on the host, for which a device is waited for once."""
    together = torch.cat([value.detach().flatten() for value in values]).cpu()
    parts = together.split([value.numel() for value in values])
    return [part.view(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True)]


@contextmanager
def ieee_fp32() -> Iterator[None]:
    """float32 is IEEE's on a GPU, too: cuDNN's convolutions, which by default round what they multiply to TF32 (10 bits
    of 23), do not within. torch's matrix products do not by default either. Nothing changes on a CPU."""
    cudnn = torch.backends.cudnn
    # the older of torch's two switches: after the newer, `fp32_precision`, who reads the older gets an error
    with cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    ):
        yield


def float32_of(precision: str) -> AbstractContextManager[None]:
    """Float32 within as the precision `fp32` promises it (`ieee_fp32`), for any other as torch has it."""
    return ieee_fp32() if precision == "fp32" else nullcontext()


def convolves_in_tf32(device: torch.device) -> bool:
    """Whether float32 convolutions are computed in TF32 on the device, as things are at the call."""
    return device.type == "cuda" and torch.backends.cudnn.allow_tf32


@contextmanager
def deterministic() -> Iterator[None]:
    """The same numbers in every run on a kind of GPU: torch's deterministic algorithms, and none chosen for its speed.

    torch raises a RuntimeError within where an operation has no such algorithm. Begin before the GPU's first matrix
    product: cuBLAS reads its setting, which stays in the environment, once.
    """
    # of the two sizes that NVIDIA names the one that costs no speed; a user's own stays
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
