"""Every command's parser: typed records, help, errors of one line."""

import dataclasses
import importlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from astra_gym.experiments.config.argparser import FLAGS, CommandParser, typed_out
from astra_gym.experiments.config.commands import COMMANDS
from astra_gym.experiments.evaluation.flags import EvaluationFlags
from astra_gym.ssl_core.settings.records import SWITCH, Notes, check_choices, leaves
from tests.helpers.commands import RECORDS

PLACES = {"DIR", "FILE", "PATH", "RUN", "OLD.json", "CHECKOUT"}
"""What stands for a path in a command's help."""
OTHERS = {
    *("model", "data_dir", "classes", "cache_dir", "teacher", "init_from", "agent_from", "run_dir"),
    *("config", "agent_config"),
}
"""Where it stands for the path of a module, or for one that is kept as it is written until it is read."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large it is.

    Args:
        width: of it; 100 % of what there is.
        kind: of it.
    """

    width: Annotated[int, Notes(unit="PIXELS")] = 3
    kind: Annotated[str, Notes(choices=("round", "square"), what="kind of thing")] = "round"

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where it is.

    Args:
        what: a path to it.
        out: where it goes.
        radii: of it.
        options: of it.
        force: whatever there is.
        word: said.
    """

    what: Annotated[Path, Notes(positional=True, unit="THING")]
    out: Annotated[Path | None, Notes(unit="DIR")] = None
    radii: Annotated[tuple[float, ...], Notes(nargs="+")] = (8 / 255, 0.5)
    options: dict[str, Any] | None = None
    force: Annotated[bool, SWITCH] = False
    word: Annotated[tuple[str, ...], Notes(repeated=True)] = ()


@dataclass(frozen=True, kw_only=True)
class Thing:
    """It.

    Args:
        sizes: how large.
        place: where.
    """

    sizes: Sizes
    place: Place


@pytest.fixture
def parser() -> CommandParser[Thing]:
    return CommandParser("train", Thing, "Makes it.", "THING [--FLAG VALUE ...]", "it")


def refused(capsys: pytest.CaptureFixture[str], parser: CommandParser[Any], *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parser.read(argv)
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line.removeprefix("it: error: ")


def test_a_record_is_made_of_what_is_given_and_of_defaults(parser: CommandParser[Thing]) -> None:
    plain = Place(what=Path("x"))
    assert parser.read(["x"]) == Thing(sizes=Sizes(), place=plain)
    words = ["--radii", "1", "4/255", "--force", "--word=a", "--word", "b c", "--width=5", "x", "--kind", "square"]
    place = dataclasses.replace(plain, radii=(1.0, 4 / 255), force=True, word=("a", "b c"))
    assert parser.read(words) == Thing(sizes=Sizes(width=5, kind="square"), place=place)
    assert parser.given(["--width", "5"]) == {"width": 5, "what": None}
    assert parser.values(["x"], {"width": 7})["width"] == 7 and parser.values(["x"])["width"] == 3
    assert parser.values(["x", "--width=5"], {"width": 7})["width"] == 5


def test_options_by_name_are_over_those_before(parser: CommandParser[Thing]) -> None:
    words = ["x", "--options", "{a: {b: 1}, c: off}", "--options.a.d", "-1e-3", "--options.e=010"]
    assert parser.read(words).place.options == {"a": {"b": 1, "d": -1e-3}, "c": "off", "e": 10}
    for before, after in (({"a": 1}, {"a": 1, "b": 2}), ({"b": 1}, {"b": 2}), ([1], {"b": 2}), (None, {"b": 2})):
        assert parser.values(["x", "--options.b=2"], {"options": before})["options"] == after


def test_a_tilde_is_the_home_folder_whatever_shell_there_is(monkeypatch, parser, capsys) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parser.read(["~", "--out=~/x"]).place == Place(what=Path("/home/me"), out=Path("/home/me/x"))
    line = refused(capsys, parser, "x", "--out=~nobody-has-this-name/x")
    assert line.startswith("argument --out: ~nobody-has-this-name/x: there is no home folder")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: THING"),
        (["x", "--widht=3"], "unknown flag --widht; did you mean --width?"),
        (["x", "--option.a=3"], "unknown flag --option; did you mean --options?"),
        (["x", "--width.a=3"], "unknown flag --width.a; did you mean --width?"),
        (["x", "--qqqq"], "unknown flag --qqqq: see --help"),
        (["x", "--wid=3"], "unknown flag --wid; did you mean --width?"),
        (["x", "--width", "five"], "argument --width: expected an integer, got 'five'"),
        (["x", "--width", "-1.5"], "argument --width: expected an integer, got '-1.5'"),
        (["x", "--width"], "argument --width: expected one argument"),
        (["x", "--radii", "1", "1/0"], "argument --radii: expected a number, got '1/0'"),
        (["x", "--kind", "rond"], "unknown kind of thing 'rond': choose from round, square; did you mean 'round'?"),
        (
            ["x", "--options", "3"],
            "argument --options: expected settings by name, such as --options.NAME VALUE, got '3'",
        ),
        (["x", "--options..a=3"], "--options..a: expected a name behind every dot"),
        (["x", "y"], "y belongs to no flag: see --help"),
        (["--help", "plac"], "unknown section of the help 'plac': choose from sizes, place; did you mean 'place'?"),
    ],
)
def test_a_bad_command_line_is_one_line(parser, capsys, argv: list[str], message: str) -> None:
    assert refused(capsys, parser, *argv) == message


def test_the_words_of_others_are_told_apart(parser) -> None:
    argv = ["--lr", "1", "--width", "3", "4", "--radii", "1", "2", "--force", "5", "--x=1", "--kind=round", "6"]
    assert parser.split(argv) == (
        ["--width", "3", "--radii", "1", "2", "--force", "--kind=round"],
        ["--lr", "1", "4", "5", "--x=1", "6"],
    )


def test_help_has_sections_choices_defaults_and_units(parser, capsys) -> None:
    for argv, expected, others in (
        (["--help"], ["Makes it.", "sizes: how large", "place: where", "--help [SECTION]"], []),
        (["--help", "sizes"], ["sizes: how large"], ["Makes it.", "place: where", "--out"]),
    ):
        with pytest.raises(SystemExit) as stop:
            parser.read(argv)
        assert stop.value.code == 0
        text = capsys.readouterr().out
        shown = " ".join(text.split())
        assert "--width PIXELS of it; 100 % of what there is (default: 3)" in shown
        assert "--kind NAME of it (one of round, square; default: round)" in shown
        assert all(part in shown for part in expected) and not any(part in shown for part in others)
    assert typed_out((8 / 255, 1 / 3, 0.4)) == "[8/255, 1/3, 0.4]" and typed_out(None) == "null"


def test_an_old_flag_is_an_alias_that_the_help_leaves_out(capsys) -> None:
    parser = CommandParser("evaluate", EvaluationFlags, "", "", "it")
    assert parser.read(["run", "--neighbours=3"]).changes == parser.read(["run", "--neighbors", "3"]).changes
    assert "--neighbours" not in parser.format_help()
    for words in (["--neighbours=3", "--neighbors=4"], ["--neighbors", "4", "--neighbours", "3"]):
        assert refused(capsys, parser, "run", *words) == "--neighbours is the old name of --neighbors: give one of them"


def test_the_records_are_those_of_the_commands() -> None:
    assert RECORDS.keys() == COMMANDS.keys()


def ended(capsys: pytest.CaptureFixture[str], name: str, *argv: str) -> tuple[object, str]:
    """The exit status of a command, and what it printed."""
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"astra_gym.experiments.{COMMANDS[name]}").main(argv)
    return stop.value.code, "".join(capsys.readouterr())


@pytest.mark.parametrize("called", ["/bin/astra-gym", "experiments/NAME.py"])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command(name: str, called: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", [called])
    status, text = ended(capsys, name, "--help")
    assert status == 0 and [line for line in text.splitlines() if len(line) > 80 and " " in line.strip()] == []

    flags = [leaf for leaf in leaves(RECORDS[name], FLAGS) if not (leaf.notes.positional or leaf.notes.instead)]
    told = {
        flag: " ".join(more.split()) for flag, more in re.findall(r"^  --(\w+)(.*(?:\n {3}.*)*)", text, re.MULTILINE)
    }
    assert len(re.findall(r"^  --\w", text, re.MULTILINE)) == len(told) and told.keys() == {leaf.name for leaf in flags}
    for leaf in flags:
        assert ", ".join(leaf.notes.choices) in told[leaf.name]

    sections = dict.fromkeys(leaf.section for leaf in flags)
    assert sorted(sections) == sorted(re.findall(r"^(\w+): .*:$", text.partition("--help")[2], re.MULTILINE))
    for section in sections:
        status, text = ended(capsys, name, "--help", section)
        assert status == 0
        own = [leaf.name for leaf in flags if leaf.section == section]
        assert re.findall(r"^  --(\w+)", text, re.MULTILINE) == own
    for words in (["--help", "zzz"], ["-h", "zzz"], ["--help=zzz"], ["--help", ""]):
        status, text = ended(capsys, name, *words)
        assert status == 2 and text.count("\n") == 1
        assert all(section in text for section in ("unknown section of the help", *sections))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_in_the_help_can_be_called(name: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr("sys.argv", ["/bin/astra-gym"])
    _, text = ended(capsys, name, "--help")
    lines = re.findall(rf"^astra-gym {name}(.*)", text.replace(" \\\n", ""), re.MULTILINE)
    assert len(lines) >= 2
    parser, training = (CommandParser(each, RECORDS[each], "", "") for each in (name, "train"))
    for words in map(shlex.split, lines):
        own, others = parser.split(words, training.leaves) if name in ("compare", "tune", "headroom") else (words, [])
        parser.read(own)
        training.given(others)


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if any(leaf.notes.choices for leaf in leaves(RECORDS[name]))]
)
def test_a_name_that_is_no_choice_is_met_by_the_nearest_at_once(name: str, capsys) -> None:
    parser = CommandParser(name, RECORDS[name], "", "", "it")
    needed = {"evaluate": ["x"], "export": ["x", "--out=y"]}.get(name, [])
    for leaf in parser.leaves.values():
        if choices := [*leaf.notes.choices]:
            choice = choices[len(choices) // 2]
            line = refused(capsys, parser, *needed, f"--{leaf.name}", f"{choice}x")
            assert line.startswith(f"unknown {leaf.notes.what} '{choice}x': choose from ")
            assert line.endswith(f"; did you mean {choice!r}?")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_flag_is_explained(name: str) -> None:
    parser = CommandParser(name, RECORDS[name], "", "")
    texts = {action.dest: action.help for action in parser._actions}
    bare = [leaf.name for leaf in leaves(RECORDS[name]) if not re.match("[^(]", texts[leaf.name] or "")]
    assert bare == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_path_on_a_command_line_is_one(name: str) -> None:
    for leaf in leaves(RECORDS[name]):
        is_path = "Path" in str(leaf.hint)
        assert not is_path or leaf.notes.unit, leaf.name
        assert leaf.notes.unit not in PLACES or is_path or leaf.name in OTHERS
