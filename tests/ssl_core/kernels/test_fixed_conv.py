import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.kernels.fixed_conv import (
    FusedConvolution,
    PackedConvolution,
    PlainConvolution,
    WinogradConvolution,
    fixed_convolution,
    packable,
)
from astra_gym.ssl_core.kernels.winograd import BLOCK, CHANNELS, TILE, WinogradProduct
from tests.helpers.processors import needs_onednn

SHAPES = [
    # in, out, kernel, stride, side
    (3, 16, 3, 1, 16),
    (3, 8, 7, 2, 33),
    (8, 16, 3, 2, 16),
    (8, 16, 3, 2, 15),
    (8, 16, 1, 2, 16),
    (8, 16, 1, 2, 15),
    (16, 8, 1, 1, 4),
    (16, 16, 3, 1, 2),
    (16, 16, 3, 1, 1),
    (16, 32, 1, 2, 1),
    (16, 1, 3, 1, 4),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Input, weight and bias, in values that the type holds exactly."""
    inputs, outputs, kernel, _, side = shape
    x = random(5, inputs, side, side, seed=1)
    weight = random(outputs, inputs, kernel, kernel, seed=2) / (inputs * kernel**2) ** 0.5
    values = (x, weight, random(outputs, seed=3))
    return tuple(value.to(dtype) for value in values)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (PlainConvolution, torch.float64),
        (PlainConvolution, torch.float32),
        (PackedConvolution, torch.float32),
        (PackedConvolution, torch.bfloat16),
        (FusedConvolution, torch.float64),
        (FusedConvolution, torch.bfloat16),
    ],
)
def test_it_is_the_convolution_and_its_input_gradient(shape, kind, dtype: torch.dtype) -> None:
    if kind is PackedConvolution and not packable(torch.empty(1, 1, 1, 1, dtype=dtype)):
        pytest.skip(f"oneDNN does not serve {dtype} on this processor")
    if kind is FusedConvolution and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the process that test_epilogues.py starts runs it")
    x, weight, bias = case(shape, dtype)
    stride, padding = (shape[3],) * 2, (shape[2] // 2,) * 2
    conv = kind(weight.contiguous(memory_format=torch.channels_last), bias, stride, padding)
    exact = x.double().requires_grad_()
    plain = F.conv2d(exact, weight.double(), bias.double(), stride, padding)
    residual = random(*plain.shape, seed=4).to(dtype)
    gradient = random(*plain.shape, seed=5).to(dtype)
    other = random(*x.shape, seed=6).to(dtype)
    (expected,) = torch.autograd.grad(plain, exact, gradient.double())
    for _ in range(2):  # the second time with the weights as they were laid out the first time
        pairs = [
            (conv(x), plain),
            (conv(x, rectify=True), plain.relu()),
            (conv(x, residual), plain + residual),
            (conv(x, residual, rectify=True), (plain + residual).relu()),
            (conv.input_gradient(gradient, x), expected),
            (conv.add_input_gradient(gradient, x, other.clone()), expected + other),
        ]
        for mine, theirs in pairs:
            assert mine.dtype == dtype
            torch.testing.assert_close(mine.double(), theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(residual, random(*plain.shape, seed=4).to(dtype))


def test_images_of_another_size_are_served_too() -> None:
    weight, bias = random(4, 3, 3, 3, seed=2).float(), random(4, seed=3).float()
    conv = fixed_convolution(weight, bias, (2, 2), (1, 1))
    for side in (8, 9, 12, 8):
        x = random(2, 3, side, side, seed=1).float().requires_grad_()
        y = F.conv2d(x, weight, bias, 2, 1)
        torch.testing.assert_close(conv(x.detach()), y.detach())
        (expected,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(conv.input_gradient(torch.ones_like(y), x.detach()), expected)


@needs_onednn
@pytest.mark.parametrize("side", [3, 4, 7, 9])
def test_winograds_method_takes_over_where_enough_tiles_fill_its_blocks(side: int, monkeypatch) -> None:
    calls: list[int] = []
    multiply = WinogradProduct._multiply
    monkeypatch.setattr(WinogradProduct, "_multiply", lambda self, x: calls.append(1) or multiply(self, x))
    weight, bias = random(160, 128, 3, 3, seed=2).float() / 34, random(160, seed=3).float()
    conv = fixed_convolution(weight, bias, (1, 1), (1, 1), passes=100)
    for count in (BLOCK // (2 * -(-side // TILE)) + 1, 1):
        x = random(count, 128, side, side, seed=1).float().requires_grad_()
        y = F.conv2d(x, weight, bias, padding=1)
        residual, gradient = torch.full_like(y, 0.5), random(*y.shape, seed=4).float()
        (back,) = torch.autograd.grad(y, x, gradient)
        images, y = x.detach(), y.detach()
        pairs = [
            (conv(images), y),
            (conv(images, residual), y + residual),
            (conv(images, residual, rectify=True), (y + residual).relu()),
            (conv.input_gradient(gradient, images), back),
            (conv.add_input_gradient(gradient, images, images.clone()), back + images),
        ]
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    # a call for every block of the first images, which have 33 columns of one tile, or 34 of two. Maps of 3 or 9 pixels
    # fill too little of their tiles
    assert len(calls) == len(pairs) * {3: 0, 4: 1, 7: 2, 9: 0}[side]


@needs_onednn
def test_winograds_method_waits_for_work_that_pays_for_its_weights(monkeypatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(WinogradProduct, "__init__", lambda self, *_: made.append(1))
    monkeypatch.setattr(WinogradProduct, "__call__", lambda self, x: x)
    weight, bias = torch.ones(128, 128, 3, 3), torch.ones(128)
    cases = {
        (1, 4, 511): False,
        (1, 4, 512): True,
        (16, 4, 31): False,
        (16, 4, 32): True,
        (2, 16, 15): False,
        (2, 16, 16): True,
        (100, 4 * BLOCK + 1, 1): False,
    }
    for (passes, side, count), pays in cases.items():
        conv = fixed_convolution(weight, bias, (1, 1), (1, 1), passes)
        conv(torch.ones(count, 128, side, 4 if side > 16 else side))
        assert bool(made) is pays, (passes, side, count)
        made.clear()


def test_the_form_follows_from_the_weights(monkeypatch) -> None:
    def kind(dtype: torch.dtype, channels: int = 2, stride: int = 1) -> type:
        weight = torch.ones(channels, channels, 3, 3, dtype=dtype)
        return type(fixed_convolution(weight, torch.ones(channels, dtype=dtype), (stride,) * 2, (1, 1)))

    assert kind(torch.float64) is kind(torch.float64, CHANNELS) is PlainConvolution
    if packable(torch.empty(1, 1, 1, 1)):
        assert kind(torch.float32, CHANNELS) is WinogradConvolution
        assert kind(torch.float32) is kind(torch.float32, CHANNELS, 2) is PackedConvolution
    assert kind(torch.bfloat16, CHANNELS) is not WinogradConvolution
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: False)
    assert kind(torch.float32) is kind(torch.bfloat16) is PlainConvolution
