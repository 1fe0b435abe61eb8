"""Convolutions whose weights are trained in bfloat16, with faster gradients of the weights.

For strided convolutions and small maps oneDNN computes these gradients at 170 to 270 GFLOP/s where it reaches 430 in
matrix products (two cores with AVX-512 and bfloat16, without matrix units). There the pixels that each weight reads are
copied, and a matrix product with the output's gradient does the rest.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_backward = torch.ops.aten.convolution_backward
CHANNELS = 256
"""Fewest output channels at which the products are faster with one thread as well as with two."""
STRIDED_SIDE, SIDE = 8, 3
"""Largest side of the output's maps at which they are faster for any number of images: strided, and others."""
FEW = 2
"""They are also faster if the output has at most so many pixels for each channel, over all images."""
COPIED = 2**23
"""Most values that are copied at a time. The C library keeps freed memory of this size (16 MiB) for the next call; more
would come from the system each time, which is slow."""


@cache
def supported() -> bool:
    """Whether the processor is of the kind for which `pays` was measured: bfloat16 without matrix units."""
    bf16 = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    return bf16 and not torch.cpu._is_amx_tile_supported()


def pays(shape: Sequence[int], kernel: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Return whether the products are faster for an output of this shape, (n, c, h, w).

    It depends on nothing else, so that equal calls have equal bits with any number of threads.
    """
    count, channels, height, width = shape
    side = SIDE if stride == (1, 1) else STRIDED_SIDE
    small = max(height, width) <= side or count * height * width <= FEW * channels
    return kernel == (3, 3) and channels >= CHANNELS and small


def weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return the gradient with respect to a convolution's weights, by matrix products.

    With more than `COPIED` values the images are divided: each part's product is rounded to the input's type, and they
    are added up in float32 or better.

    Args:
        gradient: gradient with respect to the output, (n, out, h, w).
        x: input, (n, in, h, w), of the same type; fastest if channels-last.
        weight: (out, in, h, w); its type is the result's.
        stride: (down, right), in pixels.
        padding: (rows, columns) of zeros on either side.
    """
    count, outputs, height, width = gradient.shape
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1).contiguous()
    image, row, pixel, _ = x.stride()
    # the pixels that each weight reads; the copies are made below
    taps = (*weight.shape[2:], x.shape[3])
    strides = image, stride[0] * row, stride[1] * pixel, row, pixel, 1
    read = x.as_strided((count, height, width, *taps), strides)
    parts = max(1, min(count, -(-read.numel() // COPIED)))
    pairs = zip(gradient.permute(0, 2, 3, 1).tensor_split(parts), read.tensor_split(parts), strict=True)
    products = [
        some.reshape(-1, outputs).t() @ pixels.reshape(-1, taps[0] * taps[1] * taps[2]) for some, pixels in pairs
    ]
    wide = torch.promote_types(weight.dtype, torch.float32)
    whole = products[0] if parts == 1 else torch.stack(products).sum(0, dtype=wide)
    return torch.empty_like(weight).copy_(whole.view(outputs, *taps).permute(0, 3, 1, 2))


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
        return cast(Tensor, _Convolved.apply(x.bfloat16(), self.weight.bfloat16(), self.stride, self.padding))

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
        return pays((len(x), self.out_channels, *side), self.kernel_size, self.stride)


class _Convolved(torch.autograd.Function):
    """A convolution of an input and weights of one type."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        before = None
        if ctx.needs_input_grad[0]:
            geometry = ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1
            before = _backward(gradient, x, weight, None, *geometry, (True, False, False))[0]
        return before, weight_gradient(gradient, x, weight, ctx.stride, ctx.padding), None, None

    @staticmethod
    def jvp(ctx: Any, along: Tensor, weight_along: Tensor, *_: None) -> Tensor:
        x, weight = ctx.saved_tensors
        by_x = F.conv2d(along, weight, None, ctx.stride, ctx.padding)
        return by_x + F.conv2d(x, weight_along, None, ctx.stride, ctx.padding)
