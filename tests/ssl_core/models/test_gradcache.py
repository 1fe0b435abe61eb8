import copy

import pytest
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.methods import Method, make_method
from astra_gym.ssl_core.models.gradcache import ChunkedNetwork, chunk_sizes
from astra_gym.ssl_core.models.target_network import Encoded, TargetNetwork
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from tests.helpers.draws import generator
from tests.helpers.tiny_networks import tiny_network


def small(**arguments) -> TargetNetwork:
    return tiny_network(**arguments).double()


def images(n: int, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=generator(seed), dtype=torch.float64)


def loss(network, views: Tensor, adversarial: Tensor, method: Method) -> Tensor:
    return torch.stack(
        [method.weights[name] * values.mean() for name, values in method.losses(network, views, adversarial).items()]
    ).sum()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["simclr", "acl", "astra"])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_frozen_statistics_give_the_gradient_of_the_undivided_batch(name: str, chunks: int) -> None:
    method = make_method(name)
    whole = small(routes=method.routes.names).train()
    whole(images(16, seed=9), method.routes.names[-1])
    whole.eval()
    divided = copy.deepcopy(whole)
    views, attacked = images(14), images(14, seed=2)
    expected = loss(whole, views, attacked, method)
    expected.backward()
    proxy = ChunkedNetwork(divided, chunks)
    value = loss(proxy, views, attacked, method)
    value.backward()
    assert not gradients(divided)
    proxy.backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(divided), gradients(whole), rtol=1e-9, atol=1e-12)


def test_in_train_mode_it_is_ghost_batch_norm() -> None:
    """A plain twin: every chunk through the network by itself, one loss over all, ordinary autograd."""
    method = make_method("astra")
    plain = small().train()
    divided = copy.deepcopy(plain)
    views, attacked = images(14), images(14, seed=2)

    def ghost(rows: Tensor, route: str) -> Encoded:
        parts = [plain(rows[first:last], route) for first, last in ((0, 6), (6, 10), (10, 14))]
        return Encoded(torch.cat([part.features for part in parts]), torch.cat([part.embeddings for part in parts]))

    loss(ghost, views, attacked, method).backward()
    proxy = ChunkedNetwork(divided, 3)
    loss(proxy, views, attacked, method).backward()
    proxy.backward()
    torch.testing.assert_close(gradients(divided), gradients(plain), rtol=1e-9, atol=1e-12)
    for (name, buffer), other in zip(plain.named_buffers(), divided.buffers(), strict=True):
        assert torch.equal(buffer, other), name
        assert "tracked" not in name or buffer == 3, name
    # and not what the undivided batch gives
    undivided = small().train()
    loss(undivided, views, attacked, method).backward()
    assert not torch.allclose(undivided.backbone.conv.weight.grad, divided.backbone.conv.weight.grad, rtol=0.01)


def test_features_get_their_gradient_too() -> None:
    views = images(8)
    for pick in (lambda e: e.features, lambda e: e.embeddings, lambda e: torch.cat([e.features, e.embeddings], 1)):
        whole = small().eval()
        divided = copy.deepcopy(whole)
        pick(whole(views, "normal")).cos().sum().backward()
        proxy = ChunkedNetwork(divided, 2)
        pick(proxy(views, "normal")).cos().sum().backward()
        proxy(views, "pgd")  # a call that the loss does not use
        proxy.backward()
        torch.testing.assert_close(gradients(divided), gradients(whole), rtol=1e-9, atol=1e-12)


def test_a_call_without_gradient_is_not_repeated() -> None:
    network = small().eval()
    proxy = ChunkedNetwork(network, 2)
    with torch.no_grad():
        encoded = proxy(images(8), "normal")
    assert not encoded.embeddings.requires_grad
    torch.testing.assert_close(encoded.embeddings, network(images(8), "normal").embeddings.detach())
    proxy.backward()
    assert not gradients(network)


def test_one_chunk_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    network, sizes = small().train(), []
    forward = TargetNetwork.forward

    def watched(self, rows: Tensor, route: str) -> Encoded:
        sizes.append((len(rows), torch.is_grad_enabled()))
        return forward(self, rows, route)

    monkeypatch.setattr(TargetNetwork, "forward", watched)
    proxy = ChunkedNetwork(network, 3)
    proxy(images(14), "pgd").embeddings.square().sum().backward()
    assert sizes == [(6, False), (4, False), (4, False)]
    proxy.backward()
    assert sizes[3:] == [(6, True), (4, True), (4, True)]
    proxy.backward()
    assert len(sizes) == 6


@pytest.mark.parametrize(
    ("batch", "chunks", "sizes"),
    [(8, 1, [8]), (1, 1, [1]), (8, 4, [2, 2, 2, 2]), (7, 3, [3, 2, 2]), (11, 4, [3, 3, 3, 2])],
)
def test_chunks_are_as_equal_as_possible(batch: int, chunks: int, sizes: list[int]) -> None:
    assert chunk_sizes(batch, chunks) == sizes


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="update_chunks is 9: more than the batch's 8 images"):
        chunk_sizes(8, 9)
    with pytest.raises(ValueError, match=r"update_chunks is 5: .*too few for batch norm, .* at most 4"):
        chunk_sizes(8, 5)
    proxy = ChunkedNetwork(small().train(), 2)
    with pytest.raises(ValueError, match="there are 7 views: expected pairs"):
        proxy(images(7), "pgd")
    with pytest.raises(ValueError, match="detach them"):
        proxy(images(8).requires_grad_(), "pgd")
    with pytest.raises(ValueError, match="at most 1"):
        proxy(images(4), "pgd")


def learner(chunks: int | None, recompute: bool = False) -> TargetLearner:
    method = make_method("astra")
    network = small(recompute=recompute)
    options = {} if chunks is None else {"update_chunks": chunks}
    return TargetLearner(network, method, make_optimizer("sgd", network, 0.1, 0.0), lambda step: 0.1, **options)


def test_one_chunk_goes_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astra_gym.ssl_core.training.learner.ChunkedNetwork", None)
    ordinary, one = learner(None), learner(1)
    for k in range(2):
        assert ordinary.update(images(8, k), images(8, k + 1)) == one.update(images(8, k), images(8, k + 1))
    for a, b in zip(ordinary.network.state_dict().values(), one.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_learner_descends_in_chunks_and_takes_one_step_an_update() -> None:
    target = learner(2)
    losses = [target.update(images(8), images(8, 2))["total"] for _ in range(10)]
    assert losses[-1] < losses[0] and target.step == 10
    assert target.network.backbone.norm.by_route["pgd"].num_batches_tracked == 20
