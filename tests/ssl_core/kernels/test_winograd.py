import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.kernels.winograd import BLOCK, WinogradProduct, direction, matrices
from tests.helpers.processors import needs_onednn


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_matrices_give_a_convolution() -> None:
    # Lavin and Gray, 2016, equation 6: Y = A^T [(G g) * (B^T d)]
    x, w = random(6, seed=1).double(), random(3, seed=2).double()
    found = matrices().output @ ((matrices().weights @ w) * (matrices().inputs @ x))
    torch.testing.assert_close(found, F.conv1d(x[None, None], w[None, None])[0, 0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 16])
def test_a_direction_pads_with_a_zero_on_each_side(size: int) -> None:
    x, w = random(size, seed=1).double(), random(3, seed=2).double()
    down = direction(size)
    products = (down.inputs.double() @ x).view(down.tiles, 6) * (matrices().weights @ w)
    found = down.output.double() @ products.flatten()
    torch.testing.assert_close(found, F.conv1d(x[None, None], w[None, None], padding=1)[0, 0], rtol=1e-6, atol=1e-6)


@needs_onednn
@pytest.mark.parametrize(
    # count, in, out, height, width
    "shape",
    [(5, 24, 40, 7, 9), (BLOCK + 1, 16, 16, 4, 4), (3, 16, 8, 20, 4), (1, 8, 8, 4 * BLOCK, 5), (2, 128, 130, 1, 2)],
)
def test_it_is_the_convolution_whatever_the_number_of_tiles(shape: tuple[int, ...]) -> None:
    count, inputs, outputs, height, width = shape
    x = random(count, inputs, height, width, seed=1)
    weight, bias = random(outputs, inputs, 3, 3, seed=2) / (3 * inputs**0.5), random(outputs, seed=3)
    product = WinogradProduct(weight, bias)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    for images in (x, x[:1], x.contiguous(memory_format=torch.channels_last)):
        found = product(images)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.double(), expected[: len(images)], rtol=1e-5, atol=1e-5)
    assert torch.equal(found, product(x))
    without = WinogradProduct(weight, None)(x)
    torch.testing.assert_close(without + bias[:, None, None], found, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_an_image_does_not_depend_on_the_others() -> None:
    # the second block is filled in part, and keeps rows of the first
    x = random(BLOCK + 6, 16, 4, 4, seed=1)
    product = WinogradProduct(random(16, 16, 3, 3, seed=2), random(16, seed=3))
    clean = product(x)
    x[2, 0, 0, 0] = torch.nan
    found = product(x)
    assert found[2].isnan().any()
    others = torch.arange(len(x)) != 2
    assert torch.equal(found[others], clean[others])


@needs_onednn
def test_autocast_around_it_changes_nothing() -> None:
    x, product = random(6, 16, 8, 8, seed=1), WinogradProduct(random(16, 16, 3, 3, seed=2), random(16, seed=3))
    with torch.autocast("cpu", torch.bfloat16):
        found = product(x)
    assert torch.equal(found, product(x))
