"""REINFORCE: the estimator in closed form, returns, and the paper's setting."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from astra_gym.agents.base import StepResult, Transition
from astra_gym.agents.reinforce import REINFORCE, SETTINGS, ReinforceSettings, rewards_to_go
from astra_gym.ssl_core.training.optim import warmup_cosine

PLAIN = ReinforceSettings(baseline_decay=None, normalize_advantage=False, ent_coef=0.0, max_grad_norm=math.inf)


class OneState:
    """One state, four actions, with a given reward each."""

    num_envs = 8
    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(4)
    device = torch.device("cpu")
    rewards = torch.tensor([1.0, -2.0, 0.5, 3.0])

    def observe(self) -> torch.Tensor:
        return torch.ones(self.num_envs, 2)

    def play(self, actions: torch.Tensor) -> StepResult:
        return StepResult(self.rewards[actions], torch.ones(self.num_envs, dtype=torch.bool), {})


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradient_is_the_softmax_s_in_closed_form(reduction: str) -> None:
    agent = REINFORCE(OneState(), replace(PLAIN, reduction=reduction), seed=3)
    with torch.no_grad():
        agent.policy.head.bias.copy_(torch.tensor([0.1, -0.3, 0.4, 0.0]))
    probabilities = agent.policy(OneState().observe())[0].softmax(0).detach()
    played: list[torch.Tensor] = []
    agent.learn(8, callback=lambda local, _: played.append(local["actions"]) or True)
    # d/d logit_j of -sum_i r_i log p(a_i) = sum_i r_i (p_j - [a_i = j])
    hits = torch.nn.functional.one_hot(played[0], 4).float()
    expected = (OneState.rewards[played[0], None] * (probabilities - hits)).sum(0)
    expected = expected / 8 if reduction == "mean" else expected
    torch.testing.assert_close(agent.policy.head.bias.grad, expected)


def test_estimator_is_unbiased() -> None:
    agent = REINFORCE(OneState(), PLAIN)
    observation = torch.ones(40_000, 2)
    actions = agent.policy.sample(observation, torch.Generator().manual_seed(0))
    done = torch.ones(len(actions), dtype=torch.bool)
    agent.rollouts = 1
    agent._update([Transition(observation, actions, OneState.rewards[actions], done)])
    # at the uniform start: d/d logit_j of -E[r] = -p_j (r_j - mean r)
    expected = -(OneState.rewards - OneState.rewards.mean()) / 4
    torch.testing.assert_close(agent.policy.head.bias.grad, expected, atol=0.02, rtol=0)


def test_rewards_to_go_against_numpy() -> None:
    random = np.random.default_rng(0)
    rewards, dones = random.normal(size=(7, 3)).astype(np.float32), random.random((7, 3)) < 0.3
    expected = np.zeros_like(rewards)
    for env in range(3):
        for start in range(7):
            discount = 1.0
            for step in range(start, 7):
                expected[start, env] += discount * rewards[step, env]
                if dones[step, env]:
                    break
                discount *= 0.9
    actual = rewards_to_go(torch.as_tensor(rewards), torch.as_tensor(dones), 0.9)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_discount_zero_is_the_reward_itself() -> None:
    rewards = torch.randn((4, 2), generator=torch.Generator().manual_seed(0))
    assert torch.equal(rewards_to_go(rewards, torch.zeros(4, 2, dtype=torch.bool), 0.0), rewards)


def test_advantages_subtract_the_moving_baseline_before_it_moves() -> None:
    settings = ReinforceSettings(gamma=0.5, n_steps=2, baseline_decay=0.75, normalize_advantage=False)
    agent = REINFORCE(OneState(), settings)
    agent.baseline = 2.0

    def transition(reward: float) -> Transition:
        return Transition(torch.ones(1, 2), torch.zeros(1), torch.tensor([reward]), torch.tensor([False]))

    advantages = agent._advantages([transition(3.0), transition(6.0)])
    assert advantages.flatten().tolist() == [1.0 + 0.5 * 4.0, 4.0]
    assert agent.baseline == 0.75 * 2.0 + 0.25 * 4.5


def test_advantages_do_not_depend_on_the_reward_s_scale_or_offset() -> None:
    def actions_after(scale: float, offset: float) -> torch.Tensor:
        env = OneState()
        env.rewards = OneState.rewards * scale + offset
        agent = REINFORCE(env, seed=1)
        agent.learn(8 * 20)
        return agent.policy(env.observe())[0].softmax(0)

    torch.testing.assert_close(actions_after(1, 0), actions_after(1024, 4096), atol=1e-3, rtol=1e-3)


def changes(agent: REINFORCE, plays: int) -> list[int]:
    """The plays (counted from 1) after which the weights were other ones."""
    changed = []
    for play in range(1, plays + 1):
        before = [weight.detach().clone() for weight in agent.policy.parameters()]
        agent.learn(agent.n_envs, reset_num_timesteps=False)
        if any(not torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True)):
            changed.append(play)
    return changed


def test_paper_setting_updates_on_every_tenth_play_only() -> None:
    agent = REINFORCE(OneState(), "reinforce-paper", planned_plays=40)
    assert changes(agent, 40) == [10, 20, 30, 40]
    assert agent.updates == 4


def test_our_setting_updates_on_every_play() -> None:
    assert changes(REINFORCE(OneState()), 5) == [1, 2, 3, 4, 5]


def test_paper_schedule_is_a_cosine_over_a_tenth_of_the_plays() -> None:
    agent = REINFORCE(OneState(), "reinforce-paper", planned_plays=50, updates_warmup=2)
    rates = []
    for _ in range(5):
        rates.append(agent.learning_rate)
        agent.learn(80, reset_num_timesteps=False)
    assert rates == [warmup_cosine(update, 5, 2, 0.1) for update in range(5)]
    assert agent.optimizer.param_groups[0]["lr"] == rates[-1]


def test_paper_setting_on_images_is_resnet18_in_train_mode_at_updates_only(world: Any) -> None:
    agent = REINFORCE(world(num_envs=4, image=True), replace(SETTINGS["reinforce-paper"], width=2), planned_plays=10)
    assert sum(isinstance(part, torch.nn.Conv2d) for part in agent.policy.modules()) == 20
    norm = agent.policy.get_submodule("extractor.network.norm.by_route.normal")
    assert isinstance(norm, torch.nn.BatchNorm2d)
    modes: list[bool] = []
    norm.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    agent.learn(4 * 10)
    # nine plays, the tenth's draw, its update
    assert modes == [False] * 9 + [True, True]
    moved = torch.zeros_like(norm.running_mean)
    assert not torch.equal(norm.running_mean, moved) and not agent.policy.training


def test_a_gpu_computes_the_paper_s_network_in_bf16_and_a_cpu_never_does(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, paper = world(num_envs=4, image=True), replace(SETTINGS["reinforce-paper"], width=4)

    def made(precision: str) -> REINFORCE:
        return REINFORCE(env, paper, planned_plays=10, seed=1, precision=precision)

    exact, observation = made("fp32"), env.observe()
    assert torch.equal(made("bf16").policy(observation), exact.policy(observation))
    # the CPU stands for a GPU
    monkeypatch.setattr("astra_gym.agents.policies.IN_BF16", ("cpu",))
    fast = made("bf16")
    weight = fast.policy.get_submodule("extractor.network.blocks.0").convs[0].weight  # type: ignore[union-attr, index]
    assert weight.dtype == torch.float32 and weight.is_contiguous(memory_format=torch.channels_last)
    features = [agent.policy.extractor(observation.float() / 255).detach() for agent in (exact, fast)]
    assert features[1].dtype == torch.float32 and not torch.equal(*features)
    torch.testing.assert_close(features[1], features[0], rtol=0, atol=5e-2 * float(features[0].abs().max()))
    fast.learn(4 * 10)
    assert all(value.isfinite().all() for value in fast.policy.state_dict().values())
    with pytest.raises(ValueError, match="unknown precision 'int8'"):
        made("int8")


class Assessed(OneState):
    """`OneState` whose assessments are other rewards than its plays, and that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, torch.Tensor]] = []

    def play(self, actions: torch.Tensor) -> StepResult:
        self.asked.append(("play", actions))
        return super().play(actions)

    def assess(self, actions: torch.Tensor) -> torch.Tensor | None:
        self.asked.append(("assess", actions))
        return 10 * self.rewards[actions]


