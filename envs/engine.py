"""The decision problem itself, in torch on the device: observe a batch, attack it within a budget, learn from it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from astra_gym.envs.batches import Batches
from astra_gym.envs.builders import build_learner, check_views
from astra_gym.envs.observations import RunningStatistics
from astra_gym.envs.records import Assessment, CleanPass, StepRecord, describe_budget
from astra_gym.envs.reports import AttackReports
from astra_gym.envs.rewards.rewards import Rewards, held_out_rows
from astra_gym.envs.rewards.term import FrozenAttack
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Attacked, AttackReport, Budget, Objective
from astra_gym.ssl_core.attacks.stepwise import StepwiseAttack
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.training.learner import NonFiniteLossError, TargetLearner
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.clock import Clock
from astra_gym.ssl_core.utils.device import float32_of, usable_device
from astra_gym.ssl_core.utils.finite import not_finite
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import update_passes

ASSESSED = "assessed/noise"
"""The stream of the random starts of attacks that are assessed but not played."""


class AttackEngine:
    """One world: a target network in training, its data and every random stream.

    `observe` and `play` alternate. The constructor builds the first world, `reset(seed)` a new one.

    Args:
        settings: settings of the world.
        seed: seed of every stream.
        device: device of the target network.
        data: the data set, if it is already loaded.
        begins: as in `reset`.

    Raises:
        ValueError: if the data cannot be loaded or holds fewer images than a batch, or there is no such device.
    """

    def __init__(
        self,
        settings: WorldSettings,
        seed: int = 0,
        device: torch.device | str = "cpu",
        data: Split | None = None,
        begins: bool = True,
    ) -> None:
        settings.check_method()
        self.settings = settings
        self.device = usable_device(device)
        self.data = settings.data.load() if data is None else data
        self.batches = Batches(settings, self.data.train, self.device)
        self.clock = Clock()
        """Time of `observe` and `play`: the world's part of a step; the rest is the agent's."""
        self.reports = AttackReports(settings)
        self.reset(seed, begins)

    @torch.inference_mode(False)
    def reset(self, seed: int, begins: bool = True) -> None:
        """Make a new world: the seed sets initial target weights, running statistics and every stream. Unless it
        `begins`, because a saved state is loaded next, the file of `init_from` is not read."""
        self.streams = Streams(seed, self.device)
        rows = held_out_rows(self.settings, len(self.data.train), self.streams)
        self.batches.start(self.streams, rows.all)
        self.plan = self.settings.make_plan(self.batches.sampler.steps_per_epoch, self.settings.method.make().replays)
        made = (self.settings, self.streams, self.plan, self.data.train.images, begins)
        self.learner: TargetLearner = build_learner(*made)
        self.method = self.learner.method
        self.rewards = Rewards(self.settings, self.learner, self.streams, len(self.data.train), rows, self._views_of)
        self.last: StepRecord | None = None
        self.statistics = RunningStatistics()
        self._clean: CleanPass | None = None
        self._objective: Objective | None = None
        self.tried_steps = 0
        """Gradient steps, times views, of attacks since the last `play` that were not played."""
        self.draw_batch(0)
        check_views(self.settings, self.method, self._views)

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch over all data that are not held out: batches times updates per batch."""
        return self.plan.steps

    @property
    def planned_updates(self) -> int:
        """Target updates that the settings plan; in a run of a number of passes, the most that these could pay for."""
        return self.plan.total

    @property
    def finished(self) -> bool:
        """Whether the planned run is over; `play` still works."""
        return self.plan.ends(self.step)

    @property
    def step(self) -> int:
        """Target updates made."""
        return self.learner.step

    @property
    def progress(self) -> float:
        """Share of the planned epochs (or passes) that is done, in [0, 1]."""
        return self.plan.moment(self.step).progress

    @property
    def epoch(self) -> float:
        """Epochs that the updates so far amount to."""
        return self.plan.epochs_done(self.step)

    @property
    def num_attacked(self) -> int:
        """Views of a full batch that are attacked, 0 without an attack."""
        return self.method.num_attacked(self.settings.optimizer.batch_size)

    @property
    def observation_dim(self) -> int:
        """Length of a view's observation: features, what the attack maximizes of the clean view, and the progress."""
        return self.learner.network.feature_dim + 2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a view."""
        channels, height, width = self.data.train.images.shape[1:]
        return channels, height, width

    @property
    def views(self) -> Tensor:
        """The coming batch's views that are attacked, clean (n, 3, h, w); without an attack, all of them."""
        return self.method.attacked(self._views)

    @property
    def all_views(self) -> Tensor:
        """All views (v, 3, h, w) of the coming batch."""
        return self._views

    @contextmanager
    def working(self) -> Iterator[None]:
        """Surround the world's part of a step: timed, float32 as `precision` says, and with gradients in any mode."""
        with self.clock.running(), float32_of(self.settings.optimizer.precision), torch.inference_mode(False):
            yield

    def draw_batch(self, step: int | None = None) -> None:
        """Draw the batch of the update that follows the first `step` updates; by default the next one. If that update
        replays the present batch (free training), the batch is kept."""
        step = self.step if step is None else step
        self._clean = self._objective = None
        if self.plan.moment(step).replay == 0:
            self._views = self.batches.draw(self.learner, self.plan, step)

    def make_views(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Make the method's views (v, 3, h, w) of images (b, 3, h, w) in [0, 1], as for the next update."""
        return self.batches.make_views(self.method, images, self.learner.moment, generator)

    def _views_of(self, rows: Tensor, stream: str) -> Tensor:
        return self.make_views(as_float(self.data.train.images[rows].to(self.device)), self.streams[stream])

    def observe(self) -> Tensor:
        """Return observations (v, observation_dim) of the coming batch, in [-10, 10]; the same until the next `play`.

        Running statistics standardize features and clean loss; the first call after a `play` updates them.
        """
        with self.working():
            return self._clean_pass().observation

    def _clean_pass(self) -> CleanPass:
        """Compute, once per batch, what is needed before its attack."""
        if self._clean is None:
            raw, encoded = self.raw_observation(self._views)
            if self.device.type != "cpu":
                # on a GPU this is checked later, together with the loss, so that the host does not wait here
                self.learner.watch("the views", self._views)
                self.learner.watch("the features", raw)
            elif bad := not_finite({"views": self._views, "features": raw}):
                last = "no attack yet" if self.last is None else describe_budget(self.last.budget)
                raise NonFiniteLossError(f"{bad[0]} before update {self.step + 1} are not finite; last {last}")
            self.statistics.update(raw)
            self._clean = CleanPass(self.standardize(raw), encoded)
        return self._clean

    def raw_observation(self, views: Tensor) -> tuple[Tensor, Encoded]:
        """Return unstandardized features and clean loss (n, observation_dim - 1) of a batch's attacked views, and the
        network's output for them. `views` (v, 3, h, w) is the whole batch."""
        encoded = self._clean.encoded if self._clean and views is self._views else self.learner.encode_clean(views)
        loss = self._objective_of(views)(encoded.embeddings)
        if loss.shape != encoded.features.shape[:1]:
            given = f"objective of the method {self.settings.method.method} gives {tuple(loss.shape)}: expected"
            raise ValueError(f"{given} a value for each of {len(encoded.features)} attacked views")
        return torch.cat([encoded.features, loss[:, None]], dim=1), encoded

    @torch.inference_mode(False)
    def _objective_of(self, views: Tensor) -> Objective:
        if views is not self._views:
            return self.learner.objective(views)
        if self._objective is None:
            self._objective = self.learner.objective(views)
        return self._objective

    def standardize(self, raw: Tensor) -> Tensor:
        """Standardize raw observations as an agent sees them, by the present statistics and progress."""
        return self.statistics.standardize(raw, self.progress)

    def assess(self, views: Tensor, clean: Tensor, budget: Budget, generator: torch.Generator) -> Assessment:
        """Attack a batch's views and compute the reward, on the present weights; nothing is learned. An attack in train
        mode updates the running statistics, unless it is within `learner.untracked()`.

        The reward has only the terms of a frozen network (`RewardTerm.frozen`); `play` adds the others.

        Args:
            views: (v, 3, h, w) in [0, 1], all of the batch.
            clean: embeddings (n, d) of the clean views that are attacked, from `raw_observation`.
            budget: n entries.
            generator: generator of the attack's random start.
        """
        objective = self._objective_of(views)
        stop, report = self.reports.begin(self.progress)
        attacked = self.learner.attack(views, budget, generator, objective, stop, report)
        return self._assessed(objective, views, clean, attacked, budget, report)

    def begin_attack(self, epsilon: Tensor, state: Mapping[str, Any] | None = None) -> tuple[StepwiseAttack, Tensor]:
        """Begin an attack on the coming batch within radii (n,), which the caller advances while `working` and then
        plays; or continue one from its state. With it comes the loss (n,) of the clean views."""
        with self.working():
            objective, noise = self._objective_of(self._views), self.streams.on_device("noise")
            clean = objective(self._clean_pass().encoded.embeddings).detach()
            return self.learner.stepwise(self._views, epsilon, noise, objective, state), clean

    def try_out(self, budget: Budget) -> Tensor | None:
        """Compute the reward of the coming batch under a budget. The batch is attacked from a random start of a
        separate stream (`ASSESSED`), and nothing is learned.

        Args:
            budget: an entry for each of `views`, on the host.

        Returns:
            The reward (n,), as `play` gives it on average. None if the attack is part of the update (CF-AMC), or if a
            term of the reward depends on the update or on earlier losses of the images.
        """
        if self.method.attack.free or not self.rewards.only_frozen:
            return None
        with self.working(), self.learner.untracked():
            clean, budget = self._clean_pass().encoded.embeddings, self.learner.agreed(budget)
            tried = self.assess(self._views, clean, budget, self.streams.on_device(ASSESSED))
            self.tried_steps += int(self.method.attack_steps(tried.budget).sum())
        return tried.reward

    def _assessed(
        self,
        objective: Objective,
        views: Tensor,
        clean: Tensor,
        attacked: Attacked,
        budget: Budget,
        report: AttackReport | None = None,
    ) -> Assessment:
        taken, reports = self.reports.of(report, budget, attacked.embeddings)
        seen = (views, self.method.attacked(views), attacked.images, clean, attacked.embeddings)
        terms = self.rewards.frozen_terms(FrozenAttack(objective, taken, *seen))
        reports |= self.reports.of_losses(terms)
        return Assessment(self.rewards.total(terms), terms, attacked.images, taken, reports)

    def play(self, budget: Budget | None, made: Attacked | None = None) -> StepRecord:
        """Attack the coming batch, compute the reward on the weights that the attack saw, draw the next batch and
        update the target once. Terms that depend on the update are computed after it.

        Args:
            budget: an entry for each of `views`, on the host; None for a method without an attack.
            made: the attacked views, if an attack made elsewhere (`begin_attack`) has already spent the budget.

        Raises:
            ValueError: if there is a budget but no attack, an attack but no budget, or the length is wrong.
            NonFiniteLossError: if views, rewards, the attack's gradients, the loss or the weights after the update
                are not finite; the message names step and budget.
        """
        attacks = self.method.attack.exists
        if (budget is None) == attacks:
            needs = f"a budget for {self.num_attacked} views" if attacks else "no budget: it has no attack"
            raise ValueError(f"the method {self.settings.method.method} takes {needs}")
        with self.working():
            self.last = self._step(budget and self.learner.agreed(budget), made)
        return self.last

    def _step(self, budget: Budget | None, made: Attacked | None) -> StepRecord:
        all_views, views = self._views, self.views
        terms, others, reports, adversarial = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor](), None
        reward = strength = torch.zeros(len(views), device=self.device)
        spent, frozen = self.rewards.attack_steps, 0
        if budget is not None:
            clean = self._clean_pass().encoded.embeddings
            if self.method.attack.free:
                made = self.learner.carry(all_views, budget)
            if made is None:
                assessment = self.assess(all_views, clean, budget, self.streams.on_device("noise"))
            else:
                assessment = self._assessed(self._objective_of(all_views), all_views, clean, made, budget)
            reward, terms, adversarial, budget, reports = assessment
            frozen = len(terms)
            strength = (adversarial - views).abs().amax(dim=(1, 2, 3))
            others = self.rewards.before_update(self.batches.sampler.last, terms["adversarial"])
            for name, values in ({"the rewards": reward} | others).items():
                self.learner.watch(name, values)
        lr = self.learner.lr
        self.plan.spend(self.step, update_passes(None if budget is None else self.method.attack_steps(budget)))
        late = self.batches.chooses_coreset(self.plan, self.step + 1)
        if not late:
            # before the update, which waits for its loss: the host prepares this batch while a GPU still attacks
            self.draw_batch(self.step + 1)
        try:
            reports = {f"report {name}": values for name, values in reports.items()}
            brought = terms | others | {"strength": strength, "reward": reward} | reports
            losses = self.learner.update(all_views, adversarial, brought)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{error}; {describe_budget(budget)}") from error
        if late:
            # a coreset is chosen on the weights at the end of the epoch
            self.draw_batch(self.step)
        reports = {name.removeprefix("report "): brought.pop(name) for name in reports}
        strength, reward, terms = brought.pop("strength"), brought.pop("reward"), brought
        if budget is not None:
            terms |= {name: values.cpu() for name, values in self.rewards.after_update(len(views)).items()}
        if len(terms) > frozen:
            reward = self.rewards.total(terms)
            if self.rewards.judges_updates and not_finite(reward):
                raise NonFiniteLossError(f"the rewards of update {self.step} are not finite; {describe_budget(budget)}")
        other_steps, self.tried_steps = self.rewards.attack_steps - spent + self.tried_steps, 0
        self.plan.spend(self.step - 1, other_steps / len(views))
        return StepRecord(
            step=self.step,
            epoch=self.epoch,
            reward=reward,
            terms=terms,
            budget=budget,
            strength=strength,
            losses=losses,
            lr=lr,
            views=views,
            adversarial=adversarial,
            end_of_epoch=self.plan.ends_epoch(self.step),
            other_steps=other_steps,
            reports=reports,
        )

    def numbers(self) -> dict[str, Any]:
        """Return all values that must be finite, by name, not copied. Losses not known yet (NaN) are left out."""
        world = {"views": self._views, "seen": self._clean, "statistics": self.statistics.state_dict()}
        return {"learner": self.learner.numbers()} | world | {"rewards": self.rewards.numbers()}

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to resume exactly, including the coming batch and its observation."""
        more = {"rewards": self.rewards.state_dict(), "tried_steps": self.tried_steps}
        return {
            "learner": self.learner.state_dict(),
            "streams": self.streams.state_dict(),
            "sampler": self.batches.sampler.state_dict(),
            "views": self._views,
            "seen": None if self._clean is None else self._clean.state(),
            "statistics": self.statistics.state_dict(),
            "passes": self.plan.spent(self.step),
        } | {name: value for name, value in more.items() if value}

    def __getstate__(self) -> dict[str, Any]:
        # settings, data and state define a world; its functions have no name by which another process could find them
        plain = {name: getattr(self, name) for name in ("settings", "device", "data", "last", "clock")}
        return plain | {"seed": self.streams.seed, "state": self.state_dict(), "requested": self.reports.requested}

    def __setstate__(self, state: dict[str, Any]) -> None:
        AttackEngine.__init__(self, state["settings"], state["seed"], state["device"], state["data"], begins=False)
        self.load_state_dict(state["state"])
        self.last, self.clock, self.reports.requested = state["last"], state["clock"], state["requested"]

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Restore what `state_dict` gave.

        Returns:
            The names of the random streams that cannot continue on this kind of device.

        Raises:
            ValueError: if the state is of a world with other data, or with other reward terms that have a state.
        """
        self.learner.load_state_dict(state["learner"])
        restarted = self.streams.load_state_dict(state["streams"])
        self.rewards.load_state_dict(state.get("rewards", {}), restarted)
        # the sampler draws from the stream's generator, which loading has replaced
        self.batches.start(self.streams, self.rewards.held_out)
        self.batches.sampler.load_state_dict(state["sampler"])
        self._views = state["views"].to(self.device).contiguous(memory_format=torch.channels_last)
        self._objective, clean = None, state["seen"]
        self._clean = None if clean is None else CleanPass.of(clean, self.device)
        self.statistics.load_state_dict(state["statistics"], self.device)
        self.tried_steps = state.get("tried_steps", 0)
        self.plan.restore(self.step, state.get("passes"))
        return restarted
