"""Content of checkpoints, tensors and plain values: checked before writing, and loaded without running code."""

import argparse
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_gym.ssl_core.safety.memory_errors import lacks_memory

SCALARS = (np.bool_, np.integer, np.floating)
"""NumPy's numbers, which other projects store beside weights (an accuracy, an epoch)."""
_KINDS = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
_SCALAR = np.float64(0).__reduce__()[0]
"""Function that unpickles a number; the name of its module differs between NumPy 1 and 2."""
PLAIN = {bool, int, float, complex, str, bytes, bytearray, type(None), torch.Size, torch.dtype, torch.device}
ALLOWED: list[Any] = [
    # a Namespace holds argparse's options, and only attributes
    argparse.Namespace,
    np.dtype,
    *_KINDS,
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
]
"""Types allowed beside torch's list; none of them can run code."""


def load_plain(path: Path | str, device: torch.device | str = "cpu") -> Any:
    """Load a file of `torch.save` with only tensors and plain values, NumPy's numbers included.

    Raises:
        ValueError: if the file is damaged, or holds anything else; the message is only the reason. An error of a memory
            that is full stays what it is.
    """
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            # torch warns of the protocol of a foreign pickle; the result below shows whether it can be read
            warnings.simplefilter("ignore")
            return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged or hostile file fails in a dozen ways in torch and zipfile
        if lacks_memory(error):
            raise
        raise ValueError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Shorten torch's error to a few words, without its advice to run the file's code and without terminal colors."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    if match := re.search(r"(?:GLOBAL|[Uu]nsupported class|class) ([A-Za-z_][\w.]*\.\w+)", text):
        return f"it holds {match[1][:80]}, which is neither a tensor nor a plain value"
    text = text.rpartition("WeightsUnpickler error: ")[2] if "WeightsUnpickler error" in text else text
    text = text.partition(". ")[0].partition(" Check the documentation")[0] or type(error).__name__
    return "".join(sign if sign.isprintable() else "?" for sign in text[:80])


def check_plain(value: object, where: str = "it") -> None:
    """Raise a ValueError that names the place unless `load_plain` can read a value.

    Args:
        value: the value; dicts, lists, tuples and sets may be nested.
        where: place of the value, for the error.
    """
    kind = type(value)
    if isinstance(value, Tensor) or kind in PLAIN or isinstance(value, SCALARS):
        return
    if kind in (dict, OrderedDict, Counter) and isinstance(value, Mapping):
        for name, part in value.items():
            check_plain(name, f"a key of {where}")
            check_plain(part, f"{where}.{name}" if where != "it" else str(name))
    elif kind in (list, tuple, set) and isinstance(value, list | tuple | set):
        for part in value:
            check_plain(part, where)
    else:
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        raise ValueError(
            f"{where[:100]} is a {name[:80]}: a checkpoint holds tensors, numbers, text, and collections of them, and "
            "could not be read again with anything else"
        )
