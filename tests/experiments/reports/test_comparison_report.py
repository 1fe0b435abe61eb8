from dataclasses import replace

import pytest

from astra_gym.experiments.comparison.cell_results import ComparisonResult
from astra_gym.experiments.reports import comparison_report
from astra_gym.experiments.reports.comparison_report import answer, duration, machine_table, report, write_report
from astra_gym.experiments.reports.comparison_tables import improvement_table, primary_table
from astra_gym.experiments.reports.document import Items, Page, Picture, Table
from astra_gym.experiments.reports.rendering import check_report
from astra_gym.ssl_core.utils.provenance import ROOT

EPSILON = 8 / 255
RANDOM = {"random": 50.0, "fixed": 45.0, "fixed-max": 56.0}


def comparison(cells, **fields) -> ComparisonResult:
    return ComparisonResult("made up", "python compare.py", cells, fields.pop("unfinished", {}), **fields)


def grid(make_cell, seeds: int, reinforce: float = 60.0, scatter: float = 1.0, arms=RANDOM) -> list:
    """Cells in which REINFORCE is above all by a different amount in each seed."""
    return [
        make_cell(arm, seed, {0.0: 95.0, EPSILON: mean + scatter * (arm == "reinforce") * (seed % 3)})
        for arm, mean in {"reinforce": reinforce, **arms}.items()
        for seed in range(seeds)
    ]


def titles(page: Page) -> list[str]:
    return [section.title for section in page.sections]


def pictures(page: Page) -> list[str]:
    return [block.name for section in page.sections for block in section.blocks if isinstance(block, Picture)]


def test_what_is_shown_is_said_with_its_figures(make_cell) -> None:
    text = " ".join(answer(comparison(grid(make_cell, 10))))
    assert text.startswith("4 arms, 40 runs (seeds per arm: 10), method astra, preset digits-grid.")
    assert "Of the 3 primary comparisons, 3 are shown." in text
    # the mean of 0, 1, 2, 0, 1, 2, 0, 1, 2, 0 is 0.9
    assert "reinforce is better than random (+10.9 (" in text
    assert "points, RA at 8/255, 10 seeds, p 0.0059 after Holm)" in text
    assert text.endswith(
        "At the deciding epsilon, RA at 8/255, reinforce is above every other arm by the intervals of the differences."
    )


def test_what_is_worse_and_what_is_not_shown_is_said_too(make_cell) -> None:
    arms = {"random": 50.0, "fixed": 70.0, "fixed-max": 49.0}
    cells = grid(make_cell, 10, reinforce=50.0, scatter=0.0, arms=arms)
    # equal differences have no interval
    cells[20] = make_cell("fixed", 0, {0.0: 95.0, EPSILON: 71.0})
    text = " ".join(answer(comparison(cells)))
    assert "reinforce is worse than fixed (-20.1 (" in text
    assert "Not shown, either way: reinforce against random (+0.0" in text
    assert "fixed is above every other arm" in text


def test_too_few_seeds_are_called_so(make_cell) -> None:
    text = " ".join(answer(comparison(grid(make_cell, 3))))
    assert "Of the 3 primary comparisons, none is shown." in text
    assert "reinforce against random cannot be decided with 3 seeds" in text
    assert "better" not in text


def test_before_all_planned_runs_are_finished_there_is_no_verdict(make_cell) -> None:
    text = " ".join(answer(comparison(grid(make_cell, 8), unfinished={"fixed-seed8": "not run yet"})))
    assert "none is shown" in text and "better" not in text
    assert "No verdict yet on reinforce against random: 8 of 8 seeds so far (+" in text
    assert "No verdict yet on reinforce against fixed: 8 of 8 seeds so far (+" in text


def test_while_runs_are_missing_no_arm_is_called_the_best(make_cell) -> None:
    text = " ".join(answer(comparison(grid(make_cell, 8), unfinished={"fixed-max-seed8": "values are not finite"})))
    assert "no arm is called the best, since runs are unfinished" in text


def test_runs_without_a_plan_have_intervals_and_no_verdict(make_cell) -> None:
    planned = comparison(grid(make_cell, 8))
    picked = replace(planned, planned=False)
    assert "reinforce is better than random" in " ".join(answer(planned))
    text = " ".join(answer(picked))
    assert "No test and no verdict: these runs are of no plan" in text and "better" not in text
    assert primary_table(picked) is None
    others = improvement_table(picked)
    assert others is not None and others.rows[0][0].text == "reinforce"
    assert [entry.text[:6] for entry in others.rows[0][3:]] == ["+10.9 ", "+15.9 ", "+4.9 ("]


