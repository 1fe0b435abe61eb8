import hashlib
import json
from dataclasses import replace

import pytest

from astra_gym.ssl_core.evaluation.corruptions import FAMILIES
from astra_gym.ssl_core.evaluation.severities import SEVERITIES, TABLES, SeverityTable, nearest_table


def test_every_set_has_five_severities_of_every_corruption() -> None:
    for table in TABLES:
        assert list(table.constants) == [name for names in FAMILIES.values() for name in names]
        assert {len(values) for values in table.constants.values()} == {len(SEVERITIES)}


NEAREST = [(8, "CIFAR-10-C"), (45, "CIFAR-10-C"), (46, "Tiny-ImageNet-C"), (96, "Tiny-ImageNet-C"), (128, "ImageNet-C")]


@pytest.mark.parametrize("side, name", NEAREST)
def test_the_severities_are_of_the_set_of_the_nearest_size(side: int, name: str) -> None:
    assert nearest_table(side, side + 5).name == name


PUBLISHED = {
    "CIFAR-10-C": "74fd7982632aacc4cecd413d31aff651c131e2e12741b5a4bed9f6bb15d2c8a7",
    "Tiny-ImageNet-C": "28aea24afc4ab490c0bc88fc2708c54058f1c95059ff382ad36a2a95c7bae4e6",
    "ImageNet-C": "53177004f4c12bc7a98a131ff39605a58df5b7e525e56408caf680ff8d2d52e7",
}
"""SHA-256 of each table as JSON, taken when the tables agreed with Hendrycks & Dietterich's code, number by number."""


def canonical(table: SeverityTable) -> str:
    """All that a table says, with each number as a float of 12 significant digits."""

    def written(value: object) -> object:
        return [written(part) for part in value] if isinstance(value, tuple) else f"{float(value):.12g}"

    constants = {name: written(values) for name, values in sorted(table.constants.items())}
    return json.dumps([table.name, written(table.side), written(table.frost_scale), table.stored, constants])


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_published_constants_stay_as_they_are(table: SeverityTable) -> None:
    found = hashlib.sha256(canonical(table).encode()).hexdigest()
    assert found == PUBLISHED[table.name], (
        "a constant of a published set has changed, and with it every figure measured with it: a change has to be "
        "deliberate, so compare the table with the authors' code and only then put the new digest here"
    )


def test_a_change_of_any_single_constant_shows_in_the_digest() -> None:
    for table in TABLES:
        for name, values in table.constants.items():
            for place, row in enumerate(values):
                parts = row if isinstance(row, tuple) else (row,)
                for index in range(len(parts)):
                    new = tuple(part + 0.01 * (i == index) for i, part in enumerate(parts))
                    row_instead = new if isinstance(row, tuple) else new[0]
                    changed = {**table.constants, name: (*values[:place], row_instead, *values[place + 1 :])}
                    assert canonical(replace(table, constants=changed)) != canonical(table)
