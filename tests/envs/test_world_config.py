import math
from dataclasses import replace

import pytest
import torch

from astra_gym.envs.builders import build_learner, make_schedule
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import TrainingPlan


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "astr"}, "did you mean 'astra'"),
        ({"dataset": "digit"}, "did you mean 'digits'"),
        ({"arch": "resnet81"}, "did you mean 'resnet18'"),
        ({"stem": "x"}, "stem"),
        ({"optimizer": "lar"}, "did you mean 'lars'"),
        ({"precision": "fp16"}, "precision"),
        ({"reward_scope": "image"}, "reward scope"),
        ({"mixed_reading": "x"}, "mixed reading"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"batch_size": 4.5}, "batch_size is 4.5"),
        ({"batch_size": "4"}, "batch_size is '4'"),
        ({"cache_dir": "here"}, "cache_dir is 'here', but digits is not decoded"),
        ({"dataset": "folder", "data_dir": "x", "cache_dir": ""}, "cache_dir is empty: expected a path"),
        ({"data_dir": ""}, "data_dir is empty"),
        ({"precision": "bf16", "stem": "imagenet"}, "images of 16 pixels shrink to one before the last stage"),
        ({"precision": "bf16", "image_size": 4}, "take --precision fp32, or larger images"),
        ({"dataset": "cifar10", "cache_dir": "here"}, "cache_dir is 'here', but cifar10 is not decoded"),
        ({"keep_data": "hos"}, "unknown place to keep the data 'hos'.*did you mean 'host'"),
        ({"update_chunks": 0}, "update_chunks is 0"),
        ({"update_chunks": 2.0}, "update_chunks is 2.0"),
        ({"update_chunks": 9, "batch_size": 8}, "update_chunks is 9: more than the batch's 8 images"),
        ({"update_chunks": 5, "batch_size": 8}, "update_chunks is 5: .*at most 4"),
        ({"recompute": "yes"}, "recompute is 'yes'"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"download": "no"}, "download is 'no': expected true or false"),
        ({"data_dir": 3}, "data_dir is 3: expected a path"),
        ({"teacher": math.nan}, "teacher is nan: expected a path"),
        ({"method_kwargs": "x"}, "method_kwargs is 'x': expected settings by name"),
        ({"perspective_kwargs": [1]}, r"perspective_kwargs is \[1\]: expected settings by name"),
        ({"coreset_kwargs": {1: 2}}, r"coreset_kwargs is \{1: 2\}: expected settings by name"),
        ({"crop_scale": 0.5}, "crop_scale is 0.5: expected 2 numbers"),
        ({"crop_scale": (0.5, math.nan)}, r"crop_scale is \(0.5, nan\): expected 2 numbers"),
        ({"jitter": None}, "jitter is None: expected 4 numbers"),
        ({"jitter": (0.1, 0.1, 0.1, True)}, "expected 4 numbers"),
        ({"flip": None}, "flip is None"),
        ({"interpolation": "bicubi"}, "did you mean 'bicubic'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"temperature": 0.0}, "temperature"),
        ({"strength": 1.5}, "strength"),
        ({"flip": -0.1}, "flip"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"warmup_start": 1.2}, r"warmup_start is 1.2: expected a share of the peak learning rate, in \[0, 1\]"),
        ({"final_lr": -1e-3}, "final_lr is -0.001: expected 0 to the peak learning rate, 0.003"),
        ({"lr_interval": "epochs"}, "unknown interval of the learning rate 'epochs'.*did you mean 'epoch'"),
        ({"blur": 1.5}, "blur is 1.5"),
        ({"solarize": -0.1}, "solarize is -0.1"),
        ({"reward_clean": math.inf}, "reward_clean"),
        ({"reward_cost": math.nan}, "reward_cost is nan"),
        ({"reward_lookahead": math.inf}, "reward_lookahead is inf"),
        ({"reward_progress": "1"}, "reward_progress is '1'"),
        ({"lookahead_images": 1}, "lookahead_images is 1: expected 2 or more"),
        ({"lookahead_images": 2.0}, "lookahead_images is 2.0"),
        ({"method": "acl", "mixed_weight": 0.1}, "only the methods astra"),
        ({"method": "acl", "reward_mixed": 0.1}, "only the methods astra"),
        ({"attack_start": "zeros"}, "unknown attack start 'zeros': choose from uniform, zero; did you mean 'zero'"),
        ({"method": "simclr", "attack_start": "zero"}, "attack_start is zero, but simclr has no such attack"),
        ({"method": "cf-amc-ssl", "attack_start": "zero"}, "cf-amc-ssl has no such attack: leave it out"),
    ],
)
def test_bad_settings_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldSettings(**setting)


