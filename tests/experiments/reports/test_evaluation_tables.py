from dataclasses import replace

import pytest

from astra_gym.experiments.reports.evaluation_tables import remarks, tables
from astra_gym.ssl_core.evaluation.results import Origin, Row

SLF = Origin(protocol="slf", route="pgd", seed=0, checkpoint="last", commit="abc")
ALF = replace(SLF, protocol="alf", label_fraction=0.1, deviations=("epochs 5, not 25",))


def attacked(origin: Origin) -> list[Row]:
    rows = [origin.accuracy("SA", 180, 200)]
    for attack, epsilon, correct in (("pgd20", 8 / 255, 90), ("pgd20", 4 / 255, 120), ("apgd-ce", 8 / 255, 88)):
        rows.append(origin.accuracy("RA", correct, 200, attack=attack, epsilon=epsilon))
    rows.append(origin.accuracy("RA", 80, 200, attack="autoattack", epsilon=8 / 255))
    return [*rows, origin.accuracy("RA", 80, 200, attack="worst", epsilon=8 / 255)]


ROWS = [
    *attacked(SLF),
    SLF.accuracy("RA", 60, 200, attack="pgd20", epsilon=8 / 255, restarts=5),
    SLF.accuracy("CA", 150, 200, condition="fog/3"),
    SLF.figure("CA", 70.0, 200, condition="weather", interval=(65.0, 75.0), interval_method="bootstrap"),
    SLF.figure("PA", 60.0, 200, condition="padded", interval=(55.0, 65.0), interval_method="bootstrap"),
    *attacked(ALF),
    replace(SLF, protocol="features").figure("effective_rank", 12.5, 200, condition="features"),
]


def test_accuracies_stand_a_line_a_classifier_and_a_column_an_attack() -> None:
    table = tables(ROWS)[0]
    assert list(table.columns) == [
        "protocol",
        "n",
        "SA",
        "PGD-20 4/255",
        "PGD-20 8/255",
        "PGD-20 8/255, 5 starts",
        "AA 8/255",
        "worst 8/255",
        "standard",
    ]
    first, second = table.rows
    assert [*map(tuple, first[:4])] == [
        ("SLF", "", False),
        ("200", "", False),
        ("90.0", "85.1 to 93.4", False),
        ("60.0", "53.1 to 66.5", False),
    ]
    assert first[5].text == "30.0" and first[5].small == "24.1 to 36.7" and first[-1].text == "yes"
    assert second[0].text == "ALF, 10 % labels" and second[5].text == "-" and second[-1].text == "no"


def test_other_figures_have_tables_of_their_own() -> None:
    _, stages, shifts, health = tables(ROWS)
    assert [entry.text for entry in stages.rows[0]] == ["SLF, 8/255", "44.0", "-", "-", "-"]
    assert list(shifts.columns) == ["protocol", "SA", "weather", "padded"]
    assert [entry[:2] for entry in shifts.rows[0]][2:] == [("70.0", "65.0 to 75.0"), ("60.0", "55.0 to 65.0")]
    assert len(shifts.rows) == 1
    assert [[entry.text for entry in row] for row in health.rows] == [["effective rank", "features", "12.500", "-"]]
    assert len(tables(attacked(SLF)[:1])) == 1


def test_training_images_stand_beside_test_images_with_the_gap_of_newcombes_example() -> None:
    """56 of 70 and 48 of 80 (Newcombe 1998, table II, method 10): 0.2, from 0.0524 to 0.3339."""
    rows = [SLF.accuracy("SA", 70, 80), SLF.accuracy("RA", 48, 80, attack="pgd20", epsilon=8 / 255)]
    rows += [SLF.accuracy("train_RA", 56, 70, attack="pgd20", epsilon=8 / 255)]
    accuracy, gap = tables(rows)
    assert [entry.text for entry in gap.rows[0]] == ["SLF", "PGD-20 8/255", "70", "80.0", "60.0", "20.0"]
    assert gap.rows[0][-1].small == "5.2 to 33.4"
    assert [entry.text for entry in accuracy.rows[0]] == ["SLF", "80", "87.5", "60.0", "yes"]


def test_several_checkpoints_are_told_apart() -> None:
    rows = [replace(row, checkpoint=name) for name in ("epoch-5", "epoch-10") for row in attacked(SLF)]
    assert [row[0].text for row in tables(rows)[0].rows] == ["SLF, epoch-5", "SLF, epoch-10"]


def test_remarks_say_why_figures_are_not_standard_and_what_was_noticed() -> None:
    quick = SLF.accuracy("RA", 85, 200, attack="autoattack-quick", epsilon=4 / 255, deviations=("two attacks only",))
    assert remarks([*ROWS, quick], {"SLF": ["PGD is fine"]}) == [
        ("not standard (SLF)", "two attacks only"),
        ("not standard (ALF, 10 % labels)", "epochs 5, not 25"),
        ("SLF", "PGD is fine"),
    ]


def test_a_classifier_without_a_clean_accuracy_was_edited() -> None:
    shift = SLF.figure("CA", 70.0, 200, condition="weather", interval=(65.0, 75.0), interval_method="bootstrap")
    for rows in (attacked(SLF)[1:], [*attacked(ALF), shift]):
        with pytest.raises(ValueError, match=r"has no clean accuracy of 'SLF'.*: it was edited, repeat it"):
            tables(rows)
