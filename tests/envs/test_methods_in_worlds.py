"""Worlds of methods that are not ACL's shape: other numbers of views, replays of a batch, coresets, teachers."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import astra_gym  # noqa: F401
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.torch_env import TorchViewEnv
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.methods import METHODS
from astra_gym.ssl_core.training.coreset import validation_rows
from tests.helpers.method_worlds import encoder_of
from tests.helpers.states import same

HEADS = {"emp-ssl": {"neck": 8, "projector": "mlp"}, "cf-amc-ssl": {"neck": 8, "projector": "mlp"}}
OPTIONS: dict[str, dict[str, Any]] = {
    "emp-ssl": {"crops": 3},
    "cf-amc-ssl": {"crops": 3},
    "advcl": {"clusters": [2, 3]},
    "deacl": {},
}
ATTACKED = {"rocl": 1, "deacl": 1, "profeat": 1, "fare": 1, "emp-ssl": 3, "cf-amc-ssl": 3}
"""Attacked views of an image, where they are not two."""


def world(tiny: dict, method: str, teacher: str, **changes: Any) -> AttackEngine:
    own = HEADS.get(method, {}) | {"method_kwargs": OPTIONS.get(method)}
    taught = encoder_of(method, teacher)
    return AttackEngine(WorldSettings.of(**tiny | own | taught | {"method": method} | changes), seed=3)


def uniform(engine: AttackEngine) -> Budget | None:
    return (
        Budget.uniform(engine.num_attacked, epsilon=8 / 255, step_size=2 / 255, steps=2)
        if engine.method.attack.exists
        else None
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_world_shows_pays_and_attacks_what_its_method_says(method: str, tiny: dict, teacher: str) -> None:
    engine = world(tiny, method, teacher)
    n = ATTACKED.get(method, 2) * tiny["batch_size"]
    env = TorchViewEnv(engine)
    assert env.num_envs == n and engine.num_attacked == (n if engine.method.attack.exists else 0)
    assert engine.observe().shape == (n, engine.observation_dim) and engine.observe().isfinite().all()
    clean = engine.views.clone()
    record = engine.play(uniform(engine))
    assert record.reward.shape == (n,) and record.reward.isfinite().all()
    assert torch.equal(record.views, clean)
    if record.adversarial is not None:
        assert record.adversarial.shape == clean.shape
        assert all(values.shape == (n,) for values in record.terms.values())
        assert record.adversarial.min() >= 0 and record.adversarial.max() <= 1
        assert (record.adversarial - clean).abs().max() <= 8 / 255 + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].attack.exists])
def test_within_a_ball_of_radius_0_nothing_moves(method: str, tiny: dict, teacher: str) -> None:
    """With epsilon 0 the attack changes nothing, whatever its random start is."""
    engine = world(tiny, method, teacher)
    record = engine.play(Budget.uniform(engine.num_attacked, epsilon=0.0, step_size=0.0, steps=3))
    assert record.adversarial is not None
    torch.testing.assert_close(record.adversarial, record.views)
    assert record.strength.max() == 0
    if engine.method.routes.attack == engine.method.routes.clean and method != "taro":
        # on one route, and in one mode: what is not attacked is paid nothing
        torch.testing.assert_close(record.terms["adversarial"], record.terms["clean"], rtol=1e-4, atol=1e-4)


def test_a_batch_is_replayed_and_then_follows_the_next(tiny: dict, teacher: str) -> None:
    engine = world(tiny, "cf-amc-ssl", teacher, epochs=1)
    assert (engine.steps_per_epoch, engine.planned_updates) == (9, 9)
    seen = []
    for _ in range(6):
        seen.append(engine.views.clone())
        engine.play(uniform(engine))
    assert all(torch.equal(seen[0], other) for other in seen[1:3])
    assert all(torch.equal(seen[3], other) for other in seen[4:6]) and not torch.equal(seen[0], seen[3])
    assert not engine.last.end_of_epoch and engine.last.epoch == pytest.approx(6 / 9)


SHARES = (0.05, 0.1, 0.2)
LOOKING = {"lookahead_images": 2}
CORESET = {"coreset_warmup": 1, "coreset_every": 2, "coreset_fraction": 0.34, "epochs": 4}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rcs", "random"])
def test_later_epochs_are_over_a_coreset_and_go_on_exactly(kind: str, tiny: dict, teacher: str) -> None:
    engine = world(tiny, "acl", teacher, coreset=kind, **CORESET)
    assert (engine.steps_per_epoch, engine.planned_updates) == (3, 3 + 3 * 1)
    rows, states = [], []
    while engine.step < engine.planned_updates:
        rows.append(sorted(engine.batches.sampler.last.tolist()))
        states.append(copy.deepcopy(engine.state_dict()))
        engine.play(uniform(engine))
    # three batches of the first epoch, then one chosen for two epochs, then another choice
    assert rows[3] == rows[4]
    # what the choice is measured on is in no epoch, those on all data included
    measured = validation_rows(torch.arange(len(engine.data.train)), engine.streams)
    assert len(measured) and not {row for batch in rows for row in batch} & set(measured.tolist())
    assert [engine.plan.ends_epoch(step) for step in range(1, 7)] == [False, False, True, True, True, True]
    for start in (2, 3, 5):
        resumed = world(tiny, "acl", teacher, coreset=kind, **CORESET)
        resumed.load_state_dict(states[start])
        while resumed.step < resumed.planned_updates:
            resumed.play(uniform(resumed))
        assert same(resumed.state_dict(), engine.state_dict()), start


def test_a_coreset_is_chosen_as_its_options_say_and_beside_a_look_ahead(tiny: dict, teacher: str, monkeypatch) -> None:
    import astra_gym.envs.batches as module

    seen: list[Any] = []
    select = module.select

    def watched(*given: Any) -> torch.Tensor:
        seen.append(given)
        return select(*given)

    monkeypatch.setattr(module, "select", watched)
    changes = {"coreset": "rcs", "coreset_kwargs": {"divergence": "ot", "steps": 1}, "reward_lookahead": 1.0}
    changes |= LOOKING | CORESET
    engine, states = world(tiny, "acl", teacher, **changes), []
    while engine.step < engine.planned_updates:
        states.append(copy.deepcopy(engine.state_dict()))
        engine.play(uniform(engine))
    # another seed's world holds out others, until it goes on with this one's
    resumed = AttackEngine(engine.settings, seed=9)
    resumed.load_state_dict(states[2])
    while resumed.step < resumed.planned_updates:
        resumed.play(uniform(resumed))
    assert same(resumed.state_dict(), engine.state_dict())
    (_, rows, measured, *_, settings, _), *_ = seen
    assert (settings.divergence, settings.steps, settings.kind, settings.batches) == ("ot", 1, "rcs", 1)
    looked_at = engine.rewards.held_out
    groups = [set(each.tolist()) for each in (rows, measured, looked_at)]
    assert len(set.union(*groups)) == sum(map(len, groups)) == len(engine.data.train)


def test_coresets_are_whole_batches_rounded_down() -> None:
    kept = {
        share: WorldSettings.of(coreset="rcs", coreset_fraction=share).make_plan(96).reduced_steps for share in SHARES
    }
    # CIFAR-10 in batches of 512, a hundredth held out: int(49500 * share) // 512 in the released code
    assert kept == {share: int(49500 * share) // 512 for share in SHARES} == {0.05: 4, 0.1: 9, 0.2: 19}


def test_the_selection_is_made_on_the_weights_that_the_epoch_has_made(tiny: dict, teacher: str, monkeypatch) -> None:
    import astra_gym.envs.batches as module

    steps: list[int] = []
    select = module.select

    def watched(learner: Any, *given: Any) -> torch.Tensor:
        steps.append(learner.step)
        return select(learner, *given)

    monkeypatch.setattr(module, "select", watched)
    engine = world(tiny, "acl", teacher, coreset="rcs", **CORESET)
    while engine.step < engine.planned_updates:
        engine.play(uniform(engine))
    assert steps == [3, 5]


def test_a_coreset_from_the_first_epoch_on(tiny: dict, teacher: str) -> None:
    engine = world(tiny, "acl", teacher, coreset="random", coreset_warmup=0, coreset_fraction=0.34, epochs=2)
    assert engine.planned_updates == 2 and len(engine.batches.sampler.last) == tiny["batch_size"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "deacl"}, r"deacl learns from a teacher: train one by --method simclr.*cifar10-teacher\)"),
        ({"method": "daq-sdp"}, r"by --preset cifar10-teacher-daq\), and give its run folder"),
        ({"method": "acl", "teacher": "x"}, "acl has none: leave it out"),
        ({"method": "byol", "method_kwargs": {"streams": "a2s"}}, "a2s"),
        ({"method": "emp-ssl", "method_kwargs": {"crops": 1}}, "crops"),
        ({"method": "acl", "method_kwargs": {"stream": "a2s"}}, "unknown setting of the method 'acl'"),
        ({"method": "acl", "method_kwargs": {"streams": 3}}, "streams of the method 'acl' is 3: expected text"),
        ({"method": "rocl", "update_chunks": 2}, "does not take its views in pairs"),
        ({"method": "byol", "coreset": "rcs"}, "but the loss of the method byol is not made of NT-Xents: take"),
        ({"method": "simclr", "coreset": "rcs"}, "but the method simclr has no attack: take"),
        ({"projector": "none", "coreset": "rcs"}, r"but there is no projector \(--projector none\): take"),
        ({"coreset": "random", "coreset_kwargs": {"lr": 0.1}}, "drawn at random has no settings"),
        ({"method": "taro", "reward_lookahead": 1.0}, "is not its loss"),
        ({"perspective": "mobius"}, "did you mean 'moebius'"),
        ({"perspective": "moebius", "perspective_kwargs": {"probability": 2.0}}, "probability is 2.0"),
        ({"perspective": "moebius", "perspective_kwargs": {"p": 0.5}}, "perspective augmentation"),
        ({"coreset": "rsc"}, "did you mean 'rcs'"),
        ({"coreset_fraction": 0}, "coreset_fraction is 0"),
        ({"coreset_warmup": -1}, "coreset_warmup is -1"),
        ({"crop_scale": (0.5,)}, "crop_scale is"),
        ({"jitter": (0.1, 0.2)}, "jitter is"),
        ({"normalization": "cifarr"}, "did you mean 'cifar'"),
        ({"method": "acll"}, "did you mean 'acl'"),
        ({"method": "astra", "method_kwargs": {"mixed_reading": "pair"}}, "did you mean 'pairs'"),
        ({"perspective": "moebius", "perspective_kwargs": {"kind": "lcm"}}, "give it as --perspective"),
        ({"perspective_kwargs": {"probability": 0.5}}, "no perspective augmentation: add --perspective"),
        ({"coreset_fraction": 0.3}, "coreset_fraction is 0.3, but there is no coreset"),
        ({"coreset_kwargs": {"divergence": "js"}}, "coreset_kwargs is .*no coreset"),
        ({"coreset": "rcs", "coreset_kwargs": {"divergence": "jss"}}, "did you mean 'js'"),
        ({"coreset": "rcs", "coreset_kwargs": {"batches": 3}}, "give it as --coreset_fraction"),
        ({"coreset": "rcs", "coreset_kwargs": {"form": "softmaxx"}}, "did you mean 'softmax'"),
        (
            {"coreset": "rcs", "coreset_kwargs": {"divergence": "ot", "form": "softmax"}},
            "coreset_kwargs.form is of the divergences kl and js, and not of ot",
        ),
        ({"coreset_every": 2}, "coreset_every is 2, but there is no coreset"),
        ({"coreset": "random", "epochs": 1}, "begins after 1 epoch on all data, but epochs is 1"),
        ({"method": "byol", "temperature": 0.2}, "loss of the method byol has none"),
        ({"method": "taro", "method_kwargs": {"temperature": 0.2}}, "loss of the method taro has none"),
        ({"method": "emp-ssl", "temperature": 0.2}, "temperature is 0.2, but the loss of the method emp-ssl has none"),
        ({"temperature": 0.2, "method_kwargs": {"temperature": 0.3}}, "method_kwargs.temperature 0.3: give one"),
        ({"mixed_weight": 0.2, "method_kwargs": {"mixed_weight": 0.3}}, "method_kwargs.mixed_weight 0.3: give one"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict, message: str, tiny: dict) -> None:
    with pytest.raises(ValueError, match=message):
        WorldSettings.given(**tiny | changes)


def test_a_shared_figure_may_be_given_among_a_methods_options_too() -> None:
    assert WorldSettings.of(method_kwargs={"temperature": 0.3}).method.make().temperature == 0.3
    assert WorldSettings.of(temperature=0.3, method_kwargs={"temperature": 0.3}).method.make().temperature == 0.3


def test_a_teacher_of_another_shape_or_none_at_all_is_refused(tiny: dict, teacher: str) -> None:
    with pytest.raises(ValueError, match="width"):
        world(tiny, "deacl", teacher, width=4)
    with pytest.raises(ValueError, match="no such checkpoint"):
        world(tiny, "deacl", str(Path(teacher).with_name("other.pt")))


SOURCE = """
from dataclasses import dataclass
from astra_gym.ssl_core.methods import ACL, Method

