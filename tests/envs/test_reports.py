"""What a world reports of its attacks on request, and attacks that stop early."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from astra_gym.envs.api.protocol import REPORTS, ReportingEnv, ViewsEnv
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.torch_env import TorchBatchEnv, TorchViewEnv
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.methods import METHODS
from astra_gym.ssl_core.methods.contrastive import ACL
from tests.helpers.states import same

BUDGET = Budget(
    epsilon=torch.full((8,), 12 / 255), step_size=torch.full((8,), 4 / 255), steps=torch.tensor([0, 1, 2, 3] * 2)
)


def world(tiny: dict[str, Any], **more: Any) -> AttackEngine:
    return AttackEngine(WorldSettings.of(**(tiny | more)), seed=3)


def test_reports_are_of_the_attack_that_was_played_and_change_no_bit(tiny: dict[str, Any]) -> None:
    silent, asked = world(tiny), world(tiny)
    asked.reports.request("attack/slope", "attack/gain", "attack/retrieved")
    copied: AttackEngine = pickle.loads(pickle.dumps(asked))
    for _ in range(4):
        plain, record = silent.play(BUDGET), asked.play(BUDGET)
        assert plain.reports == {} and record.reports.keys() == {"attack/slope", "attack/gain", "attack/retrieved"}
        assert plain.terms.keys() == record.terms.keys() and torch.equal(plain.reward, record.reward)
        assert same(silent.state_dict(), asked.state_dict())
        assert same(record.reports, copied.play(BUDGET).reports)
        assert ((record.reports["attack/slope"] > 0) == (BUDGET.steps > 0)).all()
        assert torch.equal(record.reports["attack/gain"], record.terms["adversarial"] - record.terms["clean"])
    # the network that the attack sees is gone after the update, so the next attack is made beforehand too
    start = torch.Generator()
    start.set_state(asked.streams.on_device("noise").get_state())
    beforehand = asked.learner.attack(asked.all_views, BUDGET, start).embeddings
    assert torch.equal(asked.play(BUDGET).reports["attack/retrieved"], asked.method.retrieved(beforehand))


def test_a_stopped_attack_is_recorded_and_paid_with_the_steps_it_took(tiny: dict[str, Any]) -> None:
    engine = world(tiny, attack_stop="retrieval", reward_cost=0.5, method="acl")
    engine.reports.request("attack/stopped")
    most = Budget.uniform(8, epsilon=40 / 255, step_size=4 / 255, steps=9)
    taken = []
    for _ in range(9):
        record = engine.play(most)
        assert record.budget is not None and (record.budget.steps <= 9).all()
        assert torch.equal(record.reports["attack/stopped"], record.budget.steps < 9)
        assert torch.equal(record.terms["cost"], record.budget.steps.float())
        taken.append(record.budget.steps)
    steps = torch.stack(taken)
    assert (steps == 0).any() and steps.float().mean() < 9
    # from 50/120 of the run on an attack that succeeded at its start takes one step, from 90/120 on two
    assert [int(row.min()) for row in steps] == [0, 0, 0, 0, 1, 1, 1, 2, 2]


def test_an_attack_that_is_tried_out_counts_the_steps_it_took(tiny: dict[str, Any]) -> None:
    engine = world(tiny, attack_stop="retrieval", method="acl")
    engine.try_out(Budget.uniform(8, epsilon=40 / 255, step_size=4 / 255, steps=9))
    assert 0 <= engine.play(BUDGET).other_steps < 72


def test_places_name_image_and_slot_of_the_coming_views(tiny: dict[str, Any]) -> None:
    env = TorchViewEnv(world(tiny))
    assert isinstance(env, ViewsEnv)
    seen = []
    for _ in range(3):
        places = env.places()
        assert places.dtype == torch.int64 and torch.equal(places[0::2] + 1, places[1::2])
        assert torch.equal(places[0::2] // 2, env.engine.batches.sampler.last)
        seen.append(places)
        env.play(torch.zeros(8, 3, dtype=torch.int64))
    assert len(torch.cat(seen).unique()) == 24
    batch = TorchBatchEnv(world(tiny))
    assert isinstance(batch, ReportingEnv) and not isinstance(batch, ViewsEnv)
    batch.request("attack/slope")
    assert batch.play(torch.zeros(1, 3, dtype=torch.int64)).info["attack/slope"].shape == (8,)


def test_refusals(tiny: dict[str, Any], teacher: str) -> None:
    engine = world(tiny)
    with pytest.raises(ValueError, match=r"unknown report 'slop'.*did you mean 'attack/slope'"):
        engine.reports.request("slop")
    with pytest.raises(
        ValueError, match=r"cannot report attack/stopped \(.*\): it never does: make it with attack_stop"
    ):
        engine.reports.request("attack/slope", "attack/stopped")
    assert engine.reports.requested == set() and set(REPORTS) == {
        "attack/slope",
        "attack/gain",
        "attack/retrieved",
        "attack/stopped",
    }
    with pytest.raises(ValueError, match=r"cannot report attack/retrieved .* does not contrast attacked views"):
        world(tiny, method="deacl", teacher=teacher).reports.request("attack/retrieved")
    with pytest.raises(ValueError, match=r"cannot report attack/slope .* has no attack steps of its own"):
        world(tiny, method="cf-amc-ssl", method_kwargs={"crops": 2}).reports.request("attack/slope")
    with pytest.raises(ValueError, match=r"cannot report attack/gain .* has no attack steps of its own"):
        world(tiny, method="cf-amc-ssl", method_kwargs={"crops": 2}).reports.request("attack/gain")


def test_the_methods_that_contrast_attacked_views_with_each_other() -> None:
    assert {name for name, kind in METHODS.items() if kind().retrieves} == {
        *("acl", "astra", "astra++", "dynacl", "dynacl++", "acl-air", "dynacl-air", "dynacl-air++")
    }
    assert not ACL(streams="a2s").retrieves

    class Other(ACL):
        def objective(self, z: Tensor) -> Tensor:
            return z.square().sum(1)

    assert ACL().retrieves and not Other().retrieves
