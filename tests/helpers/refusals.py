"""What a user reads who gives the training a bad command line."""

import re

import pytest

from astra_gym.experiments.config.cli import parse


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on the standard error with which a command line is refused."""
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out) == (2, "")
    [line] = captured.err.splitlines()
    assert line.startswith("train_agent.py: error: ")
    # however long the paths are
    assert len(re.sub(r"(?<=\s)/\S+", "", line)) < 300, line
    return line
