import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from astra_gym.experiments.comparison.arms import base_arms
from astra_gym.experiments.comparison.cell_results import Cell, ComparisonResult
from astra_gym.experiments.reports.comparison_tables import (
    accuracy_table,
    best_arm,
    compute_table,
    improvement_table,
    parts,
    percent_text,
    primary_table,
    ranked,
)
from astra_gym.experiments.reports.document import Table
from astra_gym.experiments.reports.rendering import block_in_markdown
from astra_gym.experiments.reports.settings_tables import reward_table, settings_table
from astra_gym.experiments.stats import estimate, paired
from tests.helpers.comparison_tables import Make, column, compared

WEAK, STRONG = 8 / 255, 16 / 255
NOISE = (0.0, 1.0, -1.0, 2.0, -2.0, 1.5, -1.5, 0.5, -0.5, 0.0)


def grid(make_cell: Make, means: Mapping[str, float], seeds: int, lucky: str = "", **fields: Any) -> list[Cell]:
    """Arms with these means of RA at 16/255, all with the same ups and downs over seeds, but half a point more for the
    lucky one in seed 0; equal SA and weak RA."""
    return [
        make_cell(
            arm, seed, {0.0: 95, WEAK: 85, STRONG: mean + NOISE[seed] + 0.5 * (arm == lucky and not seed)}, **fields
        )
        for arm, mean in means.items()
        for seed in range(seeds)
    ]


def table_of(found: Table | None) -> Table:
    assert found is not None
    assert all(len(row) == len(found.columns) for row in found.rows)
    return found


def test_the_best_is_marked_where_its_interval_is_above_every_other_arm(make_cell: Make) -> None:
    # nearly the same noise everywhere: every difference is sure, though the intervals of the means overlap
    means = {"fixed": 55.0, "reinforce": 57.0, "random": 56.0}
    [table] = accuracy_table(compared(grid(make_cell, means, 4, "reinforce")))
    marked = [(row[0].text, table.columns[i]) for row in table.rows for i, entry in enumerate(row) if entry.best]
    assert marked == [("reinforce", "RA at 16/255")]
    # an equal arm, and nobody is above every other
    cells = grid(make_cell, means | {"fixed-max": 57.0}, 4, "reinforce")
    assert best_arm(compared(cells), STRONG) is None


def test_the_best_is_not_marked_by_its_mean_alone(make_cell: Make) -> None:
    def cells(*values: float) -> list[Cell]:
        rival = [make_cell("random", seed, {STRONG: 50}) for seed in range(4)]
        return rival + [make_cell("reinforce", seed, {STRONG: value}) for seed, value in enumerate(values)]

    assert best_arm(compared(cells(52, 53, 54, 53)), STRONG) == "reinforce"
    # Student's t of 2, -1, 9, 6: 4 +- 3.18 * 2.2
    assert best_arm(compared(cells(52, 49, 59, 56)), STRONG) is None
    # two seeds have no interval, and a lone arm nobody to be above
    assert best_arm(compared(cells(60, 60)), STRONG) is None
    assert best_arm(compared(cells(60, 60.5, 60)), STRONG) == "reinforce"
    # nor do equal differences have one
    assert best_arm(compared(cells(50.5, 50.5, 50.5)), STRONG) is None
    assert best_arm(compared(cells()), STRONG) is None


def test_accuracies_have_intervals_from_three_seeds_and_the_trimmed_mean_from_four(make_cell: Make) -> None:
    by_seeds = {}
    for seeds in (2, 3, 4, 10):
        [table] = accuracy_table(compared(grid(make_cell, {"reinforce": 55.0}, seeds)))
        by_seeds[seeds] = column(table_of(table), "RA at 16/255")["reinforce"]
    assert by_seeds[2] == "55.5"
    # Student's t of 55, 56, 54: 55 +- 4.3027 / sqrt(3)
    assert by_seeds[3] == "55.0 (52.5 to 57.5)"
    # of 55, 56, 54, 57: 55.5 +- 3.1824 * sqrt(5/3) / 2
    assert by_seeds[4] == "55.5 (53.4 to 57.6)\nIQM 55.5"
    found = estimate([55 + noise for noise in NOISE])
    assert by_seeds[10] == f"55.0 ({found.low:.1f} to {found.high:.1f})\nIQM 55.0"


