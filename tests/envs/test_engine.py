import copy

import pytest
import torch

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget, ConstantBudget
from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.training.learner import NonFiniteLossError
from astra_gym.ssl_core.utils.finite import not_finite

BUDGET = Budget.uniform(8, epsilon=8 / 255, step_size=2 / 255, steps=3)


def weights(engine: AttackEngine) -> list[torch.Tensor]:
    return [value.clone() for value in engine.learner.network.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_sizes(engine: AttackEngine) -> None:
    assert (engine.steps_per_epoch, engine.planned_updates, engine.num_attacked) == (3, 9, 8)
    assert engine.image_shape == (3, 8, 8)
    # who wraps the method's parts, as the benchmark does, wraps what is called
    assert engine.method is engine.learner.method
    assert engine.views.shape == (8, 3, 8, 8)
    assert engine.observe().shape == (8, engine.observation_dim) == (8, 16 + 2)


def test_observing_twice_gives_the_same_and_changes_no_weight(engine: AttackEngine) -> None:
    before = weights(engine)
    first = engine.observe().clone()
    assert torch.equal(first, engine.observe())
    assert same(before, weights(engine))
    assert first.abs().max() <= 10
    # the first batch's own statistics standardize it
    torch.testing.assert_close(first[:, :-1].mean(0), torch.zeros(17), atol=1e-4, rtol=0)
    assert (first[:, -1] == -1).all()


def test_reward_is_on_the_weights_that_the_attack_saw(engine: AttackEngine) -> None:
    engine.observe()
    network, views = copy.deepcopy(engine.learner.network), engine.views.clone()
    record = engine.play(BUDGET)
    with frozen(network), torch.no_grad():
        clean = nt_xent(network(views, "normal").embeddings, reduction="none")
        adversarial = nt_xent(network(record.adversarial, "pgd").embeddings, reduction="none")
    torch.testing.assert_close(record.terms["clean"], clean)
    torch.testing.assert_close(record.terms["adversarial"], adversarial, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(record.reward, (record.terms["adversarial"] - record.terms["clean"]) / 3)
    assert torch.equal(record.views, views)
    assert (record.strength <= 8 / 255 + 1e-6).all() and (record.strength > 0).all()


def test_play_makes_one_update_and_draws_the_next_batch(engine: AttackEngine) -> None:
    before, views = weights(engine), engine.views.clone()
    ends = [engine.play(BUDGET).end_of_epoch for _ in range(3)]
    assert ends == [False, False, True]
    assert engine.step == 3 and engine.last is not None and engine.last.epoch == 1.0
    assert engine.progress == pytest.approx(1 / 3)
    assert not same(before, weights(engine)) and not torch.equal(views, engine.views)


def test_weights_of_the_reward_terms_and_the_shared_reward(tiny) -> None:
    tiny |= {"reward_adversarial": 0.5, "reward_clean": 0.2, "reward_mixed": 0.1, "reward_scope": "batch"}
    record = AttackEngine(WorldSettings.of(**tiny), 3).play(BUDGET)
    terms = record.terms
    each = 0.5 * terms["adversarial"] - 0.2 * terms["clean"] - 0.1 * terms["mixed"]
    torch.testing.assert_close(record.reward, each.mean().expand(8))


def test_assessing_learns_nothing(engine: AttackEngine) -> None:
    engine.observe()
    before, step = weights(engine), engine.step
    _, look = engine.raw_observation(engine.views)
    gentle = engine.assess(engine.views, look.embeddings, BUDGET, torch.Generator().manual_seed(0))
    assert same(before, weights(engine)) and engine.step == step
    assert gentle.reward.shape == (8,)


def test_same_seed_same_world_and_reset_makes_a_new_one(engine: AttackEngine, tiny) -> None:
    other = AttackEngine(WorldSettings.of(**tiny), seed=3)
    assert same(weights(engine), weights(other)) and torch.equal(engine.views, other.views)
    first = [engine.play(BUDGET).reward.clone() for _ in range(4)]
    assert all(torch.equal(a, other.play(BUDGET).reward) for a in first)
    engine.reset(3)
    assert all(torch.equal(a, engine.play(BUDGET).reward) for a in first)
    engine.reset(4)
    assert not torch.equal(first[0], engine.play(BUDGET).reward)


@pytest.mark.slow
@pytest.mark.parametrize("observed", [False, True])
def test_a_world_goes_on_from_its_file_bit_for_bit(engine: AttackEngine, tiny, tmp_path, observed: bool) -> None:
    for _ in range(4):
        engine.play(BUDGET)
    if observed:
        engine.observe()
    torch.save(engine.state_dict(), tmp_path / "engine.pt")
    other = AttackEngine(WorldSettings.of(**tiny), seed=99)
    assert other.load_state_dict(torch.load(tmp_path / "engine.pt", weights_only=True)) == []
    for _ in range(5):
        assert torch.equal(engine.observe(), other.observe())
        assert torch.equal(engine.play(BUDGET).reward, other.play(BUDGET).reward)
    assert same(weights(engine), weights(other))
    assert engine.learner.lr == other.learner.lr


def test_no_global_randomness(engine: AttackEngine) -> None:
    before = torch.get_rng_state()
    engine.observe()
    engine.play(BUDGET)
    engine.reset(1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_method_without_an_attack(tiny) -> None:
    engine = AttackEngine(WorldSettings.of(**tiny, method="simclr"), 0)
    record = engine.play(None)
    assert record.budget is None and record.adversarial is None and not record.terms
    assert record.reward.abs().max() == 0
    with pytest.raises(ValueError, match="no budget"):
        engine.play(BUDGET)


def test_bad_budgets_are_refused(engine: AttackEngine) -> None:
    with pytest.raises(ValueError, match="a budget for 8 views"):
        engine.play(None)
    with pytest.raises(ValueError, match="6 entries"):
        engine.play(Budget.uniform(6, epsilon=0.1, step_size=0.1, steps=1))
    assert engine.step == 0


def test_a_batch_larger_than_the_data_is_refused(tiny) -> None:
    with pytest.raises(ValueError, match=r"20.*14|14.*20"):
        AttackEngine(WorldSettings.of(**tiny | {"batch_size": 20}), 0)


def test_a_loss_that_is_not_finite_names_step_and_budget(engine: AttackEngine) -> None:
    engine.play(BUDGET)
    torch.nn.init.constant_(engine.learner.network.projector.linears[0].bias, float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"update 2 .*epsilon 8 to 8"):
        engine.play(BUDGET)


@pytest.mark.slow
def test_a_world_is_the_same_wherever_its_images_stay(tiny, tmp_path) -> None:
    engines = [AttackEngine(WorldSettings.of(**tiny, keep_data=keep), seed=3) for keep in ("device", "host")]
    assert [engine.batches.source.keep for engine in engines] == ["device", "host"]
    for _ in range(7):
        played = [engine.play(BUDGET) for engine in engines]
        assert torch.equal(played[0].views, played[1].views) and torch.equal(played[0].reward, played[1].reward)
        # each goes on from the other's state, in the middle of an epoch and at its end
        states = [engine.state_dict() for engine in engines]
        torch.save(states, tmp_path / "states.pt")
        for engine, state in zip(engines, torch.load(tmp_path / "states.pt")[::-1], strict=True):
            engine.load_state_dict(state)
    assert same(weights(engines[0]), weights(engines[1]))
    for engine in engines:
        engine.reset(4)
    assert torch.equal(engines[0].views, engines[1].views)


@pytest.mark.parametrize("keep", ["device", "host"])
def test_a_copied_world_goes_on_by_itself(tiny, keep: str) -> None:
    engine = AttackEngine(WorldSettings.of(**tiny, keep_data=keep), seed=3)
    engine.play(BUDGET)
    other = copy.deepcopy(engine)
    first = [engine.play(BUDGET).reward.clone() for _ in range(4)]
    assert all(torch.equal(other.play(BUDGET).reward, reward) for reward in first)


BAD = [float("nan"), float("inf")]


@pytest.mark.parametrize("value", BAD)
def test_views_that_are_not_finite_name_update_and_budget(engine: AttackEngine, monkeypatch, value: float) -> None:
    engine.play(BUDGET)
    engine._views[3, 0, 0, 0] = value
    for act in (engine.observe, lambda: engine.play(BUDGET)):
        with pytest.raises(NonFiniteLossError, match=r"views before update 2 are not finite; .*epsilon 8 to 8"):
            act()
    assert not_finite(engine.numbers()) == ["views"]
    assert engine.step == 1


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("settings", [{}, {"reward_progress": 0.5}, {"reward_scope": "batch"}])
def test_rewards_that_are_not_finite_stop_before_the_update(tiny, monkeypatch, settings: dict, value: float) -> None:
    engine = AttackEngine(WorldSettings.of(**tiny, **settings), seed=3)
    engine.play(BUDGET)
    weights = {name: one.clone() for name, one in engine.learner.network.named_parameters()}
    terms = engine.rewards.frozen_terms
    bad = {"clean": torch.tensor([0.0, value] * 4)}
    monkeypatch.setattr(engine.rewards, "frozen_terms", lambda *given: terms(*given) | bad)
    with pytest.raises(NonFiniteLossError, match=r"the rewards of update 2 are not finite; .*steps 3 to 3"):
        engine.play(BUDGET)
    assert all(torch.equal(one, weights[name]) for name, one in engine.learner.network.named_parameters())


def test_a_look_ahead_that_is_not_finite_stops_too(tiny, monkeypatch) -> None:
    engine = AttackEngine(WorldSettings.of(**tiny, reward_lookahead=0.5, lookahead_images=4), seed=3)
    engine.play(BUDGET)
    monkeypatch.setattr(engine.rewards.terms["lookahead"], "losses", lambda: torch.tensor([float("nan"), 0.0]))
    with pytest.raises(NonFiniteLossError, match="the rewards of update 2 are not finite"):
        engine.play(BUDGET)


def test_losses_that_are_not_known_yet_are_nan_by_right(tiny) -> None:
    engine = AttackEngine(WorldSettings.of(**tiny, reward_progress=0.5), seed=3)
    engine.play(BUDGET)
    assert engine.state_dict()["rewards"]["progress"]["last"].isnan().any()
    assert not_finite(engine.numbers()) == []
    engine.learner.optimizer.state[engine.learner.network.backbone.conv.weight]["exp_avg_sq"].fill_(float("inf"))
    assert not_finite(engine.numbers()) == ["learner/optimizer/state/0/exp_avg_sq"]


@pytest.mark.parametrize("device", ["cuad", "meta"])
def test_a_device_that_is_not_there_is_refused(tiny, device: str) -> None:
    with pytest.raises(ValueError, match=f"device is '{device}'"):
        AttackEngine(WorldSettings.of(**tiny), 0, device)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_world_in_fp32_takes_no_tf32_whoever_drives_it(tiny, precision: str) -> None:
    engine = AttackEngine(WorldSettings.of(**tiny | {"precision": precision, "image_size": 16}))
    seen = []
    engine.learner.network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    engine.observe()
    budget = ConstantBudget(epsilon=8 / 255, step_size=4 / 255, steps=1).expand(engine.num_attacked)
    engine.try_out(budget)
    engine.play(budget)
    assert set(seen) == {precision == "bf16"} and torch.backends.cudnn.allow_tf32


def test_a_run_of_passes_pays_for_every_step_and_its_rate_follows(tiny: dict) -> None:
    paid = ({}, {"reward_lookahead": 1, "lookahead_images": 4})
    worlds = [AttackEngine(WorldSettings.given(**tiny, warmup_epochs=0, passes=63, **terms)) for terms in paid]
    for engine, lookahead in zip(worlds, (0, 1), strict=True):
        spent = 0.0
        while not engine.finished:
            assert engine.progress == pytest.approx(spent / 63)
            record = engine.play(BUDGET)
            assert (record.other_steps > 0) == lookahead
            spent += 3.3 + 3 + record.other_steps / 8
        assert spent >= 63 - 1e-6 and engine.learner.lr == pytest.approx(1e-6)
    # the look-ahead's attacks are not free
    assert worlds[0].step == 10 > worlds[1].step
    state = copy.deepcopy(worlds[0].state_dict())
    again = AttackEngine(worlds[0].settings)
    again.load_state_dict(state)
    assert again.finished and again.progress == pytest.approx(1.0)
