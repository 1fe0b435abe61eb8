"""The logs of a run beside its metrics: damage in them is reported, and never prevents a resume from a whole
checkpoint.

A report of damage begins with the file's name in the run's folder: `command.txt, line 2: ...`.
"""

import hashlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astra_gym.experiments.runs.event_files import PATTERN, damaged_records
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.paths import copy_file, open_to_append

ASIDE = ".damaged"
"""Suffix of a damaged log that a resumed run has restarted."""
LOGS = ("metrics.jsonl", "environment.json", "results/training.json")
"""Logs that are restarted; `command.txt` only grows."""


def command_line(argv: Sequence[str]) -> str:
    """Return a command as a line that a shell runs; a line break in an argument is written as `$'\\n'`."""
    return shlex.join(argv).replace("\n", "'$'\\n''")


def command_digest(line: str) -> str:
    """Return a command's digest for `environment.json`, so that its line in `command.txt` can be pasted unchanged."""
    return hashlib.sha256(line.encode()).hexdigest()


def read_commands(path: Path, digests: Sequence[str], damage: list[str]) -> list[str]:
    """Return the commands in `command.txt`; damaged lines are left out.

    Args:
        path: the file.
        digests: `command_digest` of its lines; lines of version 0.1 have none.
        damage: list that gets a sentence for each defect.
    """
    try:
        lines = path.read_bytes().decode(errors="replace").split("\n")
    except OSError:
        damage.append(f"{path.name} {'cannot be read' if path.exists() else 'is missing'}")
        return []
    cut = {len(lines): "does not end with a line break"} if lines[-1] else {}
    lines = lines if cut else lines[:-1]
    found = list(map(command_digest, lines))
    lost = [digest for digest in digests if digest not in found]
    # a line without a digest is of version 0.1, or of a process that was killed early, or else it was changed
    strange = [number for number, digest in enumerate(found, start=1) if digest not in digests][-len(lost) :] * bool(
        lost
    )
    wrong = dict.fromkeys(strange, "is damaged") | cut
    damage += [f"{path.name}, line {number} {what}" for number, what in wrong.items()]
    if len(lost) > len(strange):
        damage.append(f"{path.name} lacks {len(lost) - len(strange)} of its lines")
    return [line for number, line in enumerate(lines, start=1) if number not in strange]


def add_command(path: Path, line: str) -> None:
    """Add a line to `command.txt`, which may be missing or lack the end of its last line.

    Raises:
        ValueError: if the path is not a regular file.
        OSError: if it cannot be written.
    """
    with open_to_append(path) as file:
        size = os.fstat(file.fileno()).st_size
        cut = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write("\n" * cut + line + "\n")


def read_parts(path: Path, name: str) -> list[dict[str, Any]]:
    """Return the list called `name` in a JSON file, such as the `starts` in `environment.json`.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    try:
        document = read_json(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    parts = document.get(name) if isinstance(document, dict) else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{path} is damaged: expected an object with a list {name!r}")
    return parts


def whole_parts(path: Path, name: str, damage: list[str]) -> list[dict[str, Any]]:
    """Return what `read_parts` does; an empty list, and a sentence in `damage`, if the file is missing or damaged."""
    try:
        return read_parts(path, name)
    except ValueError:
        damage.append(f"{_name(path)} is {'damaged' if path.exists() else 'missing'}")
        return []


def set_aside(path: Path) -> None:
    """Keep a damaged log as `NAME.damaged` (`-2`, ...) before it is restarted: its content may be useful."""
    if os.path.lexists(path):
        target, number = path.with_name(path.name + ASIDE), 1
        while os.path.lexists(target):
            number += 1
            target = path.with_name(f"{path.name}{ASIDE}-{number}")
        copy_file(path, target)


def kept_aside(run: Path) -> list[str]:
    """Return a sentence for each log of a run that was damaged when the run was resumed."""
    return [
        f"{name} was damaged when the run was resumed: what it had been is kept beside it"
        for name in LOGS
        if (run / (name + ASIDE)).exists()
    ]


def damaged_events(run: Path) -> list[str]:
    """Return a sentence for each of a run's TensorBoard files that is damaged."""
    found = []
    for path in sorted(run.glob(PATTERN)):
        try:
            wrong = damaged_records(path)
        except OSError as error:
            wrong = str(error.strerror)
        if wrong:
            found.append(f"{path.name} is damaged: {wrong}")
    return found


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.parent.name == "results" else path.name
