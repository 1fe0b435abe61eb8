"""Convolutions whose weights are trained in bfloat16, with faster gradients of the weights.

For strided convolutions and small maps oneDNN computes these gradients at 170 to 300 GFLOP/s where it reaches 430 in
matrix products (two cores with AVX-512 and bfloat16, without matrix units). Here each of the kernel's positions is one
matrix product of the pixels that it reads with the output's gradient. On small maps this also saves the products with
zeros of the padding: 31 % of all on 4 x 4 pixels.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_backward = torch.ops.aten.convolution_backward
SIDE, STRIDED_SIDE = 4, 8
"""Largest side of the output's maps at which the products are faster, with one thread as well as with two."""
CHANNELS, STRIDED_CHANNELS = 64, 16
"""Fewest channels, of the input and of the output, for each pixel of that side: the copies of pixels cost less then."""
WORK = 2**22
"""Fewest multiplications at each of the kernel's positions: with less the calls themselves take too long."""


@cache
def supported() -> bool:
    """Whether the processor is of the kind for which `pays` was measured: bfloat16 without matrix units."""
    bf16 = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    return bf16 and not torch.cpu._is_amx_tile_supported()


def pays(shape: Sequence[int], inputs: int, kernel: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Return whether the products are faster for an output of this shape, (n, c, h, w).

    It depends on nothing else, so that the way is the same with any number of threads.
    """
    count, outputs, height, width = shape
    most, each = (SIDE, CHANNELS) if stride == (1, 1) else (STRIDED_SIDE, STRIDED_CHANNELS)
    side, work = max(height, width), count * height * width * inputs * outputs
    return kernel == (3, 3) and side <= most and min(inputs, outputs) >= each * side and work >= WORK


def weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return the gradient with respect to a convolution's weights, by matrix products in the input's type.

    Args:
        gradient: gradient with respect to the output, (n, out, h, w).
        x: input, (n, in, h, w), of the same type; fastest if channels-last.
        weight: (out, in, h, w); the result has its type and layout.
        stride: (down, right), in pixels.
        padding: (rows, columns) of zeros on either side.
    """
    gradient, x = (values.permute(0, 2, 3, 1).contiguous() for values in (gradient, x))
    result = torch.empty_like(weight)
    sides = zip(weight.shape[2:], x.shape[1:3], gradient.shape[1:3], stride, padding, strict=True)
    rows, columns = (
        [_inside(size, outputs, place - before, step) for place in range(kernel)]
        for kernel, size, outputs, step, before in sides
    )
    for (row, (down, from_down)), (column, (right, from_right)) in product(enumerate(rows), enumerate(columns)):
        some = gradient[:, down, right].reshape(-1, gradient.shape[3])
        pixels = x[:, from_down, from_right].reshape(-1, x.shape[3])
        result[:, :, row, column] = some.t() @ pixels
    return result


def _inside(size: int, outputs: int, offset: int, stride: int) -> tuple[slice, slice]:
    """Return which of the outputs read a pixel inside of `size`, and these pixels: output * stride + offset."""
    first = max(0, -(offset // stride))
    count = max(0, min(outputs, (size - 1 - offset) // stride + 1) - first)
    start = first * stride + offset
    return slice(first, first + count), slice(start, start + count * stride, stride)


class TrainedConvolution(nn.Conv2d):
    """`torch.nn.Conv2d` without bias, dilation and groups, trained faster under autocast to bfloat16 on some CPUs.

    The weights' gradients differ from its by rounding only.

    Args:
        inputs, outputs: numbers of channels.
        kernel, stride, padding: in pixels, down and right alike.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self._multiplies(x):
            return super().forward(x)
        rounded = self.weight.bfloat16()
        return cast(Tensor, _Convolved.apply(x.bfloat16(), self.weight, rounded, self.stride, self.padding))

    def _multiplies(self, x: Tensor) -> bool:
        """Whether the weights' gradient for this input comes from matrix products."""
        # first whether it is compiled, since the compiler cannot see through the rest
        if torch.compiler.is_compiling() or x.device.type != "cpu" or not supported():
            return False
        bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        # autocast leaves float64 alone
        rounded = x.dtype in (torch.float32, torch.bfloat16) and self.weight.dtype == torch.float32
        if not (bf16 and rounded and x.ndim == 4 and torch.is_grad_enabled() and self.weight.requires_grad):
            return False
        sizes = zip(x.shape[2:], cast(tuple[int, int], self.padding), self.kernel_size, self.stride, strict=True)
        side = [(size + 2 * padding - kernel) // stride + 1 for size, padding, kernel, stride in sizes]
        return pays((len(x), self.out_channels, *side), self.in_channels, self.kernel_size, self.stride)


class _Convolved(torch.autograd.Function):
    """A convolution of an input and weights, rounded to the input's type.

    The gradient goes to the weights as they were before, which saves a copy; that of the rounded ones, for gradients of
    gradients, only through the backward pass.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, rounded: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        return F.conv2d(x, rounded, None, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.weight, rounded, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, rounded)
        ctx.save_for_forward(x, rounded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        x, rounded = ctx.saved_tensors
        before = None
        if ctx.needs_input_grad[0]:
            geometry = ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1
            before = _backward(gradient, x, rounded, None, *geometry, (True, False, False))[0]
        return before, weight_gradient(gradient, x, ctx.weight, ctx.stride, ctx.padding), None, None, None

    @staticmethod
    def jvp(ctx: Any, along: Tensor, _: Tensor, rounded_along: Tensor, *__: None) -> Tensor:
        x, rounded = ctx.saved_tensors
        by_x = F.conv2d(along, rounded, None, ctx.stride, ctx.padding)
        return by_x + F.conv2d(x, rounded_along, None, ctx.stride, ctx.padding)
