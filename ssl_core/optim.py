"""Optimisers and schedules."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ssl_core.lookup import pick


class LARS(Optimizer):
    """ACL's layer-wise adaptive rate scaling (You et al. 2017, as ACL, DynACL and ASTrA run it).

    For every tensor: `q = trust * |w| / (|g| + wd * |w|)`, `v <- momentum * v + lr * q * (g + wd * w)`, `w <- w - v`;
    q is 1 where |w| or |g| is below 1e-15. It applies to all tensors, batch norm and biases included.

    Args:
        params: as of any optimiser.
        lr: learning rate.
        momentum: of the velocity v.
        weight_decay: wd.
        trust: the trust coefficient, 1e-3.

    Raises:
        ValueError: if a figure is negative.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 1e-3,
    ) -> None:
        if min(lr, momentum, weight_decay, trust) < 0:
            raise ValueError(f"LARS was given {lr=}, {momentum=}, {weight_decay=}, {trust=}: expected none negative")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One update; `closure`, if given, computes the loss anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if "velocity" not in self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
            gradients = [weight.grad for weight in weights]
            velocities = [self.state[weight]["velocity"] for weight in weights]
            decay = group["weight_decay"]
            size = torch.stack(torch._foreach_norm(weights))
            slope = torch.stack(torch._foreach_norm(gradients))
            ratio = group["trust"] * size / (slope + decay * size)
            # the norms stay on the device: no host synchronisation, one fused pass over all tensors
            ratio = torch.where((size < 1e-15) | (slope < 1e-15), torch.ones_like(ratio), ratio) * group["lr"]
            updates = torch._foreach_add(gradients, weights, alpha=decay)
            torch._foreach_mul_(updates, list(ratio.unbind()))
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, updates)
            torch._foreach_sub_(weights, velocities)
        return loss


def _lars(params: Iterable[Any], lr: float, weight_decay: float) -> Optimizer:
    return LARS(params, lr, weight_decay=weight_decay)


def _sgd(params: Iterable[Any], lr: float, weight_decay: float) -> Optimizer:
    return SGD(params, lr, momentum=0.9, weight_decay=weight_decay, nesterov=True, fused=True)


def _adamw(params: Iterable[Any], lr: float, weight_decay: float) -> Optimizer:
    return AdamW(params, lr, weight_decay=weight_decay, fused=True)


OPTIMIZERS: dict[str, Callable[[Iterable[Any], float, float], Optimizer]] = {
    "lars": _lars,
    "sgd": _sgd,
    "adamw": _adamw,
}


def make_optimizer(name: str, network: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """The optimiser called `name` in `OPTIMIZERS` over all parameters of the network."""
    return pick(name, OPTIMIZERS, "optimizer")(network.parameters(), lr, weight_decay)


def warmup_cosine(step: int, total: int, warmup: int, peak: float, floor: float = 1e-6) -> float:
    """Learning rate of update `step` (0-based): linear from 0 over `warmup` updates, then cosine to `floor` at `total`.

    ACL's schedule (methods of ACL, DynACL and ASTrA: 10 epochs of warm-up, floor 1e-6, counted per iteration).
    Beyond `total` the rate stays at the floor.
    """
    if step < warmup:
        return peak * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
