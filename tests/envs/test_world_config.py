import math

import pytest
import torch

from astra_gym.envs.builders import build_learner
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import TrainingPlan


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
