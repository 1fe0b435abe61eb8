import re

import pytest
import timm
import torch
from torch import nn

from astra_gym.ssl_core.models.export import DUAL_NORM, foreign_names, save_encoder, timm_state, torchvision_state
from astra_gym.ssl_core.models.foreign import load_foreign
from astra_gym.ssl_core.models.target_network import build_network
from astra_gym.ssl_core.utils.hashing import digest
from tests.helpers.plain_networks import agree, generator, images, normalized, ordinary, randomize


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch, stem", [("resnet10", "cifar"), ("resnet18", "cifar"), ("resnet34", "imagenet"), ("resnet50", "imagenet")]
)
def test_torchvision_loads_what_is_written_and_gives_the_routes_features(arch, stem) -> None:
    resnet = pytest.importorskip("torchvision").models.resnet
    network = build_network(generator(), arch=arch, width=64, stem=stem, projector_hidden=8, projector_dim=8)
    randomize(network)
    block, counts = {
        "resnet10": (resnet.BasicBlock, [1, 1, 1, 1]),
        "resnet18": (resnet.BasicBlock, [2, 2, 2, 2]),
        "resnet34": (resnet.BasicBlock, [3, 4, 6, 3]),
        "resnet50": (resnet.Bottleneck, [3, 4, 6, 3]),
    }[arch]
    with torch.random.fork_rng(devices=[]):
        model = resnet.ResNet(block, counts)
    model.fc = nn.Identity()
    if stem == "cifar":
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    for route in ("normal", "pgd"):
        model.load_state_dict(torchvision_state(network, route), strict=True)
        features = model.eval().double()(normalized(images(16)))
        assert agree(network.double().features(images(16), route), features)
        network.float()
    with pytest.raises(ValueError, match="no route 'robust'"):
        torchvision_state(network, "robust")


def test_what_is_written_is_a_copy() -> None:
    network = ordinary()
    state = torchvision_state(network, "normal")
    state["conv1.weight"].zero_()
    assert network.backbone.conv.weight.any()


def test_every_name_of_ours_has_one_of_theirs() -> None:
    network = build_network(generator(), arch="resnet50", width=4, neck=8)
    names = foreign_names(network, DUAL_NORM)
    assert set(names) == set(network.state_dict()) - {"mean", "std"}
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("name", ["backbone.conv.weight", "backbone.norm.by_route.normal.running_var"])
def test_weights_that_are_not_finite_are_not_exported(name: str) -> None:
    network = ordinary()
    network.state_dict()[name].view(-1)[1] = float("inf")
    with pytest.raises(ValueError, match=rf"weights are not finite \({name}\)"):
        torchvision_state(network, "normal")


@pytest.mark.parametrize("stem, neck", [("cifar", 0), ("cifar-padded", 12), ("imagenet", 0)])
def test_a_saved_encoder_is_read_back_and_says_what_a_state_dict_cannot(tmp_path, stem, neck) -> None:
    given = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    network = randomize(build_network(generator(), arch="resnet18", width=4, stem=stem, neck=neck, **given))
    path = save_encoder(tmp_path / "encoder.pt", network, "pgd")
    held = torch.load(path, weights_only=True)
    assert (held["arch"], held["width"], held["stem"], held["route"]) == ("resnet18", 4, stem, "pgd")
    assert (held["feature_dim"], held["source_digest"]) == (neck or 32, digest(network))
    foreign = load_foreign(path, format="torchvision")
    assert foreign.route == "pgd" and foreign.network.routes == ("pgd",) and not foreign.projector
    expected = network.features(images().float(), "pgd")
    assert torch.equal(foreign.network.features(images().float(), "pgd"), expected)
    assert not torch.equal(network.features(images().float(), "normal"), expected)
    assert load_foreign(path, format="torchvision", stem=stem, route="pgd", **given).route == "pgd"
    other = "cifar" if stem == "cifar-padded" else "cifar-padded"
    for contradiction, said in (
        ({"route": "normal"}, "the file has no route 'normal'"),
        ({"stem": "stl"}, "unknown stem 'stl'"),
        ({"stem": other}, f"stem is given as {other}, but the file says '{stem}': leave it out"),
        ({"mean": (0, 0, 0), "std": (1, 1, 1)}, "but the file says"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            load_foreign(path, format="torchvision", **contradiction)
    held["state_dict"]["fc.0.weight"] = torch.tensor(1.0)
    torch.save(held, path)
    with pytest.raises(ValueError, match=r"of another shape: fc\.0\.weight \(\)"):
        load_foreign(path, format="torchvision")


@pytest.mark.parametrize("neck", [0, 5])
def test_timm_loads_a_vit_and_our_reader_too(tmp_path, neck: int) -> None:
    network = build_network(
        generator(), arch="timm:vit_tiny_patch16_224", image_size=8, patch_size=4, neck=neck, projector_dim=8
    ).eval()
    randomize(network.projector)
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=8, patch_size=4)
        if neck:
            model.head = nn.Sequential(nn.Linear(192, neck, bias=False), nn.BatchNorm1d(neck), nn.ReLU())
    model.load_state_dict(timm_state(network, "pgd"), strict=True)
    read = load_foreign(save_encoder(tmp_path / "vit.pt", network, "pgd"), format="timm")
    assert read.route == "pgd" and not read.projector and read.network.arguments["patch_size"] == 4
    assert torch.equal(read.network.features(images(8).float(), "pgd"), network.features(images(8).float(), "pgd"))
    assert agree(network.double().features(images(8), "pgd"), model.eval().double()(normalized(images(8))))
    with pytest.raises(ValueError, match="torchvision has no names for timm:vit_tiny_patch16_224"):
        torchvision_state(network, "pgd")
    with pytest.raises(ValueError, match="is no ViT"):
        timm_state(ordinary(), "normal")


def test_a_plain_file_of_timms_vit_is_read_if_its_normalisation_is_given(tmp_path) -> None:
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model("vit_small_patch16_224", num_classes=3, img_size=24, patch_size=8)
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    read = load_foreign(tmp_path / "vit.pt", format="timm", **half)
    assert {name: read.network.arguments[name] for name in ("arch", "image_size", "patch_size")} == {
        "arch": "timm:vit_small_patch16_224",
        "image_size": 24,
        "patch_size": 8,
    }
    assert [note for note in read.notes if "number of heads" in note] and "left out: head.weight" in str(read.notes)
    model.reset_classifier(0)
    assert torch.equal(read.network.features(images(24).float(), "normal"), model.eval()(images(24).float() * 2 - 1))
    with pytest.raises(ValueError, match="with this network none is usual: give mean and std"):
        load_foreign(tmp_path / "vit.pt", format="timm")
    with pytest.raises(ValueError, match="the file's network is a vision transformer: leave it out"):
        load_foreign(tmp_path / "vit.pt", format="timm", stem="cifar", **half)
    state = {name: value for name, value in model.state_dict().items() if name != "pos_embed"}
    torch.save(state | {"pos_embed": torch.zeros(1, 8, 384)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="width 384 with 7 positions"):
        load_foreign(tmp_path / "odd.pt", format="timm", **half)
