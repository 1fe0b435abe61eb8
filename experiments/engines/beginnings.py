"""Run folders at their beginning: whether a run can be resumed, and what is left of one that was killed before that."""

import os
from pathlib import Path

from astra_gym.ssl_core.safety.writers import LOCK, TEMPORARY
from astra_gym.ssl_core.utils.paths import check_folder

BEGUN = (LOCK, "command.txt", "environment.json", "images.digests", "last.pt")
"""Names of the files that a run writes before it can be resumed, beside temporary ones."""


def is_resumable(run: Path) -> bool:
    """Return whether a folder is that of a run that began."""
    return (run / "config.yaml").is_file()


def clear(run: Path) -> None:
    """Remove the remains of a run that was killed before it could be resumed, and nothing else.

    Raises:
        ValueError: if the folder is a link, or holds other files than such a run's.
    """
    check_folder(run)
    if not run.exists() or is_resumable(run):
        return
    left = [Path(folder) / file for folder, _, files in os.walk(run) for file in files]
    folders = [Path(folder) / one for folder, inner, _ in os.walk(run, topdown=False) for one in inner]
    for file in left:
        ours = file.name in BEGUN or TEMPORARY.fullmatch(file.name)
        if not ours or not file.is_file() or file.is_symlink():
            raise ValueError(f"{file} is not of a run that was killed at its beginning: move {run} away")
    for folder in folders:
        if folder.is_symlink() or folder not in (run / "checkpoints", run / "results", run / "figures"):
            raise ValueError(f"{folder} is not of a run that was killed at its beginning: move {run} away")
    for file in left:
        file.unlink()
    for folder in (*folders, run):
        folder.rmdir()
