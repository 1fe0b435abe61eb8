import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from astra_gym.experiments.comparison.arms import base_arms, make_arm
from astra_gym.experiments.comparison.cell_results import (
    PLACES,
    ComparisonResult,
    plain,
    read_comparison,
    write_comparison,
)
from astra_gym.experiments.comparison.folder import ComparisonFolder, ComparisonPlan, with_searches
from astra_gym.experiments.comparison.scheduler import locked
from astra_gym.experiments.comparison.searches import SearchCost
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.config.superseded import as_written
from astra_gym.experiments.stats import PRIMARY
from astra_gym.ssl_core.utils.provenance import ROOT


def test_a_plan_comes_back_and_an_older_one_has_no_suffixes(tmp_path) -> None:
    arms = base_arms(["reinforce"], ["acl", "astra"], ["digits"], [], [], 1, 1)
    tests = (("reinforce", "1e3"), ("1e3", "fixed"))
    plan, folder = ComparisonPlan("a", "b", 1, 1, ("reinforce",), tuple(arms), tests), ComparisonFolder(tmp_path)
    folder.write_plan(plan)
    assert folder.read_plan() == plan
    assert [arm.named(seed) for arm, seed in plan.cells] == ["reinforce-acl-seed0", "reinforce-astra-seed0"]
    document = yaml.safe_load(folder.config.read_text())
    # of version 0.1: the comment that is the seal is gone
    for arm in document["arms"]:
        arm["label"] += arm.pop("suffix")
    del document["tests"]
    folder.config.write_text(yaml.safe_dump(document))
    assert [arm.named(seed) for arm, seed in folder.read_plan().cells] == [arm.named(0) for arm in arms]
    assert folder.read_plan().tests == PRIMARY
    for wrong in ("a:b", [], [["a", "a"]], [["a", "b", "c"]], [["a", "b"], ["b", "a"]], [["a", 1.5]], [None]):
        folder.config.write_text(yaml.safe_dump(document | {"tests": wrong}))
        with pytest.raises(ValueError, match=r"tests (are|of)? ?.*expected pairs of different arms"):
            folder.read_plan()


def test_a_plan_from_before_settings_that_change_nothing_were_refused_comes_back(tmp_path) -> None:
    flags = ["--preset=digits", "--method=deacl", "--teacher=x", "--agent=fixed", "--strength=0.4"]
    arm = make_arm("fixed", [*flags, "--accept_idle"], 1)
    folder = ComparisonFolder(tmp_path)
    folder.write_plan(ComparisonPlan("a", "b", 1, 1, (), (replace(arm, flags=tuple(flags)),)))
    assert folder.read_plan().arms == (arm,) and arm.settings["strength"] == 0.4


def test_a_plan_keeps_what_a_search_cost(tmp_path) -> None:
    search = SearchCost("1e3", "2e3", ["fixed"], 64, 92, 135_404.5, 2352.0)
    arms = base_arms([], ["astra"], ["digits"], ["1e3=--agent fixed"], [], 1, 1)
    plan, folder = ComparisonPlan("a", "b", 1, 1, (), tuple(arms)), ComparisonFolder(tmp_path)
    folder.write_plan(plan)
    assert "searched" not in folder.config.read_text() and folder.read_plan().searched == ()
    plan = with_searches(plan, ["1e3=x/2e3"], [search])
    folder.write_plan(plan)
    assert folder.read_plan() == plan and plan.command == "b --searched 1e3=x/2e3"
    folder.write(plan, 1, {}, {})
    assert read_comparison(folder.results).searched == (search,)
    # a second search of the arm is a further one, and the same one again replaces what was known
    again, further = replace(search, trials=93), replace(search, file="y")
    plan = with_searches(plan, ["1e3=x/2e3", "1e3=y"], [again, further])
    assert plan.searched == (again, further) and plan.command == "b --searched 1e3=x/2e3 --searched 1e3=y"
    document = yaml.safe_load(folder.config.read_text())
    [entry] = document["searched"]
    for wrong in ("x", [3], [entry, entry], [entry | {"trials": 0}], [entry | {"tune": "fixed"}], [entry | {"x": 1}]):
        folder.config.write_text(yaml.safe_dump(document | {"searched": wrong}))
        with pytest.raises(ValueError, match=r"comparison.yaml: searched"):
            folder.read_plan()


