import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from astra_gym.experiments.config.presets import PRESETS
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.export_encoder import main
from astra_gym.ssl_core.methods import METHODS
from astra_gym.ssl_core.models.checkpoint import describe_network, load_network, save_checkpoint
from astra_gym.ssl_core.models.foreign import load_foreign
from astra_gym.ssl_core.models.target_network import TargetNetwork, build_network
from astra_gym.ssl_core.utils.hashing import digest
from tests.helpers.plain_networks import randomize

ALONE = """
import json, sys
# what a process without this project has
sys.modules["astra_gym"] = None
import torch

jobs, file = json.loads(sys.stdin.read())
features = {}
for name, (code, side) in jobs.items():
    names = {"images": torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))}
    with torch.no_grad():
        exec(code, names)
    features[name] = names["features"]
torch.save(features, file)
"""
"""Follows the printed code of every job, and saves the features that it makes."""


def images(side: int = 16) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def written(folder: Path, **arguments: object) -> TargetNetwork:
    """A run folder with a checkpoint of a network whose routes differ; returns the network."""
    built = {"arch": "resnet10", "width": 4, "projector_hidden": 8, "projector_dim": 8, **arguments}
    network = randomize(build_network(torch.Generator().manual_seed(0), **built))
    (folder / "checkpoints").mkdir(parents=True)
    payload = {"network": describe_network(network), "evaluation_route": "pgd"}
    save_checkpoint(folder / "checkpoints" / "last.pt", "run", payload)
    return network


@pytest.fixture
def run(tmp_path) -> Path:
    written(tmp_path / "mine")
    return tmp_path / "mine"


def fails(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in arguments])
    assert error.value.code == 2
    out, said = capsys.readouterr()
    assert out == "" and said.count("\n") == 1 and said.startswith("export_encoder.py: error: ")
    return said


def followed(said: str) -> torch.Tensor:
    """The features that the printed recipe makes of the images."""
    names = {"images": images()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        exec(said.split("\n\n", 1)[1], names)
    return names["features"]  # type: ignore[return-value]


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-6 * other.abs().max()) and other.std() > 1e-3


def encoders() -> Iterator[dict[str, Any]]:
    """What an encoder is built from: as each preset says for each method, and in ways that no preset has."""
    names = ("stem", "arch", "width", "neck")
    for preset, method in itertools.product(PRESETS, METHODS):
        if PRESETS[preset].get("method", method) == method:
            teacher = {"teacher": "runs/teacher"} if "teacher" in METHODS[method].networks.others else {}
            settings = Settings.from_preset(preset, method=method, **teacher)
            yield {name: getattr(settings.network, name) for name in names}
    others = [
        ("imagenet", "resnet18", 64, 0),
        ("imagenet", "resnet10", 16, 0),
        ("imagenet", "resnet50", 4, 24),
        ("cifar-padded", "resnet50", 4, 0),
        ("cifar-padded", "resnet10", 4, 24),
        ("cifar", "resnet34", 4, 24),
    ]
    yield from (dict(zip(names, other, strict=True)) for other in others)


@pytest.mark.every_agent
def test_the_printed_code_needs_torch_and_torchvision_alone_whatever_the_encoder(tmp_path, capsys) -> None:
    jobs, expected = {}, {}
    for built in encoders():
        name = "{arch}, width {width}, stem {stem}, neck {neck}".format(**built)
        if name in jobs:
            continue
        run, out, side = tmp_path / name, tmp_path / "new" / f"{name}.pt", 48 if built["stem"] == "imagenet" else 16
        network = written(run, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), **built)
        assert main([str(run), f"--out={out}"]) == 0
        said, _, code = capsys.readouterr().out.partition("\n\n")
        assert said == f"encoder: {out}: {name.rpartition(',')[0]}, route pgd"
        jobs[name], expected[name] = (code, side), network.features(images(side), "pgd").detach()
        foreign = load_foreign(out, format="torchvision")
        assert torch.equal(foreign.network.features(images(side), foreign.route), expected[name])
        assert not near(network.features(images(side), "normal"), expected[name])
        # hundreds of megabytes in all
        shutil.rmtree(run)
    command = [sys.executable, "-I", "-c", ALONE]
    subprocess.run(command, input=json.dumps((jobs, f"{tmp_path}/features.pt")), cwd=tmp_path, text=True, check=True)
    found = torch.load(tmp_path / "features.pt", weights_only=True)
    assert [name for name in jobs if not near(found[name], expected[name])] == []
    assert {file.stem for file in (tmp_path / "new").iterdir()} == set(jobs)
    shutil.rmtree(tmp_path / "new")


@pytest.mark.parametrize("layout", ["torchvision", "ours"])
def test_the_other_recipes_work_too(run, tmp_path, capsys, layout) -> None:
    source = run / "checkpoints" / "last.pt"
    out = tmp_path / "encoder.pt"
    assert main([str(source), f"--out={out}", f"--layout={layout}", "--route=normal"]) == 0
    network, _ = load_network(source)
    assert near(followed(capsys.readouterr().out), network.features(images(), "normal"))
    assert torch.load(out, weights_only=True)["source_digest"] == digest(network)


