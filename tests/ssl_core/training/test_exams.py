"""An exam's value and its gradient."""

import copy

import pytest
import torch

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import strided_budget
from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.training.exams import Exam, gradient, make_exam, value


def test_the_value_is_the_loss_of_clean_and_attacked_views_and_changes_nothing() -> None:
    sizes = {"limit": 30, "test_limit": 30, "batch_size": 4, "image_size": 8, "width": 2, "projector_dim": 8}
    engine = AttackEngine(WorldSettings.given(dataset="digits", precision="fp32", **sizes))
    learner, images = engine.learner, engine.data.test.images[:12].float() / 255
    views = [engine.make_views(part, torch.Generator().manual_seed(1)) for part in images.split(4)]
    before = copy.deepcopy(learner.state_dict())
    exam = make_exam(learner, views, strided_budget(24 / 255, 10), 0.5, torch.Generator().manual_seed(0))
    assert [len(each) for each, _ in exam.batches] == [8, 8, 8]
    found, slope, losses = value(learner, exam), gradient(learner, exam), {}
    after = learner.state_dict()["network"]
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
