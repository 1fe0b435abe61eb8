"""Adversarial perturbation of the weights, for a gradient at a higher loss; the weights are restored afterwards."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.models.route_norm import Untracked
from astra_gym.ssl_core.utils.finite import check_number

Complete = Callable[[Sequence[Tensor], Sequence[Tensor | None]], None]
"""`complete(weights, gradients)`."""


@contextmanager
def perturbed(
    modules: nn.Module, loss: Callable[[], Tensor], gamma: float, complete: Complete | None = None
) -> Iterator[None]:
    """Move the weights by `gamma * |w| / |g| * g` inside, with each tensor's norms; restore them bit for bit on exit.

    Adversarial weight perturbation (AWP; Wu et al., NeurIPS 2020), also used in DAQ-SDP (NeurIPS 2024): g is the
    gradient of `loss` at the unperturbed weights, and there is one step. It moves trainable tensors of more than one
    dimension, as in AWP's released code: biases and batch norms do not move, nor does a tensor with gradient 0.

    Call backward inside: autograd refuses to go back through weights that have changed since. The pass for g changes
    neither `p.grad` nor the running statistics of `RouteNorm`s.

    Args:
        modules: owner of the weights.
        loss: function that computes the scalar to increase, from these weights.
        gamma: size of the step relative to a tensor's norm, 0 or more (0.005 in AWP, 0.002 in DAQ-SDP); 0 moves nothing
            and does not call `loss`.
        complete: function that makes gradients those of the whole batch, in place, where `loss` gives a part of them.

    Raises:
        ValueError: if gamma is out of its range, the loss is no scalar, or it depends on no weight that can be moved.
    """
    check_number("gamma", gamma, expected="a finite number of 0 or more, such as 0.005")
    if gamma == 0:
        yield
        return
    weights = [weight for weight in modules.parameters() if weight.requires_grad and weight.ndim > 1]
    steps = _steps(modules, weights, loss, gamma, complete)
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, step in zip(weights, steps, strict=True):
                if step is not None:
                    weight.add_(step)
        yield
    finally:
        # subtracting the step would leave rounding behind
        with torch.no_grad():
            for weight, kept in zip(weights, before, strict=True):
                weight.copy_(kept)


def _steps(
    modules: nn.Module,
    weights: list[nn.Parameter],
    loss: Callable[[], Tensor],
    gamma: float,
    complete: Complete | None,
) -> list[Tensor | None]:
    """Return the step of each weight; None if the loss does not depend on it or its gradient is 0."""
    with torch.enable_grad(), Untracked(modules):
        value = loss()
        if value.numel() != 1:
            raise ValueError(f"the loss has shape {tuple(value.shape)}: expected a scalar")
        depends = bool(weights) and value.requires_grad
        # not by `backward`, which would change the caller's p.grad
        slopes = torch.autograd.grad(value, weights, allow_unused=True) if depends else ()
    if all(slope is None for slope in slopes):
        raise ValueError(
            "the loss depends on no trainable weight of more than one dimension: expected it to be computed from these "
            "modules, with gradient and not in chunks"
        )
    if complete is not None:
        complete(weights, slopes)
    pairs = zip(weights, slopes, strict=True)
    return [None if slope is None else _step(weight, slope, gamma) for weight, slope in pairs]


def _step(weight: nn.Parameter, slope: Tensor, gamma: float) -> Tensor | None:
    length = slope.norm()
    # divided first, since a product with a tiny length's inverse could overflow
    return None if length == 0 else gamma * weight.detach().norm() * (slope / length)