def test_the_tenth_step_learns_from_a_draw_that_is_assessed_and_plays_a_second_one() -> None:
    env = Assessed()
    agent = REINFORCE(env, replace(SETTINGS["reinforce-paper"], max_grad_norm=1e9), planned_plays=20, seed=5)
    agent.learn(8 * 9)
    before = agent.policy(env.observe())[0].softmax(0).detach()
    state = agent._streams["agent/actions"].get_state()
    agent.learn(8, reset_num_timesteps=False)
    assert [kind for kind, _ in env.asked] == ["play"] * 9 + ["assess", "play"]
    first, second = env.asked[9][1], env.asked[10][1]
    # the policy gradient of the assessed rewards, at the weights that drew: sum_i r_i (p_j - [a_i = j])
    hits = nn.functional.one_hot(first, 4).float()
    expected = (10 * OneState.rewards[first, None] * (before - hits)).sum(0)
    torch.testing.assert_close(agent.policy.head.bias.grad, expected)
    # the second draw is of the weights that have learned, and what it is rewarded with is not learned from
    again = agent.policy.sample(env.observe(), torch.Generator().set_state(state))
    assert torch.equal(second, again) and not torch.equal(first, second)
    agent.learn(8 * 10, reset_num_timesteps=False)
    assert [kind for kind, _ in env.asked[11:]] == ["play"] * 9 + ["assess", "play"] and agent.updates == 2


