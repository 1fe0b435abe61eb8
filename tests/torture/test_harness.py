"""The harness itself finds what it is there to find, and a fault that it has been shown is told with its kind."""

import builtins
import errno
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from astra_gym.ssl_core.models import checkpoint
from astra_gym.ssl_core.models.checkpoint import load_checkpoint, save_checkpoint
from astra_gym.ssl_core.safety import sealing
from tests.helpers.tiny_runs import compared, differences
from tests.torture.calling import Answer, called, faults, message_faults
from tests.torture.cases import Case, Journal, Part, run_case, run_cases
from tests.torture.costs import costs
from tests.torture.goods import Goods
from tests.torture.mutations import hostile_values, leaves, mutated
from tests.torture.no_space import full_below
from tests.torture.summary import table
from tests.torture.values import kinds, text_for
from tests.torture.yaml_files import document


@pytest.mark.parametrize(
    "act",
    [
        lambda outside: (outside / "new").write_text("x"),
        lambda outside: (outside / "new").mkdir(),
        lambda outside: (outside / "old").unlink(),
        lambda outside: (outside / "old").rename("old"),
        lambda outside: Path("old").symlink_to("x") or Path("old").rename(outside / "x"),
        lambda outside: (Path("link").symlink_to(outside), Path("link/new").write_text("x")),
        lambda outside: os.truncate(outside / "old", 0),
        lambda outside: __import__("shutil").rmtree(outside),
        lambda outside: os.system("true"),
        lambda outside: __import__("subprocess").run(["true"]),
    ],
)
def test_the_fence_stops_what_is_done_outside(act: Callable[[Path], object], tmp_path: Path, monkeypatch) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "old").write_text("old")
    monkeypatch.chdir(inside)
    answer = called(lambda: act(outside), allowed=[inside])
    assert len(answer.breaches) == 1 and faults(answer)[0][0] == "outside the fence"
    assert [path.name for path in outside.iterdir()] == ["old"] and (outside / "old").read_text() == "old"


def test_the_fence_lets_through_what_is_done_inside_and_shuts_the_network(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def act() -> None:
        Path("folder").mkdir()
        Path("folder/file").write_text("x")
        Path("folder/file").rename("file")
        __import__("shutil").rmtree("folder")
        with pytest.raises(OSError, match="unreachable"):
            __import__("socket").create_connection(("192.0.2.1", 80), timeout=1)

    answer = called(act, allowed=[tmp_path])
    assert answer.error is None and answer.breaches == [] and str(tmp_path / "file") not in answer.read
    assert str(tmp_path / "file") in called(lambda: Path("file").read_text(), allowed=[tmp_path]).read


def test_a_call_that_hangs_ends_and_what_it_changed_is_put_back(tmp_path: Path) -> None:
    before = os.getcwd(), list(sys.path), dict(os.environ)

    def act() -> None:
        os.chdir(tmp_path)
        sys.path.append("x")
        os.environ["TORTURED"] = "1"
        print("said", file=sys.stderr)
        while True:
            time.sleep(0.01)

    answer = called(act, allowed=[tmp_path], limit=0.1)
    assert [kind for kind, _ in faults(answer)] == ["hang"] and answer.err == "said\n"
    assert (os.getcwd(), list(sys.path), dict(os.environ)) == before


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("train_agent.py: error: no such folder /a/b: give another\n", []),
        ("", ["no message"]),
        ("one\ntwo\n", ["several lines"]),
        ("x" * 301, ["longer than 300 characters"]),
        (f"error: /{'folder/' * 60}file is no checkpoint", []),
        ("error: \x1b[31mred", ["control characters"]),
    ],
)
def test_messages_are_judged(text: str, found: list[str]) -> None:
    assert message_faults(text) == found


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(status=3, err="x"), "status 3"),
        (Answer(status=None, crash="KeyError in x.py:f", error=KeyError()), "traceback: KeyError in x.py:f"),
        (Answer(status=0, err="Traceback (most recent call last)"), "traceback printed"),
        (Answer(status=2, err="a\nb"), "message: several lines"),
    ],
)
def test_answers_are_judged(answer: Answer, kind: str) -> None:
    assert [found for found, _ in faults(answer)] == [kind]
    assert faults(Answer(status=0)) == []


