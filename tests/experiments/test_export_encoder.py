from pathlib import Path

import pytest
import torch

from astra_gym.experiments.export_encoder import main
from astra_gym.ssl_core.models.checkpoint import describe_network, load_network, save_checkpoint
from astra_gym.ssl_core.models.foreign import load_foreign
from astra_gym.ssl_core.models.target_network import TargetNetwork, build_network
from astra_gym.ssl_core.utils.hashing import digest


def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def written(folder: Path, **arguments: object) -> TargetNetwork:
    """A run folder with a checkpoint of a network whose routes differ; returns the network."""
    built = {"arch": "resnet10", "width": 4, "projector_hidden": 8, "projector_dim": 8, **arguments}
    network = build_network(torch.Generator().manual_seed(0), **built).train()
    for route in network.routes:
        network(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(len(route))), route)
    (folder / "checkpoints").mkdir(parents=True)
    payload = {"network": describe_network(network.eval()), "evaluation_route": "pgd"}
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


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_the_printed_recipe_loads_the_file_into_torchvisions_network(tmp_path, capsys, stem) -> None:
    network = written(tmp_path / "mine", width=64, stem=stem, mean=(0.1, 0.2, 0.3))
    out = tmp_path / "new" / "encoder.pt"
    assert main([str(tmp_path / "mine"), f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == f"encoder: {out}: resnet10, width 64, stem {stem}, route pgd"
    assert near(followed(said), network.features(images(), "pgd"))
    assert not near(network.features(images(), "normal"), network.features(images(), "pgd"))
    assert [file.name for file in out.parent.iterdir()] == ["encoder.pt"]


@pytest.mark.parametrize("layout", ["torchvision", "ours"])
def test_the_other_recipes_work_too(run, tmp_path, capsys, layout) -> None:
    source = run / "checkpoints" / "last.pt"
    out = tmp_path / "encoder.pt"
    assert main([str(source), f"--out={out}", f"--layout={layout}", "--route=normal"]) == 0
    network, _ = load_network(source)
    assert torch.equal(followed(capsys.readouterr().out), network.features(images(), "normal"))
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
    assert "invalid choice: 'timm'" in fails(capsys, run, f"--out={out}", "--layout=timm")
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
