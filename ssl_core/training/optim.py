"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.registry import pick


class _LayerWise(Optimizer):
    """Base of both kinds of LARS: checks the settings, and gives every weight its velocity."""

    def __init__(self, params: Iterable[Any], settings: dict[str, Any]) -> None:
        for name in ("lr", "momentum", "weight_decay", "trust"):
            check_number(name, settings[name])
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One update; `closure`, if given, computes the loss anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if "velocity" not in self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
            if weights:
                self._move(group, weights)
        return loss

    def _move(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        """Update a group's weights that have a gradient, one or more."""
        raise NotImplementedError


class LARS(_LayerWise):
    """ACL's layer-wise adaptive rate scaling (You et al. 2017, as ACL, DynACL and ASTrA run it).

    For every tensor: `q = trust * |w| / (|g| + wd * |w|)`, `v <- momentum * v + lr * q * (g + wd * w)`, `w <- w - v`;
    q is 1 where |w| or |g| is below 1e-15. It applies to all tensors, batch norm and biases included.

    Args:
        params: parameters or groups, as for any optimizer.
        lr: learning rate.
        momentum: momentum of the velocity v.
        weight_decay: wd.
        trust: the trust coefficient, 1e-3.

    Raises:
        ValueError: if a value is negative.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    def _move(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        gradients = [cast(Tensor, weight.grad) for weight in weights]
        velocities = [self.state[weight]["velocity"] for weight in weights]
        decay = group["weight_decay"]
        size = torch.stack(torch._foreach_norm(weights))
        slope = torch.stack(torch._foreach_norm(gradients))
        ratio = group["trust"] * size / (slope + decay * size)
        # the norms stay on the device: no host synchronization, one fused pass over all tensors
        ratio = torch.where((size < 1e-15) | (slope < 1e-15), torch.ones_like(ratio), ratio) * group["lr"]
        updates = torch._foreach_add(gradients, weights, alpha=decay)
        torch._foreach_mul_(updates, list(ratio.unbind()))
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        torch._foreach_sub_(weights, velocities)


class WrappedLARS(_LayerWise):
    """LARS as a wrapper around SGD, as in solo-learn, EMP-SSL and torchlars.

    For tensors of two or more dimensions, `q = trust * |w| / (|g| + wd * |w| + 1e-8)`, with `clip` then
    `q <- min(q / lr, 1)`, and `d = q * (g + wd * w)`. For all others (biases, batch norm), and where |w| or |g| is 0,
    `d = g`. Then SGD without weight decay: `v <- momentum * v + d` and `w <- w - lr * v`, with Nesterov's
    `w <- w - lr * (d + momentum * v)`. Unlike in ACL's `LARS`, the velocity does not include the rate.

    With `everywhere`, as in torchlars (RoCL), all tensors are treated alike; where |w| or |g| is 0, `d = g + wd * w`.

    Args:
        params: parameters or groups, as for any optimizer.
        lr: learning rate.
        momentum: momentum of the velocity v.
        weight_decay: wd.
        trust: the trust coefficient.
        clip: whether to cap a tensor's rate `lr * q` at `lr`; below the cap, `lr` has no effect.
        nesterov: whether to use Nesterov's momentum.
        everywhere: whether to adapt all tensors, biases and batch norm too.

    Raises:
        ValueError: if a value is negative.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        trust: float = 0.02,
        clip: bool = True,
        nesterov: bool = False,
        everywhere: bool = False,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        settings |= {"trust": trust, "clip": clip, "nesterov": nesterov, "everywhere": everywhere}
        super().__init__(params, settings)

    def _move(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        # adapted tensors first
        adapted = [weight for weight in weights if group["everywhere"] or weight.ndim >= 2]
        weights = adapted + [weight for weight in weights if not group["everywhere"] and weight.ndim < 2]
        velocities = [self.state[weight]["velocity"] for weight in weights]
        updates = [cast(Tensor, weight.grad) for weight in weights]
        updates[: len(adapted)] = self._scaled(adapted, group)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        if group["nesterov"]:
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
            torch._foreach_add_(weights, velocities, alpha=-group["lr"] * group["momentum"])
        else:
            torch._foreach_add_(weights, velocities, alpha=-group["lr"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            # not in files of version 0.1
            group.setdefault("everywhere", False)

    def _scaled(self, weights: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        if not weights:
            return []
        gradients = [cast(Tensor, weight.grad) for weight in weights]
        decay, lr = group["weight_decay"], group["lr"]
        size = torch.stack(torch._foreach_norm(weights))
        slope = torch.stack(torch._foreach_norm(gradients))
        ratio = group["trust"] * size / (slope + decay * size + 1e-8)
        if group["clip"]:
            # with a rate of 0, at the start of a warm-up, nothing moves, but the ratio must not be infinite
            ratio = (ratio / lr).clamp(max=1.0) if lr > 0 else torch.ones_like(ratio)
        bare = (size == 0) | (slope == 0)
        ratio = torch.where(bare, torch.ones_like(ratio), ratio)
        decays = torch.full_like(ratio, decay)
        if not group["everywhere"]:
            decays = torch.where(bare, torch.zeros_like(ratio), decays)
        updates = torch._foreach_add(gradients, torch._foreach_mul(weights, list(decays.unbind())))
        torch._foreach_mul_(updates, list(ratio.unbind()))
        return list(updates)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "lars": LARS,
    "sgd": partial(SGD, momentum=0.9, nesterov=True, fused=True),
    "adamw": partial(AdamW, fused=True),
    "sgd-classic": partial(SGD, momentum=0.9, fused=True),
    "lars-excluded": WrappedLARS,
    "lars-emp": partial(WrappedLARS, trust=0.005, nesterov=True),
    "lars-torchlars": partial(WrappedLARS, trust=0.001, clip=False, everywhere=True),
}
"""`lars`: ACL, DynACL, AIR, ASTrA. `sgd`: Nesterov's momentum. `sgd-classic`: plain momentum (AdvCL, DeACL, TARO,
DAQ-SDP). `lars-excluded`: solo-learn's LARS on CIFAR (SimCLR, BYOL, Barlow Twins, VICReg). `lars-emp`: EMP-SSL and
CF-AMC-SSL. `lars-torchlars`: torchlars' LARS around SGD (RoCL)."""
PEAK_LR = {
    "lars": 5.0,
    "sgd": 0.3,
    "adamw": 3e-3,
    "sgd-classic": 0.5,
    "lars-excluded": 1.0,
    "lars-emp": 0.3,
    "lars-torchlars": 1.5,
}
"""Usual peak learning rates, from ACL (lars), DeACL, BYOL, EMP-SSL and RoCL; sgd and adamw were tuned on the digits."""


def make_optimizer(
    name: str,
    network: nn.Module,
    lr: float,
    weight_decay: float,
    heads: Iterable[tuple[nn.Module, bool]] = (),
) -> Optimizer:
    """Make the optimizer called `name` in `OPTIMIZERS` for all parameters of the network and of the heads.

    Args:
        name: name of the optimizer.
        network: module with the parameters of the first group.
        lr: learning rate of all groups.
        weight_decay: weight decay of all groups.
        heads: (module, whether its rate is constant) for each further group. A group of constant rate has `constant_lr`
            true, and the schedule skips it (TARO's and SimSiam's predictor). A head without parameters adds no group.

    Raises:
        ValueError: if the name is unknown, or a parameter is given twice.
    """
    make = pick(name, OPTIMIZERS, "optimizer")
    groups = [(list(head.parameters()), constant) for head, constant in heads]
    groups = [(parameters, constant) for parameters, constant in groups if parameters]
    if not groups:
        return make(network.parameters(), lr=lr, weight_decay=weight_decay)
    first = {"params": list(network.parameters()), "constant_lr": False}
    others = [{"params": parameters, "constant_lr": constant} for parameters, constant in groups]
    return make([first, *others], lr=lr, weight_decay=weight_decay)


def warmup_cosine(step: float, total: int, warmup: int, peak: float, floor: float = 1e-6, start: float = 0.0) -> float:
    """Learning rate of update `step` (0-based): linear from `start` over `warmup` updates, then cosine to `floor` at
    `total`.

    ACL's and ASTrA's schedule (10 epochs of warm-up from 0, floor 1e-6, counted per iteration). Beyond `total` the rate
    stays at the floor.
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine_by_epoch(epoch: int, epochs: int, warmup: int, peak: float, floor: float, start: float) -> float:
    """Learning rate throughout an epoch (0-based), for schedules that count epochs (DynACL, DeACL, RoCL).

    Counted from 1: linear from `start` in epoch 1 to `peak` in epoch `warmup`, constant for one more epoch, then
    cosine, to reach `floor` in epoch `epochs + 1`. With `warmup` 1, epoch 1 is at the peak.
    """
    if epoch < warmup - 1:
        return start + (peak - start) * epoch / (warmup - 1)
    return warmup_cosine(max(epoch, warmup), epochs, warmup, peak, floor)