def test_our_loaders_read_the_file_back(run, tmp_path, capsys) -> None:
    network, _ = load_network(run)
    for layout in ("torchvision", "ours"):
        main([str(run), f"--out={tmp_path / layout}.pt", f"--layout={layout}"])
    foreign = load_foreign(tmp_path / "torchvision.pt", format="torchvision")
    assert foreign.route == "pgd"
    assert near(foreign.network.features(images(), "pgd"), network.features(images(), "pgd"))
    whole, route = load_network(tmp_path / "ours.pt")
    assert route == "pgd" and digest(whole) == digest(network)
    capsys.readouterr()


def test_a_file_is_replaced_only_by_force_and_the_source_never(run, tmp_path, capsys) -> None:
    out = tmp_path / "encoder.pt"
    out.write_text("mine")
    assert "is there already: --force replaces it" in fails(capsys, run, f"--out={out}")
    assert out.read_text() == "mine"
    assert main([str(run), f"--out={out}", "--force"]) == 0
    capsys.readouterr()
    assert load_foreign(out, format="torchvision").route == "pgd"
    source = run / "checkpoints" / "last.pt"
    before = source.read_bytes()
    for given in (run, source):
        assert "is what is exported" in fails(capsys, given, f"--out={source}", "--force")
    assert source.read_bytes() == before
    kept = run / "checkpoints" / "epoch-0001.pt"
    kept.write_text("mine")
    (tmp_path / "link.pt").symlink_to(kept)
    for given, name in (((run, kept), "is a checkpoint of the run"), ((source, kept), "is a checkpoint of the run")):
        assert name in fails(capsys, given[0], f"--out={given[1]}", "--force")
    for place, name in ((tmp_path / "link.pt", "is a symbolic link"), (Path("/dev/null"), "is a device")):
        assert name in fails(capsys, run, f"--out={place}", "--force")
    assert kept.read_text() == "mine"


def test_bad_input_is_one_line(run, tmp_path, capsys) -> None:
    out = tmp_path / "encoder.pt"
    assert "no route 'robust': it has normal, pgd" in fails(capsys, run, f"--out={out}", "--route=robust")
    assert "no such checkpoint" in fails(capsys, tmp_path / "nowhere", f"--out={out}")
    assert "--out" in fails(capsys, run)
    assert "unknown layout 'tim'" in fails(capsys, run, f"--out={out}", "--layout=tim")
    assert "resnet10 has no layout timm: take --layout" in fails(capsys, run, f"--out={out}", "--layout=timm")
    for name in ("encoder.safetensors", "encoder.ONNX", "encoder.pt2"):
        assert "name it FILE.pt" in fails(capsys, run, f"--out={tmp_path / name}", "--force")
    assert "is a folder: name a file" in fails(capsys, run, f"--out={tmp_path}", "--force")
    (tmp_path / "file").write_text("")
    fails(capsys, run, f"--out={tmp_path / 'file' / 'encoder.pt'}")
    assert not out.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "mine"]


@pytest.mark.parametrize("layout", ["torchvision", "ours"])
def test_an_encoder_trained_in_bfloat16_and_its_export_give_the_same_features(tmp_path, capsys, layout) -> None:
    half = written(tmp_path / "half", precision="bf16")
    out = tmp_path / "encoder.pt"
    assert main([str(tmp_path / "half"), f"--out={out}", f"--layout={layout}"]) == 0
    loaded, route = load_network(tmp_path / "half")
    assert near(followed(capsys.readouterr().out), loaded.features(images(), route))
    assert not near(half.features(images(), route), loaded.features(images(), route))


def test_an_encoder_that_is_not_finite_is_not_exported(tmp_path, capsys) -> None:
    network = written(tmp_path / "mine")
    network.backbone.conv.weight.data[0, 0, 0, 0] = float("nan")
    payload = {"network": describe_network(network), "evaluation_route": "pgd"}
    save_checkpoint(tmp_path / "mine" / "checkpoints" / "last.pt", "run", payload)
    said = fails(capsys, tmp_path / "mine", f"--out={tmp_path / 'encoder.pt'}")
    assert "its weights are not finite (backbone.conv.weight): take an earlier checkpoint" in said
    assert not (tmp_path / "encoder.pt").exists()


@pytest.mark.parametrize("layout", ["torchvision", "ours"])
def test_what_the_recipe_loads_refuses_bytes(run, tmp_path, capsys, layout) -> None:
    out = tmp_path / "encoder.pt"
    assert main([str(run), f"--out={out}", f"--layout={layout}"]) == 0
    capsys.readouterr()
    network = load_network(out)[0] if layout == "ours" else load_foreign(out, format="torchvision").network
    for wrong in ((images() * 255).to(torch.uint8), images() * 255, images() / 0):
        with pytest.raises(ValueError, match=r"expected .*in \[0, 1\]"):
            network.features(wrong, "pgd")