@dataclass(frozen=True)
class Scalar(ACL):
    def objective(self, z):
        return super().objective(z).mean()

@dataclass(frozen=True)
class Fewer(ACL):
    def attacked(self, views):
        return views[::2]

@dataclass(frozen=True)
class More(ACL):
    views_per_image = 3

@dataclass(frozen=True)
class Extra(ACL):
    def losses(self, networks, views, adversarial):
        return super().losses(networks, views, adversarial) | {"extra": views.mean(dim=(1, 2, 3))}

@dataclass(frozen=True)
class Listed(ACL):
    def losses(self, networks, views, adversarial):
        return list(super().losses(networks, views, adversarial).values())

@dataclass(frozen=True)
class NoRecord(ACL):
    routes = "pgd"

@dataclass(frozen=True)
class Numbers(ACL):
    def losses(self, networks, views, adversarial):
        return {name: values.mean().item() for name, values in super().losses(networks, views, adversarial).items()}

@dataclass(frozen=True)
class Called(ACL):
    def weights(self):
        return {"clean": 0.5, "adversarial": 0.5}

@dataclass(frozen=True)
class Shared(ACL):
    def reward_terms(self, *given):
        return {name: values.mean() for name, values in super().reward_terms(*given).items()}

@dataclass(frozen=True)
class Forgot(ACL):
    def reward_terms(self, *given):
        super().reward_terms(*given)

