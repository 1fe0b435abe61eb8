"""The command that measures headroom: its file, its picture, its repetition, and bad input."""

import shutil
from pathlib import Path

import pytest

from astra_gym.experiments.measure_headroom import main
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.files import write_json
from tests.helpers.tiny_training import TINY_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    f"--{name}={value}" for name, value in (TINY_SETTINGS | {"limit": 50, "epochs": 2, "preset": "digits-wide"}).items()
]
CONSTANT = ["--epsilon", "48/255", "--steps", "1", "--step_size", "32/255"]
SMALL = ["--views", "2", "--updates", "2", "--batches", "2", "--jobs", "1"]


@pytest.mark.slow
def test_a_tiny_world_has_verdicts_and_a_picture_and_a_repeated_command_makes_what_is_left(
    tmp_path: Path, trials_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "--repeats", "1", "--output", str(tmp_path / "h.json"), *TINY, *CONSTANT]
    assert main([*words, "--kinds", "attack"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("1 repeat, 1 left, 1 at once, into ") and shown[1].startswith("attack, seed 0: ")
    assert main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("2 repeats, 1 left") and shown[1].startswith("view, seed 0: ")
    assert shown[2].startswith("per view, 2 updates, chosen - shuffled: undecided; ")
    assert shown[-1] == f"{tmp_path / 'h.json'}, {tmp_path / 'h.png'}"
    document, before = read_json(tmp_path / "h.json"), (tmp_path / "h.json").read_bytes()
    assert set(document["kinds"]) == {"view", "attack"} and (tmp_path / "h.png").is_file()
    numbers = document["kinds"]["view"]["numbers"]
    assert numbers["judge_images"] == 12 and len(numbers["budgets"]) == 8
    assert document["measured"]["settings"]["precision"] == "fp32"
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("2 repeats, 0 left")
    assert (tmp_path / "h.json").read_bytes() == before


def test_a_kept_measurement_is_read_and_needs_no_repeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(shutil.copy(ROOT / "results" / "headroom" / "digits-wide.json", tmp_path))

    def decided() -> list[str]:
        return [each["verdict"] for kind in read_json(file)["kinds"].values() for each in kind["verdicts"]]

    before = decided()
    assert main(["--preset", "digits-wide", *CONSTANT, "--output", str(file)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("10 repeats, 0 left") and "per view, 40 updates, chosen - shuffled: " in shown[1]
    assert decided() == before and len(before) >= 5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--optimizer", "lars"], "credit per view is known for AdamW and SGD, not LARS: give --optimizer"),
        (["--updates", "40"], "updates, less than --updates 40: raise --epochs, or lower it"),
        (["--method", "rocl"], "the loss of RoCL mixes the attacked views: no credit per view"),
    ],
)
def test_what_has_no_credit_per_view_is_refused_before_anything_is_trained(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "h.json"
    with pytest.raises(SystemExit, match="2"):
        main([*SMALL, "--kinds", "view", "--output", str(output), *TINY, *CONSTANT, *flags])
    shown = capsys.readouterr()
    assert said in shown.err and "repeat" not in shown.out and not output.exists()


def test_foresight_has_no_verdict_so_its_numbers_are_told_and_no_picture_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = read_json(ROOT / "results" / "headroom" / "digits-wide.json")
    foresight, file = document["kinds"]["foresight"], tmp_path / "h.json"
    write_json(file, document | {"kinds": {"foresight": foresight}})
    words = ["--preset", "digits-wide", *CONSTANT, "--kinds", "foresight", "--repeats", "4", "--output", str(file)]
    assert main(words) == 0
    _, *told, last = capsys.readouterr().out.splitlines()
    (mean, low, high), *others = foresight["numbers"]["rank_correlations"].values()
    assert told[0] == f"rank correlation of a block at 10% of the run and the end: {mean:.2f} ({low:.2f} to {high:.2f})"
    assert len(told) == 1 + len(others) and last.startswith(f"{file}; no picture")
    assert [each.name for each in tmp_path.iterdir()] == ["h.json"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "the constant has no --epsilon, no --steps, no --step_size"),
        ([*CONSTANT[:4]], "the constant has no --step_size"),
        ([*CONSTANT, "--kinds", "vew"], "did you mean 'view'"),
        ([*CONSTANT, "--kinds", "view", "view"], "give each kind once"),
        ([*CONSTANT, "--seed", "3"], "--seed is set by the measurement"),
        ([*CONSTANT, "--list"], "--list is set by the measurement"),
        ([*CONSTANT, "--repeats", "0"], "--repeats is 0"),
        ([*CONSTANT, "--method", "taro"], "taro has no attack whose gain is its loss's: take a method with"),
        ([*CONSTANT, "--method", "simclr"], "simclr has no attack that could be chosen: take a method with"),
        (["--method", "simclr"], "simclr has no attack that could be chosen: take a method with"),
        ([*CONSTANT, "--update_chunks", "2"], "leave --update_chunks out"),
        ([*CONSTANT, "--passes", "50"], "leave --passes out"),
        ([*CONSTANT, "--output", "a.png"], "is the place of the picture"),
        ([*CONSTANT, "--epohs", "2"], "did you mean --epochs"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([*TINY, *words])
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("measure_headroom.py: error: ") and part in line and len(line) < 300
    assert not list(tmp_path.iterdir())
