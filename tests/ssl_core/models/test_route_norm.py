import pytest
import torch
from torch import nn

from astra_gym.ssl_core.models.route_norm import RouteNorm, Untracked

ROUTES = ("normal", "pgd")


def x(spatial: bool = True) -> torch.Tensor:
    return torch.randn((6, 3, 2, 2) if spatial else (6, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_each_route_is_torchs_batch_norm(spatial: bool, affine: bool, shared: bool) -> None:
    norm = RouteNorm(3, ROUTES, spatial, affine, shared)
    plain = (nn.BatchNorm2d if spatial else nn.BatchNorm1d)(3, affine=affine)
    assert torch.equal(norm(x(spatial), "pgd"), plain(x(spatial)))
    assert torch.equal(norm.eval()(x(spatial), "pgd"), plain.eval()(x(spatial)))
    other = norm(x(spatial), "normal")
    assert torch.equal(other, plain(x(spatial))) == shared == (norm.norm("normal") is norm.norm("pgd"))
    assert set(norm.by_route) == ({"shared"} if shared else set(ROUTES))
    assert len(list(norm.parameters())) == affine * 2 * len(norm.by_route)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_untracked_gives_the_same_and_leaves_the_statistics(affine: bool, shared: bool) -> None:
    norm = RouteNorm(3, ROUTES, affine=affine, shared=shared)
    before = {name: value.clone() for name, value in norm.named_buffers()}
    with Untracked(norm):
        quiet = norm(x(), "pgd")
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())
    torch.testing.assert_close(norm(x(), "pgd"), quiet)
    assert not all(torch.equal(value, before[name]) for name, value in norm.named_buffers())
