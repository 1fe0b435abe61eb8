"""Bandits, which learn the reward of an action from that action alone, without a network."""

from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from gymnasium import spaces
from torch import Tensor

from astra_gym.agents.base import Transition
from astra_gym.agents.controls import Common, OnePlayAgent
from astra_gym.agents.policies import choices
from astra_gym.ssl_core.utils.finite import check_number


@dataclass(frozen=True)
class BanditSettings:
    """Settings of `Exp3Bandit`.

    Args:
        step_size: step size of the logarithms of the weights, for rewards of deviation 1.
        share: part in (0, 1] of all weight that is spread equally after every play, so that the bandit keeps exploring.
        baseline_decay: decay in [0, 1) of the rewards' moving mean and mean square.

    Raises:
        ValueError: if a value is out of range.
    """

    step_size: float = 0.5
    share: float = 0.005
    baseline_decay: float = 0.9

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, above=True)
        check_number("share", self.share, 0, 1, above=True)
        check_number("baseline_decay", self.baseline_decay, 0, 1, below=True)


@dataclass(frozen=True)
class LinearSettings:
    """Settings of `LinearThompson`.

    Args:
        ridge: weight of the penalty; the precision of the prior of every coefficient.
        deviation: scale of the draws, in standard deviations of the posterior for rewards of deviation 1; 0 is greedy.
        forgetting: weight in (0, 1] of all earlier plays after each new one: 0.99 remembers about 100 plays.
        propensity_draws: further draws for the estimate of each choice's probability.
        baseline_decay: decay in [0, 1) of the rewards' moving mean and mean square.

    Raises:
        ValueError: if a value is out of range.
    """

    ridge: float = 1.0
    deviation: float = 2.0
    forgetting: float = 0.99
    propensity_draws: int = 16
    baseline_decay: float = 0.9

    def __post_init__(self) -> None:
        check_number("ridge", self.ridge, above=True)
        check_number("propensity_draws", self.propensity_draws, 1, whole=True)
        check_number("deviation", self.deviation)
        check_number("forgetting", self.forgetting, 0, 1, above=True)
        check_number("baseline_decay", self.baseline_decay, 0, 1, below=True)


class Bandit(OnePlayAgent):
    """Base of both bandits: heads of a discrete action space, rewards normalized as by `REINFORCE`.

    The heads of a MultiDiscrete space learn independently, each from the reward of the whole action. For a head the
    others' choices are noise, so it does not find what choices earn only together. A bandit learns from the reward of a
    play; it has no discount, and sees no later effect of an action.
    """

    settings_class: ClassVar[type]

    def __init__(self, env: Any, settings: Any = None, **common: Unpack[Common]) -> None:
        self.settings = settings or self.settings_class()
        super().__init__(env, **common)
        self.choices = choices(self.action_space)
        if not self.choices:
            raise ValueError(
                f"the action space is {self.action_space}: a bandit chooses among given actions; make the environment "
                "with discrete actions (actions='factored' or 'flat')"
            )
        self.baseline: float | None = None
        self.scale: float | None = None

    def _columns(self, actions: Tensor) -> Tensor:
        """Return the heads' choices (heads, n) of actions."""
        return actions.view(len(actions), -1).T

    def _greedy(self, observation: Tensor) -> Tensor:
        """Return the actions (n, ...) of greatest value."""
        raise NotImplementedError

    def _advantages(self, rewards: Tensor) -> Tensor:
        """Return rewards (n,) minus their moving mean, over their moving deviation, float64; update both."""
        decay = self.settings.baseline_decay
        rewards = rewards.double()
        mean = float(rewards.mean())
        # the baseline is the mean of earlier plays, since the mean of a single reward would be the reward itself; the
        # first play has no earlier one
        baseline = mean if self.baseline is None else self.baseline
        self.baseline = decay * baseline + (1 - decay) * mean
        advantages = rewards - baseline
        square = float(advantages.square().mean())
        self.scale = square if self.scale is None else decay * self.scale + (1 - decay) * square
        return advantages / (self.scale + 1e-12) ** 0.5

    def _record(self, rollout: Transition) -> None:
        """Log the share of choices that were not greedy, by the values before the play's update."""
        explored = self._greedy(rollout.observation) != rollout.action
        self.logger.record("train/exploration", float(explored.double().mean()))

    def _values(self) -> dict[str, Tensor]:
        """Return the tensors that are learned; `load` writes into them."""
        raise NotImplementedError

    def _learner_state(self) -> dict[str, Any]:
        return {"choices": self.choices, "baseline": self.baseline, "scale": self.scale, **self._values()}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        values = self._values()
        shapes = {name: tuple(state[name].shape) for name in values}
        expected = {name: tuple(value.shape) for name, value in values.items()}
        if state["choices"] != self.choices or shapes != expected:
            raise RuntimeError(f"it has {state['choices']}, {shapes}: expected {self.choices}, {expected}")
        for name, value in values.items():
            value.copy_(state[name])
        self.baseline, self.scale = state["baseline"], state["scale"]