def test_a_learner_is_built_as_the_settings_say() -> None:
    settings = WorldSettings(method="acl", width=4, projector_hidden=6, projector_dim=5, optimizer="sgd", lr=0.3)
    learner = build_learner(settings, Streams(0), plan=TrainingPlan(settings.epochs, 10))
    assert learner.network.feature_dim == 32 and learner.network.embedding_dim == 5
    assert learner.network.routes == ("normal", "pgd")
    assert type(learner.optimizer).__name__ == "SGD"
    assert learner.schedule(10) == 0.3 and learner.schedule(0) == 0
    assert learner.update_chunks == 1 and not learner.network.backbone.recompute
    settings = WorldSettings(width=4, update_chunks=3, recompute=True)
    learner = build_learner(settings, Streams(0), plan=TrainingPlan(settings.epochs, 10))
    assert learner.update_chunks == 3 and learner.network.backbone.recompute


def test_the_attack_of_a_world_starts_where_its_settings_say(tiny: dict) -> None:
    budget = Budget.uniform(8, epsilon=8 / 255, step_size=0.0, steps=1)
    own, clean = (AttackEngine(WorldSettings(**tiny, attack_start=start), 3) for start in (None, "zero"))
    assert own.play(budget).strength.min() > 0 and not clean.play(budget).strength.any()
    ball = AttackEngine(WorldSettings(**tiny, method="acl", attack_start="uniform"), 3).play(budget)
    # it is what acl has anyway
    assert torch.equal(ball.reward, AttackEngine(WorldSettings(**tiny, method="acl"), 3).play(budget).reward)


def test_the_learning_rate_may_follow_the_epochs_of_a_run() -> None:
    settings = WorldSettings(lr=0.8, epochs=6, warmup_epochs=2, warmup_start=0.25, final_lr=0.2, lr_interval="epoch")
    plan = settings.make_plan(3)
    rates = [make_schedule(settings, plan)(step) for step in range(plan.total)]
    # epochs 1 and 2 warm up, 3 to 6 are at 0, 1/4, 1/2 and 3/4 of the cosine
    cosine = [0.2 + 0.3 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates == pytest.approx([rate for rate in (0.2, 0.8, *cosine) for _ in range(3)])
    # nothing said, the first epoch is one of the steps of the warm-up
    assert make_schedule(replace(settings, warmup_start=None), plan)(0) == pytest.approx(0.4)
    assert make_schedule(replace(settings, warmup_start=None, lr_interval="update"), plan)(0) == 0
    # with a coreset later epochs are shorter; with a single epoch there is no warm-up
    coreset = replace(settings, coreset="random", coreset_warmup=1, coreset_fraction=0.34)
    plan = coreset.make_plan(3)
    rates = [make_schedule(coreset, plan)(step) for step in range(plan.total)]
    assert rates == pytest.approx([0.2, 0.2, 0.2, 0.8, *cosine])
    assert make_schedule(replace(settings, epochs=1), TrainingPlan(1, 3))(2) == 0.8


def test_the_learning_rate_is_the_optimizers_usual_one() -> None:
    assert [WorldSettings(optimizer=name).peak_lr for name in ("lars", "sgd", "adamw")] == [5.0, 0.3, 3e-3]
    assert WorldSettings(optimizer="lars", lr=0.1).peak_lr == 0.1
    assert WorldSettings(warmup_epochs=10, epochs=5).warmup_updates(4) == 10
    assert WorldSettings(warmup_epochs=2, epochs=5).warmup_updates(4) == 8