def test_accuracy_rows_have_costs_and_are_sorted_by_the_deciding_epsilon(make_cell: Make) -> None:
    cells = grid(make_cell, {"fixed": 40.0, "random": 60.0}, 3, attack_steps=220 * 128 * 5)
    cells += [make_cell("none", 0, {0.0: 99, WEAK: 85, STRONG: 50}, views=0, attack_steps=0, seconds=0.0)]
    cells += [make_cell("bandit", 0, {0.0: 99, WEAK: 85, STRONG: 55}, seconds=90.0, agent_seconds=4.5)]
    [table] = accuracy_table(compared(cells))
    assert [row[0].text for row in table.rows] == ["random", "bandit", "none", "fixed"]
    assert "RA at 16/255" in table.note
    assert column(table, "seeds") == {"random": "3", "bandit": "1", "none": "1", "fixed": "3"}
    assert column(table, "attack steps") == {"random": "5.0", "bandit": "10.0", "none": "-", "fixed": "5.0"}
    assert column(table, "training, min") == {"random": "2.0", "bandit": "1.5", "none": "-", "fixed": "2.0"}
    assert column(table, "of it agent, %") == {"random": "2.5", "bandit": "5.0", "none": "-", "fixed": "2.5"}


def test_whether_compute_was_equal_is_said(make_cell: Make) -> None:
    cells = [make_cell(arm, 0, views=100, updates=100, attack_steps=steps) for arm, steps in (("a", 0), ("b", 20_000))]
    [table] = accuracy_table(compared(cells))
    # 100 * 3.3, and 2 steps a view and update more
    assert "Compute was not equal: from 330 (a) to 530 passes (b) a run" in table.note
    [table] = accuracy_table(compared([cells[0], make_cell("b", 0, views=100, updates=105, attack_steps=0)]))
    assert "Compute was equal within a tenth: from 330 (a) to 346 passes (b) a run" in table.note
    lost = make_cell("b", 0, views=0, updates=100, attack_steps=0, damage=("lost",))
    assert "Compute" not in accuracy_table(compared([cells[0], lost]))[0].note


def test_what_was_not_measured_is_a_dash(make_cell: Make) -> None:
    [table] = accuracy_table(compared([make_cell("a", 0, {0.0: 90}), make_cell("b", 0, {0.0: 95, WEAK: 50})]))
    assert column(table, "RA at 8/255") == {"b": "50.0", "a": "-"}
    assert [row[0].text for row in table.rows] == ["b", "a"]
    assert "no epsilon decides" in table.note


def test_methods_and_presets_are_not_mixed(make_cell: Make) -> None:
    cells = grid(make_cell, {"reinforce": 60.0, "random": 50.0, "bandit": 40}, 3)
    cells += grid(make_cell, {"reinforce": 40.0, "random": 50.0, "bandit": 45}, 3, method="acl")
    cells += grid(make_cell, {"random": 50.0}, 3, preset="cifar10")
    tables = accuracy_table(compared(cells))
    assert [table.title[10:] for table in tables] == ["astra, digits-grid", "acl, digits-grid", "astra, cifar10"]
    assert [table.rows[0][0].text for table in tables] == ["reinforce", "random", "random"]
    assert [len(part.cells) for part in parts(compared(cells))] == [9, 9, 3]
    primary = table_of(primary_table(compared(cells)))
    assert list(primary.columns)[:2] == ["comparison", "method, preset"]
    decided = [[entry.text for entry in row[1:4]] for row in primary.rows if row[2].text != "SA"]
    assert decided == [
        ["astra, digits-grid", "RA at 16/255", "+10.0"],
        ["acl, digits-grid", "RA at 16/255", "-10.0"],
    ]
    for table in (improvement_table, reward_table, compute_table):
        assert list(table_of(table(compared(cells))).columns)[1] == "method, preset"


PRIMARY_ARMS = {"reinforce": 60.0, "random": 50.0, "fixed": 62.0, "fixed-max": 60.0}