class Exp3Bandit(Bandit):
    """Exp3.S (Auer, Cesa-Bianchi, Freund and Schapire 2002), one for each head; it ignores the observation.

    A play of n sub-environments draws n choices of each head from its probabilities p and moves them by

        q_a = sum_i A_i [a_i = a] / (n p_a + 1)        p <- (1 - share) softmax(log p + step_size q) + share / choices

    A is the reward minus its moving mean, over its moving deviation. The 1 keeps the estimate of an unlikely choice
    bounded (implicit exploration, Neu 2015). The best it can learn is the best constant action. When another action
    becomes the best, it follows within some dozens of plays; a gradient bandit (Sutton and Barto 2018, section 2.8)
    does not, since its preferences move in proportion to p. A deterministic prediction is the most probable action.

    Args:
        env: anything that `astra_gym.agents.base.as_torch_env` takes, with a Discrete or MultiDiscrete action space.
        settings: see `BanditSettings`.
        common: seed, device and tensorboard_log, as in `Agent`.

    Raises:
        ValueError: if the action space is continuous.
    """

    kind: ClassVar[str] = "bandit"
    settings_class = BanditSettings

    def __init__(self, env: Any, settings: BanditSettings | None = None, **common: Unpack[Common]) -> None:
        super().__init__(env, settings, **common)
        # always on the host, where the order of additions is fixed; these are a few dozen numbers only
        heads = [torch.full((n,), 1 / n, dtype=torch.float64) for n in self.choices]
        self.probabilities = torch.cat(heads)

    def _heads(self) -> tuple[Tensor, ...]:
        """Return views of each head's probabilities, (choices,)."""
        return self.probabilities.split(self.choices)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        heads = [torch.multinomial(p, n, replacement=True, generator=generator) for p in self._heads()]
        return self._joined(heads).to(self.device, non_blocking=True)

    def _greedy(self, observation: Tensor) -> Tensor:
        return self._joined([p.argmax().repeat(len(observation)) for p in self._heads()]).to(self.device)

    def _act(self, observation: Tensor) -> Tensor:
        return self._draw(len(observation), self._streams["agent/actions"])

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        if deterministic:
            return self._greedy(observation)
        return self._draw(len(observation), self._streams["agent/predict"])

    def _update(self, rollout: list[Transition]) -> None:
        (played,) = rollout
        self._record(played)
        advantages = self._advantages(played.reward)
        chosen, share = self.settings, self.settings.share
        for p, column in zip(self._heads(), self._columns(played.action.cpu()), strict=True):
            earned = torch.bincount(column, advantages, len(p)) / (len(advantages) * p + 1)
            p.copy_((1 - share) * (p.log() + chosen.step_size * earned).softmax(0) + share / len(p))
        self.logger.record("train/entropy", -float(self.probabilities.xlogy(self.probabilities).sum()))
        self.logger.record("train/baseline", self.baseline)

    def _values(self) -> dict[str, Tensor]:
        return {"probabilities": self.probabilities}


