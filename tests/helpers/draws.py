"""Random numbers of tests."""

import torch
from torch import Tensor


def generator(seed: int = 0) -> torch.Generator:
    """On the CPU."""
    return torch.Generator().manual_seed(seed)


def images(seed: int, n: int = 6) -> Tensor:
    """Float32 noise, (n, 3, 8, 8)."""
    return torch.rand(n, 3, 8, 8, generator=generator(seed))


def embeddings(seed: int = 0, n: int = 6, d: int = 5) -> Tensor:
    """Float64 rows, (n, d), normal."""
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)
