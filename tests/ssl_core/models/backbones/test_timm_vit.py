"""timm's vision transformers as backbones: timm's own features, the same on every route, however they are computed."""

import sys

import pytest
import timm
import torch
from torch import Tensor

from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.models.backbones.timm_vit import MissingTimmError, TimmViT, patch_size_of
from astra_gym.ssl_core.models.folding import FoldedNetwork
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.target_network import TargetNetwork, build_network
from astra_gym.ssl_core.models.weights.copying import copy_routes
from tests.helpers.draws import generator

TINY = "timm:vit_tiny_patch16_224"


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=generator(1))


def vit(seed: int = 0, arch: str = TINY, **arguments) -> TargetNetwork:
    sizes = {"image_size": 8, "patch_size": 4, "projector_hidden": 12, "projector_dim": 8}
    return build_network(generator(seed), arch=arch, **sizes | arguments)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_it_computes_what_timm_computes_with_the_same_weights_on_every_route(name: str) -> None:
    """One with a class token alone, and one with register tokens and layer scale."""
    network = vit(arch=f"timm:{name}").eval()
    with torch.random.fork_rng(devices=[]):
        theirs = timm.create_model(name, num_classes=0, img_size=8, patch_size=4).eval()
    theirs.load_state_dict(network.backbone.model.state_dict())
    expected = theirs((images() - network.mean) / network.std)
    for route in network.routes:
        assert torch.equal(network.features(images(), route), expected)
    assert expected.shape == (6, network.feature_dim)
    # the projector keeps its batch norms by route
    network.train()(images(), "pgd")
    normal, attacked = (network.eval()(images(), route).embeddings for route in ("normal", "pgd"))
    assert not network.features_by_route and not torch.allclose(normal, attacked)
    assert vit(neck=5).features_by_route


def test_its_weights_are_drawn_as_timm_draws_them_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = vit(), vit(), vit(seed=1)
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=8, patch_size=4).state_dict()
    for name, value in one.backbone.model.state_dict().items():
        assert torch.equal(value, same.backbone.model.state_dict()[name])
        if deviation := theirs[name].std().item():
            assert value.std().item() == pytest.approx(deviation, rel=0.2), name
            assert not torch.equal(value, other.backbone.model.state_dict()[name])
        else:
            assert torch.equal(value, theirs[name]), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's compiler looks at it
@pytest.mark.parametrize("way", ["recompute", pytest.param("compiled", marks=pytest.mark.every_agent)])
def test_blocks_computed_again_or_compiled_give_the_same_gradients(monkeypatch, way: str) -> None:
    monkeypatch.setattr("astra_gym.ssl_core.models.backbones.parts.BACKEND", "aot_eager")
    gradients = []
    for arguments in ({}, {way: True}):
        network = vit(**arguments).double().train()
        nt_xent(network(images().double(), "pgd").embeddings).backward()
        gradients.append([value.grad for value in network.backbone.parameters()])
        assert network.projector.norms[0].by_route["pgd"].num_batches_tracked == 1
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=0, atol=0 if way == "recompute" else 1e-12)


def test_folding_leaves_it_as_it_is_and_bf16_rounds_only() -> None:
    network, half = vit().eval(), vit(precision="bf16").eval()
    moving = images().requires_grad_()
    results = []
    for encode in (network, FoldedNetwork(network)):
        with frozen(network):
            encoded = encode(moving, "pgd")
            results.append((*encoded, *torch.autograd.grad(encoded.embeddings.sum(), moving)))
        assert torch.equal(encode.features(moving, "normal"), encoded.features)
    assert all(torch.equal(*both) for both in zip(*results, strict=True))
    rounded = FoldedNetwork(half)(images(), "pgd")
    assert rounded.features.dtype == torch.float32 and not torch.equal(rounded.features, results[0][0])
    torch.testing.assert_close(rounded.features, results[0][0], rtol=0.05, atol=0.05)


def test_in_eval_mode_every_image_is_alone() -> None:
    network = vit().double().eval()
    x = images().double()
    torch.testing.assert_close(network(x, "pgd").embeddings[2:4], network(x[2:4], "pgd").embeddings)


def test_a_student_starts_from_its_teachers_weights_if_both_are_alike() -> None:
    teacher, student = vit(routes=("normal",), projector="mlp"), vit(seed=1)
    copy_routes(teacher, student, "normal")
    assert torch.equal(teacher.eval().features(images(), "normal"), student.eval().features(images(), "pgd"))
    with pytest.raises(ValueError, match="patch_size is 4 there and 2 here"):
        copy_routes(teacher, vit(patch_size=2), "normal")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "timm:resnet18"}, "expected a vision transformer of timm, such as timm:vit_tiny_patch16_224"),
        ({"arch": "timm:vit_minute_patch16_224"}, "timm has no model 'vit_minute_patch16_224'"),
        ({"arch": "timm:vit_base_patch16_dinov3_qkvb"}, "is a variant: expected a vision transformer with learned"),
        ({"patch_size": 3}, "patches of 3 pixels .* do not divide images of 8: give --patch_size 2, 4"),
        ({"patch_size": None}, "patches of 16 pixels .* do not divide images of 8"),
        ({"width": 4}, "has no width and no stem"),
        ({"image_size": None}, "needs image_size"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TargetNetwork(**{"arch": TINY, "image_size": 8, "patch_size": 4} | arguments)


def test_images_of_another_size_are_refused() -> None:
    network = vit().eval()
    for encode in (network, FoldedNetwork(network)):
        with pytest.raises(ValueError, match="have 16 x 8 pixels: timm:vit_tiny_patch16_224 was built for 8 x 8"):
            encode(torch.rand(2, 3, 16, 8), "pgd")


def test_without_timm_a_name_is_read_and_a_network_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert patch_size_of("timm:vit_small_patch8_224") == 8
    with pytest.raises(MissingTimmError, match=r"timm is not installed: pip install '\.\[timm\]' in the checkout"):
        TimmViT(TINY, 8, 4)
