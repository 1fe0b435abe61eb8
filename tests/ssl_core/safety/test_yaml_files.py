"""YAML 1.2's core schema: what plain words are, what is refused, and that what is written is read as the same."""

import random
from pathlib import Path

import pytest
import yaml

from astra_gym.ssl_core.safety.yaml_files import MOST_CHARACTERS, dump_yaml, load_yaml, read_yaml_file
from astra_gym.ssl_core.utils.provenance import ROOT

BITS = (
    *("off", "on", "y", "NO", "true", "null", "~", "", "010", "0o10", "0x1f", "1e3", "1:30", "1_0", "2020-01-01"),
    *(".inf", ".nan", "=", "<<", "- ", "? ", ": ", " #", "&a", "*a", "!!int", "|", ">", "%", "@", "'", '"', "\\"),
    *("\n", "\t", " ", "\r", "\x85", "\u2028", "\ufeff", "\ud800", "\udcff", "\x00", "\x7f", "é", "😀", "[", "}", ","),
    *("word " * 30, "a" * 90, "---", "...", "\xa0", "0b1", "1e", "1", ".", "+", "-"),
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, word) for word in ("off", "on", "yes", "NO", "y", "1:30", "1_000", "0b11", "2020-01-01", "<<", "=")),
        *((word, True) for word in ("true", "True", "TRUE")),
        *((word, None) for word in ("null", "Null", "~", "", "# a comment")),
        *(("010", 10), ("-010", -10), ("+5", 5), ("0o10", 8), ("0x1F", 31), ("'010'", "010"), ('"off"', "off")),
        *(("1e-3", 1e-3), ("1E3", 1000.0), (".5", 0.5), ("5.", 5.0), (".inf", float("inf")), ("-.INF", -float("inf"))),
        *(("!!float 3", 3.0), ("!!str 010", "010"), ("{a: &x [1], b: *x}", {"a": [1], "b": [1]})),
    ],
)
def test_a_plain_word_is_what_the_core_schema_says(text: str, value: object) -> None:
    found = load_yaml(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 3\nlr: 0.1\nepochs: 7\n", "the key 'epochs' stands in lines 1 and 3: keep one of them"),
        ("a:\n  lr: 1\n  lr: 1\n", "the key 'lr' stands in lines 2 and 3"),
        ("{a: 1, 'a': 2}", "the key 'a' stands twice in line 1"),
        ("1: a\n0x1: b\n", "the key '1' stands in lines 1 and 2"),
        ("a: &a [1, *a]", "an alias stands inside what it repeats"),
        ("[" * 5000, "it is nested too deeply"),
        ("{a: " * 5000, "it is nested too deeply"),
        ("a: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org,2002:python/object/apply:os.system is not"),
        ("!!binary aGk=", "the tag tag:yaml.org,2002:binary is not read here (line 1)"),
        ("!!int x", "'x' is no int"),
        ("!!map [1]", "a tag says that it is a mapping"),
        ("!!seq {a: 1}", "a tag says that it is a list"),
        ("[1]: 2", "a key is a list or a mapping"),
        ("9" * 5000, "has too many digits"),
        ("a: 1\n---\na: 2\n", "expected a single document"),
        ("\x00", "unacceptable character #x0000"),
    ],
)
def test_what_is_unclear_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        load_yaml(text)
    assert message in str(error.value)
    assert len(str(error.value)) < 300


def test_a_million_laughs_are_refused_at_once() -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ValueError, match="aliases repeat more than 10,000 values"):
        load_yaml("\n".join(["a0: &a0 [1, 2]", *levels]))


def test_settings_that_are_text_are_taken_as_they_are_written() -> None:
    text = "run_dir: 010\nlr: 010\narms:\n- {label: 1e3, seeds: 1e3}\nother: {run_dir: 010}\n"
    found = load_yaml(text, ("run_dir", "arms.label"))
    assert found == {
        "run_dir": "010",
        "lr": 10,
        "arms": [{"label": "1e3", "seeds": 1000.0}],
        "other": {"run_dir": 10},
    }
    # an alias of it elsewhere stays a number, and nothing is still nothing
    assert load_yaml("lr: &x 010\nrun_dir: *x\n", ("run_dir",)) == {"lr": 10, "run_dir": "010"}
    assert load_yaml("run_dir: null", ("run_dir",)) == {"run_dir": None}


def _value(draw: random.Random, depth: int = 0) -> object:
    text = "".join(draw.choice(BITS) for _ in range(draw.choice([1, 1, 2, 3])))
    numbers = (0, -10, 2**70, True, None, 1e-6, 1e16, 5e-324, -0.0, float("-inf"), 1 / 3)
    inner = [_value(draw, depth + 1) for _ in range(draw.randrange(3))] if depth < 3 else []
    return draw.choice([text, text, draw.choice(numbers), inner, dict.fromkeys([text], inner)])


def test_what_is_written_is_read_as_the_same_by_this_version_and_by_an_older_one() -> None:
    draw = random.Random(0)
    for _ in range(500):
        value = _value(draw)
        written = dump_yaml(value)
        assert repr(load_yaml(written)) == repr(value)
        assert repr(yaml.safe_load(written)) == repr(value)


def test_kept_files_are_read_as_they_were() -> None:
    files = [*(ROOT / "results").rglob("*.yaml"), *(ROOT / "tests" / "fixtures").rglob("*.yaml")]
    assert len(files) > 5
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert load_yaml(text) == yaml.safe_load(text)
        # a seal is a comment
        body = text.partition("\n")[2] if text.startswith("# sha256") else text
        assert dump_yaml(load_yaml(text)) == body


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    for content, message in ((b"a: 1\na: 2", "bad.yaml is not a YAML file: the key"), (b"\xff", "is not UTF-8")):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_yaml_file(bad)
    with pytest.raises(ValueError, match=r"cannot read the config file .*: No such file"):
        read_yaml_file(tmp_path / "none.yaml")
    # a device that never ends
    with pytest.raises(ValueError, match=f"longer than {MOST_CHARACTERS:,} characters"):
        read_yaml_file("/dev/zero")
