"""The reward's named terms against closed forms and twins kept by hand, and what a world remembers of them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.records import StepRecord
from astra_gym.envs.rewards.lookahead import NOISE, LookAhead
from astra_gym.envs.rewards.progress import LossMemory
from astra_gym.envs.torch_env import TorchBatchEnv, TorchViewEnv
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Attacked, Budget
from astra_gym.ssl_core.data.image_set import ImageSet, Split
from astra_gym.ssl_core.data.sampler import BatchSampler
from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.utils.rng import Streams

STEPS = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
BUDGET = Budget(epsilon=torch.linspace(4, 12, 8) / 255, step_size=torch.full((8,), 2 / 255), steps=STEPS)
LOOKAHEAD = {"reward_lookahead": 3.0, "lookahead_images": 5}
ALL = LOOKAHEAD | {"reward_cost": 0.01, "reward_progress": 0.7, "reward_mixed": 0.1}
"""5 of 14 images are held out: 2 updates an epoch, one image left over."""


def world(tiny: dict, seed: int = 3, **more: object) -> AttackEngine:
    return AttackEngine(WorldSettings.of(**tiny | more), seed)


def by_hand(terms: dict[str, Tensor], **weights: float) -> Tensor:
    each = (terms["adversarial"] - terms["clean"]) / 3
    return each + sum(weight * terms[name] for name, weight in weights.items())


def test_a_default_world_has_the_terms_streams_and_state_that_it_had(tiny) -> None:
    engine = world(tiny, reward_cost=0.0, reward_lookahead=0.0, reward_progress=0.0, lookahead_images=9)
    record = engine.play(BUDGET)
    assert list(record.terms) == ["adversarial", "clean", "mixed"]
    terms = record.terms
    expected = torch.stack([terms["adversarial"] / 3, -terms["clean"] / 3, -0.0 * terms["mixed"]]).sum(0)
    torch.testing.assert_close(record.reward, expected, rtol=1e-6, atol=1e-7)
    state = engine.state_dict()
    assert state.keys() == {"learner", "streams", "sampler", "views", "seen", "statistics", "passes"}
    assert state["passes"] is None
    assert state["streams"]["host"].keys() == {"data", "init", "views"} and state["streams"]["device"].keys() == {
        "noise"
    }
    assert state["sampler"].keys() == {"n", "batch_size", "taken", "order", "generator"}


@pytest.mark.parametrize("more", [{"reward_cost": 0.01}, {"reward_progress": 0.5}])
def test_terms_that_hold_nothing_out_change_the_reward_alone(tiny, more: dict) -> None:
    plain, paid = world(tiny), world(tiny, **more)
    for _ in range(4):
        one, other = plain.play(BUDGET), paid.play(BUDGET)
        assert torch.equal(one.views, other.views) and one.losses == other.losses
        assert all(torch.equal(value, other.terms[name]) for name, value in one.terms.items())
    assert not torch.equal(one.reward, other.reward)
    assert plain.streams.state_dict()["host"].keys() == paid.streams.state_dict()["host"].keys()


def test_the_price_of_time_moves_to_its_target_and_resumes(tiny) -> None:
    engine, other = (world(tiny, seed, reward_cost=0.01, cost_target=1.0) for seed in (3, 4))
    mean, price = float(STEPS.float().mean()), 1.0
    for update in range(3):
        if update == 1:
            engine.try_out(BUDGET)
        record = engine.play(BUDGET)
        torch.testing.assert_close(record.terms["cost"], price * STEPS.float())
        price += 0.02 * (mean - 1)
        if update == 1:
            other.load_state_dict(copy.deepcopy(engine.state_dict()))
    torch.testing.assert_close(other.play(BUDGET).terms["cost"], record.terms["cost"])
    with pytest.raises(ValueError, match=r"cost_target is 2\.0, but reward_weights\.cost is 0"):
        world(tiny, cost_target=2.0, reward_cost=0.0)


def test_the_cost_is_the_number_of_steps(tiny) -> None:
    record = world(tiny, reward_cost=0.01).play(BUDGET)
    assert record.terms["cost"].dtype == torch.float32 and torch.equal(record.terms["cost"], STEPS.float())
    torch.testing.assert_close(record.reward, by_hand(record.terms, cost=-0.01))


@pytest.mark.parametrize("scope", ["view", "batch"])
def test_the_reward_is_the_sum_of_all_terms(tiny, scope: str) -> None:
    engine = world(tiny, **ALL, reward_scope=scope)
    weights = {"mixed": -0.1, "cost": -0.01, "progress": 0.7, "lookahead_adversarial": 3.0, "lookahead_clean": 3.0}
    for _ in range(5):
        record = engine.play(BUDGET)
        assert record.terms.keys() == {"adversarial", "clean"} | weights.keys()
        assert all(values.shape == (8,) and values.is_contiguous() for values in record.terms.values())
        each = by_hand(record.terms, **weights)
        torch.testing.assert_close(record.reward, each if scope == "view" else each.mean().expand(8))
    # none of them is nothing
    assert all(values.abs().max() > 0 for values in record.terms.values())


def test_assessing_has_the_terms_of_a_frozen_network(tiny) -> None:
    engine = world(tiny, **ALL)
    engine.play(BUDGET)
    before = engine.rewards.state_dict()
    _, look = engine.raw_observation(engine.views)
    found = engine.assess(engine.views, look.embeddings, BUDGET, torch.Generator().manual_seed(0))
    assert found.terms.keys() == {"adversarial", "clean", "mixed", "cost"}
    torch.testing.assert_close(found.reward, by_hand(found.terms, mixed=-0.1, cost=-0.01))
    after = engine.rewards.state_dict()
    assert torch.equal(before["lookahead"]["before"], after["lookahead"]["before"])
    assert torch.equal(before["progress"]["last"].nan_to_num(-1), after["progress"]["last"].nan_to_num(-1))


def probed(twin: AttackEngine, start: Tensor, views: Tensor) -> tuple[float, float]:
    """Attacked and clean loss of the views on a twin's weights, the attack always from the same random start."""
    generator = torch.Generator()
    generator.set_state(start)
    budget = Budget.uniform(len(views), epsilon=8 / 255, step_size=2 / 255, steps=5)
    attacked = twin.learner.attack(views, budget, generator).images
    network = twin.learner.network
    with frozen(network), torch.no_grad():
        losses = [nt_xent(network(x, route).embeddings) for x, route in ((attacked, "pgd"), (views, "normal"))]
    return losses[0].item(), losses[1].item()


