"""Bias, residual and ReLU after a convolution on a GPU, in one kernel per pass, and their backward pass.

As separate operations each of them reads and writes a whole map, and the memory's speed then limits an attack. The
kernels are written in Triton, which comes with torch for NVIDIA GPUs on Linux; `TRITON_INTERPRET=1` runs them on a CPU,
slowly.
"""

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor, channels_last

BLOCK = 1024


def finish(x: Tensor, bias: Tensor, residual: Tensor | None, rectify: bool) -> Tensor:
    """Add a bias and a residual to x, apply ReLU if `rectify`, and round once; NaN stays NaN.

    Args:
        x: (n, c, h, w), overwritten if its memory format is channels-last.
        bias: (c,), one value per channel.
        residual: None, or a tensor with the shape of x.
        rectify: whether ReLU follows.
    """
    x = x.contiguous(memory_format=channels_last)
    other = x if residual is None else residual.contiguous(memory_format=channels_last)
    _finish[_grid(x)](x, bias, other, x.numel(), x.shape[1], residual is not None, rectify, BLOCK)
    return x


def rectified(gradient: Tensor, output: Tensor, more: Tensor | None) -> Tensor:
    """Return a rectifier's gradient where two paths meet: their sum where the output is positive, else 0.

    Args:
        gradient: (n, c, h, w), overwritten if its memory format is channels-last.
        output: output of the rectifier.
        more: gradient of the other path, None if there is one path.
    """
    gradient = gradient.contiguous(memory_format=channels_last)
    output = output.contiguous(memory_format=channels_last)
    other = output if more is None else more.contiguous(memory_format=channels_last)
    _rectified[_grid(gradient)](gradient, output, other, gradient.numel(), more is not None, BLOCK)
    return gradient


def _grid(x: Tensor) -> tuple[int]:
    return (-(-x.numel() // BLOCK),)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _finish(  # type: ignore[no-untyped-def]
    x, bias, residual, size, channels, adds: tl.constexpr, rectify: tl.constexpr, block: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < size
    wide = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    value = tl.load(x + at, mask=inside).to(wide) + tl.load(bias + at % channels, mask=inside).to(wide)
    if adds:
        value += tl.load(residual + at, mask=inside).to(wide)
    if rectify:
        value = tl.where(value <= 0, 0.0, value)
    tl.store(x + at, value.to(x.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _rectified(gradient, output, more, size, adds: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < size
    wide = tl.float64 if gradient.dtype.element_ty == tl.float64 else tl.float32
    value = tl.load(gradient + at, mask=inside).to(wide)
    if adds:
        value += tl.load(more + at, mask=inside).to(wide)
    # as in torch: a NaN does not stop a gradient
    value = tl.where(tl.load(output + at, mask=inside).to(wide) <= 0, 0.0, value)
    tl.store(gradient + at, value.to(gradient.dtype.element_ty), mask=inside)
