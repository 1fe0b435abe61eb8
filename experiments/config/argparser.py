"""A command line whose errors are one line."""

import argparse
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """An `argparse` parser that leaves the usage out of its errors: status 2 and a single line."""

    def error(self, message: str) -> NoReturn:
        """Ends the process."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")