@pytest.mark.parametrize("method", ["astra", "acl"])
def test_the_look_ahead_is_that_of_a_plain_twin(tiny, method: str) -> None:
    engine = world(tiny, **LOOKAHEAD, method=method, warmup_epochs=0)
    views = engine.rewards.state_dict()["lookahead"]["views"].clone()
    assert views.shape == (10, 3, 8, 8)
    start = copy.deepcopy(engine.streams).on_device(NOISE).get_state()
    for _ in range(3):
        twin = copy.deepcopy(engine)
        record = engine.play(BUDGET)
        before = probed(twin, start, views)
        twin.learner.update(record.views, record.adversarial)
        after = probed(twin, start, views)
        for name, one, other in zip(("adversarial", "clean"), before, after, strict=True):
            assert abs(one - other) > 1e-4
            torch.testing.assert_close(
                record.terms[f"lookahead_{name}"], torch.full((8,), one - other), rtol=1e-2, atol=2e-5
            )


def test_both_attacks_start_alike_and_each_weights_losses_are_computed_once(tiny, monkeypatch) -> None:
    engine = world(tiny, **LOOKAHEAD)
    calls: list[tuple[int, Tensor]] = []
    losses = LookAhead.losses

    def watched(self: LookAhead) -> Tensor:
        stream = engine.streams.on_device(NOISE).get_state()
        found = losses(self)
        # without an update in between the same comes out: the attack's start stands still
        assert torch.equal(losses(self), found)
        assert torch.equal(stream, engine.streams.on_device(NOISE).get_state())
        calls.append((engine.step, found))
        return found

    monkeypatch.setattr(LookAhead, "losses", watched)
    records = [engine.play(BUDGET) for _ in range(3)]
    assert [step for step, _ in calls] == [0, 1, 2, 3]
    for record, (_, before), (_, after) in zip(records, calls, calls[1:], strict=False):
        assert torch.equal(record.terms["lookahead_adversarial"], (before - after)[0].expand(8))


