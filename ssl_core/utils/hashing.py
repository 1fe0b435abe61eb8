"""Digests of modules and files, which show whether two are equal, or one has changed, to the last bit."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn


def tensor_digest(*tensors: Tensor) -> str:
    """Return the SHA-256 of tensors in this order: types, shapes and values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def fingerprint(module: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of every parameter and buffer by name, also of those that `state_dict` leaves out."""
    return {name: tensor_digest(tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def digest(module: nn.Module) -> str:
    """Return one SHA-256 of the whole `fingerprint`."""
    return hashlib.sha256(json.dumps(fingerprint(module), sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
