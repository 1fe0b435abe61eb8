"""Files of agents: plain tensors and dicts that load with `weights_only=True`."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gymnasium import Space, spaces

from astra_gym.envs.api.spaces import Meaning, meaning
from astra_gym.ssl_core.models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from astra_gym.ssl_core.utils.files import expanded
from astra_gym.ssl_core.utils.finite import not_finite
from astra_gym.ssl_core.utils.messages import brief, few


def space_to_dict(space: Space) -> dict[str, Any]:
    """Return a Box, Discrete or MultiDiscrete space as plain values.

    Raises:
        ValueError: for any other space.
    """
    sets = space.sets if isinstance(space, Meaning) else {}
    meant = {"sets": {name: list(members) for name, members in sets.items()}} if sets else {}
    if isinstance(space, spaces.Box):
        low, high = torch.from_numpy(space.low.copy()), torch.from_numpy(space.high.copy())
        return {"kind": "Box", "low": low, "high": high} | meant
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n)} | meant
    if isinstance(space, spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "nvec": [int(n) for n in space.nvec]} | meant
    raise ValueError(f"the space is {space}: expected Box, Discrete or MultiDiscrete")


def space_from_dict(saved: Mapping[str, Any]) -> Space:
    """Return the space that `space_to_dict` wrote."""
    made: Space
    if saved["kind"] == "Box":
        low, high = saved["low"].numpy(), saved["high"].numpy()
        made = spaces.Box(low, high, dtype=low.dtype.type)
    elif saved["kind"] == "Discrete":
        made = spaces.Discrete(saved["n"])
    else:
        made = spaces.MultiDiscrete(saved["nvec"])
    return meaning(made, saved["sets"]) if "sets" in saved else made


def check_finite(path: str | os.PathLike[str], numbers: Mapping[str, Any]) -> None:
    """Refuse to write or read an agent with numbers that are not finite, which would be useless.

    Args:
        path: the file.
        numbers: the agent's numbers, by name.

    Raises:
        CheckpointError: a ValueError, if some are NaN or infinite.
    """
    if bad := not_finite(numbers):
        raise CheckpointError(f"{path}: the agent's numbers are not finite ({few(bad)}): take an earlier file of it")


@contextmanager
def restoring(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of making an agent from an edited file into a CheckpointError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} holds no whole agent ({brief(reason)}): it was edited, take a copy") from error


def with_suffix(path: str | os.PathLike[str]) -> Path:
    """Return the path, with Stable-Baselines3's `.zip` if it has no suffix (`torch.save` writes a zip archive too)."""
    path = expanded(path)
    return path if path.suffix else path.with_suffix(".zip")


def write(path: str | os.PathLike[str], agent: str, content: Mapping[str, Any]) -> Path:
    """Write an agent's file; a reader finds the old file or the new one, never a part. Missing folders are made."""
    target = with_suffix(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    return save_checkpoint(target, "agent", {"agent": agent, **content})


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an agent's file; all tensors are on the CPU.

    Args:
        path: the file; `.zip` is added where there is no suffix and no such file.

    Raises:
        CheckpointError: a ValueError, if it is missing, truncated, foreign or of another schema.
    """
    path = expanded(path)
    return load_checkpoint(path if path.is_file() else with_suffix(path), "agent")
