"""The command: every part, what it writes, a comparison, a profile, bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from astra_gym.experiments import benchmark
from astra_gym.experiments.benchmark import PARTS, Measure
from astra_gym.experiments.benchmarks.measure import TARGETS, Figure, Result
from astra_gym.experiments.benchmarks.results_file import document_of
from astra_gym.experiments.benchmarks.workloads import DisagreementError, Options


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)


@pytest.fixture
def own_parts() -> Iterator[dict[str, Measure]]:
    """The table of parts, which the flags look into too, without those that there are."""
    before = dict(PARTS)
    PARTS.clear()
    yield PARTS
    PARTS.clear()
    PARTS.update(before)


def fake(part: str, names: Sequence[str], value: float = 2.0) -> Measure:
    """A part that measures at once."""

    def measure(options: Options, rounds: int, say: Any) -> Result:
        say(f"{part}: {rounds}")
        return [Figure(part, name, "times faster", (value,) * rounds) for name in names], {"rounds": rounds}

    return measure


def run(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, Path(benchmark.__file__), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_command_measures_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--quick", "--parts", "agents", "--repeats", "2", "--threads", "1", "--device", "cpu"]
    assert benchmark.main([*words, "--output", "made/figures.json"]) == 0
    out, err = capsys.readouterr()
    assert "written: made/figures.json, made/figures.png" in out and err == ""
    document = json.loads((tmp_path / "made/figures.json").read_text())
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"figures.json", "figures.png"}
    assert (document["schema"], document["quick"], document["threads"], document["device"]) == (2, True, 1, "cpu")
    assert document["processor"] and document["versions"]["torch"] and document["commit"]
    names = [figure["name"] for figure in document["figures"]]
    assert names == ["reinforce", "reinforce-paper", "ppo", "a2c", "random", "fixed"]
    for figure in document["figures"]:
        assert len(figure["values"]) == 2 and all(0 < value < 1 for value in figure["values"])
        assert figure["quartiles"][0] <= figure["median"] <= figure["quartiles"][1]


def test_every_target_is_one_of_a_part() -> None:
    assert {part for part, _ in TARGETS} <= set(PARTS)


def test_rounds_are_three_unless_told(
    tmp_path: Path, own_parts: dict[str, Measure], capsys: pytest.CaptureFixture[str]
) -> None:
    own_parts.update({"a": fake("a", ["x"]), "b": fake("b", ["y"])})
    where = ["--output", str(tmp_path / "new.json")]
    for words, expected in (
        ([], ["a: 3", "b: 3"]),
        (["--repeats", "5"], ["a: 5", "b: 5"]),
        (["--quick", "--parts", "b", "a", "b"], ["b: 1", "a: 1"]),
    ):
        assert benchmark.main([*words, *where]) == 0
        assert [line for line in capsys.readouterr().out.splitlines() if line[1:2] == ":"] == expected


def test_an_earlier_result_is_compared_with(
    tmp_path: Path, own_parts: dict[str, Measure], capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    figures = [Figure("a", name, "times faster", (value,) * 3) for name, value in (("x", 3.0), ("y", 1.0), ("z", 2.01))]
    document = document_of(Options(4, torch.device("cpu")), figures, {}) | {"processor": "an older one"}
    document["versions"] = {"torch": "0.4"}
    old.write_text(json.dumps(document))
    own_parts.update({"a": fake("a", ["x", "y", "z"])})
    assert benchmark.main(["--compare", str(old), "--output", str(new), "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 worse, 1 better, 1 same" in out
    assert "not under the same circumstances: threads was 4, now 1" in out
    assert "not under the same circumstances: torch was 0.4, now " in out
    assert "not under the same circumstances: processor was an older one, now " in out
    # a result may be compared with itself, and replaced by what is compared with it
    assert benchmark.main(["--compare", str(new), "--output", str(new), "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "0 worse, 0 better, 3 same" in out and "circumstances" not in out


def test_an_earlier_results_other_parts_are_taken_over(
    tmp_path: Path, own_parts: dict[str, Measure], capsys: pytest.CaptureFixture[str]
) -> None:
    path, words = tmp_path / "all.json", ["--threads", "1", "--repeats", "3"]
    own_parts.update({"a": fake("a", ["x"]), "b": fake("b", ["y"])})
    assert benchmark.main([*words, "--output", str(path)]) == 0
    document = json.loads(path.read_text())
    assert set(document["commits"].values()) == {document["commit"]}
    del document["sha256"]
    path.write_text(json.dumps(document | {"commit": "an older one", "commits": {"b": "the oldest"}}))
    own_parts.update({"a": fake("a", ["x"], 5.0), "b": fake("b", ["y"], 5.0)})
    assert benchmark.main([*words, "--parts", "a", "--add_to", str(path), "--output", str(path)]) == 0
    updated = json.loads(path.read_text())
    assert {figure["part"]: figure["median"] for figure in updated["figures"]} == {"a": 5.0, "b": 2.0}
    assert updated["commits"] == {"a": document["commit"], "b": "the oldest"}
    assert updated["details"] == {"a": {"rounds": 3}, "b": {"rounds": 3}}
    # figures of different machines do not stand in one file
    del updated["sha256"]
    path.write_text(json.dumps(updated | {"threads": 64}))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        benchmark.main([*words, "--parts", "a", "--add_to", str(path), "--output", str(path)])
    assert "is of other circumstances (threads was 64, now 1): measure all parts anew" in capsys.readouterr().err


def failing(error: BaseException) -> Measure:
    def measure(options: Options, rounds: int, say: Any) -> Result:
        raise error

    return measure


def test_a_part_that_fails_leaves_the_others(
    tmp_path: Path, own_parts: dict[str, Measure], capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {
        "a": fake("a", ["x"]),
        "b": failing(DisagreementError("attack: 1 %\nof the pixels differ")),
        "c": fake("c", ["y"]),
    }
    own_parts.update(parts)
    path = tmp_path / "new.json"
    assert benchmark.main(["--output", str(path)]) == 1
    document = json.loads(path.read_text())
    assert [figure["part"] for figure in document["figures"]] == ["a", "c"] == list(document["details"])
    assert document["failed"] == {"b": "attack: 1 % of the pixels differ"}
    captured = capsys.readouterr()
    assert captured.err == "benchmark.py: error: the part 'b' failed: attack: 1 % of the pixels differ\n"
    assert f"written: {path}, {path.with_suffix('.png')}" in captured.out


def test_nothing_is_written_where_nothing_is_measured(
    tmp_path: Path, own_parts: dict[str, Measure], capsys: pytest.CaptureFixture[str]
) -> None:
    for error, status in ((DisagreementError("no"), 1), (KeyboardInterrupt(), 130)):
        own_parts.update({"a": failing(error)})
        assert benchmark.main(["--output", str(tmp_path / "new.json")]) == status
        assert list(tmp_path.iterdir()) == []
        captured = capsys.readouterr()
        assert "nothing was written" in captured.out + captured.err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_an_interrupted_benchmark_keeps_what_it_has(
    error: BaseException, tmp_path: Path, own_parts: dict[str, Measure], capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"a": fake("a", ["x"]), "b": failing(error), "c": fake("c", ["y"])}
    own_parts.update(parts)
    path = tmp_path / "new.json"
    if isinstance(error, KeyboardInterrupt):
        assert benchmark.main(["--output", str(path)]) == 130
        picture = path.with_suffix(".png")
        assert capsys.readouterr().err == f"benchmark.py: interrupted: written: {path}, {picture} (parts: a)\n"
        assert picture.is_file()
    else:
        with pytest.raises(RuntimeError, match="a bug"):
            benchmark.main(["--output", str(path)])
    assert [figure["part"] for figure in json.loads(path.read_text())["figures"]] == ["a"]


def test_a_profile_is_written_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert benchmark.main(["--quick", "--profile", "here", "--device", "cpu"]) == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["benchmark.pt.trace.json", "here", "operators.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "atack"], f"unknown part 'atack': choose from {', '.join(PARTS)}; did you mean 'attack'?"),
        (["--repeats", "0"], "--repeats: expected 1 or more, got 0"),
        (["--threads", "-1"], "--threads: expected 1 or more, got -1"),
        (["--threads", "two"], "argument --threads: expected an integer, got 'two'"),
        (["--thread", "2"], "unknown flag --thread; did you mean --threads?"),
        (["--device", "cpi"], "unknown device 'cpi': choose from auto, cpu, cuda; did you mean 'cpu'?"),
        (["--output", "."], "--output: . is a folder: expected a file"),
        (
            ["--output", "file/x.json"],
            "--output: file/x.json cannot be written: expected a file in a folder that can be",
        ),
        (
            ["--output", "/proc/x/y.json"],
            "--output: /proc/x/y.json cannot be written: expected a file in a folder that can be",
        ),
        (["--output", "x.png"], "--output: x.png is the picture's path too: expected another, such as x.json"),
        (
            ["--profile", "/proc/x"],
            "--profile: /proc/x cannot be written to: expected a folder that can be",
        ),
        (["--profile", "/proc"], "--profile: /proc cannot be written to: expected a folder that can be"),
        (["--picture", "x.jpg"], "--picture: expected a file that ends in .png, got x.jpg"),
        (
            ["--picture", "folder.png"],
            "--picture: folder.png cannot be written: expected a file in a folder that can be",
        ),
        (["--profile", "file"], "--profile: file is a file: expected a folder, or nothing"),
        (["--profile", "."], "--profile: operators.txt is a symbolic link: expected a file there, or nothing"),
        (["--output", "linked.json"], "--output: linked.json is a symbolic link: expected a file there, or nothing"),
        (["--picture", "link.png"], "--picture: link.png is a symbolic link: expected a file there, or nothing"),
        (["--compare", "old.json"], "--compare: old.json has schema 1: expected 2, measure it anew"),
        (
            ["--compare", "quick.json"],
            "--compare: quick.json is a --quick result, and this is not one: the two measure different things",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for name in ("linked.json", "link.png", "operators.txt"):
        (tmp_path / name).symlink_to("file")
    (tmp_path / "old.json").write_text('{"schema": 1, "quick": false, "figures": []}')
    (tmp_path / "quick.json").write_text('{"schema": 2, "quick": true, "figures": []}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out) == (2, "")
    assert captured.err == f"benchmark.py: error: {message}\n"
