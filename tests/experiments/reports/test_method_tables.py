from dataclasses import replace

import pytest

from astra_gym.experiments.comparison.cell_results import Cell, ComparisonResult
from astra_gym.experiments.reports.document import MISSING
from astra_gym.experiments.reports.method_tables import (
    LEAST_GAIN,
    coresets_table,
    groups,
    methods_table,
    strategies_table,
)

AT = 8 / 255


def comparison(cells: list[Cell]) -> ComparisonResult:
    return ComparisonResult("made up", "", cells, {})


def rows(table) -> dict[tuple[str, str], list[str]]:
    return {(row[0].text, row[1].text): [entry.text for entry in row[2:]] for row in table.rows}


@pytest.fixture
def cells(make_cell):
    def cell(method: str, arm: str, seed: int, clean: float, robust: float, views: int = 128):
        settings = {"method": method, "views": views, "seconds": 60.0 + seed}
        return make_cell(arm, seed, {0.0: clean, AT: robust, 16 / 255: robust / 2}, **settings)

    made = []
    for seed in range(3):
        made.append(cell("simclr", "none", seed, 98.0, 5.0 + seed, views=0))
        made.append(cell("acl", "fixed", seed, 97.0, 80.0 + seed))
        made.append(cell("acl", "random", seed, 97.0, 82.0 + 2 * seed))
        made.append(cell("acl", "reinforce", seed, 97.0, 86.0 + seed))
        made.append(cell("byol", "fixed", seed, 94.0, 80.0 + seed))
        made.append(cell("rocl", "fixed", seed, 97.0, 60.0 + seed))
    return made


def test_methods_are_measured_by_the_floor_and_the_goal(cells) -> None:
    found = rows(methods_table(comparison(cells)))
    assert list(found) == [
        ("simclr", MISSING),
        ("acl", "fixed"),
        ("acl", "random"),
        ("acl", "reinforce"),
        ("byol", "fixed"),
        ("rocl", "fixed"),
    ]
    seeds, clean, robust, half, gain, seconds, goal = found["acl", "fixed"]
    assert (seeds, clean, seconds, goal) == ("3", "97.0", "61", "yes")
    assert robust.startswith("81.0 (") and half.startswith("40.") and gain == "+75.0"
    noted = [methods_table(replace(comparison(cells), jobs=jobs)).note for jobs in (None, 1, 4)]
    told = ("of one run. The", "of one run, 1 run at a time. The", "of one run, 4 runs at a time. The")
    assert all(words in note for words, note in zip(told, noted, strict=True))
    # too little clean accuracy, too little gained
    assert found["byol", "fixed"][-1] == "no" and found["rocl", "fixed"][-1] == "no" and LEAST_GAIN == 60
    assert found["simclr", MISSING][-1] == MISSING and found["acl", "random"][-1] == MISSING


def test_a_method_with_a_clean_form_is_measured_by_it(cells, make_cell) -> None:
    settings = {"method": "byol-clean", "views": 0, "seconds": 9.0}
    clean = [make_cell("none", seed, {0.0: 96.0, AT: 21.0 + seed, 16 / 255: 0.0}, **settings) for seed in range(3)]
    before, after = methods_table(comparison(cells)), methods_table(comparison([*cells, *clean]))
    gains = rows(before)["byol", "fixed"][-3], rows(after)["byol", "fixed"][-3]
    assert float(gains[0].split()[0]) - float(gains[1].split()[0]) == 16
    assert rows(before)["acl", "fixed"] == rows(after)["acl", "fixed"]
    assert (before.columns[-3], after.columns[-3]) == ("minus simclr", "minus its clean form")


def test_strategies_are_compared_within_a_method_and_a_seed(cells) -> None:
    table = strategies_table(comparison(cells))
    found = {(row[1].text, row[3].text): [entry.text for entry in row[4:]] for row in table.rows}
    assert {row[0].text for row in table.rows} == {"acl"}
    assert table.columns[-2:] == ["minus fixed", "minus random"] and table.columns[2] == "attack steps"
    assert {row[2].text for row in table.rows} == {f"{cells[1].mean_steps:.1f}"}
    assert found["reinforce", "RA at 8/255"][:2] == ["3", "+6.0"]
    assert found["reinforce", "RA at 8/255"][2].startswith("+3.0 (")
    assert found["random", "RA at 8/255"][2] == MISSING
    assert found["reinforce", "SA"][1] == "+0.0"


def test_chosen_coresets_are_compared_with_random_ones_within_a_seed(make_cell) -> None:
    def cell(arm: str, seed: int, robust: float, coreset: str) -> Cell:
        made = make_cell(arm, seed, {0.0: 97.0, AT: robust}, method="acl", views=128, seconds=60.0)
        return replace(made, settings={**made.settings, "agent": "fixed", "coreset": coreset})

    made = [cell("fixed", seed, 70.0, "none") for seed in range(3)]
    made += [cell("chosen", seed, 80.0 + seed, "rcs") for seed in range(3)]
    made += [cell("drawn", seed, 78.0 + seed, "random") for seed in range(3)]
    table = coresets_table(comparison(made))
    assert table is not None
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["acl", "chosen", "drawn", "SA", "3", "+0.0"],
        ["acl", "chosen", "drawn", "RA at 8/255", "3", "+2.0"],
    ]
    assert coresets_table(comparison(made[:6])) is None
    # a control that differs in more is none
    longer = [replace(one, settings={**one.settings, "epochs": 99}) for one in made[6:]]
    assert coresets_table(comparison([*made[:6], *longer])) is None


def test_a_constant_hardest_attack_is_a_control_where_it_was_run(cells, make_cell) -> None:
    hardest = [
        make_cell(
            "fixed-max", seed, {0.0: 97.0, AT: 87.0 + seed, 16 / 255: 43.5}, method="acl", views=128, seconds=60.0
        )
        for seed in range(3)
    ]
    table = strategies_table(comparison([*cells, *hardest]))
    assert table.columns[-1] == "minus fixed-max"
    found = {(row[1].text, row[3].text): row[-1].text for row in table.rows}
    assert found["reinforce", "RA at 8/255"] == "-1.0" and found["fixed-max", "SA"] == MISSING


def test_arms_that_trained_longer_and_several_presets_are_no_part_of_it(cells, make_cell) -> None:
    longer = make_cell("fixed@compute", 0, {0.0: 97.0, AT: 80.0}, method="acl", views=128)
    assert "fixed@compute" not in [group.arm for group in groups(comparison([*cells, longer]))]
    other = make_cell("fixed", 0, {0.0: 97.0, AT: 80.0}, method="acl", preset="digits", views=128)
    with pytest.raises(ValueError, match="of one preset"):
        groups(comparison([*cells, other]))
