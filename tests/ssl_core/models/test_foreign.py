import argparse
import re

import pytest
import torch
from torch import nn

from astra_gym.ssl_core.models.checkpoint import describe_network, save_checkpoint
from astra_gym.ssl_core.models.export import save_encoder, torchvision_state
from astra_gym.ssl_core.models.foreign import ASSUMED, FORMATS, load_foreign
from astra_gym.ssl_core.models.target_network import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers.plain_networks import Family, Momentum, agree, images, normalized, ordinary, randomize

ASKED = {"stem": "cifar", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def saved(tmp_path, payload, name="theirs.pt"):
    torch.save(payload, tmp_path / name)
    return tmp_path / name


@pytest.fixture
def dual(tmp_path):
    """A file of the family's kind, small, and its network."""
    model = randomize(Family((1, 1, 1, 1), 2, 8, 8))
    return saved(tmp_path, model.state_dict()), model


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet50", *(pytest.param(name, marks=pytest.mark.every_agent) for name in ("resnet18", "resnet34"))]
)
def test_torchvisions_networks_give_the_same_features(tmp_path, name) -> None:
    models = pytest.importorskip("torchvision").models
    with torch.random.fork_rng(devices=[]):
        model = randomize(getattr(models, name)(weights=None, num_classes=7))
    before = torch.get_rng_state()
    foreign = load_foreign(saved(tmp_path, model.state_dict()), format="torchvision")
    assert torch.equal(before, torch.get_rng_state())
    assert foreign.route == "normal" and foreign.network.routes == ("normal",) and not foreign.network.training
    assert foreign.network.arguments["arch"] == name and foreign.network.arguments["stem"] == "imagenet"
    model.fc = nn.Identity()
    assert agree(foreign.network.double().features(images(40), "normal"), model.double()(normalized(images(40))))
    said = "\n".join(foreign.notes)
    assert not foreign.projector
    for what in ("fc, a classifier of 7 classes", "no projector", "ImageNet's, the usual one", "max-pooling"):
        assert what in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.every_agent)])
def test_timms_networks_give_the_same_features(tmp_path, name) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        model = randomize(timm.create_model(name, num_classes=0))
    # timm's own checkpoints keep the options of the run that made them
    payload = {"epoch": 3, "arch": name, "state_dict": model.state_dict(), "args": argparse.Namespace(lr=0.1)}
    foreign = load_foreign(saved(tmp_path, payload), format="timm")
    assert "left out of the file: epoch, arch, args" in foreign.notes
    assert agree(foreign.network.double().features(images(40), "normal"), model.double()(normalized(images(40))))


def test_timms_variants_are_refused(tmp_path) -> None:
    timm = pytest.importorskip("timm")
    for name, said in (("resnet18d", "deep stem"), ("seresnet18", "not understood"), ("resnet26", "stages of")):
        with torch.random.fork_rng(devices=[]):
            state = timm.create_model(name).state_dict()
        with pytest.raises(ValueError, match=said):
            load_foreign(saved(tmp_path, state), format="timm")


def test_what_no_state_dict_shows_of_an_ordinary_network_is_named(tmp_path, dual) -> None:
    for format in ("torchvision", "timm"):
        path = saved(tmp_path, torchvision_state(ordinary(), "normal"), "ordinary.pt")
        assert ASSUMED in load_foreign(path, format=format, **ASKED).notes
    hidden = "anti-aliased pooling, dilation, the activation, batch norm's epsilon"
    for what in (hidden, "plain ResNet v1.5: none, none, ReLU, 1e-5", "resnetaa, resnetblur and output_stride"):
        assert what in ASSUMED
    # the family's code says all that, and our own file is of our own network
    assert ASSUMED not in load_foreign(dual[0], format="acl", route="pgd").notes
    ours = save_encoder(tmp_path / "ours.pt", ordinary(), "normal")
    assert ASSUMED not in load_foreign(ours, format="torchvision").notes


@pytest.mark.slow
def test_what_is_assumed_is_what_our_network_computes(tmp_path) -> None:
    models = pytest.importorskip("torchvision").models
    with torch.random.fork_rng(devices=[]):
        plain = randomize(models.resnet50(weights=None))
        dilated = models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    state = plain.state_dict()
    foreign = load_foreign(saved(tmp_path, state), format="torchvision")
    features = foreign.network.double().features(images(40), "normal")

    def others(model):
        model.load_state_dict(state)
        model.fc = nn.Identity()
        return model.eval().double()(normalized(images(40)))

    with torch.random.fork_rng(devices=[]):
        epsilon = models.resnet50(weights=None, norm_layer=lambda width: nn.BatchNorm2d(width, eps=1e-3))
        activation = models.resnet50(weights=None)
    for part in list(activation.modules()):
        if hasattr(part, "relu"):
            part.relu = nn.SiLU()
    # the state dicts are one and the same, so that only a note can tell
    assert agree(features, others(plain))
    assert not any(agree(features, others(model)) for model in (dilated, epsilon, activation))


