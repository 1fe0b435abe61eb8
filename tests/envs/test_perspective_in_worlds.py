"""Perspective distortion in the worlds of every method: which views it touches, which it leaves alone, and resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.methods import METHODS
from astra_gym.ssl_core.transforms.perspective_views import PerspectiveSettings, perspective_views
from astra_gym.ssl_core.transforms.views import as_float
from tests.helpers.method_worlds import encoder_of
from tests.helpers.states import same

KINDS = ["moebius", "lcm"]
ALWAYS = {"perspective_kwargs": {"probability": 1.0}}
SMALLER: dict[str, dict[str, Any]] = {
    "advcl": {"method_kwargs": {"clusters": [2, 3]}},
    "emp-ssl": {"method_kwargs": {"crops": 3}, "neck": 8, "projector": "mlp"},
    "cf-amc-ssl": {"method_kwargs": {"crops": 3}, "neck": 8, "projector": "mlp"},
}
WITH_ORIGINALS = ["advcl", "acl-air", "dynacl-air", "dynacl-air++"]
"""Methods that have the image itself among its views: the last rows of all."""


def world(tiny: dict, method: str, teacher: str, seed: int = 3, **changes: Any) -> AttackEngine:
    taught = encoder_of(method, teacher)
    return AttackEngine(
        WorldSettings.of(**tiny | SMALLER.get(method, {}) | taught | {"method": method} | changes), seed
    )


def uniform(engine: AttackEngine) -> Budget | None:
    return (
        Budget.uniform(engine.num_attacked, epsilon=8 / 255, step_size=2 / 255, steps=2)
        if engine.method.attack.exists
        else None
    )


def originals(engine: AttackEngine) -> int:
    return engine.settings.optimizer.batch_size if engine.settings.method.method in WITH_ORIGINALS else 0


def test_all_methods_with_originals_are_known() -> None:
    assert [name for name in METHODS if METHODS[name].originals_per_image] == WITH_ORIGINALS


@pytest.mark.slow
@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.every_agent) for kind in KINDS[1:])])
@pytest.mark.parametrize("method", METHODS)
def test_every_view_but_the_originals_is_distorted(method: str, kind: str, tiny: dict, teacher: str) -> None:
    plain = world(tiny, method, teacher)
    engine = world(tiny, method, teacher, perspective=kind, **ALWAYS)
    augmented = len(plain.all_views) - originals(plain)
    # both worlds draw alike until the views are made; what comes next in the plain world's stream distorts the other's
    settings = PerspectiveSettings(kind=kind, probability=1.0)
    distorted = perspective_views(plain.all_views[:augmented], settings, plain.streams["views"])
    expected = torch.cat([distorted, plain.all_views[augmented:]])
    assert torch.equal(engine.all_views, expected) and torch.equal(engine.views, engine.method.attacked(expected))
    moved = (engine.views - plain.views).abs().amax(dim=(1, 2, 3))
    assert (moved > 0.01).all()
    assert engine.views.min() >= 0 and engine.views.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["astra", "deacl", "emp-ssl"])
def test_what_is_attacked_and_observed_are_the_distorted_views(
    method: str, kind: str, tiny: dict, teacher: str
) -> None:
    plain = world(tiny, method, teacher)
    engine = world(tiny, method, teacher, perspective=kind, **ALWAYS)
    assert not torch.equal(engine.observe(), plain.observe())
    views = engine.views.clone()
    record, other = engine.play(uniform(engine)), plain.play(uniform(plain))
    assert torch.equal(record.views, views) and not torch.equal(record.views, other.views)
    assert record.adversarial is not None and (record.adversarial - views).abs().max() <= 8 / 255 + 1e-6
    assert record.losses != other.losses and record.reward.isfinite().all()
    # the same images are in the batch: the augmentation draws nothing from the stream of the data
    assert engine.batches.sampler.last.tolist() == plain.batches.sampler.last.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.every_agent) for kind in KINDS[1:])])
@pytest.mark.parametrize("method", WITH_ORIGINALS)
def test_originals_stay_the_images_that_they_are(method: str, kind: str, tiny: dict, teacher: str) -> None:
    plain = world(tiny, method, teacher)
    engine = world(tiny, method, teacher, perspective=kind, **ALWAYS)
    for play in range(3):
        found, b = engine.all_views, tiny["batch_size"]
        images = as_float(engine.data.train.images[engine.batches.sampler.last])
        assert torch.equal(found[-b:], images), play
        assert torch.equal(found[-b:], plain.all_views[-b:]), play
        assert not torch.equal(found[:-b], plain.all_views[:-b]), play
        for each in (engine, plain):
            each.play(uniform(each))


def test_a_view_that_is_attacked_twice_is_distorted_once(tiny: dict, teacher: str) -> None:
    engine = world(tiny, "advcl", teacher, perspective="moebius", **ALWAYS)
    assert torch.equal(engine.views[0::2], engine.views[1::2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "method",
    [
        "astra",
        "emp-ssl",
        *(pytest.param(name, marks=pytest.mark.every_agent) for name in ("deacl", "advcl", "acl-air", "dynacl-air")),
    ],
)
def test_with_probability_0_views_are_those_of_no_perspective(method: str, kind: str, tiny: dict, teacher: str) -> None:
    plain = world(tiny, method, teacher)
    engine = world(tiny, method, teacher, perspective=kind, perspective_kwargs={"probability": 0.0})
    assert torch.equal(engine.all_views, plain.all_views)
    record, other = engine.play(uniform(engine)), plain.play(uniform(plain))
    assert torch.equal(record.reward, other.reward) and record.losses == other.losses
    # later batches are other draws, since coins are thrown in any case: but from one generator the same views are made
    images = as_float(engine.data.train.images[:3])
    views = [each.make_views(images, torch.Generator().manual_seed(5)) for each in (engine, plain)]
    assert torch.equal(*views)


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_probability_between_some_views_are_distorted(kind: str, tiny: dict, teacher: str) -> None:
    plain = world(tiny, "astra", teacher, batch_size=12)
    engine = world(tiny, "astra", teacher, batch_size=12, perspective=kind, perspective_kwargs={"probability": 0.5})
    touched = (engine.views != plain.views).flatten(1).any(dim=1)
    assert 4 < touched.sum() < 20
    assert torch.equal(engine.views[~touched], plain.views[~touched])


@pytest.mark.parametrize("kind", KINDS)
def test_views_that_are_held_out_are_distorted_too(kind: str, tiny: dict, teacher: str) -> None:
    lookahead = {"reward_lookahead": 1.0, "lookahead_images": 5}
    plain = world(tiny, "acl-air", teacher, **lookahead)
    engine = world(tiny, "acl-air", teacher, perspective=kind, **ALWAYS, **lookahead)
    found, other = (each.rewards.state_dict()["lookahead"]["views"] for each in (engine, plain))
    assert (found[:10] - other[:10]).abs().amax(dim=(1, 2, 3)).min() > 0.01
    assert torch.equal(found[10:], other[10:])


GOES_ON = ["astra", "deacl", "emp-ssl", "advcl", "dynacl-air", "cf-amc-ssl"]
FEW = {("astra", "moebius"), ("dynacl-air", "lcm")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        pytest.param(method, kind, marks=() if (method, kind) in FEW else pytest.mark.every_agent)
        for method in GOES_ON
        for kind in KINDS
    ],
)
def test_a_world_with_perspective_goes_on_exactly(
    method: str, kind: str, tiny: dict, teacher: str, tmp_path: Path
) -> None:
    changes = {"perspective": kind, "perspective_kwargs": {"probability": 0.6}}
    engine = world(tiny, method, teacher, **changes)
    engine.play(uniform(engine))
    torch.save(engine.state_dict(), tmp_path / "engine.pt")
    other = world(tiny, method, teacher, seed=99, **changes)
    other.play(uniform(other))
    assert other.load_state_dict(torch.load(tmp_path / "engine.pt", weights_only=True)) == []
    # free training has three updates a batch: the next one is drawn in the third
    for _ in range(3):
        one, two = engine.play(uniform(engine)), other.play(uniform(other))
        assert torch.equal(one.views, two.views) and torch.equal(one.reward, two.reward) and one.losses == two.losses
        assert torch.equal(engine.all_views, other.all_views)
    assert same(engine.state_dict(), other.state_dict())
