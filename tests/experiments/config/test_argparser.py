import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest

from astra_gym.experiments.config.argparser import OneLineParser, path_argument
from astra_gym.experiments.config.commands import COMMANDS

PLACES = {"DIR", "FILE", "PATH", "RUN", "OLD.json", "CHECKOUT"}
"""What stands for a path in a command's help."""
OTHERS = {"model", "data_dir"}
"""Where it stands for the path of a module, or for one that is kept as it is written until data are read."""


def test_a_tilde_is_the_home_folder_whatever_shell_there_is(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    parser = OneLineParser(prog="it")
    parser.add_argument("--out", type=path_argument)
    assert parser.parse_args(["--out=~/x"]).out == Path("/home/me/x")
    with pytest.raises(SystemExit):
        parser.parse_args(["--out=~nobody-has-this-name/x"])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("it: error: argument --out: ~nobody-has-this-name/x: there is no home folder")


@pytest.mark.parametrize("name", [module for command, module in COMMANDS.items() if command != "train"])
def test_every_path_on_a_command_line_is_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` reads its own as settings."""
    found: list[argparse.Action] = []

    def caught(parser: OneLineParser, *given: Any, **more: Any) -> None:
        found.extend(parser._actions)
        raise SystemExit

    monkeypatch.setattr(OneLineParser, "parse_known_args", caught)
    with pytest.raises(SystemExit):
        importlib.import_module(f"astra_gym.experiments.{name}").main([])
    paths = [action for action in found if action.metavar in PLACES or isinstance(action.default, Path)]
    wrong = {action.dest for action in paths if action.type is not path_argument} - OTHERS
    assert paths and not wrong