def test_timms_blurring_network_has_the_entries_of_the_plain_one_so_that_only_the_note_tells(tmp_path) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        model = randomize(timm.create_model("resnetblur18", num_classes=0))
    foreign = load_foreign(saved(tmp_path, model.state_dict()), format="timm")
    assert ASSUMED in foreign.notes
    assert not agree(foreign.network.double().features(images(40), "normal"), model.double()(normalized(images(40))))


def test_variants_that_a_file_betrays_are_refused(tmp_path) -> None:
    state = torchvision_state(ordinary(stem="imagenet"), "normal")

    def checkpoint(**beside):
        return saved(tmp_path, {"state_dict": state, **beside})

    for name in ("resnetaa50", "resnetblur18", "resnetblur50.bt_in1k"):
        for beside in ({"arch": name}, {"args": argparse.Namespace(model=name)}, {"args": {"arch": name}}):
            with pytest.raises(ValueError, match=f"its network is {name}, with anti-aliased pooling"):
                load_foreign(checkpoint(**beside), format="timm")
    layers = {"aa_layer": "blur", "act_layer": "silu", "output_stride": 8, "bn_eps": 1e-3}
    for option, value in {**layers, "gp": "max", "global_pool": "catavgmax"}.items():
        for args in (argparse.Namespace(model_kwargs={option: value}), argparse.Namespace(**{option: value})):
            with pytest.raises(ValueError, match=re.escape(f"built with {option}={value!r}")):
                load_foreign(checkpoint(args=args), format="timm")
    kwargs = {"act_layer": "relu", "output_stride": 32}
    usual = argparse.Namespace(model="resnet50.a1_in1k", bn_eps=None, gp=None, model_kwargs=kwargs)
    assert ASSUMED in load_foreign(checkpoint(arch="resnet50", args=usual), format="timm").notes
    for args in (None, 3, ["aa_layer"], argparse.Namespace(model=None, model_kwargs=None, gp=[1], bn_eps=1e-5)):
        assert ASSUMED in load_foreign(checkpoint(arch=None, args=args), format="timm").notes
    blurred = saved(tmp_path, state | {"maxpool.1.filt": torch.ones(8, 1, 3, 3)})
    with pytest.raises(ValueError, match=r"not understood: maxpool\.1\.filt"):
        load_foreign(blurred, format="timm")


def test_torchvisions_dilated_encoders_for_segmentation_are_refused(tmp_path) -> None:
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    with torch.random.fork_rng(devices=[]):
        state = segmentation.fcn_resnet50(weights=None, weights_backbone=None).state_dict()
    with pytest.raises(ValueError, match=r"classifier\.0\.weight is a convolution, so this is a segmentation network"):
        load_foreign(saved(tmp_path, state), format="torchvision")


@pytest.mark.parametrize("format, hidden", [("acl", 64), ("astra", 256), ("dynacl", 64)])
def test_the_acl_familys_networks_give_the_same_features_and_embeddings_on_both_routes(
    tmp_path, format, hidden
) -> None:
    sizes = {"hidden": hidden, "out": 64}
    model = randomize(Momentum(**sizes) if format == "dynacl" else Family(**sizes))
    payload = {"epoch": 1000, "state_dict": nn.DataParallel(model).state_dict(), "optim": {"state": {}}}
    assert all(name.startswith("module.") for name in payload["state_dict"])
    path = saved(tmp_path, payload)
    theirs = (model.encoder_k if format == "dynacl" else model).double()
    for place, route in enumerate(("normal", "pgd")):
        foreign = load_foreign(path, format=format, route=route)
        assert foreign.route == route and foreign.network.routes == ("normal", "pgd") and foreign.projector
        assert foreign.network.arguments["projector_hidden"] == hidden
        features, embeddings = foreign.network.double()(images(), route)
        assert agree(features, theirs(images(), place)[0]) and agree(embeddings, theirs(images(), place)[1])
    assert "left out of the file: epoch, optim" in foreign.notes
    beside = "the encoder is encoder_k; left out beside it: encoder_q"
    assert (beside in foreign.notes) == (format == "dynacl")