def test_the_primary_table_tests_three_comparisons_at_the_deciding_epsilon(make_cell: Make) -> None:
    cells = grid(make_cell, PRIMARY_ARMS, 8)
    table = table_of(primary_table(compared(cells)))
    names = [row[0].text for row in table.rows]
    assert names == 2 * ["reinforce - random", "reinforce - fixed", "reinforce - fixed-max"]
    assert [row[1].text for row in table.rows] == 3 * ["RA at 16/255"] + 3 * ["SA"]
    # exactly 2/256 twice and 1; Holm: 3 * 2/256, the same (the second may not be smaller), 1. Of the 64 pairs of seeds
    # 9 differ in noise by more than the 2 points that fixed is above, and 4 by as much
    first, second, third, *clean = ([entry.text for entry in row[2:]] for row in table.rows)
    assert first == ["+10.0", "0.0078", "0.023", "0.0078", "8", "160 : 0", "1.00", "better"]
    # equal in every seed, but not on other images
    found = paired(*(compared(cells).of(arm) for arm in ("reinforce", "random")), STRONG)
    assert table.rows[0][2][1] == f"({found.others_low:+.1f} to {found.others_high:+.1f})"
    assert second == ["-2.0", "0.0078", "0.023", "0.0078", "8", "0 : 32", "0.17", "worse"]
    assert third == ["+0.0", "1.0", "1.0", "0.0078", "8", "0 : 0", "0.50", "not shown"]
    for row in clean:
        assert row[2] == "-" and row[-1] == "secondary, no verdict"


def made_grid(
    make_cell: Make, methods: Sequence[str], presets: Sequence[str], missing: Sequence[str]
) -> ComparisonResult:
    """A grid of eight seeds as the command plans it, in which `missing` cells are not finished."""
    arms = base_arms(list(PRIMARY_ARMS), methods, presets, [], [], 8, 8)
    cells, unfinished = [], {}
    for arm in arms:
        for seed in range(8):
            if arm.named(seed) in missing:
                unfinished[arm.named(seed)] = "not run yet"
                continue
            place = {name: arm.settings[name] for name in ("method", "preset")}
            cells += grid(make_cell, {arm.label: PRIMARY_ARMS[arm.agent]}, 8, **place)[seed : seed + 1]
    return ComparisonResult("made", "none", cells, unfinished)


def test_every_method_and_preset_of_a_planned_grid_has_its_primary_comparisons(make_cell: Make) -> None:
    comparison = made_grid(make_cell, ["acl", "astra"], ["digits", "digits-grid"], [])
    table = table_of(primary_table(comparison))
    rows = [[entry.text for entry in (*row[:3], row[-1])] for row in table.rows if row[2].text != "SA"]
    verdicts = {"reinforce - random": "better", "reinforce - fixed": "worse", "reinforce - fixed-max": "not shown"}
    assert rows == [
        [pair, f"{method}, {preset}", "RA at 16/255", verdict]
        for preset in ("digits", "digits-grid")
        for method in ("acl", "astra")
        for pair, verdict in verdicts.items()
    ]
    assert "Each method and preset is a family of 3 of its own." in table.note
    assert "family of" not in table_of(primary_table(made_grid(make_cell, ["astra"], ["digits"], []))).note
    settings = settings_table(comparison)
    assert list(settings.columns) == ["arm", "method, preset", "agent"]
    assert [entry.text for entry in settings.rows[5]] == ["random", "astra, digits", "random"]


def test_there_is_no_verdict_before_all_planned_runs_of_the_primary_arms_are_finished(make_cell: Make) -> None:
    def verdicts(methods: Sequence[str], missing: Sequence[str]) -> list[list[str]]:
        table = table_of(primary_table(made_grid(make_cell, methods, ["digits"], missing)))
        found = [row[-1].text for row in table.rows if "secondary" not in row[-1].text]
        return [found[start : start + 3] for start in range(0, len(found), 3)]

    done = ["better", "worse", "not shown"]
    assert verdicts(["astra"], []) == [done]
    # the family of three is decided together
    waiting = ["8 of 8 seeds so far", "7 of 8 seeds so far", "8 of 8 seeds so far"]
    assert verdicts(["astra"], ["fixed-seed7"]) == [waiting]
    assert verdicts(["astra"], ["reinforce-seed0", "random-seed1"])[0][0] == "6 of 8 seeds so far"
    assert verdicts(["acl", "astra"], ["fixed-acl-seed7"]) == [waiting, done]
    # other arms keep nobody waiting
    comparison = made_grid(make_cell, ["astra"], ["digits"], [])
    others = ComparisonResult("made", "none", comparison.cells, {"ppo-seed0": "killed", "fixed-step-seed1": "killed"})
    assert [row[-1].text for row in table_of(primary_table(others)).rows[:3]] == done


@pytest.mark.parametrize(
    ("seeds", "verdict"),
    [
        (1, "cannot be decided with 1 seed, needs 7"),
        (6, "cannot be decided with 6 seeds, needs 7"),
        (7, "better"),
        (10, "better"),
    ],
)
def test_seven_seeds_are_the_fewest_that_can_decide_after_holm(make_cell: Make, seeds: int, verdict: str) -> None:
    # 3 * 2/2^6 = 0.094, 3 * 2/2^7 = 0.047
    table = table_of(primary_table(compared(grid(make_cell, PRIMARY_ARMS, seeds))))
    assert column(Table("", "", table.columns, table.rows[:3]), "verdict")["reinforce - random"] == verdict