class LinearThompson(Bandit):
    """Balanced linear Thompson sampling: the reward of every choice is linear in the observation.

    Thompson sampling with a linear model (Agrawal and Goyal 2013), each sample weighted by its inverse propensity
    (Dimakopoulou, Zhou, Athey and Imbens 2019). x is the observation and a constant, A the normalized reward. For each
    choice of each head, over the samples in which the head took that choice:

        V = ridge * I + sum w x x^T        theta = V^-1 sum w x A
        w = forgetting ** (plays ago) / (choices * p)

    where p, the probability of that choice, is estimated from further draws as (hits + 1) / (draws + choices). Without
    this weight a choice is fitted only where it looks good, which misleads because no reward is quite linear.

    For each sub-environment, a play draws the value of every choice from N(x^T theta, deviation^2 x^T V^-1 x) and takes
    each head's greatest; a deterministic prediction takes the greatest x^T theta. LinUCB (Li et al. 2010) was rejected:
    its sub-environments would all try the same choices in a play, since nothing is learned within it.

    The model is additive: a head's values do not depend on what the other heads choose. Time and memory grow with the
    number of choices and the square of the number of features (float64), so it is meant for features and factored
    actions.

    Args:
        env: anything that `astra_gym.agents.base.as_torch_env` takes, with observations Box (F,) of floats and a
            Discrete or MultiDiscrete action space.
        settings: see `LinearSettings`.
        common: seed, device and tensorboard_log, as in `Agent`.

    Raises:
        ValueError: if the observations are not vectors of features, or the action space is continuous.
    """

    kind: ClassVar[str] = "lints"
    settings_class = LinearSettings

    def __init__(self, env: Any, settings: LinearSettings | None = None, **common: Unpack[Common]) -> None:
        super().__init__(env, settings, **common)
        space = self.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(
                f"the observation space is {space}: a linear model needs features, Box (F,); make the environment with "
                "observation='features'"
            )
        total, size = sum(self.choices), space.shape[0] + 1
        options: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        # the sums of x x^T and of x A, without the ridge, which is not forgotten
        self.gram = torch.zeros((total, size, size), **options)
        self.moment = torch.zeros((total, size), **options)
        # (heads, n), for the play that has not been learned from yet
        self._weights: Tensor | None = None
        self._fit()

    def _fit(self) -> None:
        """Set `coefficients` (choices, F + 1) and the Cholesky factor of every V from the sums."""
        ridge = self.settings.ridge * torch.eye(self.gram.shape[1], dtype=torch.float64, device=self.device)
        self._factor = torch.linalg.cholesky(self.gram + ridge)
        self.coefficients = torch.cholesky_solve(self.moment[..., None], self._factor)[..., 0]

    def _inputs(self, observation: Tensor) -> Tensor:
        """Return the observation with an appended constant: (n, F + 1) float64."""
        return torch.cat([observation.double(), observation.new_ones((len(observation), 1), dtype=torch.float64)], 1)

    def _best(self, values: Tensor) -> Tensor:
        """Return each head's greatest of values (n, choices), as actions."""
        return self._joined([head.argmax(1) for head in values.split(self.choices, 1)])

    def _greedy(self, observation: Tensor) -> Tensor:
        return self._best(self._inputs(observation) @ self.coefficients.T)

    def _draws(self, observation: Tensor, generator: torch.Generator, count: int = 1) -> Tensor:
        """Draw values of the choices from the posterior: (count, n, choices)."""
        x = self._inputs(observation)
        # x^T V^-1 x = |L^-1 x|^2
        halves = torch.linalg.solve_triangular(self._factor, x.T.expand(len(self._factor), -1, -1), upper=False)
        deviations = self.settings.deviation * halves.square().sum(1).sqrt().T
        # always drawn on the CPU, as policies do, so that a run draws the same on every device
        noise = torch.randn((count, *deviations.shape), generator=generator, dtype=torch.float64).to(self.device)
        return x @ self.coefficients.T + deviations * noise

    def _act(self, observation: Tensor) -> Tensor:
        further = self.settings.propensity_draws
        values = self._draws(observation, self._streams["agent/actions"], 1 + further)
        actions = self._best(values[0])
        weights = []
        for head, chosen in zip(values[1:].split(self.choices, 2), self._columns(actions), strict=True):
            hits, n = (head.argmax(2) == chosen).sum(0), head.shape[2]
            weights.append((further + n) / (n * (hits + 1).double()))
        self._weights = torch.stack(weights)
        return actions

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        if deterministic:
            return self._greedy(observation)
        return self._best(self._draws(observation, self._streams["agent/predict"])[0])

    def _update(self, rollout: list[Transition]) -> None:
        (played,) = rollout
        if self._weights is None:
            raise RuntimeError("a play is learned from whose propensities are not known: only _act's own plays are")
        self._record(played)
        x = self._inputs(played.observation)
        advantages = self._advantages(played.reward).to(x.device, non_blocking=True)
        self.gram *= self.settings.forgetting
        self.moment *= self.settings.forgetting
        sums = self.gram.split(self.choices), self.moment.split(self.choices)
        for gram, moment, chosen, weights in zip(*sums, self._columns(played.action), self._weights, strict=True):
            # each row belongs to one choice, so after sorting all products together cost as much as one over all rows
            order = chosen.argsort(stable=True)
            counts = torch.bincount(chosen, minlength=len(gram)).tolist()
            weighted = x * weights[:, None]
            for choice, rows in enumerate(order.split(counts)):
                gram[choice] += weighted[rows].T @ x[rows]
                moment[choice] += weighted[rows].T @ advantages[rows]
        self._weights = None
        self._fit()
        self.logger.record("train/baseline", self.baseline)

    def _values(self) -> dict[str, Tensor]:
        return {"gram": self.gram, "moment": self.moment}

    def _learner_state(self) -> dict[str, Any]:
        return {**super()._learner_state(), "weights": self._weights}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        super()._load_learner_state(state)
        weights = state["weights"]
        self._weights = None if weights is None else weights.to(self.device, copy=True)
        self._fit()


BANDITS: dict[str, type[Bandit]] = {each.kind: each for each in (Exp3Bandit, LinearThompson)}
"""Bandits by the names that `make_agent` knows."""
