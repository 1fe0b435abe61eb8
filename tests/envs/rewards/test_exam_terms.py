"""Terms that give exams: their values by hand, what they cost, and exact resuming between two exams."""

import copy

import pytest
import torch

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.rewards.exam_terms import NOISE
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget, strided_budget
from astra_gym.ssl_core.training.exams import gradient, make_exam, value
from astra_gym.ssl_core.training.forward_credit import ForwardCredit, descent

BUDGET = Budget(
    epsilon=torch.linspace(4, 12, 8) / 255,
    step_size=torch.full((8,), 2 / 255),
    steps=torch.tensor([0, 1, 2, 3, 3, 2, 1, 0]),
)
EXAMS = {"judge_images": 5, "judge_batch": 3, "judge_steps": 2, "judge_block": 1 / 3, "judge_epsilon": 0.1}
"""A block has three of nine updates."""


def world(tiny: dict, seed: int = 3, **more: object) -> AttackEngine:
    return AttackEngine(WorldSettings.of(**tiny | EXAMS | more), seed)


@pytest.mark.parametrize(("score", "redraw"), [("mean", 1), ("robust", 2)])
def test_the_judge_pays_the_fall_of_the_loss_from_exam_to_exam(tiny, score: str, redraw: int) -> None:
    more = {"judge_score": score, "judge_until": 2 / 3, "judge_redraw": redraw}
    engine = world(tiny, reward_judge=2.0, limit=17, epochs=3, **more)
    term, exams = engine.rewards.terms["judge"], []
    assert engine.rewards.held_out is not None and len(engine.rewards.held_out) == 5

    def loss(views: torch.Tensor, start: torch.Tensor) -> float:
        noise = torch.Generator()
        noise.set_state(start)
        share = 1.0 if score == "robust" else 0.5
        return value(engine.learner, make_exam(engine.learner, [views], strided_budget(0.1, 2), share, noise))

    for update in range(1, 10):
        begun, spent = term.state_dict(), term.attack_steps
        record = engine.play(BUDGET)
        exams.append((term.attack_steps - spent) // (3 * 6))
        judged = record.terms["judge"]
        assert judged.shape == (8,) and (judged == judged[0]).all()
        # the loss that was measured when the exam began, less that of the same exam now
        ends = update in (3, 6)
        fall = 0.0 if not ends else begun["before"] - loss(begun["views"], begun["start"])
        assert judged[0].item() == pytest.approx(fall, rel=1e-5, abs=1e-6) and (fall != 0) == ends
        own = (record.terms["adversarial"] - record.terms["clean"]) / 3
        torch.testing.assert_close(record.reward, own + 2 * judged)
    # one exam at first, the end of one and the begin of the next after a block, unless both have the same images, and
    # none in the last third
    assert exams == [1, 0, 3 - redraw, 0, 0, 1, 0, 0, 0]


def test_alignment_is_the_forward_credit_by_an_exam_of_the_present_weights(tiny) -> None:
    engine = world(tiny, reward_alignment=1.0)
    term = engine.rewards.terms["alignment"]
    for _ in range(2):
        assert not engine.play(BUDGET).terms["alignment"].any()
    state = copy.deepcopy(engine.state_dict())
    record = engine.play(BUDGET)
    engine.load_state_dict(state)
    noise = engine.streams.on_device(NOISE)
    exam = make_exam(engine.learner, [term._drawn()], strided_budget(0.1, 2), 1.0, noise)
    credit = ForwardCredit(engine.learner, engine.all_views, descent(engine.learner, gradient(engine.learner, exam)))
    torch.testing.assert_close(record.terms["alignment"], credit.shares(record.adversarial))
    assert record.terms["alignment"].abs().min() > 0
    assert record.other_steps == 3 * 6 + 2 * 6 + 2 * 8


def test_a_world_resumes_between_exams_and_holds_out_other_images_than_the_look_ahead(tiny) -> None:
    rewards = ("reward_judge", "reward_alignment", "reward_lookahead")
    more = dict.fromkeys(rewards, 1.0) | {"lookahead_images": 4, "limit": 21}
    engine, other = world(tiny, **more), world(tiny, 4, **more)
    for _ in range(4):
        engine.play(BUDGET)
    other.load_state_dict(copy.deepcopy(engine.state_dict()))
    assert (
        torch.equal(engine.rewards.held_out, other.rewards.held_out) and len(set(engine.rewards.held_out.tolist())) == 9
    )
    paid = set()
    for _ in range(4):
        ours, theirs = engine.play(BUDGET), other.play(BUDGET)
        assert torch.equal(ours.reward, theirs.reward)
        paid |= {name for name in ("judge", "alignment") if ours.terms[name].any()}
    assert paid == {"judge", "alignment"}


def test_a_world_that_keeps_its_start_resumes_just_before_an_exam(tiny, teacher: str) -> None:
    """The frozen start is in eval mode at once, not from the first update on."""
    more = {"method": "fare", "init_from": teacher, "reward_alignment": 1.0}
    engine, other = world(tiny, **more), world(tiny, **more)
    budget = Budget.uniform(engine.num_attacked, epsilon=0.05, step_size=0.02, steps=1)
    for _ in range(2):
        engine.play(budget)
    other.load_state_dict(copy.deepcopy(engine.state_dict()))
    ours, theirs = engine.play(budget), other.play(budget)
    assert ours.terms["alignment"].any() and torch.equal(ours.reward, theirs.reward)


def test_worlds_without_room_for_exams_are_refused(tiny) -> None:
    with pytest.raises(
        ValueError, match=r"lookahead_images is 4 and judge_images is 9 of 14 .* leaves 1, less than a batch"
    ):
        world(tiny, reward_judge=1.0, judge_images=9, reward_lookahead=1.0, lookahead_images=4)
    with pytest.raises(ValueError, match=r"judge_batch is 6: expected 2 to judge_images \(5\)"):
        world(tiny, judge_batch=6)
    with pytest.raises(ValueError, match=r"reward_judge is 1.0, but what the attack of"):
        world(tiny, method="taro", reward_judge=1.0).play(BUDGET)
    with pytest.raises(ValueError, match="resume with the same judge_images"):
        world(tiny, reward_judge=1.0, judge_images=4).load_state_dict(world(tiny, reward_judge=1.0).state_dict())
