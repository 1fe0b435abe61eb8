"""Devices by a user's names, and the arithmetic of a GPU."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

EXPECTED = "expected cpu, cuda or cuda:N"


def usable_device(device: torch.device | str) -> torch.device:
    """Return a device that the project supports; a GPU always has its number, to equal the device of its tensors.

    Args:
        device: `cpu`, `cuda` (torch's current GPU, by default the first), `cuda:1`, or a `torch.device`.

    Raises:
        ValueError: if the device is of another kind, or is not in this machine.
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


def one_thread_in_worker() -> None:
    """In a process of `multiprocessing`, such as a worker of `AsyncVectorEnv`, let torch compute on one thread.

    Workers would wait for each other's threads; and a forked one would wait forever for those of its parent, which are
    not in it.
    """
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)


def on_the_host(*values: Tensor) -> list[Tensor]:
    """Copy floating-point tensors to the host; this waits for the device only once."""
    together = torch.cat([value.detach().flatten() for value in values]).cpu()
    parts = together.split([value.numel() for value in values])
    return [part.view(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True)]


@contextmanager
def ieee_fp32() -> Iterator[None]:
    """Compute float32 convolutions by the IEEE standard on a GPU, inside this context.

    By default cuDNN's convolutions round their factors to TF32 (10 bits of 23); torch's matrix products do not. Nothing
    changes on a CPU.
    """
    cudnn = torch.backends.cudnn
    # torch's older switch, since after a use of the newer one, `fp32_precision`, reading the older one is an error
    with cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    ):
        yield


def float32_of(precision: str) -> AbstractContextManager[None]:
    """Return the context for a precision's float32: `ieee_fp32` for `fp32`, torch's defaults for any other."""
    return ieee_fp32() if precision == "fp32" else nullcontext()


def convolves_in_tf32(device: torch.device) -> bool:
    """Whether float32 convolutions are computed in TF32 on the device at present."""
    return device.type == "cuda" and torch.backends.cudnn.allow_tf32


@contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic algorithms, none chosen for its speed, so that all runs on one kind of GPU give equal numbers.

    torch raises a RuntimeError inside if an operation has no such algorithm. Enter before the GPU's first matrix
    product: cuBLAS reads its setting only once. The setting stays in the environment.
    """
    # NVIDIA allows two sizes, and this one costs no speed; a user's setting stays
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
