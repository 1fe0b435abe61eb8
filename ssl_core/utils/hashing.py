"""What a module holds, as digests: whether two are equal, or one has changed, to the last bit."""

import hashlib
import json

import torch
from torch import Tensor, nn


def tensor_digest(*tensors: Tensor) -> str:
    """SHA-256 of tensors in this order: types, shapes and values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def fingerprint(module: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and buffer (those that `state_dict` leaves out too), by name."""
    return {name: tensor_digest(tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def digest(module: nn.Module) -> str:
    """One SHA-256 of all that `fingerprint` sees."""
    return hashlib.sha256(json.dumps(fingerprint(module), sort_keys=True).encode()).hexdigest()
