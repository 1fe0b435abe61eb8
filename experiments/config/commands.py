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
SCRIPTS = Path(__file__).resolve().parents[1]


def launcher() -> list[str]:
    """The words before a command's name: `astra-gym`, or `python -m astra_gym`; empty where a script was called."""
    path = Path(sys.argv[0])
    if path.name == INSTALLED:
        return [INSTALLED]
    return ["python", "-m", "astra_gym"] if path.parts[-2:] == ("astra_gym", "__main__.py") else []


def program(name: str) -> str:
    """What a command is called in usage lines and errors."""
    return f"{INSTALLED} {name}" if launcher() else f"{COMMANDS[name]}.py"


def called(name: str) -> list[str]:
    """The words by which this process called its command."""
    first = launcher()
    return [*first, name] if first else [sys.argv[0]]


def recorded(name: str) -> list[str]:
    """The words that call a command wherever the project is: installed, or from a checkout's root."""
    return [INSTALLED, name] if launcher() else ["python", f"experiments/{COMMANDS[name]}.py"]


def typed(name: str, *words: str) -> str:
    """The line to type now, in the present folder, to call a command as this process was called."""
    if first := launcher():
        return shlex.join([*first, name, *words])
    script = Path(sys.argv[0] or ".").parent / f"{COMMANDS[name]}.py"
    if not script.is_file():
        # called by a program of the user's
        script = SCRIPTS / script.name
    return shlex.join(["python", str(script), *words])


def help_text(text: str | None) -> str:
    """A command's help, in which the commands are called as this process was called."""
    text = text or ""
    if launcher():
        for name, module in COMMANDS.items():
            text = text.replace(f"python experiments/{module}.py", program(name)).replace(f"{module}.py", program(name))
    return text
