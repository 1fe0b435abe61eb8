"""A copy of an eval-mode network for attacks: batch norm folded into the layers, gradients for the images only."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from astra_gym.ssl_core.kernels.fixed_conv import Convolution, fixed_convolution, rectified_gradient
from astra_gym.ssl_core.models.backbones.resnet import Block, ResNet
from astra_gym.ssl_core.models.projectors import Projector
from astra_gym.ssl_core.models.route_norm import RouteNorm
from astra_gym.ssl_core.models.target_network import Encoded, TargetNetwork, pieces

_threshold_backward = torch.ops.aten.threshold_backward
_max_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward


class Linear(NamedTuple):
    """A linear layer with its batch norm folded in, and whether ReLU follows."""

    weight: Tensor
    bias: Tensor | None
    rectify: bool

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs) to (n, outputs)."""
        x = F.linear(x, self.weight, self.bias)
        return x.relu_() if self.rectify else x


class Residual(NamedTuple):
    """A residual block: its convolutions in order, and the shortcut's if it has one."""

    convs: tuple[Convolution, ...]
    shortcut: Convolution | None


class FoldedRoute:
    """One route of a network in eval mode, independent of the original's weights.

    In eval mode batch norm is `scale * x + shift` per channel, so `scale` goes into the layer before it and `shift`
    becomes its bias. The division of the input normalization goes into the first convolution. In float32 this changes
    the rounding only: the loss that an attack attains stays within 0.1 %. With precision bf16 everything after the
    subtraction of the pixels' mean runs in bfloat16, and that loss stays within 1 %.

    The backward pass is written by hand. It works in place, and keeps only what the images' gradient needs: the outputs
    of the ReLUs. With the network's `recompute` it keeps only the images, and repeats the forward pass piece by piece.

    Args:
        network: the network to fold, with its present weights; its backbone is a ResNet.
        route: batch-norm route.
        projector: whether the projector is folded too; without it the embeddings are the features.
        passes: as in `FoldedNetwork`.
    """

    def __init__(self, network: TargetNetwork, route: str, projector: bool = True, passes: int = 1) -> None:
        backbone = cast(ResNet, network.backbone)
        self.passes = passes
        self.dtype = torch.bfloat16 if network.precision == "bf16" else network.mean.dtype
        self.outputs = network.mean.dtype
        self.recompute = backbone.recompute
        self.mean = network.mean
        self.stem = self._convolution(backbone.conv, backbone.norm, route, network.std)
        self.pool = backbone.pool
        self.residuals: list[Residual] = []
        for block in cast(Iterable[Block], backbone.blocks):
            pairs = cast(Iterable[tuple[nn.Conv2d, RouteNorm]], zip(block.convs, block.norms, strict=True))
            convs = tuple(self._convolution(conv, norm, route) for conv, norm in pairs)
            short = block.shortcut
            self.residuals.append(
                Residual(convs, None if short is None else self._convolution(short.conv, short.norm, route))
            )
        self.neck = [] if network.neck is None else self._linears(network.neck, route)
        self.head = self._linears(network.projector, route) if projector else []

    @torch.no_grad()
    def _convolution(self, conv: nn.Conv2d, norm: RouteNorm, route: str, divisor: Tensor | None = None) -> Convolution:
        scale, shift = _scale_and_shift(norm, route)
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        if divisor is not None:
            weight = weight / divisor
        stride, padding = cast(tuple[int, int], conv.stride), cast(tuple[int, int], conv.padding)
        return fixed_convolution(weight.to(self.dtype), shift.to(self.dtype), stride, padding, self.passes)

    @torch.no_grad()
    def _linears(self, head: Projector, route: str) -> list[Linear]:
        folded = []
        for linear, norm, rectify in head.parts:
            weight, bias = cast(Tensor, linear.weight), cast(Tensor | None, linear.bias)
            if norm is not None:
                scale, shift = _scale_and_shift(norm, route)
                weight, bias = weight * scale[:, None], shift if bias is None else shift + bias * scale
            # a copy even where nothing is folded
            parts = [None if part is None else part.detach().to(self.dtype, copy=True) for part in (weight, bias)]
            folded.append(Linear(cast(Tensor, parts[0]), parts[1], rectify))
        return folded

    def __call__(self, images: Tensor) -> Encoded:
        """Encode images (n, 3, h, w) to features and embeddings, in the network's floating type."""
        if torch.is_grad_enabled() and images.requires_grad:
            return Encoded(*_FoldedEncoding.apply(images, self))
        return Encoded(*self.forward(images, None))

    def forward(self, images: Tensor, kept: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """Return features and embeddings, and append to `kept` what `backward` needs, in the order of the layers."""

        def keep(*values: Tensor) -> None:
            # without a list a layer's output is freed as soon as the next layer has used it
            if kept is not None:
                kept.extend(values)

        x = (images - self.mean).to(self.dtype)
        keep(x)
        x = self.stem(x, rectify=True)
        keep(x)
        if self.pool is not None:
            x, indices = F.max_pool2d(
                x, self.pool.kernel_size, self.pool.stride, self.pool.padding, return_indices=True
            )
            keep(indices, x)
        for (*inner, last), shortcut in self.residuals:
            residual = x if shortcut is None else shortcut(x)
            for conv in inner:
                x = conv(x, rectify=True)
                keep(x)
            x = last(x, residual, rectify=True)
            keep(x)
        features = x.mean(dim=(2, 3))
        for layer in self.neck:
            features = layer.forward(features)
            if layer.rectify:
                keep(features)
        # two tensors, since a caller may write into either
        z = features if self.head else features.clone()
        for layer in self.head:
            z = layer.forward(z)
            if layer.rectify:
                keep(z)
        return features.to(self.outputs), z.to(self.outputs)

    def backward(self, kept: list[Tensor], features: Tensor | None, embeddings: Tensor | None) -> Tensor:
        """Return the images' gradient from those of the outputs (None for an unused output); this empties `kept`."""
        gradient = _through(self.head, kept, None if embeddings is None else embeddings.to(self.dtype))
        if features is not None:
            own = features.to(self.dtype)
            gradient = own if gradient is None else gradient + own
        gradient = _through(self.neck, kept, gradient)
        if gradient is None:
            return torch.zeros_like(kept[0], dtype=self.outputs)
        height, width = kept[-1].shape[2:]
        spread = (gradient / (height * width))[:, :, None, None].expand_as(kept[-1])
        gradient = spread.contiguous(memory_format=torch.channels_last)
        # gradient along an identity shortcut; it is added at the ReLU before the block
        passed: Tensor | None = None
        for convs, shortcut in reversed(self.residuals):
            gradient = residual = rectified_gradient(gradient, kept.pop(), passed)
            for index in range(len(convs) - 1, -1, -1):
                gradient = convs[index].input_gradient(gradient, kept[-1])
                if index:
                    gradient = rectified_gradient(gradient, kept.pop())
            passed = residual if shortcut is None else None
            if shortcut is not None:
                gradient = shortcut.add_input_gradient(residual, kept[-1], gradient)
        if self.pool is not None:
            if passed is not None:
                gradient, passed = gradient + passed, None
            kept.pop()
            indices, pool = kept.pop(), self.pool
            gradient = _max_pool_backward(
                gradient,
                kept[-1],
                _pair(pool.kernel_size),
                _pair(pool.stride),
                _pair(pool.padding),
                (1, 1),
                False,
                indices,
            )
        gradient = rectified_gradient(gradient, kept.pop(), passed)
        return self.stem.input_gradient(gradient, kept.pop()).to(self.outputs)


def _through(layers: Sequence[Linear], kept: list[Tensor], gradient: Tensor | None) -> Tensor | None:
    """Return the gradient before linear layers from that after them (None if there is none); this pops from `kept`."""
    for layer in reversed(layers):
        output = kept.pop() if layer.rectify else None
        if gradient is not None:
            if output is not None:
                # not in place, since the gradient may be the caller's tensor
                gradient = _threshold_backward(gradient, output, 0)
            gradient = gradient @ layer.weight
    return gradient


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else cast(tuple[int, int], tuple(value))


def _scale_and_shift(norm: RouteNorm, route: str) -> tuple[Tensor, Tensor]:
    batch_norm = norm.norm(route)
    mean, variance = cast(Tensor, batch_norm.running_mean), cast(Tensor, batch_norm.running_var)
    deviation = (variance + batch_norm.eps).sqrt()
    if not batch_norm.affine:
        return 1 / deviation, -mean / deviation
    scale = batch_norm.weight / deviation
    return scale, batch_norm.bias - mean * scale


class _FoldedEncoding(torch.autograd.Function):
    """`FoldedRoute` for autograd: one node for the whole network."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, folded: FoldedRoute) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        outputs = folded.forward(images, None if folded.recompute else kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*([images] if folded.recompute else kept))
        ctx.folded = folded
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, features: Tensor | None, embeddings: Tensor | None) -> tuple[Tensor, None]:
        folded, kept = ctx.folded, list(ctx.saved_tensors)
        if folded.recompute:
            (images,), kept = kept, []
            folded.forward(images, kept)
        return folded.backward(kept, features, embeddings), None


class FoldedNetwork:
    """A `TargetNetwork` in eval mode with the same calls, which folds each route on its first use.

    Layer norm depends on the image, so it cannot be folded: a ViT is called as it is, with its present weights.

    Args:
        network: the network, in eval mode; later changes of a ResNet's weights have no effect. Its precision sets the
            arithmetic.
        passes: number of passes to expect; with many a longer preparation of the weights is worth its time.

    Raises:
        ValueError: if the network is in train mode, where batch norm is another function.
    """

    def __init__(self, network: TargetNetwork, passes: int = 1) -> None:
        if network.training:
            raise ValueError("the network is in train mode: batch norm can be folded in eval mode only")
        self.network = network
        self.passes = passes
        self.folds = isinstance(network.backbone, ResNet)
        """Whether batch norm is folded."""
        self._routes: dict[tuple[str, bool], FoldedRoute] = {}

    def __call__(self, images: Tensor, route: str) -> Encoded:
        """Encode images (n, 3, h, w) in [0, 1] to features and embeddings, on a route of the network."""
        if not self.folds:
            return self.network(images, route)
        return self._encoded(images, route, projector=True)

    def features(self, images: Tensor, route: str) -> Tensor:
        """Encode images (n, 3, h, w) in [0, 1] to features, without the projector."""
        if not self.folds:
            return self.network.features(images, route)
        return self._encoded(images, route, projector=False).features

    def _encoded(self, images: Tensor, route: str, projector: bool) -> Encoded:
        self.network.check(images, route)
        key = route, projector
        if key not in self._routes:
            self._routes[key] = FoldedRoute(self.network, route, projector, self.passes)
        folded = self._routes[key]
        encoded = [folded(piece) for piece in pieces(images, folded.dtype.itemsize, folded.recompute)]
        return encoded[0] if len(encoded) == 1 else Encoded(*(torch.cat(parts) for parts in zip(*encoded, strict=True)))
