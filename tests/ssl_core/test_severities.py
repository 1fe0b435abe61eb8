import pytest

from ssl_core.corruptions import FAMILIES
from ssl_core.severities import SEVERITIES, TABLES, nearest_table


def test_every_set_has_five_severities_of_every_corruption() -> None:
    for table in TABLES:
        assert list(table.constants) == [name for names in FAMILIES.values() for name in names]
        assert {len(values) for values in table.constants.values()} == {len(SEVERITIES)}


NEAREST = [(8, "CIFAR-10-C"), (45, "CIFAR-10-C"), (46, "Tiny-ImageNet-C"), (96, "Tiny-ImageNet-C"), (128, "ImageNet-C")]


@pytest.mark.parametrize("side, name", NEAREST)
def test_the_severities_are_of_the_set_of_the_nearest_size(side: int, name: str) -> None:
    assert nearest_table(side, side + 5).name == name
