"""The number of runs that fit on a GPU."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from astra_gym.envs.engine import AttackEngine
from astra_gym.ssl_core.models.target_network import TargetNetwork

CONTEXT = 2**30
"""Bytes that a process takes on a GPU beside its tensors: CUDA's context, its libraries and their work space."""
SPARE = 1.25
"""Factor for what the allocator cannot use and for short-lived tensors."""
EVALUATED = 256
"""Images that the evaluation attacks together, in float32."""
COPIES = 5
"""Copies of the parameters: weights, gradients, two of the optimizer, and one with folded batch norm."""


def run_memory(engine: AttackEngine) -> int:
    """Estimate the bytes of a run in this world on a GPU, from what its updates keep for their backward pass.

    The estimate is not confirmed on a GPU yet.
    """
    learner, settings, method = engine.learner, engine.settings.optimizer, engine.method
    views = (method.views_per_image + method.attacked_per_image) * settings.batch_size / settings.update_chunks
    share = 0.5 if learner.network.precision == "bf16" else 1.0
    trained = kept_bytes(learner.network, engine.image_shape) * views * share
    # the evaluation attacks a classifier on a folded network, which keeps every activation
    plain = copy.deepcopy(learner.network)
    plain.backbone.recompute = False
    passed = max(trained, kept_bytes(plain, engine.image_shape) * EVALUATED)
    parts = nn.ModuleList([learner.network, learner.heads, learner.others])
    weights = sum(value.nbytes for value in parts.state_dict().values())
    images = engine.data.train.images.nbytes if engine.batches.source.keep == "device" else 0
    return CONTEXT + int(SPARE * (passed + COPIES * weights)) + images


def kept_bytes(network: TargetNetwork, shape: tuple[int, int, int]) -> float:
    """Return the bytes that a forward and a backward pass in train mode and float32 keep of each image (3, h, w).

    With the network's `recompute` these are the inputs of its parts, and the activations of one part at a time.
    Nothing is computed.
    """
    imagined = copy.deepcopy(network).to("meta").train()
    backbone, imagined.precision = imagined.backbone, "fp32"
    recompute, backbone.recompute, backbone.compiled = backbone.recompute, False, False
    count, route = 2, imagined.routes[0]
    images = torch.empty(count, *shape, device="meta")
    if not recompute:
        return _kept(imagined, lambda: imagined(images, route)) / count
    inputs, most = 0, 0
    x = (images - imagined.mean) / imagined.std
    for part in backbone.parts:
        inputs += x.nbytes
        most = max(most, _kept(imagined, partial(part, x, route)))
        x = part(x, route).detach().requires_grad_()
    return (inputs + most) / count


def _kept(network: nn.Module, work: Callable[[], object]) -> int:
    """Return the bytes of what work keeps for its backward pass, beside the network's weights."""
    weights = {value.untyped_storage()._cdata for value in network.state_dict().values()}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage()._cdata] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        work()
    return sum(value.untyped_storage().nbytes() for own, value in kept.items() if own not in weights)


def runs_that_fit(cores: int, needed: int, free: int | None) -> int:
    """Return how many runs to make side by side: one per core, on a GPU no more than its memory holds, at least one.

    Args:
        cores: usable cores.
        needed: bytes of a run on the GPU; 0 if runs are on the CPU.
        free: free bytes on the GPU; None if unknown.
    """
    return max(1, min(cores, free // needed)) if needed and free is not None else cores