def test_an_assessment_that_is_not_finite_is_told_as_one() -> None:
    env = Assessed()
    env.assess = lambda actions: torch.full((8,), torch.nan)  # type: ignore[method-assign]
    agent = REINFORCE(env, replace(SETTINGS["reinforce-paper"], interval=1), planned_plays=2)
    with pytest.raises(ValueError, match="what the environment says of actions is not finite in 8 of 8"):
        agent.learn(8)


def test_an_environment_that_cannot_assess_is_learned_from_in_one_draw() -> None:
    env = Assessed()
    env.assess = lambda actions: None  # type: ignore[method-assign]
    agent = REINFORCE(env, "reinforce-paper", planned_plays=20)
    assert changes(agent, 20) == [10, 20] and [kind for kind, _ in env.asked] == ["play"] * 20
    with pytest.raises(ValueError, match="n_steps is 5: expected 1"):
        replace(SETTINGS["reinforce-paper"], n_steps=5)


def test_paper_setting_has_neither_baseline_nor_bonus() -> None:
    chosen = SETTINGS["reinforce-paper"]
    assert (chosen.baseline_decay, chosen.normalize_advantage, chosen.ent_coef) == (None, False, 0.0)
    assert (chosen.learning_rate, chosen.weight_decay, chosen.max_grad_norm) == (0.1, 1e-6, 1.0)


def test_learning_starts_within_the_plays_of_a_short_run_and_keeps_its_entropy() -> None:
    """The attack's action space, a weak noisy reward, 220 plays: near the top at play 150, not collapsed at play 20."""

    class Attack:
        num_envs = 256
        observation_space = spaces.Box(-10, 10, (34,), np.float32)
        action_space = spaces.MultiDiscrete([13, 12, 5])
        device = torch.device("cpu")

        def __init__(self) -> None:
            self.generator = torch.Generator().manual_seed(0)
            self.means: list[float] = []
            self.current = self.draw()

        def draw(self) -> torch.Tensor:
            return torch.randn((256, 34), generator=self.generator)

        def observe(self) -> torch.Tensor:
            return self.current

        def play(self, actions: torch.Tensor) -> StepResult:
            signal = 0.2 * actions[:, 0] / 12 + 0.05 * actions[:, 1] / 11
            noise = 0.07 * self.current[:, :4].sum(1) / 2 + 0.07 * torch.randn(256, generator=self.generator)
            self.means.append(float(signal.mean()) / 0.25)
            self.current = self.draw()
            return StepResult(signal + noise, torch.ones(256, dtype=torch.bool), {})

    env = Attack()
    agent = REINFORCE(env)
    agent.learn(256 * 20)
    _, entropy = agent.policy.log_prob_entropy(env.observe(), agent._act(env.observe()))
    assert entropy.mean() > 0.7 * np.log(13 * 12 * 5)
    agent.learn(256 * 130, reset_num_timesteps=False)
    assert np.mean(env.means[-10:]) > 0.95


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"optimizer": "lasr"}, "did you mean 'lars'"),
        ({"schedule": "linear"}, "schedule"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0: expected a finite number above 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0: expected above 0"),
        ({"max_grad_norm": math.nan}, "max_grad_norm is nan: expected above 0"),
        ({"interval": 0}, "interval is 0: expected an integer of 1 or more"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"baseline_decay": 1.0}, "baseline_decay is 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ReinforceSettings(**change)


def test_paper_schedule_needs_a_plan() -> None:
    with pytest.raises(ValueError, match="planned_plays is None"):
        REINFORCE(OneState(), "reinforce-paper")


def test_figures_are_recorded() -> None:
    agent = REINFORCE(OneState())
    names: set[str] = set()
    agent.logger.dump = lambda step=0: names.update(agent.logger.name_to_value)  # type: ignore[method-assign]
    agent.learn(16)
    assert names == {
        "rollout/reward_mean",
        *(f"train/{name}" for name in ("policy_loss", "entropy", "baseline", "learning_rate", "grad_norm")),
    }
