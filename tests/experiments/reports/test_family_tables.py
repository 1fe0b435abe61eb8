"""Tables of families of tests over kept comparisons."""

from pathlib import Path

from astra_gym.experiments.comparison.cell_results import ComparisonResult, write_comparison
from astra_gym.experiments.reports.family_tables import ends_table, family_table, instances_table
from astra_gym.ssl_core.utils.files import write_json


def test_runs_are_grouped_by_the_attack_at_their_end(make_cell, tmp_path: Path) -> None:
    claims = [{"arm": "reinforce", "against": "fixed", "margin": 0.0}]
    family = {"comparisons": ["few-one", "few-two"], "seeds": 6, "claims": claims}
    write_json(tmp_path / "families" / "few.json", family)
    judge = {"settings": {"judge_epsilon": 8 / 255, "judge_score": "robust"}}
    cells = [make_cell("fixed", seed, {0.0: 90.0, 8 / 255: 50.0}, **judge) for seed in range(3)]
    for seed, (accuracy, steps) in enumerate(((60.0, 1.0), (40.0, 8.0), (62.0, 1.0))):
        curve = {"step": [10, 20], "epsilon": [30.0, 24.0], "steps": [4.0, steps], "step_size": [9.0, 2.0]}
        cells.append(make_cell("reinforce", seed, {0.0: 90.0, 8 / 255: accuracy}, curve=curve, **judge))
    write_comparison(tmp_path / "comparisons" / "few-one" / "comparison.json", ComparisonResult("a", "", cells, {}))
    [table] = ends_table(tmp_path, "few")
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["one", "24/255, 1 x 2/255", "2", "61.0", "+11.0"],
        ["one", "24/255, 8 x 2/255", "1", "40.0", "-10.0"],
    ]
    [table] = family_table(tmp_path, "few")
    assert [entry.text for entry in table.rows[0]][::6] == [
        "reinforce - fixed",
        "3 of 6 seeds, 1 of 2 instances so far",
    ]
    [table] = instances_table(tmp_path, "few")
    assert table.columns == ["instance", "reinforce - fixed"]
    assert [[entry.text for entry in row] for row in table.rows] == [["one", "+4.0 (-26.2 to +34.2)"]]
