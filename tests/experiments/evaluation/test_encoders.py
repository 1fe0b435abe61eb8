from pathlib import Path

import pytest
import torch

from astra_gym.experiments import train_agent
from astra_gym.experiments.evaluation import encoders
from astra_gym.ssl_core.models.checkpoint import CheckpointError

CPU = torch.device("cpu")
TINY = "--agent=fixed --limit=40 --test_limit=20 --batch_size=8 --width=2 --epochs=1 --evaluate=false --progress=off"


def test_a_run_gives_its_encoder_its_routes_and_its_settings(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    assert train_agent.main([*TINY.split(), "--keep_every=1", f"--run_dir={run}", "--precision=fp32"]) == 0
    whole, kept = encoders.own(run, CPU), encoders.own(run / "checkpoints" / "epoch-0001.pt", CPU)
    assert (whole.name, whole.checkpoint, whole.route, whole.clean_route) == ("mine", "last", "pgd", "normal")
    assert (kept.name, kept.checkpoint, kept.digest) == ("mine", "epoch-0001", whole.digest)
    assert whole.settings is not None and whole.settings.limit == 40 and kept.settings == whole.settings
    assert whole.encoder.precision == "fp32" and not whole.encoder.training
    # outside its run a checkpoint has no settings
    copy = tmp_path / "copy.pt"
    copy.write_bytes((run / "checkpoints" / "last.pt").read_bytes())
    alone = encoders.own(copy, CPU)
    assert alone.settings is None and (alone.name, alone.digest) == ("copy", whole.digest)


def test_a_network_trained_in_bfloat16_is_evaluated_in_full_precision(tmp_path: Path) -> None:
    run = tmp_path / "half"
    assert train_agent.main([*TINY.split(), f"--run_dir={run}", "--precision=bf16", "--image_size=32"]) == 0
    assert encoders.own(run, CPU).encoder.precision == "fp32"


def test_a_foreign_file_is_no_checkpoint_of_ours(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match="foreign"):
        encoders.own(tmp_path / "theirs.pt", CPU)


def test_a_users_module_is_wrapped_unless_it_is_a_classifier(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "pooling_of_mine.py").write_text(
        "from torch import nn\n\nclass Pooled(nn.Module):\n    def forward(self, x):\n        return x.mean((2, 3))\n"
        "\nmodel = Pooled()\n\ndef number():\n    return 3\n\ndef failing():\n    raise KeyError('weights')\n"
    )
    monkeypatch.chdir(tmp_path)
    features = encoders.module("pooling_of_mine:Pooled", 8, CPU, classifier=False)
    assert features.encoder.feature_dim == 3 and (features.name, features.route) == ("pooling_of_mine", "none")
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(features.encoder.features(images, "none"), images.mean((2, 3)))
    logits = encoders.module("pooling_of_mine:model", 8, CPU, classifier=True)
    assert torch.equal(logits.encoder(images), images.mean((2, 3))) and not logits.encoder.training
    for name, message in (("number", "returned a int: expected an nn.Module"), ("failing", "failed: KeyError")):
        with pytest.raises(ValueError, match=message):
            encoders.module(f"pooling_of_mine:{name}", 8, CPU, classifier=False)
    with pytest.raises(ValueError, match=r"is a float: expected an nn\.Module"):
        encoders.module("math:pi", 8, CPU, classifier=False)
