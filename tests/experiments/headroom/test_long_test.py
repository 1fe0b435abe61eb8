"""The long test: its arms start alike, and the shuffle has the same budgets."""

from dataclasses import replace

import pytest
import torch

from astra_gym.experiments.headroom.judges import make_image_exam
from astra_gym.experiments.headroom.long_test import measure_updates
from astra_gym.experiments.headroom.world import HeadroomWorld
from astra_gym.ssl_core.training.exams import value


@pytest.mark.slow
def test_the_constant_is_the_run_itself_and_the_shuffle_has_the_chosen_budgets(
    tiny_world: HeadroomWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, images = tiny_world.started(0)
    judges = [make_image_exam(engine, part, 24 / 255, "mean", f"headroom/{at}") for at, part in enumerate(images)]
    start, played, play = [value(engine.learner, judge) for judge in judges], [], type(engine).play

    def recording(self, budget):
        played.append(budget.epsilon)
        return play(self, budget)

    monkeypatch.setattr(type(engine), "play", recording)
    found = measure_updates(tiny_world, engine, judges, 0)
    assert len(played) == 5 * 2
    chosen, shuffled = played[:2], played[2:4]
    for one, other in zip(chosen, shuffled, strict=True):
        assert torch.equal(one.sort().values, other.sort().values)
    assert any(not torch.equal(one, other) for one, other in zip(chosen, shuffled, strict=True))
    assert sum(found["chosen"]) == pytest.approx(1, abs=1e-3)
    # an engine that trains on under the constant, with nothing tried in between
    plain, _ = tiny_world.started(0)
    for _ in range(2):
        plain.play(tiny_world.constant.expand(plain.num_attacked))
    expected = [before - value(plain.learner, judge) for before, judge in zip(start, judges, strict=True)]
    assert found["falls"]["constant"] == pytest.approx(expected, rel=1e-6)


def test_a_run_that_ends_before_is_refused(tiny_world: HeadroomWorld) -> None:
    engine, _ = tiny_world.started(0)
    with pytest.raises(ValueError, match="half a run leaves 6 updates, less than --updates 7: raise --epochs"):
        measure_updates(replace(tiny_world, updates=7), engine, [], 0)