@dataclass(frozen=True)
class CleanOnly(ACL):
    def reward_terms(self, objective, clean, adversarial):
        return {"clean": objective(clean)}

@dataclass(frozen=True, kw_only=True)
class Needs(ACL):
    strength: float

class Unsaid(Method):
    paper = "none"
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Scalar", r"objective of the method own_methods:Scalar gives \(\): expected a value for each of 8"),
        ("Fewer", "says that attacked_per_image is 2, but has 4 for 4 images"),
        ("More", "says that views_per_image is 3, but has 8 for 4 images"),
        (
            "Extra",
            "losses of Extra are clean, adversarial, extra: expected the terms of its weights, clean, adversarial",
        ),
        ("Listed", "losses of Listed are a list"),
        ("NoRecord", "routes of the method 'own_methods:NoRecord' is 'pgd': expected a record, Routes"),
        ("Numbers", "losses of Numbers give clean as a float: expected a tensor of floats"),
        ("Called", "weights of Called are a method: expected numbers by name, as a property"),
        (
            "Shared",
            r"reward_terms of the method '.*Shared' give 'adversarial' as \(\): expected floats \(8,\)",
        ),
        ("Forgot", "reward_terms of the method 'own_methods:Forgot' give a NoneType: expected values by name"),
        ("CleanOnly", "reward_terms of the method 'own_methods:CleanOnly' give no 'adversarial'"),
        ("Needs", "method 'own_methods:Needs' has no default for strength: every option needs one"),
        ("Unsaid", "lacks losses, weights"),
    ],
)
def test_mistakes_of_a_method_of_ones_own_are_said(name: str, message: str, tiny: dict, tmp_path, monkeypatch) -> None:
    (tmp_path / "own_methods.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_methods", raising=False)
    with pytest.raises(ValueError, match=message):
        engine = AttackEngine(WorldSettings.of(**tiny | {"method": f"own_methods:{name}"}), seed=3)
        engine.play(uniform(engine))


