"""3x3 convolutions with fixed weights by Winograd's method, with a quarter of the multiplications.

The output is computed in tiles of 4 x 4 from tiles of 6 x 6 input pixels: both are transformed, and a transformed tile
needs 36 multiplications instead of 16 times 9 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
2016, F(4x4, 3x3)). The points of the polynomials are 0, +-sqrt(1/2), +-sqrt(2) and infinity: in float32 the rounding
error is half of that with the usual 0, +-1, +-2 and infinity.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

TILE = 4
"""Side of an output tile."""
POINTS = TILE + 2
"""Side of an input tile, and number of points."""
CHANNELS = 128
"""Fewest input and output channels at which the products take much longer than the transformations."""
CHUNK = 256
"""Tiles that are transformed at a time, so that they stay in the processor's cache: those of one image or more."""
BLOCK = 64
"""Tiles that are multiplied at a time. The number is fixed, since oneDNN lays out the weights for it: with another one
it may lay them out anew at every call, which takes up to a hundred times as long as the products."""
PAYS = 512
"""Products with so many tiles save twice the time that the preparation of the weights takes."""
SIDE = 32
"""Largest side of a map: the transformations' work grows with it."""
INSIDE = 0.75
"""Least share of the tiles' pixels that are inside the map; with fewer the method gains nothing."""
_GROUPED = (0, 0), (1, 1), (1, 1), POINTS**2
"""Padding, stride, dilation and groups of the products, a 1x1 convolution."""


class Matrices(NamedTuple):
    """Matrices of the one-dimensional method, in float64: outputs are `output @ ((weights @ w) * (inputs @ x))`."""

    output: Tensor
    """(4, 6)."""
    weights: Tensor
    """(6, 3)."""
    inputs: Tensor
    """(6, 6)."""


@cache
def matrices() -> Matrices:
    """Return Cook and Toom's matrices, with rows of `inputs` whose largest entry is 1."""
    points = torch.tensor([0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)], dtype=torch.float64, device="cpu")

    def powers(count: int) -> Tensor:
        # infinity is the last point: only the highest power counts there
        finite = points[:, None] ** torch.arange(count, device="cpu")
        return torch.cat([finite, torch.eye(count, dtype=torch.float64, device="cpu")[-1:]])

    inputs = torch.linalg.inv(powers(POINTS)).T
    scale = inputs.abs().amax(1, keepdim=True)
    return Matrices(powers(TILE).T, powers(3) * scale, inputs / scale)


class Direction(NamedTuple):
    """Matrices for maps of one size in one direction, down or right, in float32."""

    tiles: int
    """Tiles that cover the map."""
    inputs: Tensor
    """(tiles * 6, size), from pixels to transformed tiles. Pixels beyond the border are zeros and have no column."""
    output: Tensor
    """(size, tiles * 6), from transformed tiles to pixels."""


