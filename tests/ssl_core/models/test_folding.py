import weakref

import pytest
import torch

from astra_gym.ssl_core.attacks.pgd import Budget, pgd
from astra_gym.ssl_core.kernels.fixed_conv import PlainConvolution
from astra_gym.ssl_core.kernels.winograd import WinogradProduct
from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.models.folding import FoldedNetwork
from astra_gym.ssl_core.models.projectors import PROJECTORS
from astra_gym.ssl_core.models.target_network import TargetNetwork, build_network
from tests.helpers.draws import generator
from tests.helpers.processors import needs_onednn


def trained(dtype: torch.dtype, **arguments) -> TargetNetwork:
    """A network whose batch-norm statistics and parameters are no longer the initial ones."""
    sizes = {"arch": "resnet10", "width": 8, "projector_dim": 16} | arguments
    network = build_network(generator(), **sizes).to(dtype).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    for step in range(3):
        views = torch.rand(16, 3, 16, 16, generator=generator(step), dtype=dtype)
        loss = nt_xent(network(views, "pgd").embeddings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("arch", ["resnet10", "resnet18", "resnet50"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_it_is_the_same_function_with_the_same_gradient(arch: str, stem: str) -> None:
    network = trained(torch.float64, arch=arch, stem=stem, width=4)
    images = torch.rand(6, 3, 16, 16, generator=generator(9), dtype=torch.float64).requires_grad_()
    folded = FoldedNetwork(network)
    for route in ("normal", "pgd"):
        mine, plain = folded(images, route), network(images, route)
        torch.testing.assert_close(mine.features, plain.features)
        torch.testing.assert_close(mine.embeddings, plain.embeddings)
        for use in (
            lambda out: out.embeddings.square().sum(),
            lambda out: out.features.square().sum(),
            lambda out: out.embeddings.square().sum() + out.features.sum(),
        ):
            gradients = [torch.autograd.grad(use(out), images, retain_graph=True)[0] for out in (mine, plain)]
            torch.testing.assert_close(*gradients)


@pytest.mark.slow
@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize("neck", [0, 12])
@pytest.mark.parametrize("recompute", [False, True])
def test_every_projector_and_a_neck_are_folded_too(projector: str, neck: int, recompute: bool) -> None:
    routes = ("normal", "pgd", "pgd_ce")
    arguments = {"projector": projector, "neck": neck, "routes": routes, "recompute": recompute}
    network = trained(torch.float64, width=2, projector_hidden=24, stem="cifar-padded", **arguments)
    images = torch.rand(5, 3, 9, 9, generator=generator(9), dtype=torch.float64).requires_grad_()
    folded = FoldedNetwork(network)
    for route in routes[:2]:
        mine, plain = folded(images, route), network(images, route)
        assert mine.features.data_ptr() != mine.embeddings.data_ptr()
        assert mine.features.shape[1] == (neck or 16) and mine.embeddings.shape[1] == network.embedding_dim
        for use in (
            lambda out: out.embeddings.pow(3).sum(),
            lambda out: out.features.pow(3).sum(),
            lambda out: out.embeddings.square().sum() + out.features.pow(3).sum(),
        ):
            gradients = [torch.autograd.grad(use(out), images, retain_graph=True)[0] for out in (mine, plain)]
            torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12 * gradients[1].abs().max().item())
            assert gradients[1].abs().max() > 0
        # afterwards: the backward passes have written into nothing that was given out
        for a, b in zip(mine, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_features_alone_are_the_same_without_the_projector(monkeypatch) -> None:
    network = trained(torch.float64, projector="rocl", neck=12)
    images = torch.rand(4, 3, 8, 8, generator=generator(9), dtype=torch.float64).requires_grad_()
    folded = FoldedNetwork(network)
    both = folded(images, "pgd")
    monkeypatch.setattr(network, "projector", None)
    alone = folded.features(images, "pgd")
    assert torch.equal(alone, both.features)
    gradients = [torch.autograd.grad(features.pow(3).sum(), images)[0] for features in (alone, both.features)]
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0


def test_the_gradients_that_come_in_are_left_alone_and_so_are_the_networks_weights() -> None:
    network = trained(torch.float64, projector="rocl", neck=12)
    images = torch.rand(4, 3, 8, 8, generator=generator(9), dtype=torch.float64).requires_grad_()
    folded = FoldedNetwork(network)
    encoded = folded(images, "pgd")
    given = [torch.randn(x.shape, generator=generator(i), dtype=x.dtype) for i, x in enumerate(encoded)]
    kept = [x.clone() for x in given]
    for count in (2, 1):  # both outputs, then the features alone, whose gradient goes on as it came in
        torch.autograd.grad(encoded[:count], images, given[:count], retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))
    # nothing is folded into a linear layer without batch norm: it has to be copied all the same
    first = folded(images.detach(), "pgd").embeddings
    network.projector.linears[0].weight.add_(1.0)
    network.projector.linears[1].bias.add_(1.0)
    assert torch.equal(first, folded(images.detach(), "pgd").embeddings)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("side", [16, 19])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_same_function_in_float32_too(arch: str, stem: str, side: int, layout: torch.memory_format) -> None:
    network = trained(torch.float32, arch=arch, stem=stem, width=4)
    images = torch.rand(5, 3, side, side, generator=generator(9)).contiguous(memory_format=layout).requires_grad_()
    mine, plain = FoldedNetwork(network)(images, "pgd"), network.double()(images.double(), "pgd")
    gradients = []
    for encoded in (mine, plain):
        for value in encoded:
            gradients.append(torch.autograd.grad(value.sum(), images, retain_graph=True)[0].double())
    for a, b in zip((*mine, *gradients[:2]), (*plain, *gradients[2:]), strict=True):
        # single rectifiers may fall on the other side of 0
        assert (a.double() - b).norm() < 2e-3 * b.norm()


@needs_onednn
def test_a_wide_network_multiplies_less_with_many_passes_and_is_the_same_function(monkeypatch) -> None:
    network = trained(torch.float32, width=32)
    images = torch.rand(32, 3, 32, 32, generator=generator(9)).requires_grad_()
    made: list[tuple[int, ...]] = []
    begin = WinogradProduct.__init__
    monkeypatch.setattr(WinogradProduct, "__init__", lambda self, w, bias: made.append(w.shape) or begin(self, w, bias))
    found = []
    for passes in (0, 16):
        mine = FoldedNetwork(network, passes)(images, "pgd")
        found.append((mine.embeddings, *torch.autograd.grad(mine.embeddings.square().sum(), images)))
        assert bool(made) == bool(passes)
    # resnet10's third block has one such convolution, and its last another; each of them forward and backward
    assert sorted(shape[0] for shape in made) == [128, 128, 256, 256]
    for direct, fewer in zip(*found, strict=True):
        assert 0 < (direct - fewer).norm() < 2e-3 * direct.norm()


def test_without_gradients_nothing_is_kept() -> None:
    network = trained(torch.float64)
    images = torch.rand(4, 3, 16, 16, generator=generator(9), dtype=torch.float64)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        quiet = FoldedNetwork(network)(images, "pgd")
        assert not saved
        loud = FoldedNetwork(network)(images.requires_grad_(), "pgd")
    assert saved and not quiet.embeddings.requires_grad and loud.embeddings.requires_grad
    assert torch.equal(quiet.embeddings, loud.embeddings)


@pytest.mark.parametrize("size", [16, 40])
def test_pieces_give_what_the_whole_gives(monkeypatch, size: int) -> None:
    network = trained(torch.float64)
    images = torch.rand(37, 3, size, size, generator=generator(9), dtype=torch.float64).requires_grad_()
    results = []
    for piece in (1, 2**40):
        monkeypatch.setattr("astra_gym.ssl_core.models.target_network.PIECE", piece)
        encoded = FoldedNetwork(network)(images, "normal")
        (gradient,) = torch.autograd.grad(encoded.embeddings.square().sum(), images)
        results.append((*encoded, gradient))
    for split, whole in zip(*results, strict=True):
        torch.testing.assert_close(split, whole)


def test_bfloat16_keeps_the_outputs_type_and_comes_near() -> None:
    network = trained(torch.float32)
    images = torch.rand(8, 3, 16, 16, generator=generator(9)).requires_grad_()
    exact = FoldedNetwork(network)(images, "pgd").embeddings
    network.precision = "bf16"
    encoded = FoldedNetwork(network)(images, "pgd")
    assert encoded.embeddings.dtype == encoded.features.dtype == torch.float32
    (gradient,) = torch.autograd.grad(encoded.embeddings.square().sum(), images)
    assert gradient.dtype == torch.float32
    error = (encoded.embeddings - exact).abs().max() / exact.abs().max()
    assert 0 < error < 0.05


def test_bad_images_and_routes_are_refused() -> None:
    folded = FoldedNetwork(trained(torch.float32))
    with pytest.raises(ValueError, match="no route 'other': it has normal, pgd"):
        folded(torch.rand(2, 3, 16, 16), "other")
    with pytest.raises(ValueError, match="expected \\(n, 3, h, w\\)"):
        folded(torch.rand(2, 1, 16, 16), "pgd")


@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [(torch.float64, "fp32", 1e-9), (torch.float32, "fp32", 1e-3), (torch.float32, "bf16", 1e-2)],
)
def test_an_attack_through_it_attains_the_same_loss(dtype: torch.dtype, precision: str, tolerance: float) -> None:
    network = trained(dtype)
    fast = trained(dtype)
    fast.precision = precision
    images = torch.rand(32, 3, 16, 16, generator=generator(5), dtype=dtype)
    budget = Budget(
        epsilon=torch.full((32,), 8 / 255), step_size=torch.full((32,), 2 / 255), steps=torch.arange(32) % 9
    )
    start = (torch.rand(images.shape, generator=generator(6), dtype=dtype) * 2 - 1) * 8 / 255
    attacked = [
        pgd(
            lambda x, rows, encoder=encoder: encoder(x, "pgd").embeddings,
            lambda z: nt_xent(z, reduction="none"),
            images,
            budget,
            start=start,
        )
        for encoder in (FoldedNetwork(fast), network)
    ]
    clean, *losses = (
        nt_xent(network(x, "pgd").embeddings).item() for x in (images, *(each.images for each in attacked))
    )
    assert losses[1] > 1.05 * clean  # or the attack would show nothing
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    if dtype == torch.float64:
        torch.testing.assert_close(attacked[0].images, attacked[1].images)


def test_it_is_a_copy_and_leaves_the_network_alone() -> None:
    network = trained(torch.float32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.rand(4, 3, 16, 16, generator=generator(5))
    folded = FoldedNetwork(network)
    first = folded(images, "pgd").features
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.backbone.conv.weight.add_(1.0)
    assert torch.equal(first, folded(images, "pgd").features)


def test_train_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="train mode"):
        FoldedNetwork(trained(torch.float32).train())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputing_keeps_the_images_only_and_gives_the_same(precision: str) -> None:
    network = trained(torch.float32, precision=precision)
    images = torch.rand(8, 3, 16, 16, generator=generator(9)).requires_grad_()
    results, kept = [], []
    for recompute in (False, True):
        network.backbone.recompute = recompute
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x) or x, lambda x: x):
            encoded = FoldedNetwork(network)(images, "pgd")
        (gradient,) = torch.autograd.grad(encoded.embeddings.square().sum() + encoded.features.sum(), images)
        results.append((*encoded, gradient))
        kept.append(saved)
    for plain, repeated in zip(*results, strict=True):
        assert torch.equal(plain, repeated)
    assert len(kept[0]) > 5 and [x.shape for x in kept[1]] == [images.shape]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_layers_output_is_freed_where_it_is_not_kept(monkeypatch, recompute: bool) -> None:
    network = trained(torch.float64, arch="resnet18", width=4)
    network.backbone.recompute = recompute
    outputs: list[weakref.ref] = []
    alive = []
    call = PlainConvolution.__call__

    def watched(conv: PlainConvolution, *arguments, **named) -> torch.Tensor:
        output = call(conv, *arguments, **named)
        alive.append(sum(reference() is not None for reference in outputs))
        outputs.append(weakref.ref(output))
        return output

    monkeypatch.setattr(PlainConvolution, "__call__", watched)
    images = torch.rand(2, 3, 16, 16, generator=generator(9), dtype=torch.float64).requires_grad_(recompute)
    FoldedNetwork(network)(images, "pgd")
    assert len(alive) == 20 and max(alive) <= 3  # a block's input, its shortcut's output, and what is convolved