@pytest.mark.parametrize("played", [0, 2])
def test_its_attack_steps_are_counted(tiny, monkeypatch, played: int, tmp_path) -> None:
    engine = world(tiny, **ALL)
    for _ in range(played):
        engine.play(BUDGET)
    torch.save(engine.state_dict(), tmp_path / "engine.pt")
    resumed = world(tiny, **ALL)
    resumed.load_state_dict(torch.load(tmp_path / "engine.pt", weights_only=True))
    made: list[int] = []
    attack = TargetLearner.attack

    def watched(self: TargetLearner, views: Tensor, budget: Budget, *given: Any) -> Attacked:
        made.append(int(budget.steps.sum()))
        return attack(self, views, budget, *given)

    monkeypatch.setattr(TargetLearner, "attack", watched)
    for each in (engine, resumed):
        for play in range(played, played + 2):
            made.clear()
            record = each.play(BUDGET)
            # the first play of all measures before its update too
            assert record.other_steps == sum(made) - int(STEPS.sum()) == 10 * 5 * (2 if play == 0 else 1)
    assert type(record.other_steps) is int


@pytest.mark.parametrize("more", [{}, {"reward_cost": 0.01, "reward_progress": 0.7}])
def test_without_a_look_ahead_no_other_steps_are_made(tiny, more: dict) -> None:
    assert [world(tiny, **more).play(BUDGET).other_steps, world(tiny, method="simclr").play(None).other_steps] == [0, 0]


def test_an_update_that_changes_nothing_is_worth_nothing(tiny) -> None:
    engine = world(tiny, **LOOKAHEAD)
    state = copy.deepcopy(engine.learner.network.state_dict())
    update = engine.learner.update

    def put_back(*views: Tensor) -> dict[str, float]:
        losses = update(*views)
        engine.learner.network.load_state_dict(state)
        return losses

    engine.learner.update = put_back
    for _ in range(2):
        record = engine.play(BUDGET)
        assert not record.terms["lookahead_adversarial"].any() and not record.terms["lookahead_clean"].any()


def mapped(images: ImageSet, file: Path) -> ImageSet:
    file.write_bytes(images.images.numpy().tobytes())
    array = np.memmap(file, dtype=np.uint8, mode="c", shape=tuple(images.images.shape))
    return ImageSet(torch.from_numpy(array), None, (), "mapped", file)


@pytest.mark.parametrize("keep", ["device", "host", "mapped"])
def test_held_out_images_enter_no_batch(tiny, keep: str, tmp_path) -> None:
    settings = WorldSettings.of(**tiny, **LOOKAHEAD, keep_data="host" if keep == "mapped" else keep)
    data = settings.data.load()
    if keep == "mapped":
        data = Split(mapped(data.train, tmp_path / "images.u8"), data.test)
    engine = AttackEngine(settings, 3, data=data)
    assert (engine.steps_per_epoch, engine.planned_updates) == (2, 6)
    held_out = engine.rewards.held_out
    assert held_out is not None and len(set(held_out.tolist())) == 5
    images = data.train.images
    assert len(images.flatten(1).unique(dim=0)) == 14
    secret = {images[row].numpy().tobytes() for row in held_out.tolist()}
    shown: list[set[bytes]] = []
    source = engine.batches.source.next

    def watched() -> Tensor:
        batch = source()
        shown.append({image.numpy().tobytes() for image in batch})
        assert torch.equal(batch, images[engine.batches.sampler.last])
        return batch

    engine.batches.source.next = watched
    engine.reset(3)
    assert engine.rewards.held_out.tolist() == held_out.tolist()
    for _ in range(4):
        engine.play(BUDGET)
    assert len(shown) == 5 and all(len(batch) == 4 and not batch & secret for batch in shown)
    # an epoch shows no image twice
    assert not shown[0] & shown[1] and not shown[2] & shown[3]
    engine.reset(4)
    assert engine.rewards.held_out.tolist() != held_out.tolist()
    # the probe's views are of the held-out images, and stay
    plain = AttackEngine(settings, 3, data=data)
    views = plain.make_views(images[held_out].float() / 255, Streams(3)["lookahead/views"])
    torch.testing.assert_close(plain.rewards.state_dict()["lookahead"]["views"], views)


