"""Convolutions with fixed weights, in eval mode and for gradients with respect to their input only."""

from importlib.util import find_spec
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.kernels.winograd import WinogradProduct, pays, suits

_backward = torch.ops.aten.convolution_backward
_threshold_backward = torch.ops.aten.threshold_backward
FUSES = find_spec("triton") is not None
"""Whether the fused GPU kernels of `epilogues` are available."""
TENSOR_CORES = 8
"""Number of channels that a GPU's tensor cores process together in bfloat16."""


class Convolution(Protocol):
    """A 2-d convolution with a bias and fixed weights, which get no gradient."""

    def __call__(self, x: Tensor, residual: Tensor | None = None, rectify: bool = False) -> Tensor:
        """Convolve x (n, c, h, w), add the residual, then apply ReLU if `rectify`."""

    def input_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        """Return the gradient with respect to x, from that of the convolution's output without residual and ReLU."""

    def add_input_gradient(self, gradient: Tensor, x: Tensor, to: Tensor) -> Tensor:
        """Add the gradient with respect to x to `to`, in place."""


def fixed_convolution(
    weight: Tensor, bias: Tensor, stride: tuple[int, int], padding: tuple[int, int], passes: int = 1
) -> Convolution:
    """Return the convolution in the fastest form for the weights' device and type.

    Args:
        weight: (out, in, h, w).
        bias: (out,).
        stride: (down, right), in pixels.
        padding: (rows, columns) of zeros on either side.
        passes: how often it is expected to be called; with many a longer preparation of the weights is worth its time.
    """
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    kind: type[PlainConvolution] = PlainConvolution
    if packable(weight):
        if suits(weight, stride, padding):
            return WinogradConvolution(weight, bias.detach(), passes)
        kind = PackedConvolution
    elif FUSES and weight.device.type == "cuda":
        kind = FusedConvolution
    return kind(weight, bias.detach(), stride, padding)


def rectified_gradient(gradient: Tensor, output: Tensor, more: Tensor | None = None) -> Tensor:
    """Return a rectifier's gradient: it passes where the output is positive.

    Args:
        gradient: (n, c, h, w), overwritten.
        output: output of the rectifier.
        more: tensor to add to the gradient first.
    """
    if FUSES and gradient.device.type == "cuda":
        return _epilogues().rectified(gradient, output, more)
    if more is not None:
        gradient += more
    return _threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)


def _epilogues() -> ModuleType:
    # imported on use, since Triton may be missing without a GPU, and its import takes time
    from astra_gym.ssl_core.kernels import epilogues

    return epilogues


def packable(weight: Tensor) -> bool:
    """Whether oneDNN supports these weights: float32 on an x86 CPU, or bfloat16 if the CPU computes in it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.cpu._is_avx2_supported():
        return False
    bf16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or bf16


class PlainConvolution:
    """`Convolution` by torch's public operators, on any device and in any floating type."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> None:
        self.weight = weight
        self.bias = bias
        self.stride = stride
        self.padding = padding

    def __call__(self, x: Tensor, residual: Tensor | None = None, rectify: bool = False) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        if residual is not None:
            x += residual
        return x.relu_() if rectify else x

    def input_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        return _backward(
            gradient, x, self.weight, None, self.stride, self.padding, (1, 1), False, (0, 0), 1, (True, False, False)
        )[0]

    def add_input_gradient(self, gradient: Tensor, x: Tensor, to: Tensor) -> Tensor:
        if self.weight.shape[2:] == (1, 1) and self.stride != (1, 1) and self.padding == (0, 0):
            # a strided 1x1 convolution reads only one pixel in a few, so skip the zero gradients of the others
            down, right = self.stride
            to[:, :, ::down, ::right] += F.conv2d(gradient, self.weight.transpose(0, 1))
            return to
        return to.add_(self.input_gradient(gradient, x))


