"""Checkpoints: plain tensors and values, written whole or not at all, loaded without running code from the file."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_gym.ssl_core.models.backbones.timm_vit import MissingTimmError
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.safety.plain_values import check_plain, load_plain
from astra_gym.ssl_core.safety.sealing import DamagedError, check_zip, seal_zip
from astra_gym.ssl_core.utils.device import usable_device
from astra_gym.ssl_core.utils.files import expanded, replacing
from astra_gym.ssl_core.utils.finite import not_finite
from astra_gym.ssl_core.utils.messages import few, printable, shown

SCHEMA = 1
FORMAT = "astra-gym"
WEIGHTS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Floating types allowed for weights."""


class CheckpointError(ValueError):
    """Error for a file that is no checkpoint of this project, is damaged, or is of another kind or version."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def save_checkpoint(path: str | Path, kind: str, payload: dict[str, Any]) -> Path:
    """Write `payload` (nested dicts and lists of tensors and plain values) and its seal, whole or not at all.

    Args:
        path: the file to write; its folder is created.
        kind: kind of the content ("run", "encoder", "agent", ...); `load_checkpoint` needs the same.
        payload: the content.

    Returns:
        The path.

    Raises:
        CheckpointError: if `payload` holds anything else, which could not be loaded; nothing is written then.
        ValueError: if the path exists and is no regular file.
    """
    path = Path(path)
    try:
        check_plain(payload)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    with replacing(path, durable=True) as temporary, temporary.open("w+b") as file:
        torch.save({"format": FORMAT, "schema": SCHEMA, "kind": kind, **payload}, file)
        seal_zip(file)
    return path


def load_checkpoint(path: str | Path, kind: str | Sequence[str], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`.

    Args:
        path: the file.
        kind: expected kind; with several, the file must have one of them.
        device: device for the tensors.

    Raises:
        CheckpointError: if the file is missing, unreadable, truncated, damaged, foreign, or of another kind or schema.
        ValueError: if there is no such device.
    """
    path, device = expanded(path), usable_device(device)
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint")
        check_zip(path)
        payload = load_plain(path, device)
    except DamagedError as error:
        raise CheckpointError(str(error)) from error
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): make it and its folder readable") from error
    except ValueError as error:
        raise CheckpointError(
            f"{path}: truncated, or no checkpoint that loads with weights_only=True ({error})"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a foreign file, without the mark {FORMAT!r} of this project's checkpoints")
    if payload.get("schema") != SCHEMA:
        found = payload.get("schema")
        raise CheckpointError(f"{path}: schema {found}, expected {SCHEMA}: it was written by another version")
    kinds = [kind] if isinstance(kind, str) else kind
    if payload.get("kind") not in kinds:
        expected = " or ".join(map(repr, kinds))
        raise CheckpointError(f"{path}: holds a checkpoint of kind {shown(payload.get('kind'))}, expected {expected}")
    return payload


def _reason(error: Exception) -> str:
    """Return an error's message in one line, without the codes that make a terminal's text bold."""
    said = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split()
    return " ".join(said)[:120] or type(error).__name__


def describe_network(network: TargetNetwork) -> dict[str, Any]:
    """Return what `load_network` needs to build the same network again."""
    return {"arguments": dict(network.arguments), "state": network.state_dict()}


def checkpoint_at(path: Path) -> Path:
    """Return the file that a path names: itself, or the last checkpoint of a run's folder.

    Raises:
        CheckpointError: if it is a folder, but no run's.
    """
    if not os.path.isdir(path):
        return path
    file = path / "checkpoints" / "last.pt"
    try:
        file.stat()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is a folder without checkpoints/last.pt, so not a run's: give the folder of a run, or a file"
        ) from error
    except OSError:
        pass  # whoever reads it says why it cannot be read
    return file


