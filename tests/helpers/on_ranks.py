"""Functions on several ranks of this machine, by gloo, and what each returned."""

import importlib
import os
import socket
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from astra_gym.ssl_core.distributed.ranks import TIMEOUT, joined


def on_ranks(size: int, work: str, folder: Path) -> list[Any]:
    """Call the function `module:name` without arguments on ranks of a group; return what each rank's returned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_rank, (size, port, work, str(folder)), nprocs=size)
    return [torch.load(folder / f"{work.split(':')[1]}-{rank}-of-{size}.pt") for rank in range(size)]


def _rank(rank: int, size: int, port: int, work: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size), TIMEOUT: "60"}
    module, _, name = work.partition(":")
    with joined():
        found = getattr(importlib.import_module(module), name)()
    torch.save(found, Path(folder) / f"{name}-{rank}-of-{size}.pt")
