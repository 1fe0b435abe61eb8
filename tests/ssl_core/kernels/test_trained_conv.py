import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_gym.ssl_core.kernels import trained_conv
from astra_gym.ssl_core.kernels.trained_conv import WORK, TrainedConvolution, _Convolved, pays, weight_gradient

SHAPES = [
    # images, in, out, rows, columns, stride, padding
    (2, 3, 4, 6, 5, (2, 2), (1, 1)),
    (3, 2, 3, 4, 4, (1, 1), (1, 1)),
    (2, 2, 3, 7, 5, (2, 1), (0, 2)),
    # the border positions of the kernel read nothing but padding
    (1, 2, 2, 1, 1, (1, 1), (1, 1)),
    (2, 2, 2, 2, 1, (3, 3), (3, 2)),
]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# the first dual imports a part of torch that torch itself calls deprecated
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_a_convolution(shape) -> None:
    count, inputs, outputs, rows, columns, stride, padding = shape
    x = random(count, inputs, rows, columns, seed=1).requires_grad_()
    weight = random(outputs, inputs, 3, 3, seed=2).requires_grad_()

    def convolved(x: Tensor, weight: Tensor) -> Tensor:
        # a copy, as the rounded weights are
        return _Convolved.apply(x, weight, weight.clone(), stride, padding)

    found = convolved(x, weight)
    expected = F.conv2d(x, weight, None, stride, padding)
    assert torch.equal(found, expected)
    gradient = random(*found.shape, seed=3)
    for one, other in zip(
        torch.autograd.grad(found, (x, weight), gradient),
        torch.autograd.grad(expected, (x, weight), gradient),
        strict=True,
    ):
        assert one.stride() == other.stride()
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    # a user's method may penalize gradients, or compute them in forward mode
    torch.autograd.gradgradcheck(convolved, (x, weight))
    torch.autograd.gradcheck(convolved, (x, weight), check_forward_ad=True)


def test_the_layout_of_tensors_changes_nothing() -> None:
    x, weight, gradient = random(2, 3, 6, 6, seed=1), random(4, 3, 3, 3, seed=2), random(2, 4, 3, 3, seed=3)
    found = weight_gradient(gradient, x, weight, (2, 2), (1, 1))
    last = [value.contiguous(memory_format=torch.channels_last) for value in (gradient, x, weight)]
    assert torch.equal(weight_gradient(*last, (2, 2), (1, 1)), found)
    spread = gradient[:, :, :1, :1].expand_as(gradient)
    expected = weight_gradient(spread.contiguous(), x, weight, (2, 2), (1, 1))
    assert torch.equal(weight_gradient(spread, x, weight, (2, 2), (1, 1)), expected)


def test_no_images_give_a_gradient_of_zeros() -> None:
    # a rank may have none
    weight = random(4, 3, 3, 3, seed=1)
    found = weight_gradient(torch.empty(0, 4, 3, 3).double(), torch.empty(0, 3, 6, 6).double(), weight, (2, 2), (1, 1))
    assert torch.equal(found, torch.zeros_like(weight))


def test_in_bfloat16_only_the_rounding_differs() -> None:
    x, weight = random(6, 8, 8, 8, seed=1).bfloat16(), random(16, 8, 3, 3, seed=2).float()
    gradient = random(6, 16, 4, 4, seed=3).bfloat16()
    found = weight_gradient(gradient, x, weight, (2, 2), (1, 1))
    exact = weight_gradient(gradient.double(), x.double(), weight.double(), (2, 2), (1, 1))
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 3e-3 * exact.norm()


def test_the_rule() -> None:
    strided, plain = ((3, 3), (2, 2)), ((3, 3), (1, 1))
    assert pays((64, 512, 4, 4), 512, *plain) and not pays((64, 512, 4, 5), 512, *plain)
    assert pays((64, 128, 2, 2), 128, *plain) and not pays((64, 128, 3, 2), 128, *plain)
    assert pays((64, 256, 8, 8), 128, *strided) and not pays((64, 512, 9, 8), 256, *strided)
    assert not pays((64, 256, 8, 8), 127, *strided)
    # too few multiplications
    assert pays((WORK // 2**15, 256, 1, 1), 128, *strided) and not pays((WORK // 2**15 - 1, 256, 1, 1), 128, *strided)
    assert not pays((64, 256, 8, 8), 128, (1, 1), (2, 2))


def multiplies(values: Tensor) -> bool:
    return values.grad_fn is not None and "_Convolved" in values.grad_fn.name()


def test_training_in_bfloat16_uses_it_and_nothing_else_does(monkeypatch) -> None:
    monkeypatch.setattr(trained_conv, "supported", lambda: True)
    conv, x = TrainedConvolution(64, 64, 3, 2, 1), random(256, 64, 4, 4, seed=1).float()
    plain = nn.Conv2d(64, 64, 3, 2, 1, bias=False)
    plain.load_state_dict(conv.state_dict())
    assert not multiplies(conv(x))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = conv(x), plain(x)
        assert multiplies(found) and torch.equal(found, expected)
        # small, but not for a kernel that reads one pixel
        assert not multiplies(TrainedConvolution(64, 64, 1, 2)(x))
        with torch.no_grad():
            assert not multiplies(conv(x))
        conv.weight.requires_grad_(False)
        assert not multiplies(conv(x.clone().requires_grad_()))
        conv.weight.requires_grad_(True)
        monkeypatch.setattr(trained_conv, "supported", lambda: False)
        assert not multiplies(conv(x))
        # neither of float64, nor of one image without a batch
        assert conv.double()(x.double()).dtype == torch.float64
        assert not multiplies(conv.float()(x[0]))
    with torch.no_grad():
        # the backward pass needs the rounded weights, which autocast keeps
        conv.weight.mul_(1)
    for values in (found, expected):
        values.float().square().sum().backward()
    assert conv.weight.grad is not None and plain.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32
    torch.testing.assert_close(conv.weight.grad, plain.weight.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_the_compiler_sees_a_convolution() -> None:
    conv, x = TrainedConvolution(64, 64, 3, 2, 1), random(256, 64, 4, 4, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.compile(conv, backend="eager", fullgraph=True)(x)
        assert not multiplies(found)
        assert torch.equal(found, conv(x))
