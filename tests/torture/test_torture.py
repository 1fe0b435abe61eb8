"""The torture in a few cases of every part, which repeat exactly; `make torture` runs as many as there is time for."""

import gc
import os
import tempfile
from collections.abc import Iterator

import pytest

from tests.torture.__main__ import again, surroundings
from tests.torture.cases import run_case
from tests.torture.goods import Goods
from tests.torture.growth import grow
from tests.torture.parts import PARTS, Part

PENDING: dict[str, str] = {}
"""Parts that cannot pass before the kinds of faults that they find are mended, and which these are."""
SEED = 0
CASES: dict[str, tuple[int, ...]] = {
    "kills": (11,),
    "disks": (7, 37),
    "flips": (0, 2, 5, 6, 19, 21, 24, 25),
    "words": tuple(range(40)),
    "hostile": (1, 3, 4, 5, 18),
    "poison": (4, 7),
    "growth": (0,),
}
"""Numbers of the cases of each part: quick ones, that share what they begin with."""
FEW: dict[str, tuple[int, ...]] = {"flips": (2, 21), "hostile": (1, 4), "words": CASES["words"][:6]}
"""Those of every test run; the others are in `make test-all`."""
SHORTER = {"growth": Part("growth", 0.0, lambda case: grow(case, updates=150))}


@pytest.fixture
def goods(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Goods]:
    """What cases begin with, in a room that the processes of this test run share."""
    base = tmp_path_factory.getbasetemp()
    room = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "torture"
    for name, value in surroundings(room).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", os.environ["TMPDIR"])
    yield Goods(room)
    gc.unfreeze()


def pending(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xfail(strict=True, reason=PENDING[name])] if name in PENDING else []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        *(pytest.param(*few, marks=pending(few[0]), id=f"few {few[0]}") for few in FEW.items()),
        *(
            pytest.param(name, numbers, marks=[pytest.mark.every_agent, *pending(name)], id=name)
            for name, numbers in CASES.items()
            if FEW.get(name) != numbers
        ),
    ],
)
def test_a_few_cases_of(name: str, numbers: tuple[int, ...], goods: Goods) -> None:
    part = SHORTER.get(name, PARTS[name])
    found = []
    for number in numbers:
        case = run_case(part, goods, SEED, number)
        assert case.tried or case.failures
        lines = [f"{failure.kind}: {failure.text}" for failure in case.failures]
        found += [*lines, again(name, SEED, number)] if lines else []
    assert found == [], "\n".join(found)


def test_every_part_has_its_cases() -> None:
    assert CASES.keys() == PARTS.keys() and PENDING.keys() <= PARTS.keys()
    assert abs(sum(part.share for part in PARTS.values()) - 1) < 1e-9