def test_finished_cells_whose_folders_are_elsewhere_count_if_their_settings_are_the_planned_ones(
    tmp_path, make_cell
) -> None:
    arms = base_arms(["reinforce", "random"], ["astra"], ["digits-grid"], [], [], 2, 2)
    plan, folder = ComparisonPlan("a", "b", 1, 2, (), tuple(arms)), ComparisonFolder(tmp_path)

    def cell(seed: int, **changes):
        settings = Settings.from_preset("digits-grid", agent="random", seed=seed, **changes)
        kept = plain(settings, PLACES)
        return replace(make_cell("random", seed), settings=kept, preset="digits-grid")

    write_comparison(folder.results, ComparisonResult("a", "b", [cell(0), cell(1)], {}))
    folder.check_new()
    assert list(folder.open(plan)) == ["random-seed0", "random-seed1"]
    assert folder.adopted == {"random-seed0", "random-seed1"}
    # a run that is there comes before what was known of it
    (folder.cells / "random-seed0").mkdir(parents=True)
    assert list(ComparisonFolder(tmp_path).open(plan)) == ["random-seed1"]
    write_comparison(folder.results, ComparisonResult("a", "b", [cell(1, epochs=9)], {}))
    with pytest.raises(ValueError, match="random-seed1 was made with other settings: epochs is 9 and 10 in the plan"):
        ComparisonFolder(tmp_path).open(plan)


def test_a_comparison_that_is_older_than_a_setting_goes_on(tmp_path) -> None:
    """The kept grid: its cells count as those of today's plan, and of no other."""
    kept = ROOT / "results" / "comparisons" / "digits-grid" / "comparison.json"
    comparison = read_comparison(kept)
    cells = [cell for cell in comparison.cells if cell.arm == "fixed"]
    for cell in cells:
        cell.settings.pop("keep_every", None)  # type: ignore[attr-defined]
    flags = ["--precision", cells[0].settings["precision"]]
    arms = base_arms(["fixed"], ["astra"], ["digits-grid"], [], flags, len(cells), len(cells))
    plan, folder = ComparisonPlan("a", "b", 1, len(cells), (), tuple(arms)), ComparisonFolder(tmp_path)
    write_comparison(folder.results, replace(comparison, cells=cells))
    found = folder.open(plan)
    assert len(found) == len(cells) >= 5
    # what is written anew tells no older cell from a new one
    assert all(
        cell.settings == {**cell.settings, **as_written(old.settings), "keep_every": 0}
        for cell, old in zip(found.values(), cells, strict=True)
    )
    folder.write_plan(plan)
    lines = folder.config.read_text().splitlines(keepends=True)[1:]
    folder.config.write_text("".join(line for line in lines if "keep_every" not in line))
    assert folder.read_plan() == plan
    other = base_arms(["fixed"], ["astra"], ["digits-grid"], [], [*flags, "--keep_every", "2"], 5, 5)
    with pytest.raises(ValueError, match="fixed-seed0 was made with other settings: keep_every is 0 and 2 in the plan"):
        ComparisonFolder(tmp_path).open(replace(plan, arms=tuple(other)))


FIXTURE = ROOT / "tests" / "fixtures" / "v0_1" / "comparison"


