import math
import re
from typing import Any

import pytest
import torch

from astra_gym.envs.builders import build_learner
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import TrainingPlan
from tests.helpers.method_worlds import encoder_of


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        # of one section, found in the world too
        ({"method": "astr"}, "did you mean 'astra'"),
        ({"batch_size": 1}, "batch_size is 1"),
        # of several
        ({"precision": "bf16", "stem": "imagenet"}, "images of 16 pixels shrink to one before the last stage"),
        ({"precision": "bf16", "image_size": 4}, "take --precision fp32, or larger images"),
        ({"method": "acl", "mixed_weight": 0.1}, "only the methods astra"),
        ({"method": "acl", "reward_mixed": 0.1}, r"^reward_weights\.mixed is 0\.1: only the methods astra"),
        ({"method": "acl", "reward_weights": {"mixed": 0.1}}, "only the methods astra"),
        ({"method": "simclr", "attack_start": "zero"}, "attack_start is zero, but simclr has no such attack"),
        ({"method": "cf-amc-ssl", "attack_start": "zero"}, "cf-amc-ssl has no such attack: leave it out"),
        (
            {"method": "byol", "attack_stop": "retrieval"},
            r"attack_stop is retrieval .*, but byol does not",
        ),
    ],
)
def test_bad_settings_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldSettings.of(**setting)


def test_a_learner_is_built_as_the_settings_say() -> None:
    settings = WorldSettings.of(method="acl", width=4, projector_hidden=6, projector_dim=5, optimizer="sgd", lr=0.3)
    learner = build_learner(settings, Streams(0), plan=TrainingPlan(settings.optimizer.epochs, 10))
    assert learner.network.feature_dim == 32 and learner.network.embedding_dim == 5
    assert learner.network.routes == ("normal", "pgd")
    assert type(learner.optimizer).__name__ == "SGD"
    assert learner.schedule(10) == 0.3 and learner.schedule(0) == 0
    assert learner.update_chunks == 1 and not learner.network.backbone.recompute
    settings = WorldSettings.of(width=4, update_chunks=3, recompute=True)
    learner = build_learner(settings, Streams(0), plan=TrainingPlan(settings.optimizer.epochs, 10))
    assert learner.update_chunks == 3 and learner.network.backbone.recompute


def test_the_attack_of_a_world_starts_where_its_settings_say(tiny: dict) -> None:
    budget = Budget.uniform(8, epsilon=8 / 255, step_size=0.0, steps=1)
    own, clean = (AttackEngine(WorldSettings.of(**tiny, attack_start=start), 3) for start in (None, "zero"))
    assert own.play(budget).strength.min() > 0 and not clean.play(budget).strength.any()
    ball = AttackEngine(WorldSettings.of(**tiny, method="acl", attack_start="uniform"), 3).play(budget)
    # it is what acl has anyway
    assert torch.equal(ball.reward, AttackEngine(WorldSettings.of(**tiny, method="acl"), 3).play(budget).reward)


