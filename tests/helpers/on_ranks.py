"""Functions and commands on several ranks of this machine, by gloo."""

import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import start_processes

from astra_gym.experiments.engines.base import threads
from astra_gym.experiments.engines.cell import changed, found_here
from astra_gym.experiments.engines.local import PRELOADED
from astra_gym.ssl_core.distributed.ranks import TIMEOUT, joined

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
LONGEST = 900
"""Seconds within which every command here ends, or hangs."""


@contextmanager
def started(script: Path, *flags: str, options: tuple[str, ...] = ()) -> Iterator[subprocess.Popen]:
    """A command on two ranks, by torchrun."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options]
    with subprocess.Popen(
        [*words, str(script), *flags],
        cwd=ROOT,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """The exit status and the output."""
    output, _ = process.communicate(timeout=LONGEST)
    return process.returncode, output


def ranks_of(process: subprocess.Popen) -> list[int]:
    """The processes of the ranks, in their order."""
    return [int(number) for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def on_ranks(size: int, work: str, folder: Path, limit: int = 60) -> list[Any]:
    """Call the function `module:name` without arguments on ranks of a group, which wait `limit` seconds for each other;
    return what each rank's returned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # forked from a process that has imported everything, the one that cells are forked from
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    with changed(threads(1) | found_here()):
        start_processes(_rank, (size, port, work, str(folder), limit), nprocs=size, start_method="forkserver")
    return [torch.load(folder / f"{work.split(':')[1]}-{rank}-of-{size}.pt") for rank in range(size)]


def _rank(rank: int, size: int, port: int, work: str, folder: str, limit: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size), TIMEOUT: str(limit)}
    module, _, name = work.partition(":")
    with joined():
        found = getattr(importlib.import_module(module), name)()
    torch.save(found, Path(folder) / f"{name}-{rank}-of-{size}.pt")
