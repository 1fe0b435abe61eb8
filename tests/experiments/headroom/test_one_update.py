"""Credit in one update."""

import numpy as np
import pytest
import torch

from astra_gym.experiments.headroom.judges import make_image_exam
from astra_gym.experiments.headroom.one_update import Snapshot, gains, measure_update, variance_shares
from astra_gym.experiments.headroom.world import HeadroomWorld
from astra_gym.experiments.stats import rank_correlation


def test_a_snapshot_brings_a_learner_back_bit_for_bit(tiny_world: HeadroomWorld) -> None:
    engine, _ = tiny_world.started(0)
    learner, views = engine.learner, engine.all_views
    saved, ends = Snapshot(learner), []
    for _ in range(2):
        saved.restore()
        assert learner.step == 6
        for _ in range(2):
            learner.update(views, views)
        ends.append([value.clone() for value in learner.network.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_the_variance_is_divided_into_what_both_judges_see() -> None:
    view, budget = np.array([[1.0], [-1.0]]), np.array([[2.0, 0.0, -2.0]])
    interaction = np.array([[1.0, -2.0, 1.0], [-1.0, 2.0, -1.0]])
    table = 5 + view + budget + interaction
    found = variance_shares(table, table)
    assert [found[name] for name in ("view", "budget", "interaction")] == pytest.approx([6 / 34, 16 / 34, 12 / 34])
    assert found["not_shared"] == pytest.approx(0)
    assert variance_shares(5 + interaction, 3 + view)["not_shared"] == pytest.approx(1)
    with pytest.raises(ValueError, match="the credit of all views and budgets is the same"):
        variance_shares(np.ones((2, 3)), table)


def test_what_a_prefers_is_scored_by_b() -> None:
    a = np.array([[0.0, 3.0, 1.0], [0.0, 1.0, 2.0]])
    b = np.array([[0.0, 10.0, 20.0], [1.0, 2.0, 4.0]])
    found, best = gains(a, b)
    assert best == 1 and found.tolist() == [0.0, 2.0]


@pytest.mark.slow
def test_the_linear_judge_agrees_with_the_real_fall_and_the_learner_is_as_before(tiny_world: HeadroomWorld) -> None:
    engine, images = tiny_world.started(0)
    judges = [make_image_exam(engine, part, 24 / 255, "mean", f"headroom/{at}") for at, part in enumerate(images)]
    before = [value.clone() for value in engine.learner.network.state_dict().values()]
    found = measure_update(tiny_world, engine, judges)
    after = engine.learner.network.state_dict().values()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    a, checked = np.array(found["a"]), np.array(found["checked"])
    assert a.shape == (3, 8) and (a[:, 4] == 0).all() and len(checked) == 14
    assert rank_correlation(checked[:, 0], checked[:, 1]) > 0.9
    assert np.array(found["forward"]).shape == a.shape and any(found["forward"][0])
