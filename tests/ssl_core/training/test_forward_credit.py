"""Forward-mode credit against explicit gradients, and against what updates really do."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.losses.contrastive import mixed_nt_xent, nt_xent
from astra_gym.ssl_core.training.forward_credit import ForwardCredit, descent


def started(**changes: Any) -> AttackEngine:
    """A world after six updates."""
    sizes = {"limit": 30, "test_limit": 30, "batch_size": 4, "image_size": 8, "width": 2, "epochs": 2, "lr": 3e-4}
    projector = {"projector_hidden": 8, "projector_dim": 8, "precision": "fp32"}
    engine = AttackEngine(WorldSettings.given(dataset="digits", **sizes, **projector, **changes))
    for _ in range(6):
        engine.play(ConstantBudget(epsilon=48 / 255, step_size=32 / 255, steps=1).expand(engine.num_attacked))
    return engine


@pytest.fixture
def engine() -> AttackEngine:
    return started()


def attacked(engine: AttackEngine) -> Tensor:
    budget = engine.last.budget if engine.last is not None else None
    assert budget is not None
    return engine.learner.attack(engine.all_views, budget, torch.Generator().manual_seed(1)).images


def test_every_share_equals_explicit_gradients_in_float64(engine: AttackEngine) -> None:
    learner, views, adversarial = engine.learner, engine.all_views.double(), attacked(engine).double()
    network = learner.network.double()
    weights = list(network.parameters())
    generator = torch.Generator().manual_seed(2)
    way = [torch.randn(weight.shape, generator=generator, dtype=torch.float64) for weight in weights]
    shares = ForwardCredit(learner, views, way).shares(adversarial)
    network.train()
    with learner.untracked():
        z = {"normal": network(views, "normal").embeddings, "pgd": network(adversarial, "pgd").embeddings}
    loss = (nt_xent(z["normal"], 0.5) + nt_xent(z["pgd"], 0.5)) / 2 + 0.5 * mixed_nt_xent(z["normal"], z["pgd"], 0.5)
    slopes = dict(zip(z, torch.autograd.grad(loss, list(z.values()), retain_graph=True), strict=True))

    def explicit(route: str, view: int) -> float:
        through = torch.zeros_like(z[route])
        through[view] = slopes[route][view]
        found = torch.autograd.grad(z[route], weights, through, retain_graph=True, allow_unused=True)
        return sum(float((each * along).sum()) for each, along in zip(found, way, strict=True) if each is not None)

    expected = [explicit("pgd", view) - explicit("normal", view) for view in range(len(views))]
    torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=0)
    assert shares.abs().min() > 1e-9


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_descent_is_what_an_update_does_with_a_small_change_of_the_gradient(optimizer: str) -> None:
    learner = started(optimizer=optimizer).learner
    moments = learner.optimizer.state
    for each in moments.values():
        if "step" in each:
            # late, so that this update alone does not change the scale
            each["step"].fill_(1000)
    state = copy.deepcopy(learner.state_dict())
    generator, weights = torch.Generator().manual_seed(3), list(learner.network.parameters())
    sizes = [
        learner.optimizer.state[weight].get("exp_avg_sq", torch.ones_like(weight)).sqrt() / 30 for weight in weights
    ]
    change = [size * torch.randn(size.shape, generator=generator) for size in sizes]
    expected, ends = descent(learner, change), []
    for extra in (0.0, 1.0):
        learner.load_state_dict(copy.deepcopy(state))
        for group in learner.optimizer.param_groups:
            group["lr"] = learner.lr
        for weight, other in zip(weights, change, strict=True):
            weight.grad = extra * other
        learner.optimizer.step()
        ends.append([weight.detach().clone() for weight in weights])
    moved, wanted = (
        torch.cat([part.flatten() for part in parts])
        for parts in ([one - other for one, other in zip(*ends, strict=True)], expected)
    )
    # weights are float32, so single differences are rounded
    assert float((moved - wanted).norm() / wanted.norm()) < 0.02


def test_an_optimizer_without_a_known_scale_is_refused() -> None:
    learner = started(optimizer="lars").learner
    with pytest.raises(ValueError, match="known for AdamW and SGD, not LARS: give --optimizer adamw or sgd"):
        descent(learner, [torch.zeros_like(weight) for weight in learner.network.parameters()])
