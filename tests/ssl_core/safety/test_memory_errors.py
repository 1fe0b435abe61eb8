"""Errors of a memory that is full are recognized, and are no damage."""

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from astra_gym.ssl_core.models.checkpoint import save_checkpoint
from astra_gym.ssl_core.safety.memory_errors import lacks_memory, release

ROOT = Path(__file__).resolve().parents[3]
STATUS = Path("/proc/self/statm")
LOADS = """
import resource, sys
from pathlib import Path
from astra_gym.ssl_core.data.decoding import read_image
from astra_gym.ssl_core.models.checkpoint import load_checkpoint
from astra_gym.ssl_core.safety.memory_errors import lacks_memory

folder = Path(sys.argv[1])
loads = (lambda: load_checkpoint(folder / "a.pt", "run"), lambda: read_image(folder / "a.png", 8))
for load in loads:
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**26, before[1]))
    try:
        load()
    except Exception as error:
        print(lacks_memory(error))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
for load in loads:
    load()
"""


@pytest.mark.parametrize("asks", [lambda: torch.empty(2**60), lambda: np.empty(2**50), lambda: bytearray(2**60)])
def test_they_are_recognized(asks: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        asks()
    assert lacks_memory(caught.value)
    assert lacks_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert not lacks_memory(RuntimeError("shapes do not fit")) and not lacks_memory(ValueError("DefaultCPUAllocator"))


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux says how much memory is taken")
def test_a_whole_file_is_not_called_damaged(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", "run", {"weights": torch.zeros(2**26)})
    Image.new("RGB", (9000, 9000)).save(tmp_path / "a.png", compress_level=1)
    # a process of its own: another has freed memory, which it may take again
    words = [sys.executable, "-c", LOADS, str(tmp_path)]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\nTrue\n", "")


class Large:
    pass


def test_what_ended_functions_held_is_released() -> None:
    held: list[weakref.ref[Large]] = []

    def works(error: Exception) -> None:
        large = Large()
        held.append(weakref.ref(large))
        raise error

    with pytest.raises(RuntimeError) as caught:
        try:
            works(MemoryError())
        except MemoryError:
            works(RuntimeError("while the first was handled"))
    assert all(reference() is not None for reference in held)
    release(caught.value)
    assert len(held) == 2 and all(reference() is None for reference in held)