def test_a_disk_that_is_said_to_be_full_is_full_for_every_writer(tmp_path: Path) -> None:
    before, saved = builtins.open, tmp_path / "small.pt"
    with full_below(tmp_path, 5000):
        save_checkpoint(saved, "run", {"x": torch.zeros(8)})
        with pytest.raises((OSError, RuntimeError)):
            save_checkpoint(saved, "run", {"x": torch.zeros(2000)})
        for write in (lambda path: path.write_text("x" * 5000), lambda path: path.write_bytes(b"x")):
            with pytest.raises(OSError, match="No space") as error:
                write(tmp_path / "more")
            assert error.value.errno == errno.ENOSPC
        with saved.open("rb+") as file, pytest.raises(OSError, match="No space"):
            os.fsync(file.fileno())
    assert builtins.open is before and load_checkpoint(saved, "run")["x"].shape == (8,)


def test_one_bit_is_a_difference() -> None:
    for dtype in (torch.float64, torch.int64, torch.bfloat16, torch.uint8):
        good = torch.ones(5).to(dtype)
        bad = good.clone()
        bad.view(torch.uint8)[0] ^= 1
        assert list(differences({"a": [good]}, {"a": [good.clone()]}, "")) == []
        assert len(list(differences({"a": [good]}, {"a": [bad]}, ""))) == 1


def test_folders_are_compared_by_what_their_files_say(tmp_path: Path) -> None:
    for name, text in (("a", '{"x": 1, "seconds": 2}'), ("b", '{"x": 1, "seconds": 3}'), ("c", '{"x": 2}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.json").write_text(text)
    assert compared(tmp_path / "a", tmp_path / "b") == {"file.json": []}
    assert compared(tmp_path / "a", tmp_path / "c")["file.json"] != []


def test_a_case_repeats_exactly_and_a_fault_of_the_harness_is_counted(tmp_path: Path) -> None:
    goods, drawn = Goods(tmp_path), list[float]()

    def act(case: Case) -> None:
        drawn.append(case.draw.random())
        Path("file").write_text("x")
        case.fail("kind", "a\x1b[31m\udcffb\nc")
        if case.number == 2:
            raise KeyError("unexpected")

    part = Part("own", 1.0, act)
    first, again, other = (run_case(part, goods, 0, number) for number in (1, 1, 2))
    assert drawn[0] == drawn[1] != drawn[2]
    assert first.failures == again.failures == [("kind", "a\\x1b[31m\\udcffb c")]
    assert other.failures[1].kind.startswith("harness: KeyError at test_harness.py")
    assert list((tmp_path / "cases").iterdir()) == []


def test_what_safety_costs_is_measured_in_every_module_that_seals(tmp_path: Path) -> None:
    tiny = "--limit=12 --test_limit=8 --batch_size=4 --image_size=8 --width=2 --projector_hidden=4 --projector_dim=4"
    found = costs(tmp_path, (*tiny.split(), "--epochs=1", "--evaluate=false", "--progress=off"), images=1000)
    assert min(found.values()) > 0 and 0 < found["share"] < 1 and found["images"] == 1000
    parts = (found["seals_seconds"] + found["digests_seconds"]) / found["training_seconds"]
    assert found["share"] == pytest.approx(parts, abs=0.01)
    assert "digests of 1,000 images: " in table({"parts": {}, "costs": found})
    # the modules are left as they were
    assert checkpoint.seal_zip is sealing.seal_zip


def test_the_journal_tells_what_ended_and_what_was_running(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.new() == [] and journal.running is None
    run_cases(Part("own", 1.0, lambda case: case.fail("kind", "text")), Goods(tmp_path), 0, 7, 0.0, journal.path)
    [ended] = journal.new()
    assert ended["case"] == 7 and ended["failures"] == [["kind", "text"]] and journal.running is None
    with journal.path.open("a") as file:
        file.write('{"began": 8}\n{"case": 8, "sec')
    assert journal.new() == [] and journal.running == 8


def test_random_input_is_the_same_again_and_hostile_values_reach_every_place(tmp_path: Path) -> None:
    one, other = random.Random("1"), random.Random("1")
    assert document(one) == document(other)
    assert text_for(one, "epochs", kinds()["epochs"]) == text_for(other, "epochs", kinds()["epochs"])
    good = {"label": "a", "cells": [{"seed": 1}, {"seed": 2}]}
    assert len(list(leaves(good))) == 7
    changed = {mutated(random.Random(number), eval(repr(good)), tmp_path)[1] for number in range(200)}
    assert len(changed) > 40 and any("victim" in what for what in changed)
    assert len(hostile_values(tmp_path)) > 40
