"""What a module holds, as digests: whether two are equal, or one has changed, to the last bit."""

import hashlib
import json

import torch
from torch import nn


def fingerprint(module: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and buffer (those that `state_dict` leaves out too), by name."""
    digests = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digests[name] = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + raw.tobytes()).hexdigest()
    return digests


def digest(module: nn.Module) -> str:
    """One SHA-256 of all that `fingerprint` sees."""
    return hashlib.sha256(json.dumps(fingerprint(module), sort_keys=True).encode()).hexdigest()
