import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from astra_gym.experiments.comparison.arms import Arm
from astra_gym.experiments.comparison.display import Display, GridProgress, share_done
from tests.helpers.made_cells import made_cell


def planned(label: str, seeds: int) -> Arm:
    return Arm(label, ("--agent", label), seeds, {"eval_epsilons": [8 / 255], "epochs": 10, "agent": label})


def shown(progress: GridProgress, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as text:
        console.print(Display(progress, console).panel(spent=90))
    return text.get().splitlines()


@pytest.fixture
def progress() -> GridProgress:
    arms = [planned("reinforce", 10), planned("an-agent-with-a-name-of-its-own@compute", 5), planned("fixed", 2)]
    made = GridProgress(arms, jobs=2)
    for seed, accuracy in enumerate((90.0, 94.0)):
        cell = made_cell("reinforce", seed, {0.0: accuracy, 8 / 255: accuracy - 50}, seconds=60.0)
        made.finished[f"reinforce-seed{seed}"] = cell
    made.running = {"reinforce-seed2": (0.455, 30.0), "fixed-seed0": (1.0, 70.0)}
    made.failed = {"an-agent-with-a-name-of-its-own@compute-seed0": "killed by SIGKILL"}
    return made


def test_the_table_has_every_figure_at_80_columns(progress) -> None:
    lines = shown(progress)
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["arm", "cells", "failed", "running", "SA", "%", "RA", "%", "8/255", "steps", "min"]
    assert lines[1].split() == ["reinforce", "2/10", "seed", "2,", "45", "%", "92.0", "42.0", "282", "k", "1.0"]
    assert lines[2].split()[1:] == ["0/5", "1"] and "…" in lines[2]
    assert lines[3].split() == ["fixed", "0/2", "seed", "0,", "eval"]
    assert "2 of 17 cells, 1 failed, 2 running; 0:01:30 spent" in lines[4]
    progress.running["reinforce-seed3"] = (0.2, 1.0)
    assert "2 cells, 20 % up" in shown(progress)[1]
    progress.failed = {}
    assert "failed" not in "".join(shown(progress))


def test_the_time_left_is_that_of_what_is_not_done(progress) -> None:
    # a cell of reinforce took 60 s; fixed-seed0 ran for 70 s, which is all that is known of its arm and done
    usual = (60 + 70) / 2
    work = 60 * (1 - 0.455) - 2.7 + 7 * 60 + 4 * usual + 70
    assert progress.seconds_left() == pytest.approx(work / 2, abs=2)
    progress.took["reinforce-seed1"] = 120.0
    assert progress.seconds_left() > work / 2 + 200
    assert GridProgress([planned("fixed", 2)], 2).seconds_left() is None
    # one long cell is left, however many processes there are
    alone = GridProgress([planned("fixed", 1)], 8, running={"fixed-seed0": (0.5, 40.0)})
    assert alone.seconds_left() == pytest.approx(40)


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "dumb"])
def test_where_no_display_can_be_redrawn_there_is_a_line_a_cell(progress, terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=terminal, _environ={"TERM": "dumb"})
    with Display(progress, console) as display:
        display.update(1.0)
        display.finished("reinforce-seed1", progress.finished["reinforce-seed1"], 90.0)
    [line] = out.getvalue().splitlines()
    assert line.startswith(
        "[2/17] reinforce-seed1: SA 94.0 %, RA 44.0 % at 8/255, 282 k attack steps, 1.0 min | 0:01:30 "
    )


def test_the_accuracy_is_where_the_world_is_judged(progress: GridProgress) -> None:
    progress.finished, radii = {}, [2 / 255, 4 / 255, 8 / 255]
    progress.arms = [replace(arm, settings=arm.settings | {"eval_epsilons": radii}) for arm in progress.arms]
    assert "RA % 4/255" in shown(progress)[0]
    judged = {"judge_epsilon": 8 / 255}
    progress.arms = [replace(arm, settings=arm.settings | judged) for arm in progress.arms]
    assert "RA % 8/255" in shown(progress)[0]
    out = io.StringIO()
    accuracy = {0.0: 94.0, **dict(zip(radii, (70.0, 60.0, 50.0), strict=True))}
    cell = made_cell("reinforce", 0, accuracy)
    Display(progress, Console(file=out, width=80)).finished("reinforce-seed0", cell, 90.0)
    judged_cell = replace(cell, settings=dict(cell.settings) | judged)
    Display(progress, Console(file=out, width=80)).finished("reinforce-seed0", judged_cell, 90.0)
    assert "RA 60.0 % at 4/255" in out.getvalue() and "RA 50.0 % at 8/255" in out.getvalue()


def test_the_share_of_a_training_that_is_done(tmp_path) -> None:
    assert share_done(tmp_path, 10) == 0
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "epoch": 0.5}, {"step": 5, "epoch": 2.5}, {"step": 5, "agent/loss": 1.0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "epo')
    assert share_done(tmp_path, 10) == 0.25
    path.write_text('{"step": 1, "epoch": 11.0}\n')
    assert share_done(tmp_path, 10) == 1
    # epochs do not end a run that spends passes: 50 updates of 3.3 + 1
    path.write_text('{"step": 50, "epoch": 25.0, "budget/steps": 1.0}\n')
    assert share_done(tmp_path, 10, passes=430.0) == pytest.approx(0.5)
    path.write_text("")
    assert share_done(tmp_path, 10) == 0
    # of a long file only the end is read
    path.write_text(
        "".join(json.dumps({"step": n, "epoch": n / 1000, "pad": "x" * 500}) + "\n" for n in range(1, 2001))
    )
    assert share_done(tmp_path, 10) == pytest.approx(0.2)


def test_a_note_is_printed_as_it_is(progress: GridProgress) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=False, color_system="truecolor")
    text = "the arm [red]a[/red] of 12 runs in /a/rather/long/folder " + "and so on " * 9 + "end"
    Display(progress, console).note(text)
    assert console.file.getvalue() == text + "\n"