def test_the_real_sizes_of_both_projectors_are_read(tmp_path) -> None:
    for format, hidden in (("acl", 512), ("astra", 2048)):
        path = saved(tmp_path, randomize(Family((1, 1, 1, 1), 64, hidden, 512)).state_dict())
        built = load_foreign(path, format=format, route="pgd").network.arguments
        assert (built["arch"], built["width"], built["stem"]) == ("resnet10", 64, "cifar")
        assert (built["projector_hidden"], built["projector_dim"]) == (hidden, 512)


@pytest.mark.parametrize("shape", [{"large": True}, {"deep": True, "counts": (3, 4, 6, 3)}])
def test_the_family_with_imagenets_stem_or_with_bottlenecks(tmp_path, shape) -> None:
    model = randomize(Family(**{"width": 4, **shape}))
    foreign = load_foreign(saved(tmp_path, model.state_dict()), format="dynacl", route="pgd")
    assert foreign.network.arguments["stem"] == ("imagenet" if "large" in shape else "cifar")
    features, embeddings = foreign.network.double()(images(64), "pgd")
    expected = model.double()(images(64), 1)
    assert agree(features, expected[0]) and agree(embeddings, expected[1])


def test_a_route_is_asked_for_where_there_are_two(dual, tmp_path) -> None:
    path, _ = dual
    with pytest.raises(ValueError, match=r"routes normal and pgd: say which one .* authors of acl evaluate 'pgd'"):
        load_foreign(path, format="acl")
    with pytest.raises(ValueError, match="no route 'robust': it has normal, pgd"):
        load_foreign(path, format="acl", route="robust")
    single = saved(tmp_path, randomize(Family((1, 1, 1, 1), places=1)).state_dict(), "single.pt")
    assert load_foreign(single, format="acl").route == "normal"
    with pytest.raises(ValueError, match="no route 'pgd'"):
        load_foreign(single, format="acl", route="pgd")
    triple = saved(tmp_path, Family((1, 1, 1, 1), places=3).state_dict(), "triple.pt")
    with pytest.raises(ValueError, match=r"places \[0, 1, 2\]"):
        load_foreign(triple, format="acl", route="pgd")


def test_a_small_kernel_needs_the_stem_and_the_normalisation_in_an_ordinary_file(tmp_path) -> None:
    path = saved(tmp_path, torchvision_state(ordinary(), "normal"))
    with pytest.raises(ValueError, match="3x3, and no state dict holds its stride"):
        load_foreign(path, format="torchvision")
    with pytest.raises(ValueError, match="give mean and std"):
        load_foreign(path, format="torchvision", stem="cifar")
    with pytest.raises(ValueError, match="only one of mean and std"):
        load_foreign(path, format="torchvision", stem="cifar", mean=(0, 0, 0))
    with pytest.raises(ValueError, match=r"stem imagenet .* is asked for, but the first convolution is cifar's"):
        load_foreign(path, format="torchvision", stem="imagenet")
    with pytest.raises(ValueError, match="unknown stem 'cifra'"):
        load_foreign(path, format="torchvision", stem="cifra")
    for wrong in ((0.1, 0.1), (0.1, 0.1, 0.0), (0.1, float("inf"), 0.1)):
        with pytest.raises(ValueError, match="expected three finite numbers above 0"):
            load_foreign(path, format="torchvision", **{**ASKED, "std": wrong})
    foreign = load_foreign(path, format="torchvision", **ASKED)
    assert foreign.network.arguments["mean"] == [0.5] * 3 and foreign.network.arguments["std"] == [0.25] * 3
    large = saved(tmp_path, torchvision_state(ordinary(stem="imagenet"), "normal"), "large.pt")
    with pytest.raises(ValueError, match=r"stem cifar .* but the first convolution is imagenet's"):
        load_foreign(large, format="torchvision", stem="cifar")
    five = {**torchvision_state(ordinary(), "normal"), "conv1.weight": torch.zeros(8, 3, 5, 5)}
    with pytest.raises(ValueError, match=re.escape("conv1.weight is (8, 3, 5, 5)")):
        load_foreign(saved(tmp_path, five), format="torchvision", **ASKED)


