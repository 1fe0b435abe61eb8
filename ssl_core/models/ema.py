"""Moving averages of networks."""

import math

import torch
from torch import nn

from astra_gym.ssl_core.utils.finite import check_number


@torch.no_grad()
def ema_update(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Move the target's parameters toward the source's: `t <- momentum * t + (1 - momentum) * s`.

    Buffers do not change: a momentum network's batch-norm statistics come from its own forward passes (DynACL, BYOL).

    Args:
        target: the moving average; it is changed in place.
        source: a module with the same parameters.
        momentum: share of the target that stays, in [0, 1].

    Raises:
        ValueError: if the momentum is out of range, or the parameters differ in name or shape; the target is then
            unchanged.
    """
    check_number("momentum", momentum, 0, 1)
    ours, theirs = dict(target.named_parameters()), dict(source.named_parameters())
    shapes = [{name: value.shape for name, value in each.items()} for each in (ours, theirs)]
    if shapes[0] != shapes[1]:
        differ = sorted(name for name in ours.keys() | theirs.keys() if shapes[0].get(name) != shapes[1].get(name))
        raise ValueError(f"a moving average needs two networks alike: {', '.join(differ[:4])} differ")
    if ours:
        averages: list[torch.Tensor] = list(ours.values())
        torch._foreach_mul_(averages, momentum)
        torch._foreach_add_(averages, [theirs[name] for name in ours], alpha=1 - momentum)


def cosine_momentum(progress: float, start: float, end: float = 1.0) -> float:
    """Momentum that rises along a cosine (BYOL): `end - (end - start) * (cos(pi * progress) + 1) / 2`.

    Args:
        progress: share of the training that is done, in [0, 1]; larger values count as 1.
        start: momentum at the beginning, in [0, 1] (0.99 on CIFAR).
        end: momentum at the end, in [0, 1] (1, and 0.999 in solo-learn's MoCo).
    """
    return end - (end - start) * (math.cos(math.pi * min(1.0, progress)) + 1) / 2
