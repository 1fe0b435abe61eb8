"""Custom terms in a world: what each hook is given, what is paid, remembered, resumed and refused."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.rewards.term import FrozenAttack, RewardTerm, RewardWorld
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.methods import ACL
from tests.helpers.states import same

BUDGET = Budget.uniform(8, epsilon=8 / 255, step_size=2 / 255, steps=2)


class Every(RewardTerm):
    """All three hooks, held-out images, and a memory."""

    sign = -1
    holds_out = True

    def __init__(self, world: RewardWorld) -> None:
        super().__init__(world)
        self.seen = torch.zeros(world.images)
        self.weights = torch.empty(0)

    def _weights(self) -> Tensor:
        return torch.cat([value.detach().flatten() for value in self.world.learner.network.parameters()])

    def frozen(self, attack: FrozenAttack) -> Mapping[str, Tensor]:
        moved = attack.adversarial_embeddings - attack.clean_embeddings
        assert (attack.adversarial - attack.views).abs().max() > 0 and len(attack.budget) == len(attack.views)
        torch.testing.assert_close(attack.objective(attack.clean_embeddings).shape, torch.Size([8]))
        return {"moved": moved.norm(dim=1)}

    def before_update(self, rows: Tensor, losses: Tensor) -> Mapping[str, Tensor]:
        self.weights = self._weights()
        self.seen[rows] += 1
        return {"times_seen": self.seen[rows].repeat_interleave(2)}

    def after_update(self, n: int) -> Mapping[str, Tensor]:
        return {"step_length": (self._weights() - self.weights).norm().expand(n)}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any], restarted: Collection[str] = ()) -> None:
        super().load_state_dict(state, restarted)
        self.seen = state["seen"].clone()


class Once(RewardTerm):
    """What the class attribute says, of the attack alone."""

    gives: Any = None

    def frozen(self, attack: FrozenAttack) -> Mapping[str, Tensor]:
        return self.gives


class Odd(ACL):
    """A method with a reward term of its own naming."""

    def reward_terms(self, *given: Any) -> dict[str, Tensor]:
        return super().reward_terms(*given) | {"extra": torch.zeros(8)}


NAME = f"{__name__}:Every"


def world(tiny: dict, seed: int = 3, **more: Any) -> AttackEngine:
    return AttackEngine(WorldSettings.of(**{**tiny, "lookahead_images": 5, "warmup_epochs": 0, **more}), seed)


def test_a_term_is_paid_logged_and_given_what_it_needs(tiny: dict) -> None:
    engine = world(tiny, reward_weights={NAME: 0.5})
    term = engine.rewards.terms[NAME]
    assert isinstance(term, Every) and term.world.held_out is not None
    assert term.world.held_out.rows.tolist() == engine.rewards.held_out.tolist() and len(term.world.held_out.rows) == 5
    for play in (1, 2, 3):
        record = engine.play(BUDGET)
        terms = record.terms
        assert list(terms) == ["adversarial", "clean", "mixed", "moved", "times_seen", "step_length"]
        paid = terms["moved"] + terms["times_seen"] + terms["step_length"]
        torch.testing.assert_close(record.reward, (terms["adversarial"] - terms["clean"]) / 3 - 0.5 * paid)
        assert (terms["step_length"] > 0).all() and terms["times_seen"].max() == (1 if play < 3 else 2)
    assert engine.try_out(BUDGET) is None


def test_a_resumed_world_with_a_custom_term_is_the_uninterrupted_one(tiny: dict, tmp_path: Path) -> None:
    weights = {NAME: 0.5, "progress": 0.1}
    engine, other = world(tiny, reward_weights=weights), world(tiny, seed=9, reward_weights=weights)
    engine.play(BUDGET)
    torch.save(engine.state_dict(), tmp_path / "engine.pt")
    other.load_state_dict(torch.load(tmp_path / "engine.pt", weights_only=True))
    assert engine.rewards.held_out.tolist() == other.rewards.held_out.tolist()
    for _ in range(3):
        one, two = engine.play(BUDGET), other.play(BUDGET)
        assert same(one.terms, two.terms) and torch.equal(one.reward, two.reward)
    assert same(engine.state_dict(), other.state_dict())
    with pytest.raises(ValueError, match=f"remember progress, {NAME}, this run's nothing: resume with the same"):
        world(tiny).load_state_dict(engine.state_dict())


def test_a_term_of_the_attack_alone_is_tried_out_too(tiny: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Once, "gives", {"once": torch.ones(8)})
    plain, engine = world(tiny), world(tiny, reward_weights={f"{__name__}:Once": 2.0})
    one, two = plain.try_out(BUDGET), engine.try_out(BUDGET)
    assert one is not None and two is not None
    torch.testing.assert_close(two - one, torch.full((8,), 2.0))
    assert "rewards" not in engine.state_dict()


def test_a_value_with_a_gradient_is_paid_without_it(tiny: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Once, "gives", {"once": torch.ones(8, requires_grad=True)})
    monkeypatch.setattr(Once, "before_update", lambda self, rows, losses: {"twice": torch.ones(8, requires_grad=True)})
    played = world(tiny, reward_weights={f"{__name__}:Once": 1.0}).play(BUDGET)
    assert not played.reward.requires_grad and not any(values.requires_grad for values in played.terms.values())


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ({"once": torch.ones(7)}, r"gives 'once' as \(7,\): expected floats \(8,\), a value for each attacked view"),
        ({"once": torch.ones(8, dtype=torch.int64)}, r"expected floats \(8,\)"),
        ({"once": 1.0}, "gives 'once' as a float"),
        (None, "the reward term '.*Once' gives a NoneType: expected values by name"),
        ({"clean": torch.ones(8)}, "the reward terms 'clean' and '.*Once' both give 'clean': rename one"),
        ({"mean": torch.ones(8)}, "the reward terms 'the reward' and '.*Once' both give 'mean': rename one"),
    ],
)
def test_bad_values_are_refused(gives: Any, message: str, tiny: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Once, "gives", gives)
    with pytest.raises(ValueError, match=message):
        world(tiny, reward_weights={f"{__name__}:Once": 1.0}).play(BUDGET)


def test_a_method_s_term_that_is_not_in_the_table_is_refused(tiny: dict) -> None:
    message = "reward_terms of the method '.*Odd' give 'extra': expected names among adversarial, clean, mixed; any"
    with pytest.raises(ValueError, match=message):
        world(tiny, method=f"{__name__}:Odd").play(BUDGET)
