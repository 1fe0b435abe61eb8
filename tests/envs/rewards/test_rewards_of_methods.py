"""Every term of the reward in the worlds of every method that attacks: finite, paid as stated, and resumed exactly."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.records import StepRecord
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.methods import METHODS
from tests.helpers.method_worlds import encoder_of
from tests.helpers.states import same
from tests.helpers.tiny_worlds import TINY as SMALL

TINY: dict[str, Any] = {**SMALL, "warmup_epochs": 0}
"""Steps in milliseconds, and weights that move from the first update on."""
WORLDS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name, method in METHODS.items() if method.attack.exists},
    "acl a2s": {"method": "acl", "method_kwargs": {"streams": "a2s"}},
}
"""Every method that attacks, and ACL in the variant that attacks one view of two."""
SMALLER: dict[str, dict[str, Any]] = {
    "advcl": {"method_kwargs": {"clusters": [2, 3]}},
    "emp-ssl": {"method_kwargs": {"crops": 3}, "neck": 8, "projector": "mlp"},
    "cf-amc-ssl": {"method_kwargs": {"crops": 3}, "neck": 8, "projector": "mlp"},
}
VIEWS = {"rocl": 1, "deacl": 1, "profeat": 1, "fare": 1, "acl a2s": 1, "emp-ssl": 3, "cf-amc-ssl": 3}
"""Attacked views of an image, where they are not two."""
MIXED = ("astra", "astra++")
"""Those with a mixed loss to weigh."""
NO_LOOKAHEAD = ("taro",)
"""What its attack maximizes is no loss: the look-ahead is refused (tests/envs/test_methods_in_worlds.py)."""
FREE = "cf-amc-ssl"
"""Free adversarial training: the update's own gradient is the attack's."""


def weights_of(name: str) -> dict[str, float]:
    """The weight of every named term, with its sign, as the docstring of `envs.rewards.registry` has the sum."""
    weights = {"adversarial": 0.5, "clean": -0.3, "cost": -0.01, "progress": 0.7}
    if name not in NO_LOOKAHEAD:
        weights |= {"lookahead_adversarial": 3.0, "lookahead_clean": 3.0}
    return weights | ({"mixed": -0.1} if name in MIXED else {})


def world(name: str, teacher: str, seed: int = 3, scope: str = "view") -> AttackEngine:
    """A world of two updates an epoch: nine images are left for it."""
    paid = {"reward_adversarial": 0.5, "reward_clean": 0.3, "reward_cost": 0.01, "reward_progress": 0.7}
    if name in NO_LOOKAHEAD:
        paid["limit"] = 9
    else:
        paid |= {"reward_lookahead": 3.0, "lookahead_images": 5}
    paid |= {"reward_mixed": 0.1} if name in MIXED else {}
    taught = encoder_of(WORLDS[name]["method"], teacher)
    own = SMALLER.get(name, {}) | WORLDS[name]
    return AttackEngine(WorldSettings.of(**TINY | paid | own | taught | {"reward_scope": scope}), seed)


def mixed_budget(engine: AttackEngine) -> Budget:
    """Another radius for every view, and 0 to 3 steps: the views' costs differ."""
    n = engine.num_attacked
    return Budget(
        epsilon=torch.linspace(4, 12, n) / 255, step_size=torch.full((n,), 2 / 255), steps=torch.arange(n) % 4
    )


@dataclass(frozen=True)
class Played:
    """A world that was played three times, and then left as it was.

    Args:
        name: of `WORLDS`.
        engine: the world.
        saved: its state after the first play, in a file.
        rows: of each play, the training images in its batch.
        records: of each play.
    """

    name: str
    engine: AttackEngine
    saved: Path
    rows: list[list[int]]
    records: list[StepRecord]

    @property
    def views(self) -> int:
        """Attacked views of an image."""
        return VIEWS.get(self.name, 2)


ALWAYS = {"astra", "acl a2s", "dynacl", "rocl", "taro", "deacl", "advcl", "cf-amc-ssl"}
"""A mixed loss, one view of two, momentum, one view, no look-ahead, a teacher, originals, attacks for free."""


