"""EMP-SSL under PGD and in free adversarial training, against their equations."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from astra_gym.ssl_core.attacks.pgd import Budget, ConstantBudget
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.methods.emp import CFAMCSSL, EMPSSL
from astra_gym.ssl_core.methods.traits import Routes
from astra_gym.ssl_core.models.target_network import TargetNetwork, build_network
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.transforms.views import ViewSettings
from astra_gym.ssl_core.utils.training_plan import Moment, TrainingPlan
from tests.helpers.draws import generator

CROPS, BATCH = 4, 3
N = CROPS * BATCH
EPSILON, STEP = 8 / 255, 1e-2


def network() -> TargetNetwork:
    sizes = {"neck": 6, "projector_hidden": 8, "projector_dim": 5}
    return build_network(generator(), arch="resnet10", width=4, routes=("normal",), projector="mlp", **sizes)


def learner(method: EMPSSL) -> TargetLearner:
    target = network()
    plan = TrainingPlan(2, 4 * method.replays, method.replays)
    return TargetLearner(target, method, make_optimizer("sgd", target, 0.1, 0.0), lambda step: 0.1, moment=plan.moment)


def crops(seed: int = 1) -> torch.Tensor:
    """Away from 0 and 1, where clipping would change perturbations."""
    return 0.2 + 0.6 * torch.rand(N, 3, 8, 8, generator=generator(seed))


def budget(steps: int = 5, epsilon: float = EPSILON) -> Budget:
    return Budget.uniform(N, epsilon=epsilon, step_size=STEP, steps=steps)


def loss_by_hand(z: np.ndarray, invariance: float, epsilon: float) -> float:
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    z = z.reshape(BATCH, CROPS, -1)
    mean = z.mean(axis=1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    agreement = np.mean([z[k, i] @ mean[k] for k in range(BATCH) for i in range(CROPS)])
    d = z.shape[2]
    rates = []
    for i in range(CROPS):
        inner = np.eye(d) + d / (BATCH * epsilon) * z[:, i].T @ z[:, i]
        rates.append(0.5 * np.log(np.linalg.det(inner)))
    return float(-invariance * agreement - np.mean(rates))


@pytest.mark.parametrize("options", [{}, {"invariance": 3.0, "epsilon": 0.5}])
def test_the_loss_is_that_of_the_attacked_crops_alone(options: dict[str, Any]) -> None:
    method = EMPSSL(crops=CROPS, **options)
    target = network().train()
    expected = loss_by_hand(
        copy.deepcopy(target)(crops(2), "normal").embeddings.detach().numpy().astype(np.float64),
        options.get("invariance", 200.0),
        options.get("epsilon", 0.2),
    )
    statistics = copy.deepcopy(target)
    statistics(crops(2), "normal")
    terms = method.losses(Networks(target), crops(1), crops(2))
    assert terms.keys() == method.weights.keys() == {"adversarial"} and terms["adversarial"].shape == (N,)
    assert terms["adversarial"].mean().item() == pytest.approx(expected, rel=1e-5)
    # one pass, of the attacked crops: nothing of the clean ones reaches the statistics
    for name, value in target.state_dict().items():
        assert torch.equal(value, statistics.state_dict()[name]), name
    assert learner(method).update(crops(1), crops(2))["total"] == pytest.approx(expected, rel=1e-5)


def test_reward_terms_are_rows_of_the_loss_within_its_range() -> None:
    method = EMPSSL(crops=CROPS)
    random, equal = torch.randn(N, 5, generator=generator()), torch.eye(5)[:BATCH].repeat_interleave(CROPS, dim=0)
    terms = method.reward_terms(method.objective, equal, random)
    most = BATCH / 2 * math.log(1 + 5 / (BATCH * 0.2))
    # crops that agree, of images that are orthogonal: no loss is lower
    torch.testing.assert_close(terms["clean"], torch.full((N,), -200 - most))
    assert (terms["adversarial"] > -200 - most).all() and (terms["adversarial"] <= 200).all()
    assert terms["adversarial"].mean().item() == pytest.approx(loss_by_hand(random.double().numpy(), 200.0, 0.2))


def test_what_is_attacked_and_how() -> None:
    method, free = EMPSSL(), CFAMCSSL()
    assert method.views_per_image == method.attacked_per_image == 16 and method.num_attacked(100) == 1600
    assert method.default_budget(0) == ConstantBudget(epsilon=8 / 255, step_size=1e-2, steps=5) and method.replays == 1
    assert free.default_budget(7) == ConstantBudget(epsilon=8 / 255, step_size=1e-2, steps=3) and free.replays == 3
    assert CFAMCSSL(m=5).default_budget(0).steps == CFAMCSSL(m=5).replays == 5
    assert (method.attack.free, free.attack.free) == (False, True)
    for each in (method, free):
        assert each.routes == Routes.single("normal")
        assert each.attack.mode == "train" and each.attack.start_radius == 0.0
        assert not each.loss.paired and not each.loss.nt_xent_based


def test_the_crops_of_an_image_follow_each_other() -> None:
    images = torch.rand(BATCH, 3, 8, 8, generator=generator())
    still = ViewSettings(strength=0.0, flip=0.0)
    made = EMPSSL(crops=CROPS).make_views(images, still, Moment(), generator())
    torch.testing.assert_close(made, images.repeat_interleave(CROPS, dim=0))
    made = EMPSSL(crops=CROPS).make_views(images, ViewSettings(), Moment(), generator())
    assert made.shape == (N, 3, 8, 8) and len(made.flatten(1).unique(dim=0)) == N
    again = EMPSSL(crops=CROPS).make_views(images, ViewSettings(), Moment(), generator())
    assert torch.equal(made, again)


def test_crops_follow_the_strength_and_patches_their_size() -> None:
    full = EMPSSL().crop_settings(ViewSettings(jitter=(0.4, 0.4, 0.4, 0.2), interpolation="bilinear"))
    assert full.scale == pytest.approx((0.08, 1)) and full.ratio == (3 / 4, 4 / 3)
    assert (full.jitter, full.jitter_probability, full.gray_probability) == ((0.4, 0.4, 0.4, 0.2), 0.8, 0.2)
    assert (full.blur_probability, full.solarize_probability, full.flip) == (0.1, 0.1, 0.5)
    assert full.interpolation == "bilinear"
    half = EMPSSL().crop_settings(ViewSettings(strength=0.5, flip=0.1))
    assert half.scale == pytest.approx((0.54, 1)) and half.jitter == pytest.approx((0.2, 0.2, 0.2, 0.05))
    assert (half.jitter_probability, half.gray_probability, half.blur_probability) == (0.4, 0.1, 0.05)
    assert half.solarize_probability == 0.05 and half.flip == 0.1
    assert EMPSSL().crop_settings(ViewSettings(strength=0.5, crop=(0.3, 0.9))).scale == (0.3, 0.9)
    patches = EMPSSL(patches=True).crop_settings(ViewSettings(strength=0.5, crop=(0.3, 0.9)))
    assert (patches.scale, patches.ratio) == ((0.25, 0.25), (1.0, 1.0))
    still = EMPSSL(crops=2, patches=True)
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16).contiguous()
    made = still.make_views(ramp, ViewSettings(strength=0.0, flip=0.0), Moment(), generator())
    # a patch is half as wide as the image
    spans = made.amax(dim=(1, 2, 3)) - made.amin(dim=(1, 2, 3))
    assert ((spans - 7 / 15).abs() < 0.05).all()


def test_the_attack_starts_from_nothing_and_raises_the_loss_in_train_mode() -> None:
    method = EMPSSL(crops=CROPS)
    target = learner(method)
    begun = copy.deepcopy(target.network)
    idle = target.attack(crops(), budget(0), generator())
    assert torch.equal(idle.images, crops())
    # the statistics follow the attacked crops, step by step: without one they stay
    assert torch.equal(idle.embeddings, copy.deepcopy(begun).train()(crops(), "normal").embeddings.detach())
    for steps in (0, 1):
        target.attack(crops(), budget(steps), generator())
        if steps:
            begun.train()(crops(), "normal")
        for name, value in target.network.state_dict().items():
            assert torch.equal(value, begun.state_dict()[name]), name
    attacked = target.attack(crops(), budget(), generator())
    assert torch.equal(attacked.images, learner(method).attack(crops(), budget(), generator(9)).images)
    assert 0.9 * EPSILON < (attacked.images - crops()).abs().amax() <= EPSILON + 1e-6

    def loss(images: torch.Tensor) -> float:
        z = network().train()(images, "normal").embeddings.detach()
        return loss_by_hand(z.double().numpy(), 200.0, 0.2)

    assert loss(attacked.images) > loss(crops()) + 5


def test_free_training_takes_each_step_of_the_attack_from_the_last_update() -> None:
    target = learner(CFAMCSSL(crops=CROPS, m=2))
    carried = torch.zeros(N, 3, 8, 8)
    for step in range(5):
        views = crops(1 + step // 2)
        assert target.moment.replay == step % 2
        played = target.carry(views, budget(2)).images
        torch.testing.assert_close(played, views + carried, rtol=0, atol=1e-6)
        reference = copy.deepcopy(target.network).train()
        x = played.clone().requires_grad_()
        target.method.objective(reference(x, "normal").embeddings).mean().backward()
        assert x.grad is not None
        carried = (carried + STEP * x.grad.sign()).clamp(-EPSILON, EPSILON)
        target.update(views, played)
        assert target.step == step + 1
        # one pass an update reaches the statistics
        for name, value in target.network.state_dict().items():
            if "num_batches" in name or "running" in name:
                assert torch.equal(value, reference.state_dict()[name]), name
    assert carried.abs().max() == pytest.approx(EPSILON)


def test_a_budget_of_one_step_moves_its_view_in_the_first_replay_only() -> None:
    target = learner(CFAMCSSL(crops=CROPS, m=2))
    steps = torch.tensor([0, 1, 2] * (N // 3))
    own = Budget(epsilon=torch.full((N,), EPSILON), step_size=torch.full((N,), STEP), steps=steps)
    before = torch.zeros(N, 3, 8, 8)
    for step in range(4):
        played = target.carry(crops(), own).images
        moved = (played - crops() - before).abs().amax(dim=(1, 2, 3)) > 1e-4
        expected = (steps > step % 2) & (step > 0)
        assert torch.equal(moved, expected)
        before = played - crops()
        target.update(crops(), played)


def test_impossible_options_are_refused() -> None:
    for crops_ in (1, 0, 2.5, True):
        with pytest.raises(ValueError, match="expected two or more, since"):
            EMPSSL(crops=crops_)  # type: ignore[arg-type]
    for options, message in (
        ({"patches": 1}, "patches is 1: expected true or false"),
        ({"invariance": -1.0}, "invariance is -1.0: expected a finite number of 0 or more"),
        ({"epsilon": 0.0}, "the coding rate's, is 0.0"),
        ({"epsilon": float("nan")}, "the coding rate's, is nan"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            EMPSSL(**options)  # type: ignore[arg-type]
    for m in (0, 1.5, True):
        with pytest.raises(ValueError, match="expected an integer of 1 or more, the updates of a batch"):
            CFAMCSSL(m=m)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trains on attacked views: none were given"):
        EMPSSL(crops=CROPS).losses(Networks(network()), crops(), None)
