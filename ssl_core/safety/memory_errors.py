"""Errors of a machine or a GPU without memory, which must not be taken for damage of what was read meanwhile."""

import traceback

import torch

ALLOCATOR = "DefaultCPUAllocator"
"""PyTorch's allocator on the CPU: its error is a plain RuntimeError that names it."""


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that the machine or a GPU has no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ALLOCATOR in str(error)
    )


def release(error: BaseException) -> None:
    """Drop what those functions held that an error, and the errors before it, have ended."""
    ended: BaseException | None = error
    while ended is not None:
        traceback.clear_frames(ended.__traceback__)
        ended = ended.__context__
