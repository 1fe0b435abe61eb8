"""The sections on the optimizer and on coresets; defaults of coresets against notes on RCS's code (section 9)."""

import math

import pytest

from astra_gym.ssl_core.training.coreset import CoresetSettings
from astra_gym.ssl_core.training.settings import CoresetSection, OptimizerSection


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"optimizer": "lar"}, "did you mean 'lars'"),
        ({"precision": "fp16"}, "precision"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"batch_size": 4.5}, "batch_size is 4.5"),
        ({"batch_size": "4"}, "batch_size is '4'"),
        ({"update_chunks": 0}, "update_chunks is 0"),
        ({"update_chunks": 2.0}, "update_chunks is 2.0"),
        ({"update_chunks": 9, "batch_size": 8}, "update_chunks is 9: more than the batch's 8 images"),
        ({"update_chunks": 5, "batch_size": 8}, "update_chunks is 5: .*at most 4"),
        ({"recompute": "yes"}, "recompute is 'yes'"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"warmup_start": 1.2}, r"warmup_start is 1.2: expected a share of the peak learning rate, in \[0, 1\]"),
        ({"final_lr": -1e-3}, "final_lr is -0.001: expected 0 to the peak learning rate, 0.003"),
        ({"lr_interval": "epochs"}, "unknown interval of the learning rate 'epochs'.*did you mean 'epoch'"),
    ],
)
def test_bad_settings_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerSection(**setting)


def test_the_learning_rate_is_the_optimizers_usual_one() -> None:
    assert [OptimizerSection(optimizer=name).peak_lr for name in ("lars", "sgd", "adamw")] == [5.0, 0.3, 3e-3]
    assert OptimizerSection(optimizer="lars", lr=0.1).peak_lr == 0.1
    assert OptimizerSection(warmup_epochs=10, epochs=5).warmup_updates(4) == 10
    assert OptimizerSection(warmup_epochs=2, epochs=5).warmup_updates(4) == 8


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"coreset": "rc"}, "did you mean 'rcs'"),
        ({"coreset_kwargs": {1: 2}}, r"coreset_kwargs is \{1: 2\}: expected settings by name"),
        ({"coreset_kwargs": {"kind": "rcs"}}, "coreset_kwargs have 'kind': give it as --coreset"),
        ({"coreset_fraction": 0}, r"coreset_fraction is 0: expected a share in \(0, 1\]"),
        ({"coreset_every": 0}, "coreset_every is 0: expected an integer of 1 or more"),
    ],
)
def test_bad_settings_of_a_coreset_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoresetSection(**setting)


def test_a_coresets_epochs_are_the_released_ones_in_proportion() -> None:
    # section 9: the first 100 of 1000 epochs on all data, then a selection every 20
    section = CoresetSection(coreset="rcs")
    expected = {1: (1, 1), 10: (1, 1), 11: (2, 1), 99: (10, 1), 100: (10, 2), 149: (15, 2), 150: (15, 3)}
    expected |= {1000: (100, 20)}
    assert {epochs: section.calendar(epochs) for epochs in expected} == expected
    for epochs in range(1, 100):
        assert section.calendar(epochs) == (max(1, math.ceil(epochs / 10)), 1)
    # what is given wins, each for itself
    assert CoresetSection(coreset="rcs", coreset_warmup=0).calendar(1000) == (0, 20)
    assert CoresetSection(coreset="rcs", coreset_every=7).calendar(1000) == (100, 7)


def test_a_coreset_is_chosen_as_released() -> None:
    chosen = CoresetSettings(batches=1)
    assert (chosen.kind, chosen.divergence, chosen.lr, chosen.steps) == ("rcs", "kl", 0.01, 3)
    # KL of scaled values without a softmax; gradients of weights only
    assert (chosen.form, chosen.biases) == ("released", False)
    assert (chosen.epsilon, chosen.step_size) == pytest.approx((8 / 255, 10 / 3 / 255))
