"""ProFeAT's loss, attack and views by hand; gradients and exact resume are asked of every method alike."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.methods.profeat import ProFeAT
from astra_gym.ssl_core.models.target_network import Encoded, TargetNetwork, build_network
from astra_gym.ssl_core.models.weights.copying import copy_routes
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.transforms.auto_augment import auto_augment
from astra_gym.ssl_core.transforms.views import ViewSettings, weak_views
from astra_gym.ssl_core.utils.training_plan import Moment
from tests.helpers.draws import generator, images

ROUTE = "normal"


def network(seed: int = 0, projector: str = "rocl") -> TargetNetwork:
    sizes = {"projector_hidden": 6, "projector_dim": 5}
    return build_network(generator(seed), arch="resnet10", width=4, routes=(ROUTE,), projector=projector, **sizes)


def learner(method: ProFeAT, projector: str = "rocl", optimizer: str = "sgd") -> TargetLearner:
    """A student that begins as its teacher, of which batch norm has seen images."""
    teacher = network(1, projector).train()
    for seed in range(20):
        teacher(images(seed, 20), ROUTE)
    target = network(0, projector)
    copy_routes(teacher.eval(), target, ROUTE)
    made = make_optimizer(optimizer, target, 0.1, 0.1)
    return TargetLearner(target, method, made, lambda step: 0.1, others={"teacher": teacher})


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([x @ y / math.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)])


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_is_its_equation_in_numpy(weight: float) -> None:
    method = ProFeAT(projection_weight=weight, trades_weight=3.0)
    views, adversarial = drawn(3, 8, 3, 2, 2), drawn(4, 4, 3, 2, 2)
    matrices = {name: (drawn(seed, 12, 5), drawn(seed + 1, 5, 4)) for name, seed in (("s", 10), ("t", 20))}

    def encode(name: str, x: Tensor) -> Encoded:
        features = x.flatten(1) @ matrices[name][0]
        return Encoded(features, features @ matrices[name][1])

    networks = Networks(lambda x, route: encode("s", x), others={"teacher": lambda x, route: encode("t", x)})
    terms = method.losses(networks, views, adversarial)
    (ft, ht), (fs, hs), (fa, ha) = (
        [part.numpy() for part in encode(name, x)]
        for name, x in (("t", views[0::2]), ("s", views[1::2]), ("s", adversarial))
    )
    clean = -(1 - weight) * cosines(ft, fs) - weight * cosines(ht, hs)
    attacked = -(1 - weight) * cosines(fa, fs) - weight * cosines(ha, hs)
    np.testing.assert_allclose(terms["clean"], clean)
    np.testing.assert_allclose(terms["adversarial"], attacked)
    assert method.weights == {"clean": 1.0, "adversarial": 3.0}
    # in the attack both count 1: features against the student's clean ones, projections against the teacher's
    objective = method.objective_for(networks, views)
    z = method.encoded(networks, adversarial, torch.arange(4), attacked=True).embeddings
    np.testing.assert_allclose(objective(z), -cosines(fa, fs) - cosines(ha, ht))


def test_of_chosen_angles_the_loss_has_a_closed_form() -> None:
    e = torch.eye(4).double()
    student = {"x": Encoded(2 * e[:2], e[:2]), "x'": Encoded(-e[:2], 5 * e[2:])}
    networks = Networks(
        lambda x, route: student["x'" if x[0, 0, 0, 0] == 1 else "x"],
        others={"teacher": lambda x, route: Encoded(3 * e[:2], -e[:2])},
    )
    terms = ProFeAT(projection_weight=0.25).losses(networks, torch.zeros(4, 3, 2, 2), torch.ones(2, 3, 2, 2))
    torch.testing.assert_close(terms["clean"], torch.full((2,), -0.75 + 0.25).double())
    torch.testing.assert_close(terms["adversarial"], torch.full((2,), 0.75).double())


def test_the_teacher_sees_weak_views_and_the_student_strong_ones_of_their_own_crops() -> None:
    method, batch, draw, settings = ProFeAT(), images(0), generator(3), ViewSettings(padding=2)
    made = method.make_views(batch, settings, Moment(), generator(3))
    assert torch.equal(made[0::2], weak_views(batch, settings, draw))
    strong = auto_augment(batch, draw)
    assert torch.equal(made[1::2], weak_views(strong, settings, draw)) and not torch.equal(strong, batch)
    assert torch.equal(method.attacked(made), made[1::2])
    assert (method.views_per_image, method.attacked_per_image) == (2, 1)


def test_the_attack_compares_with_train_mode_features_and_changes_no_statistics() -> None:
    target, views = learner(ProFeAT()), images(3, 12)
    before = copy.deepcopy(target._parts.state_dict())
    objective = target.objective(views)
    twin, teacher = copy.deepcopy(target.network).train(), target._other("teacher")
    own = twin(views[1::2], ROUTE).features.detach().numpy()
    reference = teacher(views[0::2], ROUTE).embeddings.detach().numpy()
    features, projections = target.network.eval()(views[1::2], ROUTE)
    expected = -cosines(features.detach().numpy(), own) - cosines(projections.detach().numpy(), reference)
    clean = objective(target.encode_clean(views).embeddings)
    np.testing.assert_allclose(clean, expected, rtol=1e-4, atol=1e-5)
    assert bool((clean > -2 + 1e-4).any())
    end = target.attack(views, Budget.uniform(6, epsilon=8 / 255, step_size=2 / 255, steps=5), generator(5), objective)
    assert bool((objective(end.embeddings) > clean).all())
    assert all(torch.equal(value, before[name]) for name, value in target._parts.state_dict().items())


@pytest.mark.parametrize("projector", ["rocl", "acl"])
@pytest.mark.parametrize("optimizer", ["sgd-classic", "adamw", "lars", "lars-excluded"])
def test_the_projector_is_the_teachers_for_good(projector: str, optimizer: str) -> None:
    target, views = learner(ProFeAT(), projector, optimizer), images(3, 12)
    before = copy.deepcopy(target.network.state_dict())
    for _ in range(3):
        target.update(views, views[1::2].flip(3))
    after = target.network.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("projector.") for name in moved)
    assert "backbone.conv.weight" in moved
    # and it computes as the teacher's does, in an update too
    features = images(0, 4).flatten(1)[:, :32]
    target.train()
    assert torch.equal(target.network.projector(features, ROUTE), target._other("teacher").projector(features, ROUTE))


def test_updates_descend() -> None:
    target, views = learner(ProFeAT()), images(3, 12)
    losses = [target.update(views, views[1::2].flip(3))["total"] for _ in range(10)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("options", [{"projection_weight": 1.1}, {"trades_weight": -1}, {"scratch": 1}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        ProFeAT(**options)  # type: ignore[arg-type]