def test_the_files_own_normalisation_counts_and_may_not_be_contradicted(dual) -> None:
    path, model = dual
    foreign = load_foreign(path, format="acl", route="pgd", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert torch.equal(foreign.network.mean.flatten(), model.normalize.mean)
    assert "input normalization: the file's own" in foreign.notes
    with pytest.raises(ValueError, match=r"mean is given as .* but the file says"):
        load_foreign(path, format="acl", route="pgd", mean=(0, 0, 0), std=IMAGENET_STD)
    state = model.state_dict()
    state["normalize.mean"], state["normalize.std"] = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    torch.save(state, path)
    other = load_foreign(path, format="acl", route="pgd").network
    assert torch.equal(other.mean.flatten(), state["normalize.mean"])
    assert torch.equal(other.std.flatten(), state["normalize.std"])
    del state["normalize.mean"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"not understood: normalize\.std"):
        load_foreign(path, format="acl", route="pgd")
    del state["normalize.std"]
    torch.save(state, path)
    without = load_foreign(path, format="acl", route="pgd")
    assert without.network.arguments["mean"] == list(IMAGENET_MEAN)
    assert any("the file does not say" in note for note in without.notes)


def test_a_fine_tuned_network_of_the_family_has_one_route_and_a_classifier(tmp_path) -> None:
    network = ordinary()
    state = torchvision_state(network, "normal")
    state |= {"fc.weight": torch.randn(10, 64), "fc.bias": torch.randn(10)}
    with pytest.raises(ValueError, match="is this the format torchvision instead of dynacl"):
        load_foreign(saved(tmp_path, state), format="dynacl")
    state |= {"normalize.mean": torch.tensor(IMAGENET_MEAN), "normalize.std": torch.tensor(IMAGENET_STD)}
    foreign = load_foreign(saved(tmp_path, state), format="dynacl")
    assert foreign.route == "normal" and foreign.network.arguments["stem"] == "cifar"
    assert torch.equal(
        foreign.network.features(images().float(), "normal"), network.features(images().float(), "normal")
    )
    assert "fc, a classifier of 10 classes, is no part of the encoder" in foreign.notes
    assert foreign.head is not None and foreign.head.weight.equal(state["fc.weight"])
    assert not foreign.head.weight.requires_grad and foreign.head.bias.equal(state["fc.bias"])
    for wrong in (
        {"fc.weight": torch.zeros(10, 63)},
        {"fc.bias": torch.full((10,), torch.inf)},
        {"fc.bias": torch.ones(9)},
    ):
        assert load_foreign(saved(tmp_path, state | wrong), format="dynacl").head is None


def test_without_a_projector_of_ours_the_embeddings_are_zero_and_a_note_says_so(tmp_path) -> None:
    model = randomize(Family((1, 1, 1, 1)))
    two_layers = {k: v for k, v in model.state_dict().items() if not k.startswith(("fc.fc3", "fc.bn3"))}
    narrow = model.state_dict() | {"fc.fc3.weight": torch.zeros(16, 64)}
    biased = model.state_dict() | {"fc.fc2.bias": torch.zeros(64)}
    bare = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    for state in (two_layers, narrow, biased, bare):
        foreign = load_foreign(saved(tmp_path, state), format="acl", route="pgd")
        features, embeddings = foreign.network(images().float(), "pgd")
        assert not foreign.projector and not embeddings.any() and features.std() > 0
        assert "no projector in the file: ours is all zeros, and so are its embeddings" in foreign.notes
        assert any("not our projector of three layers: fc.fc1.weight" in n for n in foreign.notes) == (
            state is not bare
        )


@pytest.mark.slow
def test_every_entry_of_a_file_is_used_or_named(dual) -> None:
    path, model = dual
    good = model.state_dict()

    def refused(state):
        torch.save(state, path)
        with pytest.raises(ValueError) as error:
            load_foreign(path, format="acl", route="pgd")
        return str(error.value)

    assert "not understood: layer1.0.se.weight" in refused(good | {"layer1.0.se.weight": torch.zeros(1)})
    assert "not understood: predictor.weight" in refused(good | {"predictor.weight": torch.zeros(1)})
    for name in list(good)[::5] + [name for name in good if ".downsample." in name][::5]:
        state = {key: value for key, value in good.items() if key != name}
        if name.endswith("num_batches_tracked"):
            torch.save(state, path)
            assert any("of 1 batch norms" in n for n in load_foreign(path, format="acl", route="pgd").notes)
        elif not name.startswith(("fc.fc", "normalize")):
            assert name in refused(state)
    assert "of another shape: bn1.bn_list.1.bias (9,) instead of (2,)" in refused(
        good | {"bn1.bn_list.1.bias": torch.zeros(9)}
    )
    assert "not finite: layer4.0.conv2.weight" in refused(
        good | {"layer4.0.conv2.weight": good["layer4.0.conv2.weight"] * float("nan")}
    )
    huge = torch.zeros(1).expand(10**12)
    assert "of another shape: bn1.bn_list.1.bias" in refused(good | {"bn1.bn_list.1.bias": huge})
    many = refused(good | {f"strange{i}": torch.zeros(1) for i in range(20)})
    assert "strange0, strange1, strange10 and 17 more" in many


def test_batch_norms_that_saw_no_batch_and_other_precisions_are_noted(dual) -> None:
    path, model = dual
    for norm in model.fc.bn3.bn_list:
        norm.num_batches_tracked.zero_()
    torch.save(model.half().state_dict(), path)
    notes = load_foreign(path, format="acl", route="pgd").notes
    names = [f"fc.bn3.bn_list.{place}.num_batches_tracked" for place in (0, 1)]
    assert f"batch norms that saw no batch in training: {', '.join(names)}" in notes
    assert "weights of float16 became float32" in notes


def test_an_encoder_within_a_framework_is_found_and_its_neighbors_are_named(tmp_path) -> None:
    network = ordinary(stem="imagenet")
    state = {f"backbone.{name}": value for name, value in torchvision_state(network, "normal").items()}
    path = saved(tmp_path, state | {"projector.0.weight": torch.zeros(1), "classifier.bias": torch.zeros(1)})
    foreign = load_foreign(path, format="torchvision", mean=(0, 0, 0), std=(1, 1, 1))
    assert "the encoder is backbone; left out beside it: classifier, projector" in foreign.notes
    expected = network.backbone(images().float(), "normal")
    assert torch.equal(foreign.network.features(images().float(), "normal"), expected)
    two = state | {f"encoder.{name.removeprefix('backbone.')}": value for name, value in state.items()}
    with pytest.raises(ValueError, match=r"several encoders, at backbone\., encoder\."):
        load_foreign(saved(tmp_path, two), format="torchvision")
    moco = {f"{kind}.{name}": value for kind in "qk" for name, value in state.items()}
    with pytest.raises(ValueError, match=r"the entries of one encoder \(k\.backbone\., q\.backbone\.\) alone"):
        load_foreign(saved(tmp_path, moco), format="torchvision")
    with pytest.raises(ValueError, match=r"expected one conv1\.weight for the format acl"):
        load_foreign(path, format="acl")


def test_bad_files_are_named(tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the file's code was run",))

    state = torchvision_state(ordinary(), "normal")
    with pytest.raises(ValueError, match=r"missing\.pt: no such file"):
        load_foreign(tmp_path / "missing.pt", format="acl")
    with pytest.raises(ValueError, match=r"unknown format 'alc': .* did you mean 'acl'"):
        load_foreign(tmp_path / "missing.pt", format="alc")
    for payload, said in (
        ({"state_dict": state, "x": Bomb()}, r"torch\.save\(model\.state_dict\(\), FILE\)"),
        ({"model": state, "model_ema": state}, r"several state dicts \(model, model_ema\)"),
    ):
        with pytest.raises(ValueError, match=said):
            load_foreign(saved(tmp_path, payload), format="torchvision", **ASKED)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt is no file that torch\.save wrote"):
        load_foreign(tmp_path / "text.pt", format="torchvision")
    ours = save_checkpoint(tmp_path / "run.pt", "run", {"network": describe_network(ordinary())})
    with pytest.raises(ValueError, match="a checkpoint of this project, of kind 'run'"):
        load_foreign(ours, format="torchvision")


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("conv1.weight", lambda value: value.to(torch.int8), "integers: conv1.weight"),
        ("conv1.weight", lambda value: value.to(torch.float8_e4m3fn), "conv1.weight: sparse, quantized, complex, of 8"),
        ("bn1.weight", lambda value: value.to_sparse(), "expected dense tensors of float32"),
        ("fc.weight", lambda value: value.to("meta"), "expected dense tensors of float32"),
        ("bn1.weight", lambda value: value.to(torch.complex64), "expected dense tensors of float32"),
        ("bn1.weight", lambda value: value.double() * 1e300, "not finite: bn1.weight"),
        ("bn1.running_var", lambda value: -value, "negative variances: bn1.running_var"),
    ],
)
def test_weights_that_would_be_others_in_float32_are_refused(tmp_path, name, change, said) -> None:
    state = torchvision_state(ordinary(), "normal") | {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}
    with pytest.raises(ValueError, match=said):
        load_foreign(saved(tmp_path, state | {name: change(state[name])}), format="torchvision", **ASKED)


def test_every_format_is_described() -> None:
    assert list(FORMATS) == ["acl", "dynacl", "astra", "torchvision", "timm"]
    assert all(FORMATS.values())
