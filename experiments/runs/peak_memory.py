"""The peak memory of a run, as the system or the GPU's allocator counts it."""

import sys

import torch

LABELS = {
    "peak_resident_bytes": "peak resident set",
    "peak_gpu_allocated_bytes": "peak GPU memory allocated",
}
"""Names of the values of `peak_memory`, in words."""


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the process's peak memory since its start, in bytes, by name.

    On a GPU: `peak_gpu_allocated_bytes`, the largest total of its tensors (`torch.cuda.max_memory_allocated`), without
    the allocator's reserve and CUDA's own memory. Else: `peak_resident_bytes`, the most of the process in memory at one
    time (`getrusage`'s ru_maxrss), including libraries and data. Empty on Windows, which has no `getrusage`.
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
    """Return `peak_memory`'s values in words, such as "peak resident set 512 MiB"."""
    return [f"{LABELS[name]} {value / 2**20:.0f} MiB" for name, value in peak.items()]