@pytest.mark.parametrize("judge", [None, EPSILON])
def test_void_accuracies_are_left_out_and_leave_no_verdict(make_cell, tmp_path, judge: float | None) -> None:
    cells = [replace(cell, settings={**cell.settings, "judge_epsilon": judge}) for cell in grid(make_cell, 10)]
    for index in (10, 11):
        clean = {0.0: cells[index].correct[0.0]}
        cells[index] = replace(cells[index], void="the softmax rounds to 1", correct=clean)
    text = " ".join(answer(comparison(cells)))
    assert "none is shown" in text and "better" not in text and "above every other" not in text
    assert "No verdict yet on reinforce against random: 8 of 10 seeds so far" in text
    assert "RA at 8/255, no arm is called the best, since runs are void. The robust" in text
    assert text.endswith("The robust accuracy of 2 runs is void and left out, see Void accuracies.")
    page = report(comparison(cells), tmp_path)
    [table] = [block for block in page.sections[-1].blocks if isinstance(block, Table)]
    assert page.sections[-1].title == "Void accuracies" and len(table.rows) == 2
    every = [cell for cell in cells if cell.arm == "reinforce"]
    every = [replace(cell, void="no gradient", correct={0.0: cell.correct[0.0]}) for cell in every]
    assert "RA" not in " ".join(answer(comparison(every)))


def test_arms_at_equal_compute_are_not_the_best_of_the_answer(make_cell) -> None:
    cells = grid(make_cell, 4) + [make_cell("fixed@compute", seed, {0.0: 95.0, EPSILON: 90.0}) for seed in range(4)]
    text = " ".join(answer(comparison(cells)))
    assert "reinforce is above every other arm (arms at equal compute apart) by the intervals" in text
    two = " ".join(answer(comparison([cell for cell in cells if cell.agent == "fixed"])))
    assert two.startswith("2 arms, ") and "One arm alone shows nothing about agents; fixed: SA 95.0 %" in two


def test_an_arm_in_two_presets_is_a_comparison(make_cell, tmp_path) -> None:
    page = report(comparison([make_cell("fixed"), make_cell("fixed", preset="digits")]), tmp_path)
    assert page.title == "Comparison of agents: made up"


def test_without_a_deciding_epsilon_nothing_is_claimed(make_cell) -> None:
    cells = grid(make_cell, 3, reinforce=99.0, arms=dict.fromkeys(RANDOM, 95.0), scatter=0.1)
    text = " ".join(answer(comparison(cells)))
    assert "No epsilon decides" in text and "None of the comparisons that were fixed beforehand" in text


def test_unfinished_runs_are_counted(make_cell) -> None:
    text = " ".join(answer(comparison(grid(make_cell, 1), unfinished={"ppo seed 0": "failed"})))
    assert text.endswith("1 of 5 runs are unfinished: the figures may change.")


@pytest.mark.slow
def test_a_comparison_has_everything_in_order(make_cell, tmp_path) -> None:
    unfinished = {"ppo-seed0": "the loss is not finite"}
    page = report(comparison(grid(make_cell, 2), unfinished=unfinished), tmp_path)
    assert page.title == "Comparison of agents: made up"
    assert titles(page) == [
        "How to read it",
        "Accuracy",
        "Comparisons fixed beforehand",
        "Other comparisons",
        "Learning curves",
        "Accuracy against attack compute",
        "What the arms chose",
        "What the choice depends on",
        "Reward",
        "Settings and machine",
        "Repeat it",
        "Unfinished runs",
    ]
    assert sorted(pictures(page)) == sorted(path.name for path in tmp_path.iterdir())
    assert len(pictures(page)) == 5
    [table] = page.sections[-1].blocks
    assert isinstance(table, Table)
    assert [[entry.text for entry in row] for row in table.rows] == [["ppo-seed0", "the loss is not finite"]]


@pytest.mark.slow
def test_one_run_has_what_makes_sense_of_it(make_cell, tmp_path) -> None:
    page = report(comparison([make_cell()]), tmp_path)
    assert page.title == "Run: made up"
    assert titles(page) == [
        "How to read it",
        "Accuracy",
        "Learning curves",
        "What the arms chose",
        "What the choice depends on",
        "Reward",
        "Settings and machine",
        "Repeat it",
    ]
    [reading] = page.sections[0].blocks
    assert isinstance(reading, Items) and "Shown" not in dict(reading.items)
    [text] = page.opening
    assert "SA 95.0 %, RA at 8/255 55.0 %" in text.text and "above" not in text.text


