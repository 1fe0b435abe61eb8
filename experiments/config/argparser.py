"""A command line whose errors are one line."""

import argparse
from pathlib import Path
from typing import NoReturn

from astra_gym.ssl_core.utils.files import expanded
from astra_gym.ssl_core.utils.messages import said


def path_argument(text: str) -> Path:
    """A path on the command line, with the home folder for a `~`: no shell writes it out in `--out=~/x`."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class OneLineParser(argparse.ArgumentParser):
    """An `argparse` parser that leaves the usage out of its errors: status 2 and a single line."""

    def error(self, message: str) -> NoReturn:
        """Ends the process."""
        self.exit(2, f"{said(self.prog, message)}\n")
