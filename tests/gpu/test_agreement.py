"""A GPU computes what the CPU does: in float64 to rounding, in the precisions of training as near as these are."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from astra_gym.agents.policies import ResNetExtractor
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget, pgd
from astra_gym.ssl_core.evaluation.corruptions import FAMILIES, corrupt
from astra_gym.ssl_core.evaluation.embedding_metrics import resamples
from astra_gym.ssl_core.evaluation.representation import _statistics
from astra_gym.ssl_core.evaluation.results import Origin
from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.methods import METHODS
from astra_gym.ssl_core.models.checkpoint import describe_network, save_checkpoint
from astra_gym.ssl_core.models.clustering import assign, fit_clusters
from astra_gym.ssl_core.models.folding import FoldedNetwork
from astra_gym.ssl_core.models.target_network import TargetNetwork, build_network
from astra_gym.ssl_core.training.optim import LARS
from astra_gym.ssl_core.utils.device import ieee_fp32
from tests.helpers.draws import generator
from tests.helpers.gpu import SIZES, off
from tests.helpers.method_worlds import encoder_of

CPU = torch.device("cpu")
OPTIONS = {"advcl": {"clusters": (2, 3)}, "emp-ssl": {"crops": 3}, "cf-amc-ssl": {"crops": 3}}
HEADS = {"emp-ssl": {"neck": 8, "projector": "mlp"}, "cf-amc-ssl": {"neck": 8, "projector": "mlp"}}

pytestmark = pytest.mark.gpu


def network(precision: str = "fp32") -> TargetNetwork:
    """In eval mode, in float64, with running statistics of a few batches."""
    made = build_network(generator(), arch="resnet18", width=8, projector_hidden=16, projector_dim=16)
    made.double().train()
    with torch.no_grad():
        for route in made.routes:
            made(torch.rand(32, 3, 16, 16, generator=generator(1), dtype=torch.float64), route)
    made.precision = precision
    return made.eval().requires_grad_(False)


def images(n: int = 24) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=generator(2), dtype=torch.float64)


def outputs_and_gradient(encode: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach().requires_grad_()
    encoded = encode(x, "pgd")
    (slope,) = torch.autograd.grad(nt_xent(encoded.embeddings), x)
    return encoded.features, encoded.embeddings, slope


@pytest.mark.parametrize("folded", [False, True])
def test_outputs_and_gradients_in_float64(gpu: torch.device, folded: bool) -> None:
    here, there = network(), network().to(gpu)
    pair = (FoldedNetwork(here), FoldedNetwork(there)) if folded else (here, there)
    exact = outputs_and_gradient(pair[0], images())
    for found, expected in zip(outputs_and_gradient(pair[1], images().to(gpu)), exact, strict=True):
        assert off(found, expected) < 1e-9


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-4), ("bf16", 5e-2)])
@pytest.mark.parametrize("folded", [False, True])
def test_outputs_in_the_precisions_of_training(gpu: torch.device, precision: str, most: float, folded: bool) -> None:
    exact = network()(images(), "pgd")
    there = network(precision).float().to(gpu, memory_format=torch.channels_last)
    with ieee_fp32(), torch.no_grad():
        found = (FoldedNetwork(there) if folded else there)(images().float().to(gpu), "pgd")
    assert off(found.features, exact.features) < most and off(found.embeddings, exact.embeddings) < most


def test_the_strategy_s_network_in_bf16(gpu: torch.device) -> None:
    with torch.random.fork_rng(devices=[]):
        exact = ResNetExtractor(3, width=8).double().eval().requires_grad_(False)
    there = copy.deepcopy(exact).float().to(gpu)
    there.hasten()
    assert off(there(images().float().to(gpu)), exact(images())) < 5e-2


def test_an_attack_in_float64_from_a_given_start(gpu: torch.device) -> None:
    n = 24
    budget = Budget(
        epsilon=torch.linspace(3, 15, n) / 255, step_size=torch.full((n,), 2 / 255), steps=torch.arange(n) % 6
    )
    start = (torch.rand(n, 3, 16, 16, generator=generator(3), dtype=torch.float64) * 2 - 1) * 8 / 255

    def attacked(device: torch.device) -> Tensor:
        folded = FoldedNetwork(network().to(device))
        return pgd(
            lambda x, _: folded(x, "pgd").embeddings,
            lambda z: nt_xent(z, reduction="none"),
            images(n).to(device),
            budget,
            start=start.to(device),
        ).images

    assert torch.equal(attacked(gpu).cpu(), attacked(CPU))


FEW = {"astra", "simclr", "deacl", "cf-amc-ssl"}


@pytest.mark.parametrize(
    "method", [name if name in FEW else pytest.param(name, marks=pytest.mark.every_agent) for name in METHODS]
)
def test_losses_and_an_update_in_float64(gpu: torch.device, method: str, tmp_path: Path) -> None:
    sizes = {name: SIZES[name] for name in ("width", "projector_hidden", "projector_dim")}
    teacher = build_network(generator(4), arch="resnet10", routes=("normal",), **sizes)
    payload = {"step": 0, "epoch": 0.0, "evaluation_route": "normal", "network": describe_network(teacher)}
    file = str(save_checkpoint(tmp_path / "teacher.pt", "encoder", payload))
    own = {"method": method, "method_kwargs": OPTIONS.get(method), "arch": "resnet10"}
    own |= HEADS.get(method, {}) | encoder_of(method, file)
    engines = [AttackEngine(WorldSettings.of(**SIZES | own), seed=3, device=each) for each in (CPU, gpu)]
    here, there = (engine.learner for engine in engines)
    # made of features in float32, which need not be the same to the last bit
    there.tables = {name: value.to(gpu) for name, value in here.tables.items()}
    views = engines[0].all_views.double()
    clean = here.method.attacked(views)
    noise = 8 / 255 * torch.randn(clean.shape, generator=generator(5), dtype=torch.float64).sign()
    adversarial = (clean + noise).clamp(0, 1) if here.method.attack.exists else None
    losses = []
    for learner, device in ((here, CPU), (there, gpu)):
        for part in (learner.network, learner.heads, learner.others):
            part.double()
        given = None if adversarial is None else adversarial.to(device)
        losses.append(learner.update(views.to(device), given))
    assert losses[1] == pytest.approx(losses[0], rel=1e-9, abs=1e-12)
    states = [learner.network.state_dict() | learner.others.state_dict() for learner in (here, there)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name].cpu(), value, rtol=1e-9, atol=1e-9, msg=name)


def test_lars_in_float64(gpu: torch.device) -> None:
    def trained(device: torch.device) -> list[Tensor]:
        weights = [torch.randn(4, 3, generator=generator(1)), torch.randn(5, generator=generator(2)), torch.zeros(2)]
        weights = [nn.Parameter(weight.double().to(device)) for weight in weights]
        optimizer = LARS(weights, 0.1)
        for step in range(3):
            for index, weight in enumerate(weights):
                weight.grad = torch.randn(weight.shape, generator=generator(10 * step + index)).double().to(device)
            optimizer.step()
        return [weight.detach().cpu() for weight in weights]

    for found, expected in zip(trained(gpu), trained(CPU), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_clusters(gpu: torch.device) -> None:
    features = torch.randn(400, 8, generator=generator(6))
    here = fit_clusters(features, [3, 12], generator(7), starts=2)
    there = fit_clusters(features.to(gpu), [3, 12], generator(7), starts=2)
    for expected, found in zip(here, there, strict=True):
        assert found.device == gpu and off(found, expected) < 1e-9
        assert torch.equal(assign(features.to(gpu), found).cpu(), assign(features, expected))


def test_the_health_of_a_representation(gpu: torch.device) -> None:
    vectors = {"features": torch.randn(40, 6, generator=generator(8))}
    vectors["features/attacked"] = vectors["features"] + 0.1 * torch.randn(40, 6, generator=generator(9))
    origin = Origin(protocol="features", route="pgd", seed=0, checkpoint="here", commit="unknown")
    weights = resamples(40, 50, generator(10))

    def figures(device: torch.device) -> list[float]:
        moved = {name: value.to(device) for name, value in vectors.items()}
        rows = list(_statistics(moved, origin, weights.to(device)))
        return [value for row in rows for value in (row.value, *(row.interval or ()))]

    assert figures(gpu) == pytest.approx(figures(CPU), rel=1e-9)


@pytest.mark.parametrize("name", [name for names in FAMILIES.values() for name in names])
def test_corruptions(gpu: torch.device, name: str) -> None:
    given = (255 * images(8)).to(torch.uint8)
    found, expected = (corrupt(given.to(device), name, 3, generator(11)) for device in (gpu, CPU))
    assert found.device == gpu
    apart = (found.cpu().int() - expected.int()).abs()
    assert apart.max() <= 1 and apart.float().mean() < 1e-3