@pytest.fixture
def folder(tmp_path: Path) -> ComparisonFolder:
    """A copy of the kept comparison, beside a folder of somebody else's."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.txt").write_text("mine")
    return ComparisonFolder(Path(shutil.copytree(FIXTURE, tmp_path / "in" / "comparison")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("label: reinforce", "label: ../../../victim", "a cell of the arm is called '../../../victim-seed0'"),
        ("label: reinforce", "label: /tmp/victim", "a cell of the arm is called"),
        ("label: reinforce", 'label: "a\\0b"', "a cell of the arm is called"),
        ("label: reinforce", 'label: "a\\nb"', "a cell of the arm is called"),
        ("label: reinforce", f"label: {'a' * 250}", "a cell of the arm is called"),
        ("label: reinforce", "label: [a]", r"label of an arm is \['a'\]: expected a str"),
        ("label: reinforce", "label: fixed", "two arms are called fixed"),
        ("suffix: ''", "suffix: /../../victim", "a cell of the arm is called"),
        ("suffix: ''", "suffix: 3.5", None),
        ("jobs: 1", "jobs: 0", "jobs is 0: expected an integer from 1 to 10,000"),
        ("jobs: 1", "jobs: -1", "jobs is -1"),
        ("jobs: 1", "jobs: true", "jobs is True"),
        ("jobs: 1", "jobs: [1]", r"jobs is \[1\]"),
        ("\nseeds: 1", '\nseeds: "2"', "seeds is '2': expected an integer"),
        ("\nseeds: 1", "\nseeds: null", "seeds is None"),
        ("  seeds: 1", "  seeds: 1000000000000", "seeds is 1000000000000: expected an integer from 1 to 10,000"),
        ("  seeds: 1", "  seeds: 1.5", "seeds is 1.5"),
        ("equal_compute: []", "equal_compute: abc", "equal_compute of the plan is 'abc': expected a list"),
        ("equal_compute: []", "equal_compute: [[a]]", "expected labels of arms"),
        ("flags: --preset", "flags: # --preset", "flags of an arm is None: expected a str"),
        ("flags: --preset", "flags: '--preset", "not a YAML file"),
        ("arms:", "arms: []\nothers:", "it has no arms"),
        ("arms:", "arms: {a: 1}\nothers:", "arms of the plan is"),
        ("- label: fixed", "- 3\n- label: fixed", "is damaged"),
        ("schema: 1", "schema: 1\nschema: 1", "the key 'schema' stands in lines 1 and 2"),
    ],
)
def test_a_plan_that_a_stranger_wrote_leads_nowhere(
    folder: ComparisonFolder, old: str, new: str, message: str | None
) -> None:
    good = folder.config.read_text(encoding="utf-8")
    assert folder.read_plan().arms and old in good
    folder.config.write_text(good.replace(old, new, 1), encoding="utf-8")
    if message is None:
        # a number is a name like others where a name is expected
        assert folder.read_plan().arms[0].suffix == "3.5"
        return
    with pytest.raises(ValueError, match=message) as error:
        folder.read_plan()
    assert len(str(error.value).replace(str(folder.path), "")) < 300


@pytest.mark.parametrize(
    "state",
    [
        '{"wall_seconds": 1, "started": ["../../victim"], "adopted": []}',
        '{"wall_seconds": 1, "started": [], "adopted": [["a"]]}',
        '{"wall_seconds": NaN, "started": [], "adopted": []}',
        '{"wall_seconds": -1, "started": [], "adopted": []}',
        '{"wall_seconds": 1, "started": [3], "adopted": []}',
        "[" * 9999,
    ],
)
def test_a_state_that_a_stranger_wrote_is_refused(folder: ComparisonFolder, state: str) -> None:
    (folder.path / "state.json").write_text(state)
    with pytest.raises(ValueError, match=r"state\.json is (damaged|not readable JSON)"):
        folder.open(folder.read_plan())


def test_only_what_a_killed_run_leaves_is_removed(folder: ComparisonFolder, tmp_path: Path) -> None:
    cell = folder.cells / "reinforce-seed0"

    def begun() -> None:
        for part in ("checkpoints", "results", "figures"):
            (cell / part).mkdir(parents=True, exist_ok=True)
        for name in (
            "command.txt",
            "environment.json",
            "images.digests",
            ".lock",
            ".config.1.partial.yaml",
            "checkpoints/.last.1.partial.pt",
            "checkpoints/last.pt",
        ):
            (cell / name).touch()

    begun()
    folder.clear(cell.name)
    assert not cell.exists()
    for name in ("notes.txt", ".notes", "checkpoints/last.pt.old", "results/slf.json", "own/a.txt"):
        begun()
        (cell / name).parent.mkdir(exist_ok=True)
        (cell / name).write_text("mine")
        with pytest.raises(ValueError, match="is not of a run that was killed at its beginning"):
            folder.clear(cell.name)
        assert (cell / name).read_text() == "mine" and (cell / "command.txt").exists()
        shutil.rmtree(cell)
    begun()
    shutil.rmtree(cell / "results")
    (cell / "results").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="is not of a run"):
        folder.clear(cell.name)
    shutil.rmtree(cell)
    cell.symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="is a symbolic link"):
        folder.clear(cell.name)
    assert (tmp_path / "victim" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["cells", "logs", ".lock", ".workers.lock"])
def test_a_link_in_the_folder_is_not_followed(folder: ComparisonFolder, name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim" / ("thesis.txt" if "lock" in name else "")
    (folder.path / name).symlink_to(victim)
    with pytest.raises(ValueError, match=r"is a symbolic link|is no regular file"), locked(folder.path):
        folder.open(folder.read_plan())
    assert (tmp_path / "victim" / "thesis.txt").read_text() == "mine"


def test_a_comparison_of_the_wrong_types_is_refused(folder: ComparisonFolder) -> None:
    good = json.loads(folder.results.read_text(encoding="utf-8"))
    for name, value in (
        ("arm", ["a"]),
        ("method", 3),
        ("seed", "0"),
        ("curve", {"step": "x"}),
        ("held_out", {"a": None}),
    ):
        document = {**good, "cells": [good["cells"][0] | {name: value}]}
        folder.results.write_text(json.dumps(document))
        with pytest.raises(ValueError, match=f"cell 0: {name} is "):
            read_comparison(folder.results)
    for name, value in (("command", None), ("name", 3), ("unfinished", ["a"]), ("jobs", "1")):
        folder.results.write_text(json.dumps(good | {name: value}))
        with pytest.raises(ValueError, match=rf"comparison\.json: {name} is "):
            read_comparison(folder.results)
