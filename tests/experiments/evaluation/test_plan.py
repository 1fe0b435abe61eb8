"""Official shifted images in an evaluation."""

from pathlib import Path

import numpy as np
import pytest

from astra_gym.experiments import evaluate_encoder
from astra_gym.experiments.evaluation.plan import PERSPECTIVE, EvaluationPlan, shift_key, shifted_images
from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.evaluation.corruptions import FAMILIES
from astra_gym.ssl_core.evaluation.results import Row, read_results
from astra_gym.ssl_core.models.export import save_encoder
from tests.helpers.plain_networks import ordinary

NAMES = [name for family in FAMILIES.values() for name in family]


def evaluated(tmp_path: Path, *more: str) -> list[Row]:
    words = f"{tmp_path / 'theirs.pt'} --format torchvision --dataset digits --image_size 8 --limit 100 --test_limit 20"
    words += f" --protocols ridge --attacks none --severities 1 3 --progress off --out {tmp_path / 'out'}"
    assert evaluate_encoder.main([*words.split(), *more]) == 0
    return [row for row in read_results(tmp_path / "out" / "evaluation.json") if row.metric == "CA"]


@pytest.mark.slow
def test_official_corruptions_replace_the_computed_ones(tmp_path: Path) -> None:
    """Every official image is that of the clean test set, so the accuracy is the clean one."""
    save_encoder(tmp_path / "theirs.pt", ordinary(), "normal")
    official, test = tmp_path / "digits-c", load_dataset("digits", image_size=8, test_limit=20).test
    official.mkdir()
    for name in NAMES:
        np.save(official / f"{name}.npy", np.tile(test.images.permute(0, 2, 3, 1).numpy(), (5, 1, 1, 1)))
    assert test.labels is not None
    np.save(official / "labels.npy", np.tile(test.labels.numpy(), 5))
    flags = ["--shifts", "corruptions", "--corruptions_dir", str(official)]
    rows = evaluated(tmp_path, *flags)
    clean = next(row for row in read_results(tmp_path / "out" / "evaluation.json") if row.metric == "SA")
    assert {row.value for row in rows} == {clean.value} and {row.condition for row in rows} >= {"fog/1", "fog/3", "fog"}
    assert not any("computed" in reason or "texture" in reason for row in rows for reason in row.deviations)
    assert {row.value for row in evaluated(tmp_path, "--shifts", "corruptions")} != {clean.value}
    np.save(official / "fog.npy", np.zeros((100, 8, 8, 3), np.uint8))
    changed = {row.condition: row.value for row in evaluated(tmp_path, *flags)}
    assert changed["fog/1"] != clean.value and changed["snow/1"] == clean.value


def test_a_folder_needs_its_shift_and_a_shift_its_folder(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        evaluate_encoder.main(["run", "--perspective_dir", str(tmp_path)])
    assert "--perspective_dir is for --shifts perspective: give both" in capsys.readouterr().err
    test = load_dataset("digits", image_size=8, test_limit=20).test
    plan = EvaluationPlan((), (), official={PERSPECTIVE: tmp_path})
    assert shifted_images(plan, "corruptions", test) is None and "official" not in shift_key(plan, "corruptions", None)
    with pytest.raises(ValueError, match="has no folder, not PD-L/"):
        shifted_images(plan, PERSPECTIVE, test)