def test_too_many_held_out_images_are_refused(tiny) -> None:
    with pytest.raises(ValueError, match=r"lookahead_images is 11 of 14 .* leaves 3, less than a batch of 4"):
        world(tiny, reward_lookahead=1.0, lookahead_images=11)
    with pytest.raises(ValueError, match="leaves 0"):
        world(tiny, reward_lookahead=1.0)
    assert world(tiny, reward_lookahead=1.0, lookahead_images=10).steps_per_epoch == 1
    assert world(tiny, lookahead_images=99).steps_per_epoch == 3


def test_the_digits_keep_their_batches() -> None:
    held = {"reward_lookahead": 1.0} | {"width": 2, "projector_hidden": 4, "projector_dim": 4, "batch_size": 64}
    engine = AttackEngine(WorldSettings.of(**held), 0)
    assert (
        engine.steps_per_epoch == AttackEngine(WorldSettings.of(**held | {"reward_lookahead": 0.0}), 0).steps_per_epoch
    )
    assert engine.steps_per_epoch == 22


@pytest.mark.parametrize("more", [{}, {"keep_data": "host"}, LOOKAHEAD])
def test_progress_is_that_of_a_dict_kept_by_hand(tiny, more: dict) -> None:
    engine = world(tiny, reward_progress=0.5, **more)
    rows = BatchSampler(14, 4, Streams(3)["data"], held_out=engine.rewards.held_out)
    seen: dict[tuple[int, int], float] = {}
    again = 0
    for _ in range(2 * engine.steps_per_epoch + 1):
        record = engine.play(BUDGET)
        keys = [(row, view) for row in rows.next().tolist() for view in (0, 1)]
        now = record.terms["adversarial"].tolist()
        expected = [seen.get(key, loss) - loss for key, loss in zip(keys, now, strict=True)]
        torch.testing.assert_close(record.terms["progress"], torch.tensor(expected))
        again += sum(key in seen for key in keys)
        seen |= dict(zip(keys, now, strict=True))
    assert again >= 2 * engine.steps_per_epoch


def test_progress_in_closed_form() -> None:
    progress = LossMemory(3, 2, torch.device("cpu"))
    assert progress.fall(torch.tensor([2, 0]), torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [0, 0, 0, 0]
    assert progress.fall(torch.tensor([1, 2]), torch.tensor([9.0, 9.0, 0.5, 3.0])).tolist() == [0, 0, 0.5, -1]
    assert progress.fall(torch.tensor([2, 0]), torch.tensor([0.5, 0.0, 4.0, 4.0])).tolist() == [0, 3, -1, 0]


def equal(one: StepRecord, other: StepRecord) -> bool:
    same = all(torch.equal(values, other.terms[name]) for name, values in one.terms.items())
    return same and torch.equal(one.reward, other.reward) and torch.equal(one.views, other.views)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "played"),
    [("host", 1), *(pytest.param("device", played, marks=pytest.mark.every_agent) for played in (0, 3))],
)
def test_a_resumed_world_is_the_uninterrupted_one(tiny, keep: str, played: int, tmp_path) -> None:
    engine = world(tiny, **ALL, keep_data=keep)
    for _ in range(played):
        engine.play(BUDGET)
    torch.save(engine.state_dict(), tmp_path / "engine.pt")
    other = world(tiny, seed=99, **ALL, keep_data=keep)
    other.play(BUDGET)
    assert other.load_state_dict(torch.load(tmp_path / "engine.pt", weights_only=True)) == []
    assert torch.equal(engine.rewards.held_out, other.rewards.held_out)
    for _ in range(3):
        assert equal(engine.play(BUDGET), other.play(BUDGET))
    copied = copy.deepcopy(engine)
    assert equal(engine.play(BUDGET), copied.play(BUDGET)) and equal(engine.play(BUDGET), copied.play(BUDGET))