@cache
def direction(size: int) -> Direction:
    """Return the matrices for maps of `size` pixels in this direction."""
    tiles = -(-size // TILE)
    inputs = torch.zeros(tiles, POINTS, tiles * TILE + 2, dtype=torch.float64, device="cpu")
    output = torch.zeros(tiles, TILE, tiles, POINTS, dtype=torch.float64, device="cpu")
    for tile in range(tiles):
        inputs[tile, :, tile * TILE : tile * TILE + POINTS] = matrices().inputs
        output[tile, :, tile] = matrices().output
    # the first column is the pixel before the border
    forth = inputs.flatten(0, 1)[:, 1 : size + 1]
    back = output.flatten(0, 1)[:size].flatten(1)
    return Direction(tiles, forth.float().contiguous(), back.float().contiguous())


def suits(weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> bool:
    """Return whether the method is for a convolution with weights (out, in, h, w); bfloat16 has too few digits."""
    alike = weight.shape[2:] == (3, 3) and stride == padding == (1, 1)
    return alike and weight.dtype == torch.float32 and min(weight.shape[:2]) >= CHANNELS


def pays(shape: Sequence[int], passes: int) -> bool:
    """Return whether the method is faster for `passes` passes of maps with this shape, (n, c, h, w).

    It depends on nothing else, so that equal calls have equal bits after every resume.
    """
    count, _, height, width = shape
    each = -(-height // TILE) * -(-width // TILE)
    tiles, inside = count * each, height * width / (TILE**2 * each)
    # at least half of the rows of blocks have a tile
    return max(height, width) <= SIDE and inside >= INSIDE and 2 * tiles >= BLOCK and passes * tiles >= PAYS


class WinogradProduct:
    """The convolution of maps with 3x3 weights, one pixel of zeros on each side, in float32 on an x86 CPU.

    The 36 products of a tile are one grouped 1x1 convolution by oneDNN.

    Args:
        weight: (out, in, 3, 3).
        bias: (out,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.outputs, inputs = weight.shape[:2]
        twice = torch.kron(matrices().weights, matrices().weights).to(weight)
        transformed = twice @ weight.permute(2, 3, 0, 1).reshape(9, -1)
        transformed = transformed.view(POINTS**2 * self.outputs, inputs, 1, 1)
        shape = 1, POINTS**2 * inputs, 1, BLOCK
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(transformed, *_GROUPED, shape)
        self.bias: Tensor | None = None
        if bias is not None:
            # what the output's matrix turns into ones
            ones = torch.linalg.pinv(matrices().output).sum(1)
            self.bias = torch.einsum("a,b,o->abo", ones, ones, bias.double()).flatten().to(bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve x (n, in, h, w) to (n, out, h, w), both channels-last."""
        count, _, height, width = x.shape
        down, right = direction(height), direction(width)
        images = x.permute(0, 2, 3, 1).contiguous()
        result = x.new_empty(count, height, width, self.outputs)
        pieces = -(-count // max(1, CHUNK // (down.tiles * right.tiles)))
        # products into given memory refuse another type, which autocast would choose
        with torch.autocast("cpu", enabled=False):
            for part, out in zip(images.tensor_split(pieces), result.tensor_split(pieces), strict=True):
                self._convolve(part, out, down, right)
        return result.permute(0, 3, 1, 2)

    def _convolve(self, x: Tensor, out: Tensor, down: Direction, right: Direction) -> None:
        """Convolve x (n, h, w, in) into `out` (n, h, w, out), both contiguous."""
        count, height, width, inputs = x.shape
        across = torch.bmm(right.inputs.expand(count * height, -1, -1), x.view(count * height, width, inputs))
        columns = across.view(count, height, right.tiles, POINTS * inputs).unbind(2)
        # a strip is a column of tiles in one image. First come the first strips of all images, then the second ones,
        # since a batched product is fast only into contiguous memory
        strips, each = right.tiles * count, BLOCK // down.tiles
        lines = x.new_empty(strips, height, POINTS * self.outputs)
        # rows without a tile stay, and are multiplied for nothing
        block = x.new_empty(BLOCK, POINTS**2 * inputs)
        block[min(strips, each) * down.tiles :] = 0
        for start in range(0, strips, each):
            stop = min(start + each, strips)
            tiles = block[: (stop - start) * down.tiles].view(stop - start, down.tiles * POINTS, POINTS * inputs)
            for column in range(start // count, (stop - 1) // count + 1):
                first, last = max(start, column * count), min(stop, (column + 1) * count)
                some = columns[column][first - column * count : last - column * count]
                torch.bmm(down.inputs.expand(last - first, -1, -1), some, out=tiles[first - start : last - start])
            products = self._multiply(block)[: (stop - start) * down.tiles]
            products = products.view(stop - start, down.tiles * POINTS, POINTS * self.outputs)
            torch.bmm(down.output.expand(stop - start, -1, -1), products, out=lines[start:stop])
        lines = lines.view(right.tiles, count, height, -1).permute(1, 2, 0, 3)
        lines = lines.reshape(count * height, right.tiles * POINTS, self.outputs)
        torch.bmm(right.output.expand(count * height, -1, -1), lines, out=out.view(count * height, width, -1))

    def _multiply(self, block: Tensor) -> Tensor:
        """Multiply transformed tiles (64, 36 * in) with the weights to (64, 36 * out), point by point."""
        x = block.t()[None, :, None]
        x = torch.ops.mkldnn._convolution_pointwise(x, self._packed, self.bias, *_GROUPED, "none", (), "")
        return x[0, :, 0].t()
