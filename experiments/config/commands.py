"""The commands by name, and how the one that runs was called: `astra-gym NAME`, or a script of a checkout."""

import shlex
import sys
from pathlib import Path

INSTALLED = "astra-gym"
COMMANDS = {
    "train": "train_agent",
    "compare": "compare_agents",
    "evaluate": "evaluate_encoder",
    "export": "export_encoder",
    "report": "report",
    "publish": "publish",
    "benchmark": "benchmark",
}
"""Modules of `astra_gym.experiments` by the name of their command; each has a `main(argv) -> status`."""


def is_installed() -> bool:
    """Whether this process was started as `astra-gym NAME` or `python -m astra_gym NAME`."""
    called = Path(sys.argv[0])
    return called.name == INSTALLED or called.parts[-2:] == ("astra_gym", "__main__.py")


def program(name: str) -> str:
    """What a command is called in usage lines and errors."""
    return f"{INSTALLED} {name}" if is_installed() else f"{COMMANDS[name]}.py"


def called(name: str) -> list[str]:
    """The words by which this process called its command."""
    return [INSTALLED, name] if is_installed() else [sys.argv[0]]


def recorded(name: str) -> list[str]:
    """The words that call a command wherever the project is: from a checkout's root, or installed."""
    return [INSTALLED, name] if is_installed() else ["python", f"experiments/{COMMANDS[name]}.py"]


def typed(name: str, *words: str) -> str:
    """The line to type now, in the present folder, to call a command as this process was called."""
    if is_installed():
        return shlex.join([INSTALLED, name, *words])
    return shlex.join(["python", str(Path(sys.argv[0]).with_name(f"{COMMANDS[name]}.py")), *words])
