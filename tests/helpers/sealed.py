"""Sealed files that a test changes: by mistake, as a broken disk does, or with a seal that fits again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from astra_gym.ssl_core.safety.sealing import opened_line, read_json, sealed_line, sealed_yaml, without_seal
from astra_gym.ssl_core.utils.files import write_json


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def resealed_yaml(path: Path, old: str, new: str) -> None:
    """Replace a part of a YAML file, as if it had been written so."""
    text = without_seal(path.read_bytes()).decode()
    assert old in text
    path.write_bytes(sealed_yaml(text.replace(old, new)))


def resealed_json(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON document, as if it had been written so."""
    document = read_json(path)
    change(document)
    write_json(path, document)


def resealed_rows(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Change the rows of a log, as if they had been written so."""
    lines = [opened_line(line) for line in path.read_bytes().splitlines()]
    rows = change([json.loads(line) for line in lines if line is not None])
    path.write_bytes(b"".join(sealed_line(json.dumps(row)) for row in rows))
