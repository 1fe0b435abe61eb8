"""Records that say more of their fields than a type, and records composed of others."""

from dataclasses import MISSING, dataclass, field
from typing import Annotated

import pytest

from astra_gym.ssl_core.settings.records import SWITCH, Composed, Notes, check_choices, composed, leaves, parts


@dataclass(frozen=True, kw_only=True)
class Colors:
    color: Annotated[str, Notes("look", choices={"red": 1, "blue": 2}, what="color", custom=True)] = "red"
    others: Annotated[tuple[str, ...] | None, Notes(nargs="+", choices=("red", "blue"), what="color")] = None
    own: Annotated[tuple[str, ...], Notes(nargs="+", choices=("red", "blue"), what="color", custom=True)] = ()

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True, kw_only=True)
class Whole:
    colors: Colors
    size: int
    loud: Annotated[bool, SWITCH] = False


@dataclass(frozen=True, kw_only=True)
class Sizes:
    width: int | None = None
    height: int = 2


@dataclass(frozen=True, kw_only=True)
class Picture(Composed):
    colors: Colors = field(default_factory=Colors)
    sizes: Sizes = field(default_factory=Sizes)

    def __post_init__(self) -> None:
        self._resolve(width=self.sizes.height, height=7)


def test_the_fields_of_all_parts_are_leaves_in_their_order() -> None:
    found = list(leaves(Whole))
    assert [leaf.name for leaf in found] == ["color", "others", "own", "size", "loud"]
    assert [leaf.section for leaf in found] == ["look", "colors", "colors", "", ""]
    assert [leaf.owner for leaf in found] == [Colors, Colors, Colors, Whole, Whole]
    assert [leaf.hint for leaf in found] == [str, tuple[str, ...] | None, tuple[str, ...], int, bool]
    assert [leaf.default for leaf in found] == ["red", None, (), MISSING, False]
    assert [leaf.notes.switch for leaf in found] == [False, False, False, False, True]
    assert list(parts(Whole)) == [("", Whole), ("colors", Colors)]


def test_a_record_is_composed_of_flat_values() -> None:
    assert composed(Whole, {"size": 3, "color": "blue", "stray": 1}) == Whole(colors=Colors(color="blue"), size=3)


def test_a_composed_record_is_made_of_flat_values_and_read_as_such() -> None:
    picture = Picture.of(color="blue", height=3)
    assert picture == Picture(colors=Colors(color="blue"), sizes=Sizes(width=3, height=3))
    assert picture.flat() == {"color": "blue", "others": None, "own": (), "width": 3, "height": 3}
    # what is resolved stays so
    assert picture.replace(height=5).sizes == Sizes(width=3, height=5)
    with pytest.raises(ValueError, match=r"unknown setting 'colour': .*did you mean 'color'"):
        Picture.of(colour="blue")
    with pytest.raises(ValueError, match="unknown color 'bleu'"):
        picture.replace(color="bleu")


def test_a_name_is_one_of_its_choices_or_a_dotted_path_where_that_will_do() -> None:
    mine = "my_module:Mine"
    assert Colors(color=mine, others=("red", "blue"), own=("red", mine)).own == ("red", mine)
    for bad in ({"color": "bleu"}, {"others": ("red", "bleu")}, {"own": (mine, "bleu")}):
        with pytest.raises(ValueError, match="unknown color 'bleu': choose from red, blue; did you mean 'blue'"):
            Colors(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown color 'a:b'"):
        Colors(others=("a:b",))