def test_from_another_random_start_the_kept_losses_are_not_compared(tiny) -> None:
    engine, other = world(tiny, **LOOKAHEAD), world(tiny, **LOOKAHEAD)
    engine.play(BUDGET)
    state = engine.rewards.state_dict()
    other.rewards.load_state_dict(state, restarted=["noise"])
    assert other.rewards.state_dict()["lookahead"]["before"] is not None
    other.rewards.load_state_dict(state, restarted=["noise", NOISE])
    assert other.rewards.state_dict()["lookahead"]["before"] is None


def test_a_state_of_another_version_of_a_term_is_refused(tiny) -> None:
    judged = {"judge_epsilon": 8 / 255, "judge_images": 4, "judge_batch": 4}
    exams = {"reward_judge": 1.0, "reward_alignment": 1.0, **judged}
    paid = {"reward_cost": 0.1, "cost_target": 4, "reward_progress": 1.0, **LOOKAHEAD}
    for more in (exams, paid):
        engine = world(tiny, **more)
        engine.play(BUDGET)
        saved = engine.state_dict()["rewards"]
        assert saved.keys() == engine.rewards.terms.keys() and all(saved.values())
        for name, kept in saved.items():
            for key in kept:
                lacks = {**saved, name: {other: value for other, value in kept.items() if other != key}}
                with pytest.raises(ValueError, match=f"the state of the reward term '{name}' has no '{key}': another"):
                    engine.rewards.load_state_dict(lacks)


def test_a_state_of_other_terms_or_other_data_is_refused(tiny) -> None:
    plain, paid = world(tiny), world(tiny, **ALL)
    with pytest.raises(ValueError, match="remember nothing, this run's lookahead, progress: resume with the same"):
        world(tiny, **ALL).load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="remember lookahead, progress, this run's nothing"):
        plain.load_state_dict(paid.state_dict())
    with pytest.raises(ValueError, match=r"holds out views of \(10, 3, 8, 8\), this run of \(8, 3, 8, 8\)"):
        world(tiny, **ALL | {"lookahead_images": 4}).load_state_dict(paid.state_dict())
    with pytest.raises(ValueError, match=r"losses of \(14, 2\) images and views, this run \(13, 2\)"):
        world(tiny | {"limit": 13}, **ALL).load_state_dict(paid.state_dict())


def test_a_method_without_an_attack_uses_no_weight(tiny) -> None:
    engine = world(tiny, method="simclr", reward_lookahead=1.0, reward_cost=1.0, reward_progress=1.0)
    assert engine.steps_per_epoch == 3 and engine.rewards.held_out is None
    plain = world(tiny, method="simclr")
    one, other = engine.play(None), plain.play(None)
    assert not one.terms and not one.reward.any() and one.losses == other.losses
    assert engine.state_dict().keys() == plain.state_dict().keys()


def test_what_the_environments_tell(tiny) -> None:
    names = {"reward/cost", "reward/lookahead_adversarial", "reward/lookahead_clean", "reward/progress"}
    view, batch = TorchViewEnv(world(tiny, **ALL)), TorchBatchEnv(world(tiny, **ALL))
    action = torch.tensor([[3, 1, 1]])
    each, one = view.play(action.expand(8, 3)), batch.play(action)
    assert names <= each.info.keys() and names <= one.info.keys()
    assert (each.info["reward/cost"] == 4).all()
    assert one.reward.shape == (1,) and torch.equal(one.reward[0], each.reward.mean())
    assert not names & TorchBatchEnv(world(tiny)).play(action).info.keys()
