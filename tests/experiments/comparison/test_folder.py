from dataclasses import replace

import pytest
import yaml

from astra_gym.experiments.comparison.arms import base_arms
from astra_gym.experiments.comparison.cell_results import (
    PLACES,
    ComparisonResult,
    plain,
    read_comparison,
    write_comparison,
)
from astra_gym.experiments.comparison.folder import ComparisonFolder, ComparisonPlan
from astra_gym.experiments.config.settings import Settings
from astra_gym.ssl_core.utils.provenance import ROOT


def test_a_plan_comes_back_and_an_older_one_has_no_suffixes(tmp_path) -> None:
    arms = base_arms(["reinforce"], ["acl", "astra"], ["digits"], [], [], 1, 1)
    plan, folder = ComparisonPlan("a", "b", 1, 1, ("reinforce",), tuple(arms)), ComparisonFolder(tmp_path)
    folder.write_plan(plan)
    assert folder.read_plan() == plan
    assert [arm.named(seed) for arm, seed in plan.cells] == ["reinforce-acl-seed0", "reinforce-astra-seed0"]
    document = yaml.safe_load(folder.config.read_text())
    for arm in document["arms"]:
        arm["label"] += arm.pop("suffix")
    folder.config.write_text(yaml.safe_dump(document))
    assert [arm.named(seed) for arm, seed in folder.read_plan().cells] == [arm.named(0) for arm in arms]


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
        cell.settings == {**cell.settings, **old.settings, "keep_every": 0}
        for cell, old in zip(found.values(), cells, strict=True)
    )
    folder.write_plan(plan)
    lines = folder.config.read_text().splitlines(keepends=True)
    folder.config.write_text("".join(line for line in lines if "keep_every" not in line))
    assert folder.read_plan() == plan
    other = base_arms(["fixed"], ["astra"], ["digits-grid"], [], [*flags, "--keep_every", "2"], 5, 5)
    with pytest.raises(ValueError, match="fixed-seed0 was made with other settings: keep_every is 0 and 2 in the plan"):
        ComparisonFolder(tmp_path).open(replace(plan, arms=tuple(other)))
