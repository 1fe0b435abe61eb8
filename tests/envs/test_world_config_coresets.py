"""How coresets are chosen by default, against notes on the released code of RCS (section 9)."""

import math
from dataclasses import replace

import pytest

from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.training.coreset import CoresetSettings


def test_a_coresets_epochs_are_the_released_ones_in_proportion() -> None:
    # section 9: the first 100 of 1000 epochs on all data, then a selection every 20
    settings = WorldSettings(method="acl", coreset="rcs", epochs=1000)
    assert settings.coreset_epochs == (100, 20)
    plan = settings.make_plan(100)
    assert (plan.steps_in(99), plan.steps_in(100)) == (100, 20)
    expected = {1: (1, 1), 10: (1, 1), 11: (2, 1), 99: (10, 1), 100: (10, 2), 149: (15, 2), 150: (15, 3)}
    assert {epochs: WorldSettings(epochs=epochs).coreset_epochs for epochs in expected} == expected
    for epochs in range(1, 100):
        first, every = WorldSettings(epochs=epochs).coreset_epochs
        assert first == max(1, math.ceil(epochs / 10)) and every == 1
    # what is given wins, each for itself
    assert replace(settings, coreset_warmup=0).coreset_epochs == (0, 20)
    assert replace(settings, coreset_every=7).coreset_epochs == (100, 7)


def test_a_coreset_is_chosen_as_released() -> None:
    chosen = CoresetSettings(batches=1)
    assert (chosen.kind, chosen.divergence, chosen.lr, chosen.steps) == ("rcs", "kl", 0.01, 3)
    # KL of scaled values without a softmax; gradients of weights only
    assert (chosen.form, chosen.biases) == ("released", False)
    assert (chosen.epsilon, chosen.step_size) == pytest.approx((8 / 255, 10 / 3 / 255))