def test_the_family_keeps_its_size_when_an_arm_is_missing(make_cell: Make) -> None:
    table = table_of(primary_table(compared(grid(make_cell, {"reinforce": 60.0, "fixed": 50.0}, 6))))
    assert [row[0].text for row in table.rows] == 2 * ["reinforce - fixed"]
    assert table.rows[0][4].text == "0.094"
    assert primary_table(compared(grid(make_cell, {"reinforce": 60.0, "ppo": 50.0}, 6))) is None


def test_nothing_is_tested_where_no_epsilon_decides(make_cell: Make) -> None:
    cells = [make_cell(arm, seed, {0.0: 95, WEAK: 90}) for arm in ("reinforce", "random") for seed in range(8)]
    table = table_of(primary_table(compared(cells)))
    assert [row[1].text for row in table.rows] == ["SA"]
    assert improvement_table(compared(cells)) is None


def test_all_other_arms_are_compared_by_intervals_only(make_cell: Make) -> None:
    cells = grid(make_cell, PRIMARY_ARMS | {"ppo": 63.0, "bandit": 45.0}, 4)
    cells = [cell for cell in cells if (cell.arm, cell.seed) != ("bandit", 3)]
    table = table_of(improvement_table(compared(cells)))
    assert [row[0].text for row in table.rows] == ["ppo", "fixed", "fixed-max", "random", "bandit"]
    assert column(table, "minus random")["ppo"] == "+13.0\nP 1.00"
    assert column(table, "minus fixed-max")["fixed-max"] == "-"
    assert column(table, "shared seeds")["bandit"] == "3"
    assert not any(name == "p" or name.startswith("p ") for name in table.columns)
    assert improvement_table(compared(grid(make_cell, {"ppo": 55.0, "bandit": 50.0}, 4))) is None


def test_compute_and_the_pareto_front(make_cell: Make) -> None:
    cells = [make_cell("fixed", seed, {STRONG: 50 + seed}, attack_steps=140_800) for seed in range(3)]
    cells += [make_cell("random", seed, {STRONG: 45 + seed}, attack_steps=239_000) for seed in range(3)]
    cells += [make_cell("fixed-max", seed, {STRONG: 60 + seed}, attack_steps=1_600_000) for seed in range(3)]
    table = compute_table(compared(cells))
    assert [row[0].text for row in table.rows] == ["fixed", "random", "fixed-max"]
    assert column(table, "attack gradient steps") == {"fixed": "141 k", "random": "239 k", "fixed-max": "1.60 M"}
    assert column(table, "on the Pareto front") == {"fixed": "yes", "random": "no", "fixed-max": "yes"}
    assert column(table, "RA at the deciding epsilon")["fixed"] == "51.0 (48.5 to 53.5)"
    assert "astra, digits-grid: RA at 16/255" in table.note
    assert not any(name.startswith("minus") for name in table.columns)


def test_arms_at_equal_compute_are_set_against_the_two_references(make_cell: Make) -> None:
    means = {"reinforce": (55.0, 300_000), "fixed-max": (58.0, 400_000), "reinforce@compute": (60.0, 400_000)}
    means |= {"random@compute": (50.0, 400_000)}
    cells = [
        make_cell(arm, seed, {STRONG: mean + NOISE[seed]}, attack_steps=steps, updates=440 if "@" in arm else 220)
        for arm, (mean, steps) in means.items()
        for seed in range(3)
    ]
    table = compute_table(compared(cells))
    reference, hardest = column(table, "minus reinforce"), column(table, "minus fixed-max")
    assert reference["reinforce@compute"] == "+5.0\nreinforce, 1.33 x its steps, 1.49 x its passes"
    # the reference at equal compute, where there is one
    assert reference["random@compute"] == "-10.0\nreinforce@compute, 1.00 x its steps, 1.00 x its passes"
    # twice the updates: (440 * 3.3 + 400,000 / 128) / (220 * 3.3 + 400,000 / 128)
    assert hardest["reinforce@compute"] == "+2.0\nfixed-max, 1.00 x its steps, 1.19 x its passes"
    assert reference["reinforce"] == hardest["fixed-max"] == "-"