def test_the_learning_rate_may_follow_the_epochs_of_a_run() -> None:
    settings = WorldSettings.of(lr=0.8, epochs=6, warmup_epochs=2, warmup_start=0.25, final_lr=0.2, lr_interval="epoch")
    plan = settings.make_plan(3)
    rates = [settings.optimizer.schedule(plan)(step) for step in range(plan.total)]
    # epochs 1 and 2 warm up, 3 to 6 are at 0, 1/4, 1/2 and 3/4 of the cosine
    cosine = [0.2 + 0.3 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates == pytest.approx([rate for rate in (0.2, 0.8, *cosine) for _ in range(3)])
    # nothing said, the first epoch is one of the steps of the warm-up
    assert settings.replace(warmup_start=None).optimizer.schedule(plan)(0) == pytest.approx(0.4)
    assert settings.replace(warmup_start=None, lr_interval="update").optimizer.schedule(plan)(0) == 0
    # with a coreset later epochs are shorter; with a single epoch there is no warm-up
    coreset = settings.replace(coreset="random", coreset_warmup=1, coreset_fraction=0.34)
    plan = coreset.make_plan(3)
    rates = [coreset.optimizer.schedule(plan)(step) for step in range(plan.total)]
    assert rates == pytest.approx([0.2, 0.2, 0.2, 0.8, *cosine])
    assert settings.replace(epochs=1).optimizer.schedule(TrainingPlan(1, 3))(2) == 0.8


def test_what_is_left_to_a_run_is_settled_in_a_world_alone() -> None:
    settings = WorldSettings()
    assert settings == WorldSettings.of() == WorldSettings.of(drop_last=True, precision="fp32", reward_scope="view")
    assert (settings.data.drop_last, settings.optimizer.precision, settings.reward.reward_scope) == (
        True,
        "fp32",
        "view",
    )


def test_a_target_of_steps_that_no_attack_has_is_refused() -> None:
    priced, stops = {"reward_cost": 0.1}, {"attack_stop": "retrieval", "method": "acl"}
    ranges = {"action_steps": (0, 4, 6)}
    for given in ({"cost_target": 3}, {"cost_target": 14}, {"cost_target": 0.5} | ranges, {"cost_target": 1} | stops):
        assert WorldSettings.given(**priced, **given).reward.cost_target == given["cost_target"]
    for given, message in (
        ({"cost_target": 14.5}, "cost_target is 14.5, but attacks of this world have 3 to 14 steps: give a number"),
        ({"cost_target": 2.9}, "cost_target is 2.9, but attacks of this world have 3 to 14 steps"),
        ({"cost_target": 7} | ranges, "cost_target is 7, but attacks of this world have 0 to 6 steps"),
        ({"cost_target": 15} | stops, "have 0 to 14 steps"),
        ({"cost_target": 3, "method": "cf-amc-ssl"}, "cf-amc-ssl has no attack steps: leave it out"),
        ({"cost_target": 3, "method": "simclr"}, "simclr has no attack steps: leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            WorldSettings.given(**priced, **given)
        # the record of an earlier run is still read
        assert WorldSettings.of(**priced, **given).reward.cost_target == given["cost_target"]


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown setting 'epoch': choose from .* did you mean 'epochs'"):
        WorldSettings.of(epochs=3, epoch=3)


LOCAL = {"method": "dino", "projector": "none"}
SMALL_DINO = {"hidden": 6, "bottleneck": 4, "prototypes": 5}
IDLE: list[tuple[dict[str, Any], str, Any]] = [
    *(({"method": name}, "strength", 0.9) for name in ("deacl", "daq-sdp", "profeat", "fare")),
    ({"method": "deacl"}, "crop_scale", (0.3, 0.4)),
    ({"method": "daq-sdp"}, "jitter", (0.1, 0.2, 0.1, 0.0)),
    ({"method": "profeat"}, "blur", 1.0),
    ({"method": "deacl"}, "solarize", 1.0),
    ({"method": "fare"}, "interpolation", "bilinear"),
    ({"method": "emp-ssl", "method_kwargs": {"crops": 2, "patches": True}}, "crop_scale", (0.3, 0.4)),
    ({"method": "daq-sdp", "method_kwargs": {"gamma": 0.0}}, "method_kwargs.perturbed_from", 0.0),
    ({"method": "daq-sdp", "method_kwargs": {"perturbed_from": 1.0}}, "method_kwargs.gamma", 0.5),
    ({"method": "acl-air", "method_kwargs": {"sir_weight": 0.0, "air_weight": 0.0}}, "method_kwargs.form", "kl"),
    (LOCAL | {"method_kwargs": SMALL_DINO}, "method_kwargs.teacher_start", 0.01),
    (LOCAL | {"method_kwargs": SMALL_DINO}, "method_kwargs.local_scale", (0.1, 0.2)),
    ({"method": "swav", "method_kwargs": {"prototypes": 5, "queue_size": 0}}, "method_kwargs.queue_epochs", 0),
    ({"method": "acl", "perspective": "lcm"}, "perspective_kwargs.d", 3.0),
    ({"method": "acl", "perspective": "lcm"}, "perspective_kwargs.magnitude", (0.1, 0.1)),
    ({"warmup_epochs": 0}, "warmup_start", 0.5),
    ({"warmup_epochs": 1, "lr_interval": "epoch"}, "warmup_start", 0.5),
    ({}, "lookahead_images", 5),
    *(({}, f"judge_{name}", 100) for name in ("images", "batch", "steps", "redraw")),
    *(({}, f"judge_{name}", 0.5) for name in ("block", "until")),
    ({"reward_alignment": 1.0, "judge_images": 4, "judge_batch": 2}, "judge_redraw", 3),
]
"""Settings of a world, and one that changes nothing there."""


def with_setting(settings: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    group, _, option = name.partition(".")
    return settings | {group: {**settings.get(group, {}), option: value} if option else value}


@pytest.mark.parametrize(("settings", "name", "value"), IDLE)
def test_a_setting_that_changes_nothing_is_refused_where_it_is_given(
    settings: dict[str, Any], name: str, value: Any, tiny: dict, teacher: str
) -> None:
    base = tiny | encoder_of(settings.get("method", "astra"), teacher) | settings
    WorldSettings.given(**base)
    with pytest.raises(ValueError, match=f"{re.escape(name)} is .*, so it changes nothing: leave it out"):
        WorldSettings.given(**with_setting(base, name, value))
    runs = []
    for each in (base, with_setting(base, name, value)):
        engine = AttackEngine(WorldSettings.of(**each), seed=3)
        budget = Budget.uniform(engine.num_attacked, epsilon=0.05, step_size=0.02, steps=1)
        runs.append([engine.play(budget).reward for _ in range(3)] + list(engine.learner.network.state_dict().values()))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_what_has_an_effect_is_taken() -> None:
    for settings in (
        {"method_kwargs": {"teacher_start": 0.01, "teacher_warmup": 2}, "method": "dino"},
        {"method_kwargs": {"local_scale": (0.1, 0.2), "local_crops": 1}, "method": "dino"},
        {"method": "emp-ssl", "crop_scale": (0.3, 0.4)},
        {"warmup_epochs": 2, "warmup_start": 0.5, "lr_interval": "epoch"},
        {"reward_judge": 1.0, "judge_redraw": 2, "judge_block": 0.5},
        {"reward_alignment": 1.0, "judge_steps": 3},
        {"reward_lookahead": 1.0, "lookahead_images": 5},
        {"judge_epsilon": 8 / 255, "judge_score": "mean"},
        {"perspective": "lcm", "perspective_kwargs": {"probability": 0.1}},
        {"blur": None, "method": "deacl", "teacher": "a file", "flip": 0.5},
        # the linear probe after the run flips its images too
        {"method": "fare", "init_from": "a file", "flip": 0.5},
    ):
        WorldSettings.given(**settings)
