"""REINFORCE (Williams 1992): ASTrA's own settings, and settings that learn within a few hundred steps."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from astra_gym.agents.base import Agent, Transition
from astra_gym.agents.policies import HEADS, ResNetExtractor, batch_statistics, build_policy
from astra_gym.envs.api.protocol import AssessingEnv
from astra_gym.ssl_core.models.target_network import PRECISIONS
from astra_gym.ssl_core.settings import renamed
from astra_gym.ssl_core.training.optim import LARS, warmup_cosine
from astra_gym.ssl_core.utils.finite import NonFiniteValueError, check_number
from astra_gym.ssl_core.utils.overrides import by_present_names
from astra_gym.ssl_core.utils.registry import pick


@dataclass(frozen=True)
class ReinforceSettings:
    """Settings of `REINFORCE`; the defaults are those of the name `reinforce`.

    Args:
        learning_rate: peak learning rate.
        optimizer: "adam" or "lars".
        weight_decay: weight decay of LARS.
        schedule: "constant", or "cosine" with a warm-up from 0 (needs the number of planned plays).
        n_steps: plays in a rollout.
        interval: rollouts from one update to the next; an update uses only the last of them.
        gamma: discount in [0, 1]; rewards-to-go end at `done` and at the rollout's end.
        baseline_decay: decay in [0, 1) of the moving mean of the reward, which is subtracted from it; None for none.
        normalize_advantage: divide advantages by their moving root mean square.
        ent_coef: weight of the mean entropy (nats) in the loss.
        reduction: "mean" over the samples, or "sum" as in the paper.
        max_grad_norm: largest norm of the gradient, which is clipped to it; infinity clips nothing.
        hidden, image_network, width, log_std, uniform_start, heads: settings of the policy, see
            `astra_gym.agents.policies.build_policy`.
        second_draw: update the policy from a first draw of actions, which the environment only assesses, then play a
            second draw, from the updated policy, as ASTrA's released code does. Needs `n_steps` 1. If this is False, or
            the environment cannot assess (see `astra_gym.envs.api.protocol.AssessingEnv`; the log's
            `train/second_draw` is then 0), there is one draw, which is played and learned from.

    Raises:
        ValueError: if a value is out of range.
    """

    RENAMED: ClassVar[Mapping[str, str]] = renamed.REINFORCE_SETTINGS

    learning_rate: float = 5e-3
    optimizer: str = "adam"
    weight_decay: float = 0.0
    schedule: str = "constant"
    n_steps: int = 1
    interval: int = 1
    gamma: float = 0.0
    baseline_decay: float | None = 0.9
    normalize_advantage: bool = True
    ent_coef: float = 0.02
    reduction: str = "mean"
    max_grad_norm: float = 1.0
    hidden: tuple[int, ...] = (64, 64)
    image_network: str = "small"
    width: int = 64
    log_std: float = -0.5
    uniform_start: bool = True
    heads: str = "joint"
    second_draw: bool = False

    def __post_init__(self) -> None:
        pick(self.optimizer, {"adam": 0, "lars": 0}, "optimizer")
        pick(self.schedule, {"constant": 0, "cosine": 0}, "schedule")
        pick(self.reduction, {"mean": 0, "sum": 0}, "reduction")
        pick(self.heads, HEADS, "kind of heads")
        check_number("learning_rate", self.learning_rate, above=True)
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm}: expected above 0; infinity clips nothing")
        for name in ("n_steps", "interval", "width"):
            check_number(name, getattr(self, name), 1, whole=True)
        if self.second_draw and self.n_steps > 1:
            raise ValueError(f"n_steps is {self.n_steps}: expected 1, since second_draw learns from single plays")
        check_number("gamma", self.gamma, 0, 1, "a discount in [0, 1]")
        if self.baseline_decay is not None:
            check_number("baseline_decay", self.baseline_decay, 0, 1, "a number in [0, 1), or None", below=True)
        # settings from a file have a list here
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for size in self.hidden:
            check_number("a size in hidden", size, 1, whole=True)


SETTINGS: dict[str, ReinforceSettings] = {
    "reinforce": ReinforceSettings(),
    # methods of ASTrA, sections 1.1 and 1.2: minimize -sum_i r_i log pi(a_i|x_i); clip 1.0; LARS 0.1; cosine over T/10
    "reinforce-paper": ReinforceSettings(
        learning_rate=0.1,
        optimizer="lars",
        weight_decay=1e-6,
        schedule="cosine",
        interval=10,
        baseline_decay=None,
        normalize_advantage=False,
        ent_coef=0.0,
        reduction="sum",
        image_network="resnet18",
        uniform_start=False,
        heads="separate",
        second_draw=True,
    ),
}


def rewards_to_go(rewards: Tensor, dones: Tensor, gamma: float) -> Tensor:
    """Sum the discounted rewards from each step on: `g_t = r_t + gamma * (1 - done_t) * g_(t+1)`.

    Args:
        rewards: (steps, n).
        dones: (steps, n) bool, True where a step ended its episode.
        gamma: discount in [0, 1].

    Returns:
        (steps, n).
    """
    total = torch.zeros_like(rewards[0])
    sums = []
    for reward, done in zip(rewards.flip(0), dones.flip(0), strict=True):
        total = reward + gamma * total * ~done
        sums.append(total)
    return torch.stack(sums[::-1])


class REINFORCE(Agent):
    """Policy gradient from the reward itself, without a value network.

    The baseline b is a moving mean of the reward. The advantage of a step is the discounted sum of r - b up to the end
    of its episode or rollout. The baseline is subtracted at every step of the sum, so that a rollout which is cut short
    does not look bad. In environments of one step (gamma 0) the advantage is r - b.

    Args:
        env: anything that `astra_gym.agents.base.as_torch_env` takes.
        settings: a name of `SETTINGS`, or custom settings.
        planned_plays: plays of the whole run; the cosine schedule ends there (after planned_plays / (interval *
            n_steps) updates).
        updates_warmup: updates of the cosine schedule's linear warm-up from 0.
        precision: `fp32`, or `bf16`, in which a GPU computes the image network "resnet18".
        seed, device, tensorboard_log: as in `Agent`.

    Raises:
        ValueError: if the spaces are not supported, the name is unknown, or the schedule lacks `planned_plays`.
    """

    kind: ClassVar[str] = "reinforce"

    def __init__(
        self,
        env: Any,
        settings: str | ReinforceSettings = "reinforce",
        *,
        planned_plays: int | None = None,
        updates_warmup: int = 0,
        precision: str = "fp32",
        seed: int = 0,
        device: torch.device | str = "auto",
        tensorboard_log: str | os.PathLike[str] | None = None,
    ) -> None:
        self.settings = pick(settings, SETTINGS, "REINFORCE setting") if isinstance(settings, str) else settings
        pick(precision, PRECISIONS, "precision")
        chosen = self.settings
        if chosen.schedule == "cosine" and planned_plays is None:
            raise ValueError("planned_plays is None: the cosine schedule needs the number of plays of the whole run")
        log = None if tensorboard_log is None else os.fspath(tensorboard_log)
        super().__init__(env, seed=seed, device=device, n_steps=chosen.n_steps, tensorboard_log=log)
        self.planned_plays = planned_plays
        self.updates_warmup = updates_warmup
        self.updates = 0
        self.baseline: float | None = None
        self.scale: float | None = None
        self.policy = build_policy(
            self._streams["agent/init"],
            self.observation_space,
            self.action_space,
            hidden=chosen.hidden,
            image_network=chosen.image_network,
            width=chosen.width,
            log_std=chosen.log_std,
            uniform_start=chosen.uniform_start,
            heads=chosen.heads,
        ).to(self.device)
        self.precision = precision
        if precision == "bf16" and isinstance(self.policy.extractor, ResNetExtractor):
            self.policy.extractor.hasten()
        self.policy.eval()
        self.optimizer: torch.optim.Optimizer
        if chosen.optimizer == "lars":
            self.optimizer = LARS(self.policy.parameters(), chosen.learning_rate, weight_decay=chosen.weight_decay)
        else:
            self.optimizer = torch.optim.Adam(self.policy.parameters(), chosen.learning_rate, eps=1e-5)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the coming update."""
        chosen = self.settings
        if chosen.schedule == "constant" or self.planned_plays is None:
            return chosen.learning_rate
        total = max(1, self.planned_plays // (chosen.interval * chosen.n_steps))
        return warmup_cosine(self.updates, total, self.updates_warmup, chosen.learning_rate)

    def _updates_after(self, rollout: int) -> bool:
        """Return whether the policy is updated from the rollout (counted from 1)."""
        return rollout % self.settings.interval == 0

    def _act(self, observation: Tensor) -> Tensor:
        generator = self._streams["agent/actions"]
        if not self._updates_after(self.rollouts + 1):
            return self.policy.sample(observation, generator)
        env = self._env if self.settings.second_draw and isinstance(self._env, AssessingEnv) else None
        with batch_statistics(self.policy):
            first = self.policy.sample(observation, self._streams["agent/assessed"] if env else generator)
        reward = env.assess(self._send(first).to(env.device)) if env else None
        if self.settings.second_draw:
            self.logger.record("train/second_draw", int(reward is not None))
        if reward is None:
            return first
        reward = reward.cpu()
        if not bool(reward.isfinite().all()):
            raise NonFiniteValueError(
                f"what the environment says of actions is not finite in {int((~reward.isfinite()).sum())} of "
                f"{self.n_envs} sub-environments after {self.num_timesteps} timesteps"
            )
        self._learn_from([Transition(observation, first, reward, torch.ones_like(reward, dtype=torch.bool))])
        return self.policy.sample(observation, generator)

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        return self.policy.sample(observation, self._streams["agent/predict"], deterministic)

    def _update(self, rollout: list[Transition]) -> None:
        # there is one update in each interval: none here if the policy has learned from a draw that was assessed
        if self._updates_after(self.rollouts) and self.updates < self.rollouts // self.settings.interval:
            self._learn_from(rollout)

    def _learn_from(self, rollout: list[Transition]) -> None:
        """Update the policy once."""
        chosen = self.settings
        advantages = self._advantages(rollout).flatten().to(self.device, non_blocking=True)
        observations = torch.cat([transition.observation for transition in rollout])
        actions = torch.cat([transition.action for transition in rollout])
        rate = self.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.policy.train()
        log_prob, entropy = self.policy.log_prob_entropy(observations, actions)
        weighted = -advantages * log_prob
        policy_loss = weighted.sum() if chosen.reduction == "sum" else weighted.mean()
        self.optimizer.zero_grad()
        (policy_loss - chosen.ent_coef * entropy.mean()).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), chosen.max_grad_norm)
        self.optimizer.step()
        self.policy.eval()
        self.updates += 1
        figures = torch.stack([policy_loss.detach(), entropy.detach().mean(), norm]).tolist()
        if not all(map(math.isfinite, figures)):
            raise NonFiniteValueError(
                f"update {self.updates} of the policy is not finite (the loss is {figures[0]:g}): lower learning_rate"
            )
        for name, value in zip(("policy_loss", "entropy", "grad_norm"), figures, strict=True):
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/learning_rate", rate)
        if self.baseline is not None:
            self.logger.record("train/baseline", self.baseline)

    def _advantages(self, rollout: list[Transition]) -> Tensor:
        """Return the advantages (steps, n) of a rollout; update the baseline and the scale."""
        chosen = self.settings
        rewards = torch.stack([transition.reward for transition in rollout])
        dones = torch.stack([transition.done for transition in rollout])
        decay = chosen.baseline_decay
        if decay is not None:
            mean = float(rewards.mean())
            # the first rollout is its own baseline, since there is no earlier one
            baseline = mean if self.baseline is None else self.baseline
            self.baseline = decay * baseline + (1 - decay) * mean
            rewards = rewards - baseline
        advantages = rewards_to_go(rewards, dones, chosen.gamma)
        if chosen.normalize_advantage:
            square = float(advantages.square().mean())
            decay = 0.9 if decay is None else decay
            self.scale = square if self.scale is None else decay * self.scale + (1 - decay) * square
            advantages = advantages / (self.scale + 1e-12) ** 0.5
        return advantages

    def take_over(self, state: dict[str, Any]) -> None:
        """Begin with another agent's policy; baseline, optimizer and schedule begin anew, since rewards differ."""
        self.policy.load_state_dict(state["learner"]["policy"])

    def _arguments(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "planned_plays": self.planned_plays,
            "updates_warmup": self.updates_warmup,
            "precision": self.precision,
        }

    @classmethod
    def _from_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        settings = by_present_names(arguments["settings"], ReinforceSettings.RENAMED)
        return {**arguments, "settings": ReinforceSettings(**settings)}

    def _learner_state(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "baseline": self.baseline,
            "scale": self.scale,
        }

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.baseline, self.scale = state["updates"], state["baseline"], state["scale"]
