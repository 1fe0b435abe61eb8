"""The world of a measurement: which images it uses, and which budgets it tries."""

from dataclasses import replace

import pytest
import torch

from astra_gym.experiments.headroom.world import RUNGS, HeadroomWorld, ladder, mixed
from astra_gym.ssl_core.attacks.pgd import ConstantBudget


def rows_of(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_judges_and_training_share_no_image_and_none_is_a_test_image(tiny_world: HeadroomWorld) -> None:
    engine, judges = tiny_world.started(3)
    data = tiny_world.settings.data.load()
    parts = [rows_of(engine.data.train.images), *map(rows_of, judges)]
    assert [len(part) for part in parts] == [26, 12, 12]
    assert set.union(*parts) == rows_of(data.train.images) and len(set.union(*parts)) == 50
    assert not set.union(*parts) & rows_of(data.test.images)
    assert (engine.step, engine.planned_updates) == (6, 12)
    assert engine.last is not None and engine.last.budget is not None
    assert set(engine.last.budget.steps.tolist()) == {1}
    _, others = tiny_world.started(4)
    assert rows_of(others[0]) != parts[1]


def test_too_few_images_for_a_judge_are_refused(tiny_world: HeadroomWorld) -> None:
    with pytest.raises(ValueError, match="50 training images leave 3 for a judge: expected 4 or more"):
        replace(tiny_world, judge_images=3).started(0)


def test_the_ladder_rises_from_no_attack_to_the_hardest_and_has_the_constant(tiny_world: HeadroomWorld) -> None:
    found = ladder(tiny_world)
    assert len(set(found)) == RUNGS and found[4] == tiny_world.constant
    assert found[0] == ConstantBudget(epsilon=0.0, step_size=0.0, steps=0)
    assert (round(255 * found[-1].epsilon), found[-1].steps) == (96, 14)
    radii = [budget.epsilon for budget in found]
    assert radii == sorted(radii)
    budget = mixed(found, torch.tensor([7, 0, 4]))
    assert budget.steps.tolist() == [14, 0, 1] and budget.epsilon.tolist() == pytest.approx([96 / 255, 0, 48 / 255])