def load_network(
    path: str | Path, device: torch.device | str = "cpu", *, checks_images: bool = True
) -> tuple[TargetNetwork, str]:
    """Load the target network of a run's checkpoint or kept encoder, in eval mode, and its route of evaluation.

    It computes in float32 whatever the precision of its run, like its export. Its `features` and `forward` refuse
    images that are not float32 (n, 3, h, w) in [0, 1].

    Args:
        path: a checkpoint of kind "run" or "encoder", or a run folder (its `checkpoints/last.pt` is read).
        device: device for the network.
        checks_images: whether the network checks the images' values, which waits for the device at every call.

    Raises:
        CheckpointError: as `load_checkpoint`, or if the weights are not finite or do not fit the network.
        ValueError: if there is no such device.
    """
    path, device = expanded(path), usable_device(device)
    file = checkpoint_at(path)
    payload = load_checkpoint(file, ("run", "encoder"))
    if "network" not in payload and "state_dict" in payload:
        raise CheckpointError(f"{path}: an exported encoder, in another layout: read it as --format torchvision")
    network = _network_of(payload.get("network"), file)
    route = payload.get("evaluation_route")
    if not isinstance(route, str) or route not in network.routes:
        raise CheckpointError(f"{file}: its route of evaluation is {shown(route)}: expected {few(network.routes)}")
    # float32 makes accuracies of runs in different precisions comparable, and gives attacks exact gradients
    network.precision = "fp32"
    network.checks_images = checks_images
    return network.to(device).eval(), route


def _network_of(saved: Any, file: Path) -> TargetNetwork:
    """Build the network that `describe_network` described, on the CPU."""
    arguments, state = (saved.get(name) if isinstance(saved, dict) else None for name in ("arguments", "state"))
    if not isinstance(arguments, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{file}: damaged: expected a network's arguments and its weights by name")
    try:
        # on the meta device no weights are drawn, and a false size takes no memory
        with torch.device("meta"):
            network = TargetNetwork(**arguments)
    except MissingTimmError as error:
        raise CheckpointError(f"{file}: {error}") from error
    except Exception as error:  # edited arguments fail in a dozen ways
        raise CheckpointError(f"{file}: damaged: its network cannot be built ({_reason(error)})") from error
    expected = network.state_dict()
    faults = {
        "missing": [name for name in expected if name not in state],
        "not understood": [str(name)[:60] for name in state if name not in expected],
        "of another type": [name for name in expected if name in state and not _is_like(state[name], expected[name])],
    }
    if not any(faults.values()):
        shapes = {name: tuple(state[name].shape) for name in expected}
        faults["of another shape"] = [name for name in expected if shapes[name] != tuple(expected[name].shape)]
    if any(faults.values()):
        said = "; ".join(f"{what}: {few(names, most=1)}" for what, names in faults.items() if names)
        raise CheckpointError(f"{file}: damaged: its weights do not fit its network ({said})")
    if bad := not_finite(state):
        raise CheckpointError(f"{file}: its weights are not finite ({few(bad)}): take an earlier checkpoint")
    network.to_empty(device="cpu").load_state_dict(state)
    return network


def _is_like(value: Any, expected: Tensor) -> bool:
    """Whether a value is a dense tensor of weights, or of integers, as expected."""
    if not isinstance(value, Tensor) or not is_dense(value):
        return False
    return value.dtype in WEIGHTS if expected.is_floating_point() else value.dtype == expected.dtype


def is_dense(value: Tensor) -> bool:
    """Whether a tensor holds its values one by one: it is neither sparse nor quantized, nor without values (meta)."""
    return value.layout == torch.strided and not value.is_quantized and not value.is_meta


def encoder_name(epoch: int) -> str:
    """Return the name of an epoch's encoder in a run's folder of checkpoints."""
    return f"epoch-{epoch:04d}.pt"


def kept_encoders(run_folder: Path) -> list[tuple[float, Path]]:
    """List the encoders that a run has kept (`keep_every`), in the order of training.

    Args:
        run_folder: folder of the run.

    Returns:
        The training time in epochs and the file, for `load_network`, of each; an empty list if it keeps none. The
        epochs may be more than the file's name says (see `astra_gym.experiments.runs.run.Run.keep_encoders`).

    Raises:
        CheckpointError: if the folder is no run folder, or a file is damaged.
    """
    checkpoints = run_folder / "checkpoints"
    if not checkpoints.is_dir():
        raise CheckpointError(f"{run_folder}: no run folder: it has no checkpoints")
    kept = {path: load_checkpoint(path, "encoder").get("epoch") for path in checkpoints.glob("epoch-*.pt")}
    if edited := [path for path, epoch in kept.items() if not isinstance(epoch, int | float)]:
        raise CheckpointError(f"{edited[0]}: it does not say its epoch, so the file was edited")
    return sorted((epoch, path) for path, epoch in kept.items() if epoch is not None)
