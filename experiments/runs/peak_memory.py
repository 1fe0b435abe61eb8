"""How much memory a run has needed, as the system or the GPU's allocator counts it."""

import sys

import torch

LABELS = {
    "peak_resident_bytes": "peak resident set",
    "peak_gpu_allocated_bytes": "peak GPU memory allocated",
}
"""What the figures of `peak_memory` are, in words."""


def peak_memory(device: torch.device) -> dict[str, int]:
    """The process's peak since its start, in bytes, by the name of what it is.

    On a GPU `peak_gpu_allocated_bytes`, the most that tensors held there at once (`torch.cuda.max_memory_allocated`);
    the allocator's reserve and CUDA's own memory come on top. Else `peak_resident_bytes`, the most of the process that
    lay in memory at once (`getrusage`'s ru_maxrss): libraries and data count too. Nothing on Windows, which has no
    `getrusage`.
    """
    if device.type == "cuda":
        return {"peak_gpu_allocated_bytes": torch.cuda.max_memory_allocated(device)}
    if sys.platform == "win32":
        return {}
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # bytes on macOS, KiB elsewhere
    return {"peak_resident_bytes": peak if sys.platform == "darwin" else peak * 1024}


def described(peak: dict[str, int]) -> list[str]:
    """`peak_memory`'s figures in words, such as "peak resident set 512 MiB"."""
    return [f"{LABELS[name]} {value / 2**20:.0f} MiB" for name, value in peak.items()]
