"""The number of runs that fit on a GPU."""

import copy

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

    It is an upper estimate, since `recompute` is not taken into account, and it is not confirmed on a GPU yet.
    """
    learner, settings, method = engine.learner, engine.settings.optimizer, engine.method
    views = (method.views_per_image + method.attacked_per_image) * settings.batch_size / settings.update_chunks
    share = 0.5 if learner.network.precision == "bf16" else 1.0
    passed = kept_bytes(learner.network, engine.image_shape) * max(views * share, EVALUATED)
    parts = nn.ModuleList([learner.network, learner.heads, learner.others])
    weights = sum(value.nbytes for value in parts.state_dict().values())
    images = engine.data.train.images.nbytes if engine.batches.source.keep == "device" else 0
    return CONTEXT + int(SPARE * (passed + COPIES * weights)) + images


def kept_bytes(network: TargetNetwork, shape: tuple[int, int, int]) -> float:
    """Return the bytes that a forward pass in train mode and float32 keeps of each image of a shape (3, h, w) for the
    backward pass. Nothing is computed."""
    imagined = copy.deepcopy(network).to("meta").train()
    imagined.precision, imagined.backbone.recompute = "fp32", False
    weights = {value.untyped_storage()._cdata for value in imagined.state_dict().values()}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage()._cdata] = value
        return value

    count = 2
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        imagined(torch.empty(count, *shape, device="meta"), imagined.routes[0])
    return sum(value.untyped_storage().nbytes() for own, value in kept.items() if own not in weights) / count


def runs_that_fit(cores: int, needed: int, free: int | None) -> int:
    """Return how many runs to make side by side: one per core, on a GPU no more than its memory holds, at least one.

    Args:
        cores: usable cores.
        needed: bytes of a run on the GPU; 0 if runs are on the CPU.
        free: free bytes on the GPU; None if unknown.
    """
    return max(1, min(cores, free // needed)) if needed and free is not None else cores
