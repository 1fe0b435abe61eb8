"""The state dict in a file of this project or of another, found without running code from the file."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from astra_gym.ssl_core.models.checkpoint import FORMAT
from astra_gym.ssl_core.safety.plain_values import load_plain
from astra_gym.ssl_core.safety.sealing import check_zip
from astra_gym.ssl_core.utils.messages import few, shown

CONTAINERS = ("state_dict", "state_dict_ema", "model", "model_ema", "model_state_dict", "model_state", "net", "network")
"""Names under which checkpoints keep a state dict."""
SAVED = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of files of `torch.save`: an archive, or the pickle of old versions."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of torch's wrappers, in any order and number: DataParallel and compiled modules."""
PLAIN: dict[str, tuple[object, ...]] = {
    "aa_layer": (None, ""),
    "act_layer": (None, "", "relu"),
    "output_stride": (None, 32),
    "bn_eps": (None, 1e-5),
    "gp": (None, "", "avg", "fast"),
    "global_pool": (None, "", "avg", "fast"),
}
"""Options of timm that no state dict shows, kept in `args` of its checkpoints, and their values for a plain ResNet."""
ENCODER = "encoder"
"""Kind of the file that `save_encoder` writes."""
SAID = ("stem", "mean", "std", "route", "arch", "image_size", "patch_size")
"""Entries about the state dict that only such a file has."""


def read_content(path: Path) -> Any:
    """Read the plain values and tensors of a file, whoever wrote it.

    Raises:
        ValueError: if the file is missing, damaged, or needs code to be loaded.
    """
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: expected an encoder's file in it, or a run's folder")
        if not path.is_file():
            raise ValueError(f"{path}: no such file: expected an encoder's file, or a run's folder")
        with path.open("rb") as file:
            begin = file.read(2)
        # files of other projects have no seal
        check_zip(path, ours=False)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): make it and its folder readable") from error
    if begin not in SAVED:
        raise ValueError(
            f"{path} is no file that torch.save wrote: expected one of tensors; a file of safetensors becomes one by "
            "torch.save(safetensors.torch.load_file(FILE), NEW)"
        )
    try:
        return load_plain(path)
    except ValueError as error:
        raise ValueError(
            f"{path}: damaged, or no file of plain tensors, which is all that is read here ({error}); if you trust it, "
            "load it where it was made and save the weights alone: torch.save(model.state_dict(), FILE)"
        ) from error


def read_state(path: Path, payload: Any, notes: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict in a file's content, and the entries beside it (`SAID`) in a file of `save_encoder`.

    Args:
        path: the file, for the errors.
        payload: its content.
        notes: list that gets what is left out of the file.

    Raises:
        ValueError: if it is another checkpoint of this project, holds no state dict or several, or says that its
            network is a variant.
    """
    ours = isinstance(payload, dict) and payload.get("format") == FORMAT
    if ours and payload.get("kind") != ENCODER:
        raise ValueError(
            f"{path}: a checkpoint of this project, of kind {shown(payload.get('kind'))}: not a foreign one"
        )
    if _is_state(payload):
        state = payload
    else:
        holders = [name for name in CONTAINERS if isinstance(payload, dict) and _is_state(payload.get(name))]
        if len(holders) != 1:
            raise ValueError(
                f"{path}: expected a state dict, or one under {', '.join(CONTAINERS)}; it holds "
                f"{_found(payload, holders)}"
            )
        state = payload[holders[0]]
        _refuse_variants(path, payload)
        if not ours and len(payload) > 1:
            notes.append(f"left out of the file: {few(name for name in payload if name != holders[0])}")
    while wrappers := [wrapper for wrapper in WRAPPERS if all(name.startswith(wrapper) for name in state)]:
        state = {name.removeprefix(wrappers[0]): value for name, value in state.items()}
    return dict(state), {name: payload[name] for name in SAID if name in payload} if ours else {}


def holds_network(payload: Any) -> bool:
    """Whether a file's content is a checkpoint of this project with a network, for `load_network`."""
    return isinstance(payload, dict) and payload.get("format") == FORMAT and "network" in payload


def _refuse_variants(path: Path, payload: Mapping[str, Any]) -> None:
    """Raise a ValueError if entries beside the state dict show a network that computes otherwise than ours."""
    args = payload.get("args")
    options = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
    extra = options.get("model_kwargs")
    options = {**options, **(extra if isinstance(extra, Mapping) else {})}
    for name in (payload.get("arch"), options.get("arch"), options.get("model")):
        if isinstance(name, str) and re.search(r"resnet(aa|blur)\d", name):
            raise ValueError(f"{path}: its network is {name}, with anti-aliased pooling, which our networks have not")
    for option, plain in PLAIN.items():
        value = options.get(option)
        if isinstance(value, str | int | float) and value not in plain:
            raise ValueError(f"{path}: its network was built with {option}={shown(value)}, which our networks have not")


def _found(payload: object, holders: Sequence[str]) -> str:
    """Say what a file without one state dict holds, and which part of it to save."""
    if not isinstance(payload, dict):
        return type(payload).__name__
    inner = list(holders) or [name for name, value in payload.items() if _is_state(value)]
    if not inner:
        return few(payload) or "nothing"
    return f"{'several ' * (len(inner) > 1)}state dicts ({few(inner)}): save the one that is meant alone"


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(part, Tensor) for name, part in value.items())
    )
