"""Residual blocks that are computed again in the backward pass, or compiled: the same updates."""

import copy

import pytest
import torch

from astra_gym.ssl_core.methods import make_method
from astra_gym.ssl_core.models.checkpoint import describe_network
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.route_norm import Untracked
from astra_gym.ssl_core.models.target_network import build_network
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from tests.helpers.draws import generator


def pair(dtype: torch.dtype = torch.float32, chunks: int = 1, **arguments) -> list[TargetLearner]:
    """ASTrA's learner without and with recomputation, equal in all else."""
    rules = make_method("astra")
    made = []
    for recompute in (False, True):
        settings = {"arch": "resnet10", "width": 4, "projector_dim": 8} | arguments | {"recompute": recompute}
        network = build_network(generator(), routes=rules.routes.names, **settings).to(dtype)
        optimizer = make_optimizer("sgd", network, 0.1, 1e-4)
        made.append(TargetLearner(network, rules, optimizer, lambda step: 0.1, chunks))
    return made


def batches(count: int, dtype: torch.dtype = torch.float32, n: int = 8, size: int = 16) -> list[torch.Tensor]:
    return [torch.rand(n, 3, size, size, generator=generator(seed), dtype=dtype) for seed in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "chunks"),
    [
        ({"arch": "resnet10"}, 1),
        ({"arch": "resnet10", "stem": "imagenet"}, 1),
        ({"arch": "resnet50", "width": 2}, 1),
        ({"arch": "resnet10", "precision": "bf16"}, 1),
        ({"arch": "resnet10"}, 2),
    ],
    ids=["basic", "imagenet stem", "bottleneck", "bf16", "chunks"],
)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.every_agent)], ids=str)
def test_updates_are_equal_bit_for_bit(dtype: torch.dtype, arguments: dict, chunks: int) -> None:
    if dtype == torch.float64 and "precision" in arguments:
        pytest.skip("autocast leaves float64 alone")
    plain, again = pair(dtype, chunks, **arguments)
    views = batches(4, dtype)
    for k in range(3):
        assert plain.update(views[k], views[k + 1]) == again.update(views[k], views[k + 1])
        for (name, a), b in zip(plain.network.named_parameters(), again.network.parameters(), strict=True):
            assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad), name
            assert torch.equal(a, b), name
        for (name, a), b in zip(plain.network.named_buffers(), again.network.buffers(), strict=True):
            assert torch.equal(a, b), name
            # once an update, and a chunk: not again where the block is
            assert "tracked" not in name or a == chunks * (k + 1), name


def test_a_variance_that_overflows_is_taken_once_too() -> None:
    """The repeated pass must not touch the running statistics at all: with momentum 0 it would make inf a NaN."""
    variances = []
    for learner in pair():
        network = learner.network.train()
        torch.nn.init.constant_(network.backbone.blocks[0].convs[0].weight, 1e25)
        network(batches(1)[0], "pgd").embeddings.square().sum().backward()
        variances.append(network.backbone.blocks[0].norms[0].by_route["pgd"].running_var)
    assert torch.equal(*variances) and variances[0].isinf().all()


def saved_bytes(learner: TargetLearner, images: torch.Tensor) -> int:
    """Memory that a training pass keeps for the backward pass, without the parameters; shared memory counts once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in learner.network.parameters()}
    kept: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        encoded = learner.network.train()(images, "pgd")
    assert encoded.embeddings.requires_grad
    return sum(kept.values())


def test_less_is_kept_for_the_backward_pass() -> None:
    n, size, width = 8, 32, 4
    images = batches(1, n=n, size=size)[0]
    plain, again = (saved_bytes(learner, images) for learner in pair(width=width))
    full = 4 * n * width * size**2
    # the normalized images (3 channels of 4), the four blocks' inputs, the projector's few
    expected = (3 / 4 + 1 + 1 + 1 / 2 + 1 / 4) * full
    assert expected < again < expected + full / 2
    assert plain > 2.5 * again


def test_only_training_passes_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__) -> None:
        raise RuntimeError("repeated")

    monkeypatch.setattr("astra_gym.ssl_core.models.backbones.parts.checkpoint", refuse)
    [_, learner] = pair()
    images = batches(1)[0]
    learner.network.eval()(images.clone().requires_grad_(), "pgd").embeddings.sum().backward()
    with torch.no_grad():
        learner.network.train()(images, "pgd")
    learner.encode_clean(images)
    with pytest.raises(RuntimeError, match="repeated"):
        learner.network.train()(images, "pgd")


def test_a_checkpoint_does_not_know_of_it() -> None:
    plain, again = (learner.network for learner in pair())
    assert plain.backbone.recompute is False and again.backbone.recompute is True
    assert describe_network(plain)["arguments"] == describe_network(again)["arguments"]
    again.load_state_dict(plain.state_dict())


def test_untracked_norms_use_the_batch_and_keep_their_statistics() -> None:
    network = pair()[0].network.train()
    images = batches(1)[0]
    tracked = copy.deepcopy(network)(images, "normal").embeddings
    before = copy.deepcopy(network.state_dict())
    context = Untracked(network)
    for _ in range(2):
        with context:
            with Untracked(network.backbone):
                pass
            assert torch.equal(network(images, "normal").embeddings, tracked)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    # in eval mode there is nothing to keep, and outside they follow again
    with frozen(network), torch.no_grad():
        expected = network(images, "normal").embeddings
        with context:
            assert torch.equal(network(images, "normal").embeddings, expected)
    network(images, "normal")
    assert network.backbone.norm.by_route["normal"].num_batches_tracked == 1


@pytest.mark.every_agent
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's compiler looks at it
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_make_the_same_updates(monkeypatch: pytest.MonkeyPatch, recompute: bool) -> None:
    """By a backend that traces a graph, forward and backward, and runs it with torch's own operations."""
    monkeypatch.setattr("astra_gym.ssl_core.models.backbones.parts.BACKEND", "aot_eager")
    plain = pair(torch.float64)[0]
    compiled = pair(torch.float64, compiled=True)[recompute]
    assert compiled.network.backbone.compiled and compiled.network.backbone.recompute == recompute
    views = batches(3, torch.float64)
    for k in range(2):
        expected, found = (learner.update(views[k], views[k + 1]) for learner in (plain, compiled))
        assert found == pytest.approx(expected, abs=1e-12)
    for (name, a), b in zip(plain.network.state_dict().items(), compiled.network.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12), name


def test_only_training_passes_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(backend: str) -> None:
        raise RuntimeError(backend)

    monkeypatch.setattr("astra_gym.ssl_core.models.backbones.parts.compiled_part", refuse)
    [learner, _] = pair(compiled=True)
    images = batches(1)[0]
    learner.network.eval()(images.clone().requires_grad_(), "pgd").embeddings.sum().backward()
    learner.encode_clean(images)
    with pytest.raises(RuntimeError, match="inductor"):
        learner.network.train()(images, "pgd")
