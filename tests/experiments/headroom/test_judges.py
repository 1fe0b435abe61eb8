"""A judge's value and its gradient."""

import copy

import pytest
import torch

from astra_gym.experiments.headroom.judges import Exam, gradient, make_exam, value
from astra_gym.experiments.headroom.world import HeadroomWorld
from astra_gym.ssl_core.losses.contrastive import nt_xent


def test_the_value_is_the_loss_of_clean_and_attacked_views_and_changes_nothing(tiny_world: HeadroomWorld) -> None:
    engine, images = tiny_world.started(0)
    before = copy.deepcopy(engine.state_dict()["learner"])
    exam = make_exam(engine, images[0], 24 / 255, "mean", "headroom/judge A")
    assert [len(views) for views, _ in exam.batches] == [8, 8, 8]
    learner, losses = engine.learner, {}
    found, slope = value(learner, exam), gradient(learner, exam)
    after = engine.state_dict()["learner"]["network"]
    assert all(torch.equal(after[name], kept) for name, kept in before["network"].items())
    with learner.untracked(), torch.no_grad():
        for route, which in (("normal", 0), ("pgd", 1)):
            rows = [learner.network.train()(batch[which], route).embeddings for batch in exam.batches]
            losses[route] = sum(float(nt_xent(z, 0.5)) for z in rows) / 3
    assert found == pytest.approx((losses["normal"] + losses["pgd"]) / 2, rel=1e-6)
    assert value(learner, Exam(exam.batches, 1.0)) == pytest.approx(losses["pgd"], rel=1e-6)
    strongest = max((attacked - views).abs().max() for views, attacked in exam.batches)
    assert float(strongest) == pytest.approx(24 / 255, abs=1e-6)
    with torch.no_grad():
        for weight, way in zip(learner.network.parameters(), slope, strict=True):
            weight.sub_(1e-5 * way)
    assert found - value(learner, exam) == pytest.approx(1e-5 * sum(float((way**2).sum()) for way in slope), rel=0.05)
