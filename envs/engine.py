"""The decision problem itself, in torch on the device: look at a batch, attack it within a budget, learn from it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.rewards import Rewards, held_out_rows
from envs.world import WorldSettings
from ssl_core.attacks import Budget
from ssl_core.clock import Clock
from ssl_core.images import Split
from ssl_core.learner import NonFiniteLossError, TargetLearner
from ssl_core.loading import BatchSource
from ssl_core.networks import Encoded
from ssl_core.rng import Streams
from ssl_core.sampler import BatchSampler
from ssl_core.views import as_float, two_views

OBSERVATION_BOUND = 10.0
"""Standardised features are clipped to plus and minus this."""
MEMORY = 0.99
"""How much of the running statistics stays at each batch: they follow the target network, which drifts."""
VARIANCE_FLOOR = 1e-6


@dataclass(frozen=True)
class StepRecord:
    """What one `play` did, all tensors on the device and without gradient; n is the number of attacked views.

    Args:
        step: number of target updates made, this one included.
        epoch: the same in passes over the data.
        reward: (n,).
        terms: named reward terms, (n,) each, before their weights.
        budget: what was played, None for a method without an attack.
        strength: (n,) largest absolute change of a pixel in each view, in the images' unit.
        losses: mean of each named loss term, and "total".
        lr: learning rate of the update.
        views: (v, 3, h, w) clean views.
        adversarial: (n, 3, h, w) attacked views, None without an attack.
        end_of_epoch: whether this was the last step of an epoch.
        other_steps: gradient steps of attacks beside the budget's, times their views: what the look-ahead reward
            measures an update by; 0 without it. The first play measures twice.
    """

    step: int
    epoch: float
    reward: Tensor
    terms: dict[str, Tensor]
    budget: Budget | None
    strength: Tensor
    losses: dict[str, float]
    lr: float
    views: Tensor
    adversarial: Tensor | None
    end_of_epoch: bool
    other_steps: int = 0


class Assessment(NamedTuple):
    """Reward (n,), its named terms and the attacked views (n, 3, h, w) of an attack."""

    reward: Tensor
    terms: dict[str, Tensor]
    adversarial: Tensor


class AttackEngine:
    """One world: a target network in training, its data and every random stream.

    `observe` and `play` alternate; a world is built by `reset(seed)`, or at once by the constructor.

    Args:
        settings: what the world is made of.
        seed: of every stream.
        device: where the target network lives.
        data: the data set, if it is already loaded.

    Raises:
        ValueError: if the data cannot be loaded or holds fewer images than a batch.
    """

    def __init__(
        self,
        settings: WorldSettings,
        seed: int = 0,
        device: torch.device | str = "cpu",
        data: Split | None = None,
    ) -> None:
        self.settings = settings
        self.device = torch.device(device)
        self.data = settings.load_data() if data is None else data
        self.views_settings = settings.make_views()
        self.source = BatchSource(self.data.train, self.device, settings.keep_data)
        self.clock = Clock()
        """Of `observe` and `play`: the world's part of a step, the rest being the agent's."""
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """A new world: initial target weights, running statistics and every stream as the seed gives them."""
        self.streams = Streams(seed, self.device)
        held_out = held_out_rows(self.settings, len(self.data.train), self.streams)
        self._start(held_out)
        self.learner: TargetLearner = self.settings.make_learner(
            self.streams, self.planned_updates, self.steps_per_epoch
        )
        self.method = self.learner.method
        self.rewards = Rewards(self.settings, self.learner, self.streams, len(self.data.train))
        if held_out is not None:
            images = as_float(self.data.train.images[held_out].to(self.device))
            self.rewards.look_at(held_out, self.make_views(images, self.streams["lookahead/views"]))
        self.last: StepRecord | None = None
        self._mean: Tensor | None = None
        self._variance: Tensor | None = None
        self._seen: tuple[Tensor, Encoded] | None = None
        self._draw()

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training images, less those held out."""
        return self.sampler.steps_per_epoch

    @property
    def planned_updates(self) -> int:
        """Target updates that the settings plan; the learning-rate schedule spans them."""
        return self.settings.epochs * self.steps_per_epoch

    @property
    def step(self) -> int:
        """Target updates made."""
        return self.learner.step

    @property
    def progress(self) -> float:
        """Share of the planned updates made, in [0, 1]."""
        return min(1.0, self.step / self.planned_updates)

    @property
    def num_attacked(self) -> int:
        """Views attacked in a step."""
        return self.method.num_attacked(self.settings.batch_size)

    @property
    def observation_dim(self) -> int:
        """Length of a view's observation: the backbone's features, the view's clean loss, the training progress."""
        return self.learner.network.feature_dim + 2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a view."""
        channels, height, width = self.data.train.images.shape[1:]
        return channels, height, width

    @property
    def views(self) -> Tensor:
        """The coming batch's clean views (v, 3, h, w)."""
        return self._views

    def _start(self, held_out: Tensor | None) -> None:
        self.sampler = BatchSampler(
            len(self.data.train), self.settings.batch_size, self.streams["data"], held_out=held_out
        )
        self.source.start(self.sampler)

    def _draw(self) -> None:
        images = as_float(self.source.next())
        self._views = self.make_views(images, self.streams["views"])
        self._seen = None

    def make_views(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Two augmented views of each image (b, 3, h, w), rows 2k and 2k+1 those of image k."""
        views = two_views(images, self.views_settings, generator)
        return views.contiguous(memory_format=torch.channels_last)

    def observe(self) -> Tensor:
        """Observations (v, observation_dim) of the coming batch, in [-10, 10]; the same until the next `play`.

        Features and clean loss are standardised by running statistics, which the first call after a `play` updates.
        """
        with self.clock.running():
            return self._observed()[0]

    def _observed(self) -> tuple[Tensor, Encoded]:
        """The coming batch's observations and what the network gave for its clean views, made once a batch."""
        if self._seen is None:
            raw, look = self.raw_observation(self._views)
            if not bool(raw.isfinite().all()):
                last = "no attack yet" if self.last is None else _describe(self.last.budget)
                raise NonFiniteLossError(f"features before update {self.step + 1} are not finite; last {last}")
            self._update_statistics(raw)
            self._seen = self.standardise(raw), look
        return self._seen

    def raw_observation(self, views: Tensor) -> tuple[Tensor, Encoded]:
        """Features and clean loss (v, observation_dim - 1), not standardised, and the network's encodings."""
        look = self.learner.look(views)
        loss = self.method.objective(look.embeddings)
        return torch.cat([look.features, loss[:, None]], dim=1), look

    def _update_statistics(self, raw: Tensor) -> None:
        variance, mean = torch.var_mean(raw, dim=0, correction=0)
        if self._mean is None or self._variance is None:
            self._mean, self._variance = mean, variance
        else:
            self._mean = MEMORY * self._mean + (1 - MEMORY) * mean
            self._variance = MEMORY * self._variance + (1 - MEMORY) * variance

    def standardise(self, raw: Tensor) -> Tensor:
        """Raw observations to what an agent sees: standardised, clipped, and with the progress appended in [-1, 1]."""
        if self._mean is None or self._variance is None:
            raise ValueError("there are no running statistics yet: call observe() first")
        scaled = (raw - self._mean) / (self._variance + VARIANCE_FLOOR).sqrt()
        progress = scaled.new_full((len(raw), 1), 2 * self.progress - 1)
        return torch.cat([scaled.clamp_(-OBSERVATION_BOUND, OBSERVATION_BOUND), progress], dim=1)

    def assess(self, views: Tensor, clean: Tensor, budget: Budget, generator: torch.Generator) -> Assessment:
        """Attacks views and computes the reward, on the present weights; nothing is learned.

        The reward has only the terms that a frozen network has: `adversarial`, `clean`, `mixed` and `cost`. `play` adds
        those of an update and of the images' history, see `envs.rewards`.

        Args:
            views: (n, 3, h, w) in [0, 1].
            clean: their embeddings (n, d) on the clean route.
            budget: n entries.
            generator: of the attack's random start.
        """
        attacked = self.learner.attack(views, budget, generator)
        terms = self.rewards.frozen_terms(clean, attacked.embeddings, budget)
        return Assessment(self.rewards.total(terms), terms, attacked.images)

    def play(self, budget: Budget | None) -> StepRecord:
        """Attacks the coming batch, computes the reward on the weights that the attack saw, draws the next batch and
        updates the target once. Terms that judge the update are computed after it.

        Args:
            budget: `num_attacked` entries on the engine's device; None for a method without an attack.

        Raises:
            ValueError: if there is a budget and no attack, or the other way round, or its length is wrong.
            NonFiniteLossError: if the loss is not finite; the message names step and budget.
        """
        with self.clock.running():
            return self._play(budget)

    def _play(self, budget: Budget | None) -> StepRecord:
        views = self._views
        if (budget is None) == self.method.attacks:
            needs = f"a budget for {self.num_attacked} views" if self.method.attacks else "no budget: it has no attack"
            raise ValueError(f"the method {self.settings.method} takes {needs}")
        terms: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        adversarial = None
        reward = strength = torch.zeros(len(views), device=self.device)
        spent = self.rewards.attack_steps
        if budget is not None:
            clean = self._observed()[1].embeddings
            reward, terms, adversarial = self.assess(views, clean, budget, self.streams.on_device("noise"))
            strength = (adversarial - views).abs().amax(dim=(1, 2, 3))
            others = self.rewards.before_update(self.sampler.last, terms["adversarial"])
        lr = self.learner.lr
        # before the update, which waits for its loss: a GPU is still at the attack while the host prepares a batch
        self._draw()
        try:
            losses = self.learner.update(views, adversarial)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{error}; {_describe(budget)}") from error
        if budget is not None:
            others |= self.rewards.after_update(len(views))
        if others:
            terms = terms | others
            reward = self.rewards.total(terms)
        self.last = StepRecord(
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            reward=reward,
            terms=terms,
            budget=budget,
            strength=strength,
            losses=losses,
            lr=lr,
            views=views,
            adversarial=adversarial,
            end_of_epoch=self.step % self.steps_per_epoch == 0,
            other_steps=self.rewards.attack_steps - spent,
        )
        return self.last

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact continuation needs, the coming batch and its observation included."""
        remembered = self.rewards.state_dict()
        return {
            "learner": self.learner.state_dict(),
            "streams": self.streams.state_dict(),
            "sampler": self.sampler.state_dict(),
            "views": self._views,
            "seen": None if self._seen is None else {"observation": self._seen[0], "look": tuple(self._seen[1])},
            "statistics": {"mean": self._mean, "variance": self._variance},
        } | ({"rewards": remembered} if remembered else {})

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Restores what `state_dict` gave.

        Returns:
            The names of the random streams that another kind of device made impossible to continue.

        Raises:
            ValueError: if the state is of a world with other reward terms to remember, or of other data.
        """

        def here(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(self.device)

        self.learner.load_state_dict(state["learner"])
        restarted = self.streams.load_state_dict(state["streams"])
        self.rewards.load_state_dict(state.get("rewards", {}), restarted)
        # the sampler draws from the stream's generator, which loading has replaced
        self._start(self.rewards.held_out)
        self.sampler.load_state_dict(state["sampler"])
        self._views = state["views"].to(self.device).contiguous(memory_format=torch.channels_last)
        self._seen = None
        if state["seen"] is not None:
            look = Encoded(*(value.to(self.device) for value in state["seen"]["look"]))
            self._seen = state["seen"]["observation"].to(self.device), look
        self._mean, self._variance = (here(state["statistics"][name]) for name in ("mean", "variance"))
        return restarted


def _describe(budget: Budget | None) -> str:
    if budget is None:
        return "no attack"
    spans = {"epsilon": budget.epsilon * 255, "step size": budget.step_size * 255, "steps": budget.steps}
    parts = [f"{name} {value.min().item():g} to {value.max().item():g}" for name, value in spans.items()]
    return "budget (pixels in 1/255): " + ", ".join(parts)