def test_arms_at_equal_compute_compete_in_the_compute_table_only(make_cell: Make) -> None:
    means = {"reinforce": 57.0, "random": 55.0, "fixed": 54.0, "fixed-max": 56.0, "ppo": 50.0}
    alone = compared(grid(make_cell, means, 4, "reinforce"))
    longer = compared([*alone.cells, *grid(make_cell, {"random@compute": 70.0, "ppo@compute": 65.0}, 4)])
    [table], [expected] = accuracy_table(longer), accuracy_table(alone)
    assert table.rows == expected.rows and best_arm(longer, STRONG) == "reinforce"
    assert "@compute" in table.note and "@compute" not in expected.note
    assert improvement_table(longer) == improvement_table(alone)
    assert primary_table(longer) == primary_table(alone)
    assert {"random@compute", "ppo@compute"} < {row[0].text for row in compute_table(longer).rows}
    assert [row[0].text for row in reward_table(longer).rows] == [
        *("reinforce", "fixed-max", "random", "fixed", "ppo", "random@compute", "ppo@compute"),
    ]


def test_no_table_shows_an_interval_below_three_seeds_or_not_a_number(make_cell: Make) -> None:
    arms = PRIMARY_ARMS | {"reinforce@compute": 61.0, "ppo": 58.0}
    for seeds in (1, 2):
        comparison = compared(grid(make_cell, arms, seeds))
        tables = [*accuracy_table(comparison), table_of(primary_table(comparison))]
        tables += [table_of(improvement_table(comparison)), reward_table(comparison), compute_table(comparison)]
        for table in tables:
            texts = [text for row in table.rows for entry in row for text in entry[:2]]
            assert not any(re.search(r"\(.* to |nan|None", text) for text in texts)
            assert "nan" not in block_in_markdown(table)
    assert not math.isnan(estimate([1, 2, 3]).low)


def test_intervals_of_percentages_end_at_0_and_100() -> None:
    assert percent_text([99.0, 99.5, 100.0], 3) == "99.5 (98.3 to 100.0)"
    assert percent_text([0.0, 0.0, 1.0], 3) == "0.3 (0.0 to 1.8)"
    assert percent_text([50.0], 1) == "50.0" and percent_text([], 1) == "-"


def test_an_accuracy_of_fewer_runs_than_the_arm_has_says_so(make_cell: Make) -> None:
    cells = grid(make_cell, {"a": 55.0, "b": 50.0}, 4)
    cells[1] = replace(cells[1], void="no gradient", correct={0.0: cells[1].correct[0.0]})
    arm = cells[1].arm
    [accuracies], costs = accuracy_table(compared(cells)), compute_table(compared(cells))
    assert column(accuracies, "seeds")[arm] == column(costs, "seeds")[arm] == "4"
    assert "seeds" not in column(accuracies, "SA")[arm]
    for table, name in ((accuracies, "RA at 16/255"), (costs, "RA at the deciding epsilon")):
        assert {label: "3 seeds" in text for label, text in column(table, name).items()} == {"a": True, "b": False}


def test_the_plans_tests_take_the_place_of_the_three(make_cell: Make) -> None:
    cells = grid(make_cell, PRIMARY_ARMS | {"tuned": 70.0}, 8)
    comparison = ComparisonResult("made", "none", cells, {}, tests=(("tuned", "fixed-max"), ("tuned", "random")))
    table = table_of(primary_table(comparison))
    assert [row[0].text for row in table.rows[:2]] == ["tuned - fixed-max", "tuned - random"]
    assert "2 comparisons fixed beforehand" in table.note
    others = table_of(improvement_table(comparison))
    assert list(others.columns[-2:]) == ["minus fixed-max", "minus random"]
    assert "tuned" not in [row[0].text for row in others.rows]


def test_a_judge_that_is_a_mean_is_named_wherever_it_decides(make_cell: Make) -> None:
    world = {"judge_epsilon": STRONG, "judge_score": "mean"}
    cells = [
        make_cell(arm, seed, {0.0: sa + seed / 10, STRONG: ra}, settings=world, images=1000)
        for arm, sa, ra in (("reinforce", 80.0, 60.0), ("random", 99.0, 20.0), ("fixed", 99.0, 45.0))
        for seed in range(8)
    ]
    comparison = compared(cells)
    name = "mean of SA and RA at 16/255"
    assert ranked(comparison) == ["fixed", "reinforce", "random"]
    assert f"Sorted by {name}" in accuracy_table(comparison)[0].note
    assert {row[1].text for row in table_of(primary_table(comparison)).rows} == {name, "SA"}
    assert "accuracy at the deciding place" in compute_table(comparison).columns
