"""Named random streams: one seed for a run, one generator for each purpose."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from astra_gym.ssl_core.utils.finite import check_number


def derive_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed for `name`: streams of one run are independent, and adding one does not change another."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def global_generators_kept() -> Iterator[None]:
    """Restore the global generators of torch, NumPy and Python on exit: foreign code draws from them or seeds them."""
    python, legacy = random.getstate(), np.random.get_state()
    # seeding torch seeds every device
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


class Streams:
    """Named torch generators, made on first use from the seed and the name.

    Args:
        seed: the run's seed, a non-negative integer.
        device: device of the generators of `on_device`.

    Raises:
        ValueError: if the seed is not a non-negative integer.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        check_number("seed", seed, whole=True)
        self.seed = seed
        self.device = torch.device(device)
        self._host: dict[str, torch.Generator] = {}
        self._device: dict[str, torch.Generator] = {}

    def __getitem__(self, name: str) -> torch.Generator:
        """Return the CPU generator called `name`."""
        if name not in self._host:
            self._host[name] = torch.Generator().manual_seed(derive_seed(self.seed, name))
        return self._host[name]

    def on_device(self, name: str) -> torch.Generator:
        """Return the generator called `name` on the streams' device, for draws too large for the host."""
        if name not in self._device:
            seed = derive_seed(self.seed, f"device/{name}")
            self._device[name] = torch.Generator(self.device).manual_seed(seed)
        return self._device[name]

    def state_dict(self) -> dict[str, Any]:
        """Return the seed, the kind of device and every generator's state, as plain values and tensors."""
        return {
            "seed": self.seed,
            "device_type": self.device.type,
            "host": {name: generator.get_state() for name, generator in self._host.items()},
            "device": {name: generator.get_state() for name, generator in self._device.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Restore the streams.

        Returns:
            The names of the streams that could not be continued, because they were on another kind of device. These
            restart from a seed derived from their old state, so that no draw is repeated.
        """
        self.seed = state["seed"]
        self._host = {name: _restored(torch.Generator(), saved) for name, saved in state["host"].items()}
        self._device = {}
        same = state["device_type"] == self.device.type
        for name, saved in state["device"].items():
            generator = torch.Generator(self.device)
            if same:
                self._device[name] = _restored(generator, saved)
            else:
                digest = hashlib.sha256(saved.cpu().numpy().tobytes()).hexdigest()
                self._device[name] = generator.manual_seed(derive_seed(self.seed, f"{name}/{digest}"))
        return [] if same else sorted(self._device)


def _restored(generator: torch.Generator, state: torch.Tensor) -> torch.Generator:
    generator.set_state(state.cpu())
    return generator
