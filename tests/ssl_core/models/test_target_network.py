import pytest
import torch
from torch import nn

from astra_gym.ssl_core.models.target_network import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NORMALIZATIONS,
    bf16_is_native,
    build_network,
)
from tests.helpers.draws import generator
from tests.helpers.tiny_networks import tiny_network


def images(n: int = 4, size: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=generator())


@pytest.mark.parametrize(("arch", "expansion"), [("resnet10", 1), ("resnet18", 1), ("resnet34", 1), ("resnet50", 4)])
def test_shapes(arch: str, expansion: int) -> None:
    network = tiny_network(arch=arch)
    encoded = network(images(), "pgd")
    assert encoded.features.shape == (4, 32 * expansion) == (4, network.feature_dim)
    assert encoded.embeddings.shape == (4, 8) == (4, network.embedding_dim)


def test_routes_share_convolutions_and_nothing_of_batch_norm() -> None:
    network = tiny_network().train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(images(), "pgd")
    for name, value in network.named_buffers():
        if "running" in name:
            assert torch.equal(value, before[name]) == ("by_route.normal" in name), name
    for name, parameter in network.named_parameters():
        if "by_route.pgd" in name:
            nn.init.constant_(parameter, 0.5)
    network.eval()
    assert not torch.allclose(network(images(), "pgd").features, network(images(), "normal").features)


def test_normalisation_is_inside() -> None:
    network = tiny_network().eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = network.backbone((images() - mean) / std, "normal")
    torch.testing.assert_close(network.features(images(), "normal"), expected)


def test_same_generator_same_weights_and_the_global_one_is_left_alone() -> None:
    before = torch.get_rng_state()
    a, b = tiny_network(), tiny_network()
    assert torch.equal(before, torch.get_rng_state())
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_in_eval_mode_every_image_is_alone() -> None:
    network = tiny_network().double().eval()
    x = images(6).double()
    torch.testing.assert_close(network(x, "pgd").embeddings[2:4], network(x[2:4], "pgd").embeddings)


def test_bf16_gives_full_precision_outputs_near_those_of_fp32() -> None:
    full, half = tiny_network().eval(), tiny_network(precision="bf16").eval()
    a, b = full(images(), "pgd"), half(images(), "pgd")
    assert b.features.dtype == b.embeddings.dtype == torch.float32
    torch.testing.assert_close(a.features, b.features, rtol=0.1, atol=0.1)
    assert not torch.equal(a.features, b.features)


def test_bad_input_is_refused() -> None:
    network = tiny_network()
    with pytest.raises(ValueError, match="no route 'adv'"):
        network(images(), "adv")
    with pytest.raises(ValueError, match="expected"):
        network(images()[:, :1], "pgd")
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        tiny_network(arch="resnet81")
    with pytest.raises(ValueError, match="width"):
        tiny_network(width=0)
    with pytest.raises(ValueError, match="stem"):
        tiny_network(stem="tiny")
    with pytest.raises(ValueError, match="projector"):
        tiny_network(projector_dim=0)
    with pytest.raises(ValueError, match="did you mean 'mlp'"):
        tiny_network(projector="mpl")
    with pytest.raises(ValueError, match="neck is -1: expected 0 for none"):
        tiny_network(neck=-1)


@pytest.mark.parametrize(("avx512", "amx"), [(True, False), (False, True), (False, False)])
def test_a_processor_computes_in_bfloat16_with_either_instruction_set(monkeypatch, avx512: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert bf16_is_native(torch.device("cpu")) == (avx512 or amx)


def test_what_was_built_before_there_was_a_choice_of_projectors_is_acls() -> None:
    network = tiny_network()
    old = {name: value for name, value in network.arguments.items() if name not in ("projector", "neck")}
    again = build_network(generator(), **old)
    again.load_state_dict(network.state_dict())
    assert again.arguments == network.arguments and network.arguments["projector"] == "acl"
    names = [name for name in network.state_dict() if name.startswith("projector.") and "normal" not in name]
    assert names == [
        *("projector.linears.0.weight", "projector.linears.0.bias"),
        *("projector.linears.1.weight", "projector.linears.2.weight"),
        *(
            f"projector.norms.{index}.by_route.pgd.{leaf}"
            for index in range(3)
            for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ),
    ]


def test_the_neck_gives_the_features_and_the_projector_takes_them() -> None:
    network = tiny_network(neck=6, projector="mlp", projector_hidden=5).eval()
    nn.init.constant_(network.neck.norms[0].by_route["pgd"].bias, -0.1)
    encoded = network(images(), "pgd")
    pooled = network.backbone((images() - network.mean) / network.std, "pgd")
    [linear], [norm] = network.neck.linears, network.neck.norms
    assert linear.bias is None and network.feature_dim == 6 == linear.weight.shape[0]
    features = norm.by_route["pgd"](pooled @ linear.weight.T).clamp(min=0)
    torch.testing.assert_close(encoded.features, features)
    torch.testing.assert_close(network.features(images(), "pgd"), features)
    torch.testing.assert_close(encoded.embeddings, network.projector(features, "pgd"))
    assert (features == 0).any() and not torch.allclose(network.features(images(), "normal"), features)


def test_without_a_projector_the_embeddings_are_the_features() -> None:
    network = tiny_network(projector="none")
    encoded = network.train()(images(), "pgd")
    assert torch.equal(encoded.features, encoded.embeddings)
    assert network.embedding_dim == network.feature_dim == encoded.embeddings.shape[1]
    assert not list(network.projector.parameters())


def test_the_normalisations_are_those_that_they_are_called_by() -> None:
    assert NORMALIZATIONS["imagenet"] == (IMAGENET_MEAN, IMAGENET_STD)
    for name, low, high in (("none", 0, 1), ("half", -1, 1)):
        mean, std = (torch.tensor(values) for values in NORMALIZATIONS[name])
        assert torch.equal((torch.zeros(3) - mean) / std, torch.full((3,), low).float())
        assert torch.equal((torch.ones(3) - mean) / std, torch.full((3,), high).float())
    network = tiny_network(mean=NORMALIZATIONS["cifar"][0], std=NORMALIZATIONS["cifar"][1])
    assert network.mean.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
