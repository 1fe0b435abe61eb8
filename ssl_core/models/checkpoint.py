"""Checkpoints: plain tensors and values, written whole or not at all, loaded without running anybody's code."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.utils.files import check_target, expanded
from astra_gym.ssl_core.utils.writers import lock, sweep

SCHEMA = 1
FORMAT = "astra-gym"


class CheckpointError(ValueError):
    """A file that is no checkpoint of this project, is damaged, or is of another kind or version."""


def save_checkpoint(path: str | Path, kind: str, payload: dict[str, Any]) -> Path:
    """Writes `payload` (nested dicts and lists of tensors and plain values) to a temporary file and renames it.

    Args:
        path: the file to write; its folder must exist.
        kind: what it holds ("run", "encoder", "agent", ...); `load_checkpoint` wants the same.
        payload: what to keep.

    Returns:
        The path.

    Raises:
        ValueError: if something lies there that is no regular file.
    """
    path = Path(path)
    check_target(path)
    sweep(path.parent, lambda name: name == path.name)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.{os.getpid()}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            lock(file.fileno())
            torch.save({"format": FORMAT, "schema": SCHEMA, "kind": kind, **payload}, file)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            temporary.unlink()
            raise
    os.replace(temporary, path)
    return path


def load_checkpoint(path: str | Path, kind: str | Sequence[str], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint with `weights_only=True`.

    Args:
        path: the file.
        kind: what it has to hold; one of these, where there are several.
        device: where to put its tensors.

    Raises:
        CheckpointError: if the file is missing, truncated, foreign, or of another kind or schema.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        payload = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file fails in torch's and zipfile's reading in a dozen ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: truncated, or no checkpoint that loads with weights_only=True ({reason})"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a foreign file, without the mark {FORMAT!r} of this project's checkpoints")
    if payload.get("schema") != SCHEMA:
        found = payload.get("schema")
        raise CheckpointError(f"{path}: schema {found}, expected {SCHEMA}: it was written by another version")
    kinds = [kind] if isinstance(kind, str) else kind
    if payload.get("kind") not in kinds:
        expected = " or ".join(map(repr, kinds))
        raise CheckpointError(f"{path}: holds a checkpoint of kind {payload.get('kind')!r}, expected {expected}")
    return payload


def describe_network(network: TargetNetwork) -> dict[str, Any]:
    """What `load_network` needs to build the same network again."""
    return {"arguments": dict(network.arguments), "state": network.state_dict()}


def load_network(path: str | Path, device: torch.device | str = "cpu") -> tuple[TargetNetwork, str]:
    """The target network of a run's checkpoint or of a kept encoder, in eval mode, and its route of evaluation.

    Args:
        path: a checkpoint of kind "run" or "encoder", or a run folder (then `checkpoints/last.pt` in it).
        device: where to put it.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    path = expanded(path)
    payload = load_checkpoint(path / "checkpoints" / "last.pt" if path.is_dir() else path, ("run", "encoder"), device)
    if "network" not in payload:
        raise CheckpointError(f"{path}: an exported encoder, in another layout: read it as --format torchvision")
    with torch.random.fork_rng(devices=[]):
        network = TargetNetwork(**payload["network"]["arguments"])
    network.load_state_dict(payload["network"]["state"])
    return network.to(device).eval(), payload["evaluation_route"]


def encoder_path(checkpoints: Path, epoch: int) -> Path:
    """Where a run keeps the encoder of an epoch, among its checkpoints."""
    return checkpoints / f"epoch-{epoch:04d}.pt"


def kept_encoders(run_folder: Path) -> list[tuple[float, Path]]:
    """The encoders that a run has kept (`keep_every`), in the order of training; none where it keeps none.

    Args:
        run_folder: of the run.

    Returns:
        The epochs that each has trained for, which may be more than its name says (see
        `astra_gym.experiments.runs.run.Run.keep_encoders`), and its file, for `load_network`.

    Raises:
        CheckpointError: if it is no run folder, or a file is damaged.
    """
    checkpoints = run_folder / "checkpoints"
    if not checkpoints.is_dir():
        raise CheckpointError(f"{run_folder}: no run folder: it has no checkpoints")
    return sorted((load_checkpoint(path, "encoder")["epoch"], path) for path in checkpoints.glob("epoch-*.pt"))
