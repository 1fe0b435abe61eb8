"""The parts of the torture by name."""

from collections.abc import Mapping

from tests.torture.cases import Part
from tests.torture.disks import fill
from tests.torture.flips import flip
from tests.torture.growth import grow
from tests.torture.hostile import attack
from tests.torture.kills import kill
from tests.torture.poison import poison
from tests.torture.words import speak_among_things

PARTS: Mapping[str, Part] = {
    part.name: part
    for part in (
        Part("kills", 0.42, kill),
        Part("disks", 0.15, fill),
        Part("flips", 0.10, flip),
        Part("hostile", 0.11, attack, patience=300.0),
        Part("poison", 0.05, poison),
        Part("words", 0.12, speak_among_things, patience=300.0),
        Part("growth", 0.05, grow, patience=900.0),
    )
}
