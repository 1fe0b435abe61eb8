"""A run on a vision transformer of timm, from training to an encoder that timm itself loads."""

from pathlib import Path

import pytest
import torch

from astra_gym.experiments import evaluate_encoder, export_encoder
from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.evaluation.results import read_results
from astra_gym.ssl_core.models.checkpoint import load_network
from astra_gym.ssl_core.models.foreign import load_foreign
from tests.helpers.tiny_training import assert_equal_runs

VIT = (
    *("--arch=timm:vit_tiny_patch16_224", "--patch_size=4", "--image_size=8", "--limit=26", "--test_limit=20"),
    *("--batch_size=8", "--projector_hidden=8", "--projector_dim=8", "--epochs=2", "--lr=1e-3", "--progress=off"),
)
"""3 updates an epoch, 6 in all."""


def run(folder: Path, *flags: str) -> int:
    return main([*VIT, f"--run_dir={folder}", "--evaluate=false", *flags])


@pytest.mark.every_agent
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, interrupt) -> None:
    flags = ("--method=astra", "--agent=fixed", "--steps=1")
    assert run(tmp_path / "whole", *flags) == 0
    interrupt(4)
    assert run(tmp_path / "parts", *flags) == 130
    assert main(["--resume", str(tmp_path / "parts"), "--progress=off"]) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.every_agent
def test_it_is_evaluated_exported_and_read_back(tmp_path: Path, capsys) -> None:
    folder, out, file = tmp_path / "run", tmp_path / "results", tmp_path / "encoder.pt"
    assert run(folder, "--method=acl", "--agent=fixed", "--steps=1", "--epochs=1") == 0
    words = "--protocols aff knn ridge --attacks fgsm --epsilons 8/255 --epochs 1 --test_limit 8"
    assert evaluate_encoder.main([str(folder), *words.split(), "--progress=off", f"--out={out}"]) == 0
    rows = read_results(out / "evaluation.json")
    assert {row.protocol for row in rows} == {"aff", "knn", "ridge"}
    # features are the same on both routes, so full fine-tuning has one, whose attack starts at TRADES' noise
    assert any("one batch-norm route" in part for row in rows if row.protocol == "aff" for part in row.deviations)

    capsys.readouterr()
    assert export_encoder.main([str(folder), f"--out={file}"]) == 0
    said, _, code = capsys.readouterr().out.partition("\n\n")
    assert said == f"encoder: {file}: timm:vit_tiny_patch16_224, image_size 8, patch_size 4, route pgd"
    names = {"images": torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        exec(code, names)
    network, route = load_network(folder)
    expected = network.features(names["images"], route)
    torch.testing.assert_close(names["features"], expected)
    read = load_foreign(file, format="timm")
    assert torch.equal(read.network.features(names["images"], read.route), expected)
    assert evaluate_encoder.main([str(file), "--format=timm", "--dataset=digits", "--image_size=8", "--limit=26",
                                  "--test_limit=20", "--protocols=ridge", "--attacks=none", "--progress=off",
                                  f"--out={tmp_path / 'again'}"]) == 0  # fmt: skip
    with pytest.raises(SystemExit):
        export_encoder.main([str(folder), f"--out={tmp_path / 'other.pt'}", "--layout=torchvision"])
    assert "has no layout torchvision: take --layout timm or ours" in capsys.readouterr().err