@pytest.fixture(
    scope="module",
    params=[name if name in ALWAYS else pytest.param(name, marks=pytest.mark.every_agent) for name in WORLDS],
)
def played(request: pytest.FixtureRequest, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Played:
    engine = world(request.param, teacher)
    saved = tmp_path_factory.mktemp("saved") / "engine.pt"
    rows, records = [], []
    for play in range(3):
        rows.append(engine.batches.sampler.last.tolist())
        records.append(engine.play(mixed_budget(engine)))
        if play == 0:
            torch.save(engine.state_dict(), saved)
    return Played(request.param, engine, saved, rows, records)


def check_sum(record: StepRecord, weights: dict[str, float], scope: str = "view") -> None:
    """Compares the reward with the weighted sum in double precision, within what float32 can round on the way."""
    parts = torch.stack([weights[name] * values.double() for name, values in record.terms.items()])
    expected, size = parts.sum(dim=0), parts.abs().sum(dim=0).max().item()
    if scope == "batch":
        expected = expected.mean().expand_as(expected)
    rounding = 2 * (len(parts) + 1) * torch.finfo(torch.float32).eps * size
    torch.testing.assert_close(record.reward.double(), expected, rtol=0, atol=rounding)


@pytest.mark.slow
def test_the_reward_is_the_stated_sum_of_finite_terms(played: Played) -> None:
    weights, n = weights_of(played.name), played.views * TINY["batch_size"]
    largest = dict.fromkeys(weights, 0.0)
    for record in played.records:
        assert record.terms.keys() == weights.keys()
        for term, values in (record.terms | {"reward": record.reward}).items():
            assert values.shape == (n,) and values.dtype == torch.float32, term
            assert values.isfinite().all() and not values.requires_grad, term
        for term, values in record.terms.items():
            largest[term] = max(largest[term], values.abs().max().item())
        check_sum(record, weights)
    # none is nothing throughout, but for the steps of a free attack
    assert {term for term, value in largest.items() if value == 0} == ({"cost"} if played.name == FREE else set())


def test_the_cost_is_that_of_the_budget_that_was_played(played: Played) -> None:
    n = played.views * TINY["batch_size"]
    # free training has its gradients from the update: a step of the attack costs nothing of its own
    expected = torch.zeros(n) if played.name == FREE else torch.arange(n).float() % 4
    assert all(torch.equal(record.terms["cost"], expected) for record in played.records)


def test_progress_is_kept_for_every_attacked_view_of_an_image(played: Played) -> None:
    seen: dict[tuple[int, int], float] = {}
    again = 0
    for rows, record in zip(played.rows, played.records, strict=True):
        keys = [(row, view) for row in rows for view in range(played.views)]
        now = record.terms["adversarial"].tolist()
        # of images that were not seen yet nothing is known, and nothing is paid
        expected = [seen.get(key, loss) - loss for key, loss in zip(keys, now, strict=True)]
        torch.testing.assert_close(record.terms["progress"], torch.tensor(expected))
        again += sum(key in seen for key in keys)
        seen |= dict(zip(keys, now, strict=True))
    # the third batch is of another epoch, or the same batch again: at most one of its images is new
    assert not played.records[0].terms["progress"].any() and again >= 3 * played.views


@pytest.mark.slow
def test_the_look_ahead_is_one_value_for_all_views_and_moves_nothing(played: Played) -> None:
    lookahead, learner, streams = (
        played.engine.rewards.terms.get("lookahead"),
        played.engine.learner,
        played.engine.streams,
    )
    if lookahead is None:
        assert played.name in NO_LOOKAHEAD
        return
    for term in ("lookahead_adversarial", "lookahead_clean"):
        assert all((record.terms[term] == record.terms[term][0]).all() for record in played.records)
    # weights, statistics, moving averages and carried perturbations stay; so the same comes out again
    before = copy.deepcopy((learner.state_dict(), streams.state_dict()))
    first, second = lookahead.losses(), lookahead.losses()
    assert torch.equal(first, second) and first.isfinite().all()
    # and the next update begins where the last one ended
    assert torch.equal(first, lookahead.state_dict()["before"])
    assert same(before, (learner.state_dict(), streams.state_dict()))


@pytest.mark.slow
def test_a_world_that_is_paid_for_everything_goes_on_exactly(played: Played, teacher: str) -> None:
    # in free training the state is one within a batch: its slopes and perturbations go along
    other = world(played.name, teacher, seed=99)
    other.play(mixed_budget(other))
    assert other.load_state_dict(torch.load(played.saved, weights_only=True)) == []
    for one in played.records[1:]:
        two = other.play(mixed_budget(other))
        assert torch.equal(one.reward, two.reward) and same(one.terms, two.terms) and one.losses == two.losses
        assert torch.equal(one.views, two.views) and one.other_steps == two.other_steps
        assert one.adversarial is not None and two.adversarial is not None
        assert torch.equal(one.adversarial, two.adversarial)
    assert same(played.engine.state_dict(), other.state_dict())


@pytest.mark.parametrize("name", ["acl a2s", "advcl", "emp-ssl"])
def test_one_scalar_for_the_batch_is_the_mean_of_the_sums(name: str, teacher: str) -> None:
    engine = world(name, teacher, scope="batch")
    record = engine.play(mixed_budget(engine))
    assert record.reward.shape == (engine.num_attacked,) and (record.reward == record.reward[0]).all()
    check_sum(record, weights_of(name), scope="batch")
