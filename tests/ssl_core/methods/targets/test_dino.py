"""DINO: pairs of views, center, temperatures, resting prototypes and averaged heads, by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.methods.targets.dino import DINO, CleanDINO
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.transforms.views import ViewSettings
from astra_gym.ssl_core.utils.training_plan import Moment
from tests.helpers.draws import generator
from tests.helpers.target_learners import ATTACKED, VIEWS, learner


def outputs(made: TargetLearner, images: Tensor, route: str) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of student and teacher, as the next update computes them."""
    alike = copy.deepcopy(made)
    alike.network.train()
    alike.others.train()
    found = []
    with torch.no_grad():
        for network, prefix in ((alike.network, ""), (alike.others["momentum"], "momentum_")):
            z = network(images, route).embeddings
            for layer, linear in enumerate(alike.heads[f"{prefix}bottleneck"].linears):
                z = linear(torch.nn.functional.gelu(z) if layer else z)
            w = alike.heads[f"{prefix}prototypes"].linear.weight
            found.append(((z / z.norm(dim=1, keepdim=True)) @ (w / w.norm(dim=1, keepdim=True)).T).numpy())
    return found[0], found[1]


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def test_the_loss_is_the_mean_over_pairs_of_a_wide_view_and_another() -> None:
    made = learner("dino-clean", local_crops=3)
    local = torch.rand(12, 3, 8, 8, generator=generator(3))
    center = np.zeros(9)
    for _ in range(3):
        (s, t), (crops, _) = outputs(made, VIEWS, "normal"), outputs(made, local, "normal")
        p, logs, crop_logs = softmax((t - center) / 0.07), np.log(softmax(s / 0.1)), np.log(softmax(crops / 0.1))
        pairs = []
        for image in range(4):
            for u in (0, 1):
                own = p[2 * image + u]
                pairs.append(-own @ logs[2 * image + 1 - u])
                pairs += [-own @ crop_logs[3 * image + crop] for crop in range(3)]
        assert len(pairs) == 4 * (2 + 2 * 3)
        assert made.update(torch.cat([VIEWS, local]), None)["clean"] == pytest.approx(np.mean(pairs), rel=1e-4)
        center = 0.9 * center + 0.1 * t.mean(axis=0)
        np.testing.assert_allclose(made.heads["center"].center_normal.numpy(), center, rtol=1e-4, atol=1e-6)


def test_each_stream_has_its_own_center() -> None:
    made = learner("dino", center_momentum=0.6)
    expected = {"normal": np.zeros(9), "pgd": np.zeros(9)}
    for _ in range(2):
        for route, images in (("normal", VIEWS), ("pgd", ATTACKED)):
            expected[route] = 0.6 * expected[route] + 0.4 * outputs(made, images, route)[1].mean(axis=0)
        made.update(VIEWS, ATTACKED)
    for route, center in expected.items():
        np.testing.assert_allclose(
            made.heads["center"].get_buffer(f"center_{route}").numpy(), center, rtol=1e-4, atol=1e-6
        )


def test_prototypes_rest_first_and_the_teachers_heads_follow() -> None:
    made = learner("dino", decay=0.1, momentum_start=0.8)
    slow = {name: value.clone() for name, value in made.heads.named_parameters() if name.startswith("momentum_")}
    assert {name.split(".")[0] for name in slow} == {"momentum_bottleneck", "momentum_prototypes"}
    for step in range(4):
        before = made.heads["prototypes"].linear.weight.clone()
        others = [value.clone() for value in made.heads["bottleneck"].parameters()]
        made.update(VIEWS, ATTACKED)
        # an epoch has two updates
        assert torch.equal(before, made.heads["prototypes"].linear.weight) == (step < 2)
        assert not any(map(torch.equal, others, made.heads["bottleneck"].parameters()))
        share = 1 - 0.2 * (1 + np.cos(np.pi * step / 6)) / 2
        trained = dict(made.heads.named_parameters())
        slow = {
            name: share * value + (1 - share) * trained[name.removeprefix("momentum_")].detach()
            for name, value in slow.items()
        }
    for name, value in slow.items():
        torch.testing.assert_close(made.heads.get_parameter(name), value)
        assert not made.heads.get_parameter(name).requires_grad
    assert made.optimizer.state[made.heads["prototypes"].linear.weight].keys() == {"momentum_buffer"}


def test_the_teachers_temperature_rises_by_the_epoch() -> None:
    method = CleanDINO(teacher_warmup=3, teacher_start=0.04, teacher_temperature=0.07)
    found = [method.sharpness(Moment(epoch=epoch, epochs=9)) for epoch in range(5)]
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07])
    assert CleanDINO().sharpness(Moment()) == 0.07


def test_views_are_wide_ones_and_then_local_ones() -> None:
    method = DINO(local_crops=2, local_scale=(0.1, 0.2))
    # a gradient whose range in a view is about the side of its crop
    images = torch.linspace(0, 1, 32).expand(5, 3, 32, 32).contiguous()
    plain = ViewSettings(jitter_probability=0, gray_probability=0, crop=(0.9, 1.0), ratio=(1.0, 1.0))
    views = method.make_views(images, plain, Moment(), generator())
    assert views.shape == (20, 3, 32, 32) and method.views_per_image == 4 and method.num_attacked(5) == 10
    side = views.flatten(1).amax(dim=1) - views.flatten(1).amin(dim=1)
    assert side[:10].min() > 0.9 and side[10:].max() < 0.5 and side[10:].min() > 0.25
    assert torch.equal(method.attacked(views), views[:10])
    assert not method.loss.paired and DINO().loss.paired and DINO().views_per_image == 2


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="local crops are a part of the clean stream"):
        DINO(streams="a2a", local_crops=2)
    with pytest.raises(ValueError, match="crop is"):
        CleanDINO(local_scale=(0.5, 0.2))
    with pytest.raises(ValueError, match="teacher_temperature is 0"):
        CleanDINO(teacher_temperature=0)
    with pytest.raises(ValueError, match="prototypes is 0"):
        CleanDINO(prototypes=0)
