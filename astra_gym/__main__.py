"""The command `astra-gym`: the commands of `experiments/` under one name."""

import sys
from collections.abc import Sequence
from importlib import import_module

from astra_gym import __version__
from astra_gym.experiments.config.commands import COMMANDS, INSTALLED
from astra_gym.experiments.config.output import surviving
from astra_gym.ssl_core.utils.messages import said, shown

USAGE = f"""usage: {INSTALLED} COMMAND [--FLAG VALUE ...]

  train      train a target network whose attacks an agent chooses
  compare    compare agents, every one over several seeds
  tune       search for a constant attack, a schedule, or a world's settings
  headroom   measure what choosing attacks could gain
  evaluate   evaluate an encoder: linear probes, AutoAttack, corruptions
  export     write an encoder in torchvision's layout
  report     a run, a comparison or an evaluation as a page
  publish    keep results, and renew the tables made from them (in a checkout)
  benchmark  measure the training step

{INSTALLED} COMMAND --help shows a command's flags; {INSTALLED} --version, the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command by its name.

    Returns:
        Its exit status; 2 if there is no such command.
    """
    name, *words = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help") and words:
        name, *words = words[0], "--help", *words[1:]
    if name in COMMANDS:
        status: int = import_module(f"astra_gym.experiments.{COMMANDS[name]}").main(words)
        return status
    with surviving():
        if name in ("-h", "--help"):
            print(USAGE)
            return 0
        if name == "--version":
            print(f"{INSTALLED} {__version__}")
            return 0
        text = f"unknown command {shown(name)}: expected one of {', '.join(COMMANDS)}"
        print(said(INSTALLED, text), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
