"""The commands by name, and how the running one was called: `astra-gym NAME`, or a script of a checkout."""

import shlex
import sys
from pathlib import Path

INSTALLED = "astra-gym"
COMMANDS = {
    "train": "train_agent",
    "compare": "compare_agents",
    "tune": "tune",
    "headroom": "measure_headroom",
    "evaluate": "evaluate_encoder",
    "export": "export_encoder",
    "report": "report",
    "publish": "publish",
    "benchmark": "benchmark",
}
"""Modules of `astra_gym.experiments` by the name of their command; each has a `main(argv) -> status`."""
SCRIPTS = Path(__file__).resolve().parents[1]


def launcher() -> list[str]:
    """Return the words before a command's name: `astra-gym` or `python -m astra_gym`; empty for a script."""
    path = Path(sys.argv[0])
    if path.name == INSTALLED:
        return [INSTALLED]
    return ["python", "-m", "astra_gym"] if path.parts[-2:] == ("astra_gym", "__main__.py") else []


def program(name: str) -> str:
    """Return a command's name in usage lines and errors."""
    return f"{INSTALLED} {name}" if launcher() else f"{COMMANDS[name]}.py"


def called(name: str) -> list[str]:
    """Return the words by which this process called its command."""
    first = launcher()
    return [*first, name] if first else [sys.argv[0]]


def recorded(name: str) -> list[str]:
    """Return words that call a command on any machine: installed, or from a checkout's root."""
    return [INSTALLED, name] if launcher() else ["python", f"experiments/{COMMANDS[name]}.py"]


def typed(name: str, *words: str) -> str:
    """Return the line to type in the present folder to call a command as this process was called."""
    if first := launcher():
        return shlex.join([*first, name, *words])
    script = Path(sys.argv[0] or ".").parent / f"{COMMANDS[name]}.py"
    if not script.is_file():
        # called by a user's program
        script = SCRIPTS / script.name
    return shlex.join(["python", str(script), *words])


def help_text(text: str | None) -> str:
    """Return a command's help; commands in it are written as this process was called."""
    text = text or ""
    if launcher():
        for name, module in COMMANDS.items():
            text = text.replace(f"python experiments/{module}.py", program(name)).replace(f"{module}.py", program(name))
    return text