def test_settings_of_a_method_of_ones_own_are_read_without_its_module(tiny: dict) -> None:
    settings = WorldSettings.of(**tiny | {"method": "no_such_module:M"})
    with pytest.raises(ValueError, match="cannot import no_such_module"):
        settings.check_method()
    with pytest.raises(ValueError, match="cannot import no_such_module"):
        AttackEngine(settings)


def test_what_a_class_says_is_no_option(tiny: dict) -> None:
    with pytest.raises(ValueError, match="unknown setting of the method 'acl' 'attack': choose from temp"):
        WorldSettings.of(**tiny | {"method": "acl", "method_kwargs": {"attack": "train"}})


def test_a_free_attack_costs_no_steps_of_its_own(tiny: dict, teacher: str) -> None:
    engine = world(tiny, "cf-amc-ssl", teacher, reward_cost=0.1)
    assert engine.play(uniform(engine)).terms["cost"].max() == 0
    engine = world(tiny, "acl", teacher, reward_cost=0.1)
    assert engine.play(uniform(engine)).terms["cost"].min() == 2


@pytest.mark.parametrize("method", ["deacl", "daq-sdp", "advcl"])
def test_a_teacher_computes_in_float32_whatever_its_run_was_trained_in(
    method: str, tiny: dict, teacher: str, tmp_path: Path
) -> None:
    payload = torch.load(teacher, weights_only=True)
    payload["network"]["arguments"]["precision"] = "bf16"
    torch.save(payload, tmp_path / "half.pt")
    engines = [world(tiny, method, path, precision="fp32") for path in (teacher, str(tmp_path / "half.pt"))]
    # and nothing waits for the device to look at what training gives it
    assert not engines[1].learner.others["teacher"].checks_images
    played = [engine.play(uniform(engine)) for engine in engines]
    assert played[0].losses == played[1].losses and torch.equal(played[0].reward, played[1].reward)