class FusedConvolution(PlainConvolution):
    """`Convolution` on a GPU, with bias, residual and ReLU in one kernel.

    In bfloat16 the three channels of images are padded to eight, which changes no value.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> None:
        super().__init__(weight, bias, stride, padding)
        self.more = TENSOR_CORES - 3 if weight.dtype == torch.bfloat16 and weight.shape[1] == 3 else 0
        if self.more:
            self.weight = self._widened(weight)

    def _widened(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, self.more)).contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor, residual: Tensor | None = None, rectify: bool = False) -> Tensor:
        x = F.conv2d(self._widened(x) if self.more else x, self.weight, None, self.stride, self.padding)
        return _epilogues().finish(x, self.bias, residual, rectify)

    def input_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        if not self.more:
            return super().input_gradient(gradient, x)
        n, channels, height, width = x.shape
        # only its shape is used
        shape = n, channels + self.more, height, width
        wide = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        return super().input_gradient(gradient, wide)[:, :channels]


class PackedConvolution(PlainConvolution):
    """`Convolution` by oneDNN: the weights are reordered once, not at every call, and ReLU costs no extra pass.

    An attack calls the same convolution up to thirty times: reordering the weights each time took a tenth of the time
    of a full ResNet-18 on 64 images, and a third on 8. The operators are those that torch's compiler calls.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> None:
        super().__init__(weight, bias, stride, padding)
        self._packed: dict[tuple[int, ...], Tensor] = {}
        self._transposed: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, x: Tensor, residual: Tensor | None = None, rectify: bool = False) -> Tensor:
        size = tuple(x.shape[2:])
        if size not in self._packed:
            self._packed[size] = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, self.padding, self.stride, (1, 1), 1, x.shape
            )
        weight = self._packed[size]
        # with torch 2.8 oneDNN refuses a residual of 1x1 maps or one channel
        if residual is not None and residual.shape[1] > 1 and residual.shape[2:] != (1, 1):
            unary = "relu" if rectify else None
            return torch.ops.mkldnn._convolution_pointwise.binary(
                x, residual, weight, self.bias, self.padding, self.stride, (1, 1), 1, "add", 1.0, unary, (), ""
            )
        unary = "relu" if rectify and residual is None else "none"
        x = torch.ops.mkldnn._convolution_pointwise(
            x, weight, self.bias, self.padding, self.stride, (1, 1), 1, unary, (), ""
        )
        if residual is None:
            return x
        x += residual
        return x.relu_() if rectify else x

    def input_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        # input rows and columns that the output's size does not determine: at a stride of 2 one may be left over
        rest = tuple(
            whole - ((part - 1) * stride - 2 * padding + kernel)
            for whole, part, stride, padding, kernel in zip(
                size, gradient.shape[2:], self.stride, self.padding, self.weight.shape[2:], strict=True
            )
        )
        if size not in self._transposed:
            self._transposed[size] = torch.ops.mkldnn._reorder_convolution_transpose_weight(
                self.weight, self.padding, rest, self.stride, (1, 1), 1, gradient.shape
            )
        return torch.ops.mkldnn._convolution_transpose_pointwise(
            gradient, self._transposed[size], None, self.padding, rest, self.stride, (1, 1), 1, "none", (), ""
        )


class WinogradConvolution(PackedConvolution):
    """`Convolution` with a quarter of the multiplications, for float32 and 3x3 weights of many channels.

    With 256 or 512 channels it takes half the time of `PackedConvolution`. Preparing the weights takes up to two calls'
    time with 64 images, once for each direction, and four times their memory. The rounding error is up to three times
    as large; that of a ResNet-18's features is 1.6e-6 of them, 1.1e-6 without it.
    """

    def __init__(self, weight: Tensor, bias: Tensor, passes: int) -> None:
        super().__init__(weight, bias, (1, 1), (1, 1))
        self.passes = passes
        self._forth: WinogradProduct | None = None
        self._back: WinogradProduct | None = None

    def __call__(self, x: Tensor, residual: Tensor | None = None, rectify: bool = False) -> Tensor:
        if not pays(x.shape, self.passes):
            return super().__call__(x, residual, rectify)
        if self._forth is None:
            self._forth = WinogradProduct(self.weight, self.bias)
        x = self._forth(x)
        if residual is not None:
            x += residual
        return x.relu_() if rectify else x

    def input_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        if not pays(gradient.shape, self.passes):
            return super().input_gradient(gradient, x)
        if self._back is None:
            self._back = WinogradProduct(self.weight.transpose(0, 1).flip(2, 3), None)
        return self._back(gradient)
