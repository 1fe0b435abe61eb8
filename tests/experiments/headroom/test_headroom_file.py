"""The file of a measurement: whole after every repeat, continued, and refused where it is of another one."""

from pathlib import Path

import pytest

from astra_gym.experiments.headroom.headroom_file import HeadroomFile
from astra_gym.experiments.headroom.world import HeadroomWorld
from astra_gym.ssl_core.safety.sealing import read_json


def repeat(gain: float) -> dict:
    batch = {"clean": 1.0, "uniform": 2.0, "rule": 2.0 - gain, "oracle": 2.0 + gain, "spread": 1.0, "histogram": [0, 8]}
    return {"batches": [batch, batch]}


def test_finished_repeats_are_there_again_with_their_verdicts(tmp_path: Path, tiny_world: HeadroomWorld) -> None:
    path, what = tmp_path / "h.json", {"views": 3, "settings": {"lr": 0.1}}
    file = HeadroomFile(path, tiny_world, what)
    for seed, gain in enumerate((0.5, 0.6, 0.55)):
        file.add("attack", seed, repeat(gain), 1.25)
    document = read_json(path)
    [oracle, rule] = document["kinds"]["attack"]["verdicts"]
    assert (oracle["verdict"], oracle["mean"], oracle["n"]) == ("headroom", pytest.approx(0.55), 3)
    assert rule["verdict"] == "none" and document["seconds"] == {"attack": 3.8}
    again = HeadroomFile(path, tiny_world, what)
    assert again.repeats == file.repeats and again.verdicts("attack") == file.verdicts("attack")
    before = path.read_bytes()
    again.write()
    assert path.read_bytes() == before


def test_the_file_of_another_measurement_is_not_continued(tmp_path: Path, tiny_world: HeadroomWorld) -> None:
    path, what = tmp_path / "h.json", {"views": 3, "settings": {"lr": 0.1}}
    HeadroomFile(path, tiny_world, what).add("attack", 0, repeat(0.5), 1.0)
    with pytest.raises(ValueError, match=r"it is another measurement: views is 3 there, not 4; give another --output"):
        HeadroomFile(path, tiny_world, what | {"views": 4})
    with pytest.raises(ValueError, match=r"it is another measurement: lr is 0.2 and 0.1 there"):
        HeadroomFile(path, tiny_world, what | {"settings": {"lr": 0.2}})
    path.write_text(path.read_text().replace('"clean": 1.0', '"clean": 1.5'))
    with pytest.raises(ValueError, match="damaged"):
        HeadroomFile(path, tiny_world, what)
