"""The log of commands: every damaged line of it is reported once."""

from pathlib import Path

import pytest

from astra_gym.experiments.runs.logs import command_digest, read_commands
from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.ssl_core.safety.sealing import sealed_line

LINES = ["python train.py --epochs 2", "python train.py --resume run"]


@pytest.mark.parametrize(
    ("content", "sentences", "left"),
    [
        (f"{LINES[0]}\n{LINES[1]}\n", [], LINES),
        (f"{LINES[0]}\n{LINES[1]}", ["line 2 does not end with a line break"], LINES),
        # one damaged line, which its digest shows too
        (f"{LINES[0]}\n{LINES[1]}\v", ["line 2 does not end with a line break"], LINES[:1]),
        (f"{LINES[0]}\n{LINES[1][:-1]}m\n", ["line 2 is damaged"], LINES[:1]),
        (f"{LINES[1]}\n", ["lacks 1 of its lines"], LINES[1:]),
    ],
)
def test_each_damaged_command_is_one_sentence(tmp_path: Path, content: str, sentences: list[str], left) -> None:
    path, damage = tmp_path / "command.txt", list[str]()
    path.write_text(content)
    assert read_commands(path, list(map(command_digest, LINES)), damage) == left
    assert [sentence.removeprefix("command.txt").lstrip(", ") for sentence in damage] == sentences


def test_so_is_a_damaged_line_of_metrics(tmp_path: Path) -> None:
    path, damage = tmp_path / "metrics.jsonl", list[str]()
    path.write_bytes(b"".join(sealed_line(f'{{"step": {step}}}') for step in (1, 2))[:-1] + b"\v")
    assert read_metrics(path, damage) == [{"step": 1}, {"step": 2}]
    assert damage == ["metrics.jsonl, line 2: damaged"]
