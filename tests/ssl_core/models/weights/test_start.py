"""A network started from a file of each kind computes what the file's encoder computes, route by route."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.models.checkpoint import describe_network, save_checkpoint
from astra_gym.ssl_core.models.export import save_encoder, torchvision_state
from astra_gym.ssl_core.models.foreign import load_foreign
from astra_gym.ssl_core.models.target_network import NORMALIZATIONS, TargetNetwork, build_network
from astra_gym.ssl_core.models.weights import state_file
from astra_gym.ssl_core.models.weights.start import start_network
from astra_gym.ssl_core.safety.plain_values import load_plain
from astra_gym.ssl_core.utils.messages import counted
from tests.helpers.draws import generator
from tests.helpers.plain_networks import Family, Momentum, ordinary, randomize

DUAL = ("normal", "pgd")


def images() -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=generator(5))


def target(routes: tuple[str, ...] = ("normal",), **arguments: Any) -> TargetNetwork:
    sizes = {"arch": "resnet10", "width": 4, "projector_hidden": 6, "projector_dim": 5}
    return build_network(generator(9), routes=routes, **sizes | arguments).eval()


def trained(routes: tuple[str, ...] = DUAL, **arguments: Any) -> TargetNetwork:
    """A network whose routes differ."""
    return randomize(target(routes, **arguments))


def run_file(path: Path, network: TargetNetwork, route: str = "pgd") -> Path:
    payload = {"step": 0, "epoch": 0.0, "evaluation_route": route, "network": describe_network(network)}
    return save_checkpoint(path, "run", payload)


def saved(folder: Path, payload: object) -> Path:
    torch.save(payload, folder / "theirs.pt")
    return folder / "theirs.pt"


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("routes", "sources"),
    [
        (DUAL, DUAL),
        # one route: that of the evaluation, whatever its name is
        (("normal",), ("pgd",)),
        (("normal", "pgd", "pgd_ce"), ("normal", "pgd", "pgd")),
        (("nature", "strongnature", "weak", "strong"), ("pgd",) * 4),
    ],
)
@pytest.mark.parametrize("kind", ["run", "acl"])
def test_each_route_gets_the_batch_norms_that_are_stated(
    kind: str, routes: tuple[str, ...], sources: tuple[str, ...], tmp_path: Path
) -> None:
    if kind == "run":
        source = trained()
        file = run_file(tmp_path / "run" / "checkpoints" / "last.pt", source)
    else:
        file = saved(tmp_path, randomize(Family((1, 1, 1, 1), 4, 6, 5)).state_dict())
        source = load_foreign(file, format="acl", route="pgd").network
    network = target(routes)
    # the run's folder is the same as its last checkpoint
    found = start_network(file.parents[1] if kind == "run" else file, network)
    assert found.routes == dict(zip(routes, sources, strict=True))
    assert (found.loaded, found.random) == (["backbone", "projector"], [])
    for own, theirs in found.routes.items():
        one, other = network(images(), own), source(images(), theirs)
        assert torch.equal(one.features, other.features) and torch.equal(one.embeddings, other.embeddings)
    assert not torch.equal(source(images(), "normal").features, source(images(), "pgd").features)


def test_dynacl_gives_the_encoder_that_is_evaluated(tmp_path: Path) -> None:
    model = Momentum(counts=(1, 1, 1, 1), width=4, hidden=6, out=5)
    randomize(model.encoder_q, 1), randomize(model.encoder_k, 2)
    network = target(DUAL)
    start_network(saved(tmp_path, model.state_dict()), network)
    expected = start_and_features(tmp_path, model.encoder_k.state_dict())
    assert torch.equal(network(images(), "pgd").features, expected)


def start_and_features(folder: Path, payload: object) -> Tensor:
    network = target(DUAL)
    start_network(saved(folder, payload), network)
    return network(images(), "pgd").features


@pytest.mark.parametrize("wrapped", ["", "encoder."])
def test_an_ordinary_resnet_fills_every_route_and_leaves_the_projector_random(wrapped: str, tmp_path: Path) -> None:
    source = ordinary(width=4)
    theirs = {f"{wrapped}{name}": value for name, value in torchvision_state(source, "normal").items()}
    theirs |= {f"{wrapped}fc.weight": torch.zeros(7, 32), f"{wrapped}fc.bias": torch.zeros(7)}
    file, network = saved(tmp_path, {"state_dict": theirs, "epoch": 3}), target(DUAL)
    before = state(network.projector)
    found = start_network(file, network)
    assert (found.routes, found.loaded, found.random) == (
        {"normal": "normal", "pgd": "normal"},
        ["backbone"],
        ["projector"],
    )
    for route in DUAL:
        assert torch.equal(network(images(), route).features, source(images(), "normal").features)
    assert all(torch.equal(value, before[name]) for name, value in network.projector.state_dict().items())
    said = "\n".join(found.sentences())
    for what in (
        "init_from theirs.pt: loaded backbone (batch norm normal from normal, pgd from normal); not loaded, but",
        "fc, a classifier of 7 classes, is no part of the encoder",
        "left out of the file: epoch",
        "input normalization: the network's",
    ):
        assert what in said
    assert "zeros" not in said
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert json.loads(json.dumps(found.record()))["routes"] == {"normal": "normal", "pgd": "normal"}


@pytest.mark.slow
def test_torchvisions_own_resnet18_starts_a_network_of_its_size(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    with torch.random.fork_rng(devices=[]):
        model = randomize(models.resnet18(weights=None))
    network = target(arch="resnet18", width=64, stem="imagenet", projector="none")
    assert start_network(saved(tmp_path, model.state_dict()), network).random == []
    model.fc = nn.Identity()
    expected = model((images() - network.mean) / network.std)
    torch.testing.assert_close(network(images(), "normal").features, expected, rtol=1e-4, atol=1e-4)


def test_an_export_brings_its_neck_and_its_normalization(tmp_path: Path) -> None:
    mean, std = NORMALIZATIONS["cifar"]
    source = trained(neck=6, mean=mean, std=std)
    file = save_encoder(tmp_path / "encoder.pt", source, "pgd")
    network = target(DUAL, neck=6, mean=mean, std=std)
    found = start_network(file, network)
    assert found.loaded == ["backbone", "neck"] and found.random == ["projector"]
    expected = source(images(), "pgd").features
    assert all(torch.equal(network(images(), route).features, expected) for route in DUAL)
    bare = start_network(file, target(mean=mean, std=std))
    assert "left out: the neck of the file" in bare.notes
    with pytest.raises(ValueError, match=r"mean is \[0.49.*\] there and \[0.485.*\] here.*take normalization cifar"):
        start_network(file, target(neck=6))


@pytest.mark.parametrize("stem", ["cifar", "cifar-padded"])
def test_a_small_kernel_is_padded_as_the_network_pads(stem: str, tmp_path: Path) -> None:
    source, network = ordinary(width=4, stem=stem), target(stem=stem)
    start_network(saved(tmp_path, torchvision_state(source, "normal")), network)
    assert torch.equal(network(images(), "normal").features, source(images(), "normal").features)


def test_a_projector_of_another_kind_stays_random(tmp_path: Path) -> None:
    file = run_file(tmp_path / "run.pt", trained(projector="rocl"))
    for changes in ({}, {"projector": "rocl", "projector_dim": 7}, {"projector": "rocl", "neck": 6}):
        found = start_network(file, target(**changes))
        assert found.loaded == ["backbone"] and "projector" in found.random
        assert "left out: the projector of the file" in found.notes


@pytest.mark.parametrize(
    ("kinds", "arguments", "said"),
    [
        ("run state", {"width": 2}, r"conv1.weight is \(4, 3, 3, 3\) there and \(2, 3, 3, 3\) here: take width 4"),
        (
            "run state",
            {"stem": "imagenet"},
            r"\(4, 3, 3, 3\) there and \(4, 3, 7, 7\) here; stem is cifar .*: take",
        ),
        ("run state", {"arch": "resnet18"}, "arch is resnet10 there and resnet18 here: take arch resnet10"),
        # a state dict has no neck of ours, and does not show its padding
        ("run", {"stem": "cifar-padded"}, "stem is cifar there and cifar-padded here: take stem cifar"),
        ("run", {"neck": 3}, "neck is 6 there and 3 here: take neck 6"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_shapes(
    kinds: str, arguments: dict[str, Any], said: str, tmp_path: Path
) -> None:
    files = {
        "run": run_file(tmp_path / "run.pt", trained(neck=6)),
        "state": saved(tmp_path, torchvision_state(ordinary(width=4), "normal")),
    }
    network = target(**arguments)
    before = state(network)
    for kind in kinds.split():
        with pytest.raises(ValueError, match=said) as error:
            start_network(files[kind], network)
        assert counted(str(error.value)) < 300
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, reads = trained(("normal",)), list[Path]()
    monkeypatch.setattr(state_file, "load_plain", lambda path: reads.append(path) or load_plain(path))
    ordinary_file = saved(tmp_path, torchvision_state(network, "normal"))
    for file in (ordinary_file, save_encoder(tmp_path / "export.pt", network, "normal")):
        start_network(file, target())
        assert reads == [file]
        reads.clear()


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file: expected an encoder's file, or a run's folder"):
        start_network(tmp_path / "missing.pt", target())
    for content in (b"", b"agent: fixed", b"\x40\x00\x00\x00\x00\x00\x00\x00{}"):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"is no file that torch.save wrote: .*safetensors.torch.load_file"):
            start_network(tmp_path / "model.safetensors", target())
    for empty in (tmp_path, tmp_path / "checkpoints"):
        empty.mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"is a folder without checkpoints/last.pt, so not a run"):
            start_network(empty, target())
    with pytest.raises(ValueError, match="expected a state dict"):
        start_network(saved(tmp_path, {"epoch": 3}), target())
    for hostile in ({"conv1.weight": torch.tensor(1.0)}, {"bn1.bn_list.3.weight": torch.ones(4)}):
        with pytest.raises(ValueError):
            start_network(saved(tmp_path, hostile), target())


def test_a_vit_starts_from_a_file_of_timm_and_from_an_export(tmp_path: Path) -> None:
    arguments = {"arch": "timm:vit_tiny_patch16_224", "image_size": 8, "patch_size": 4, "projector_dim": 8}
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=8, patch_size=4)
    torch.save(model.state_dict(), tmp_path / "timm.pt")
    network, views = build_network(generator(), **arguments).eval(), torch.rand(2, 3, 8, 8, generator=generator(1))
    started = start_network(tmp_path / "timm.pt", network)
    assert (started.loaded, started.random) == (["backbone"], ["projector"])
    model.reset_classifier(0)
    features = network.features(views, "pgd")
    assert torch.equal(features, model.eval()((views - network.mean) / network.std))
    again = build_network(generator(2), **arguments).eval()
    start_network(save_encoder(tmp_path / "export.pt", network, "pgd"), again)
    assert torch.equal(again.features(views, "normal"), features)
    with pytest.raises(ValueError, match=r"patch_size is 4 there and 2 here.*take patch_size 4"):
        start_network(tmp_path / "timm.pt", build_network(generator(), **arguments | {"patch_size": 2}))
    with pytest.raises(ValueError, match="arch is timm:vit_tiny_patch16_224 there and resnet10 here"):
        start_network(tmp_path / "timm.pt", build_network(generator(), arch="resnet10", width=4))