def test_methods_have_figures_of_their_own(make_cell, tmp_path) -> None:
    cells = [
        make_cell(arm, method=method, shares={}, by_clean_loss={})
        for method in ("acl", "astra")
        for arm in ("fixed", "random")
    ]
    page = report(comparison(cells), tmp_path)
    assert {"acl-digits-grid-learning_curves.png", "astra-digits-grid-learning_curves.png"} < set(pictures(page))
    assert len({path.name for path in tmp_path.iterdir()}) == len(pictures(page)) == 4


def test_nothing_finished_is_an_error_with_the_reasons(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no finished run to report \(ppo: it failed\)"):
        report(comparison([], unfinished={"ppo": "it failed"}), tmp_path)


def test_every_machine_and_version_is_told(make_cell) -> None:
    cells = [make_cell(seed=0), make_cell(seed=1, device="H200", commits=["a", "b"], versions={"torch": "2.16"})]
    told = {row[0].text: row[1].text for row in machine_table(comparison(cells, jobs=2, wall_seconds=4000.0)).rows}
    assert told["device"] == "cpu, H200" and told["commits"] == f"{'0' * 40}, a, b"
    assert told["torch"] == "2.15.0, 2.16" and told["python"] == "3.11.7, none"
    assert told["runs at once"] == "2" and told["wall time"] == "1 h 7 min"
    assert told["training time, all runs"] == "4 min"


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "not known"), (12.4, "12 s"), (89, "89 s"), (90, "2 min"), (7200, "2 h 0 min")]
)
def test_times_in_words(seconds, words) -> None:
    assert duration(seconds) == words


def test_names_from_a_file_draw_nothing_elsewhere(make_cell, tmp_path) -> None:
    for field in ("method", "preset"):
        for name in ("../../victim/x", "/tmp/victim", "a\0b", "a\nb", "x" * 300):
            cells = [make_cell("reinforce", 0), make_cell("reinforce", 0, **{field: name})]
            with pytest.raises(ValueError, match=r"a figure is called .*: expected a plain name"):
                report(comparison(cells), tmp_path / "in" / "figures")
    assert list(tmp_path.iterdir()) == []


def test_runs_that_cannot_be_compared_leave_no_figures(make_cell, tmp_path) -> None:
    first, other = make_cell("reinforce"), make_cell("random")
    other = replace(other, correct={epsilon: marks[1:] for epsilon, marks in other.correct.items()})
    with pytest.raises(ValueError, match="expected the same images in every run"):
        write_report(comparison([first, other]), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_no_report_has_written_is_not_replaced(make_cell, tmp_path, monkeypatch) -> None:
    folder, done = tmp_path / "thesis", comparison([make_cell("fixed", 0)])
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "learning_curves.png").write_text("mine")
    with pytest.raises(ValueError, match=r"learning_curves\.png would be replaced, and is of no report here"):
        write_report(done, folder)
    (folder / "figures" / "learning_curves.png").rename(folder / "kept.png")
    for name in ("report.md", "report.html"):
        (folder / name).write_text("# My report\n")
        with pytest.raises(ValueError, match=rf"{name} was not written by report: move it away"):
            write_report(done, folder)
        assert list((folder / "figures").iterdir()) == []
        (folder / name).unlink()
    # one that is interrupted leaves nothing that would stop the next
    monkeypatch.setattr(comparison_report, "shares_of_arms", lambda *_: [][0])
    with pytest.raises(IndexError):
        write_report(done, folder)
    monkeypatch.undo()
    assert list((folder / "figures").iterdir()) == []
    write_report(done, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    assert write_report(done, folder) == folder / "report.html"
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    for name, victim in (("report.md", folder / "kept.png"), ("figures", tmp_path)):
        (folder / name).rename(folder / "moved")
        (folder / name).symlink_to(victim)
        with pytest.raises(ValueError, match="is a symbolic link"):
            write_report(done, folder)
        (folder / name).unlink()
        (folder / "moved").rename(folder / name)
    assert (folder / "kept.png").read_text() == "mine"


def test_kept_reports_are_known_as_such() -> None:
    kept = [path.parent for path in (ROOT / "results").rglob("report.html")]
    assert kept and all(map(check_report, kept))
