"""The tables of a kept measurement of headroom."""

from pathlib import Path

from astra_gym.experiments.headroom.verdicts import decide
from astra_gym.experiments.reports.headroom_tables import credit_table, numbers_table, stops_table, verdicts_table
from astra_gym.ssl_core.utils.files import write_json


def texts(table) -> list[list[str]]:
    return [[entry.text for entry in row] for row in table.rows]


def test_verdicts_credit_and_numbers_are_tables(tmp_path: Path) -> None:
    budget = {"epsilon": 48.0, "step_size": 32.0, "steps": 1, "constant": True, "preferred": 0.25, "chosen": 0.5}
    view = {
        "verdicts": [decide("per view", [0.1, 0.2, 0.3], "loss", 1.0).record, decide("short", [0.1], "loss").record],
        "numbers": {
            "judge_images": 256,
            "views": 260,
            "budgets": [budget | {"credit_a": [1e-4, 5e-5, 1.5e-4], "credit_b": [2e-4, None, None]}],
            "variance": {"budget": 0.012, "not_shared": 0.988},
            "rank_correlations": {"judges A and B": 0.5},
            "falls": {"chosen": [0.4, 0.3, 0.5]},
            "chosen_steps": 5.0,
        },
    }
    attack = {"verdicts": [], "numbers": {"losses": {"uniform": 4.5}}}
    write_json(tmp_path / "headroom" / "world.json", {"kinds": {"view": view, "attack": attack}})
    [verdicts], [credit], [numbers] = (
        make(tmp_path, "world") for make in (verdicts_table, credit_table, numbers_table)
    )
    assert texts(verdicts) == [
        ["per view", "undecided", "+0.2", "-0.048 to +0.45", "0.05", "loss", "3"],
        ["short", "undecided", "+0.1", "-", "1", "loss", "1"],
    ]
    assert texts(credit) == [["48/255 (the constant)", "1", "100 (50 to 150)", "200", "25", "50"]]
    assert "260 views, two judges of 256 images" in credit.note
    assert texts(numbers) == [
        ["variance of the credit: budget", "1.2 %"],
        ["variance of the credit: not shared", "98.8 %"],
        ["rank correlation: judges A and B", "0.50"],
        ["fall of judge B in the long test: chosen", "0.400 (0.300 to 0.500)"],
        ["mean steps of the chosen budgets", "5.00"],
        ["loss within an attack: uniform", "4.500"],
    ]


def test_what_ppo_attains_is_a_table(tmp_path: Path) -> None:
    numbers = {
        "losses": {"ppo": [4.5, 4.25, 4.75], "uniform": [4.4, None, None], "rule": [4.0, 3.5, 4.5]},
        "seconds": {"ppo": 0.2, "uniform": 0.1, "rule": 0.123},
        "clean": 2.9,
        "steps": 4.02,
        "learning_seconds": 59.6,
    }
    write_json(tmp_path / "headroom" / "world.json", {"kinds": {"stops": {"verdicts": [], "numbers": numbers}}})
    [table] = stops_table(tmp_path, "world")
    assert texts(table) == [
        ["PPO", "4.500 (4.250 to 4.750)", "200"],
        ["uniform", "4.400", "100"],
        ["gradient norm", "4.000 (3.500 to 4.500)", "123"],
    ]
    assert "after 4.02 steps a view" in table.note and "learned for 60 seconds" in table.note
