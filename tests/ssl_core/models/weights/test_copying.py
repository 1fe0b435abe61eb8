import pytest
import torch
from torch import nn

from astra_gym.ssl_core.models.target_network import build_network
from astra_gym.ssl_core.models.weights.copying import copy_projector, copy_routes
from tests.helpers.draws import generator
from tests.helpers.tiny_networks import tiny_network


def images(n: int = 4, size: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=generator())


@pytest.mark.parametrize(
    "routes", [("normal",), ("normal", "pgd", "pgd_ce"), ("nature", "strongnature", "weak", "strong")]
)
@pytest.mark.parametrize("projector", ["acl", "advcl", "none"])
def test_every_route_begins_as_the_sources(routes: tuple[str, ...], projector: str) -> None:
    source = tiny_network(neck=6)
    for _ in range(2):
        source.train()(images(), "pgd")
    for name, parameter in source.named_parameters():
        if "by_route.pgd" in name:
            nn.init.uniform_(parameter, 0.5, 1.5, generator=generator())
    target = build_network(
        torch.Generator().manual_seed(1), **source.arguments | {"routes": routes, "projector": projector}
    )
    own = {name: value.clone() for name, value in target.projector.state_dict().items()}
    before = {name: value.clone() for name, value in source.state_dict().items()}
    copy_routes(source, target, "pgd")
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    source.eval(), target.eval()
    wanted = source(images(), "pgd")
    for route in routes:
        encoded = target(images(), route)
        assert torch.equal(encoded.features, wanted.features)
        assert projector != "acl" or torch.equal(encoded.embeddings, wanted.embeddings)
    if projector != "acl":
        assert all(torch.equal(value, own[name]) for name, value in target.projector.state_dict().items())
    # they are copies
    target.backbone.conv.weight.data.zero_()
    assert torch.equal(source(images(), "pgd").features, wanted.features)


def test_a_shared_batch_norm_is_copied_as_one() -> None:
    source, target = tiny_network(projector="advcl"), tiny_network(projector="advcl", routes=("a", "b", "c"))
    source.train()(images(), "pgd")
    copy_routes(source, target, "pgd")
    source.eval(), target.eval()
    assert torch.equal(source(images(), "pgd").embeddings, target(images(), "c").embeddings)


def test_what_does_not_fit_is_named_and_nothing_is_copied() -> None:
    source = tiny_network()
    for arguments, said in (
        ({"arch": "resnet18"}, "arch is resnet10 there and resnet18 here"),
        ({"width": 2, "stem": "imagenet"}, "width is 4 there and 2 here; stem is cifar there and imagenet here"),
        ({"neck": 3}, "neck is 0 there and 3 here"),
        ({"std": (1, 1, 1)}, "std is"),
    ):
        target = tiny_network(**arguments)
        before = {name: value.clone() for name, value in target.state_dict().items()}
        with pytest.raises(ValueError, match=said):
            copy_routes(source, target, "pgd")
        assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    with pytest.raises(ValueError, match="no route 'adv'"):
        copy_routes(source, tiny_network(), "adv")


def test_a_projector_is_copied_alone_and_only_into_its_like() -> None:
    source, target = (
        tiny_network(projector="rocl"),
        tiny_network(projector="rocl", width=4, arch="resnet18", routes=("a", "b")),
    )
    for parameter in source.projector.parameters():
        nn.init.uniform_(parameter, generator=generator())
    before = {name: value.clone() for name, value in target.backbone.state_dict().items()}
    copy_projector(source, target, "pgd")
    features = torch.rand(3, 32, generator=generator())
    assert torch.equal(source.projector(features, "pgd"), target.projector(features, "b"))
    assert all(torch.equal(value, before[name]) for name, value in target.backbone.state_dict().items())
    with pytest.raises(ValueError, match="projector is rocl there and acl here: give --projector rocl"):
        copy_projector(source, tiny_network(), "pgd")
    with pytest.raises(ValueError, match=r"it has no projector \(projector none\)"):
        copy_projector(tiny_network(projector="none"), target, "pgd")
