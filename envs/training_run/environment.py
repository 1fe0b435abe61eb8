"""`ASTrA/TrainingRun-v0`: an episode is a whole training, and its return the encoder's score."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from astra_gym.envs.api.arguments import check_arguments
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.rendering.drawing import DRAWN, check_render_mode, warn_without_mode
from astra_gym.envs.rendering.run_renderer import draw_run
from astra_gym.envs.torch_env import as_actions
from astra_gym.envs.training_run.instances import PARTS, SEEDS, Instance, instances_called
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.data.settings import DataSection
from astra_gym.ssl_core.downstream.quick_score import quick_score
from astra_gym.ssl_core.utils.device import one_thread_in_worker, usable_device
from astra_gym.ssl_core.utils.finite import NonFiniteError
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.registry import pick
from astra_gym.ssl_core.utils.training_plan import reached

DECISIONS = 12
FACTORS = {"lr": (0.25, 0.5, 1.0, 2.0, 4.0), "strength": (0.0, 0.5, 1.0, 1.5, 2.0)}
"""What the levers beside the attack choose among: factors of the instance's own values."""
LEVERS = {"attack": "epsilon, steps and step size", "lr": "learning rate", "strength": "augmentation strength"}
LOSSES = {"clean": "clean", "adversarial": "attacked"}
"""Names of the reward terms that are losses, and what a frame calls them."""
BOUND = 10.0
OBSERVED = (
    *("decisions done", "passes left", "clean loss", "clean loss q10", "clean loss q50", "clean loss q90"),
    *("attacked loss", "gain", "gain q10", "gain q50", "gain q90", "perturbation"),
    *("epsilon", "steps", "step size", "lr factor", "strength factor", "SA", "RA", "rise of the score"),
    *("judged radius", "clean in the score", "images", "passes"),
)
"""The entries of an observation."""


class Episode:
    """A running episode of `TrainingRunEnv`.

    Args:
        name: name of the instance.
        seed: seed of its world.
        engine: the world.
    """

    def __init__(self, name: str, seed: int, engine: AttackEngine) -> None:
        self.name, self.seed, self.engine = name, seed, engine
        self.decisions, self.failed = 0, False
        self.factors = dict.fromkeys(FACTORS, 1.0)
        self.score = self.sa = self.ra = self.rise = 0.0
        self.budget = ConstantBudget(epsilon=0.0, step_size=0.0, steps=0)
        self._losses: dict[str, float] = {}
        self.seen: dict[str, Tensor] = {}
        """Of the last update, by view: the losses `adversarial` and `clean`, and `strength`."""
        self.history: list[dict[str, float]] = []
        """Of each decision: what it chose, the losses of its last update, and the score's parts."""
        self._schedule, self._strength = engine.learner.schedule, engine.batches.views_settings.strength

    def set_levers(self) -> None:
        """Let the factors act from now on: on the learning rate, and on the views of batches that are not drawn yet."""
        factor, schedule, batches = self.factors["lr"], self._schedule, self.engine.batches
        self.engine.learner.schedule = lambda step: factor * schedule(step)
        strength = min(1.0, self.factors["strength"] * self._strength)
        batches.views_settings = replace(batches.views_settings, strength=strength)

    def train(self, budget: ConstantBudget, share: float) -> None:
        """Train under an attack until a share of the passes is spent.

        Raises:
            NonFiniteError: as `AttackEngine.play`.
        """
        self.budget, record, attacks = budget, None, self.engine.method.attack.exists
        while not reached(self.engine.progress, share):
            record = self.engine.play(budget.expand(self.engine.num_attacked) if attacks else None)
        if record is not None:
            self.seen = {name: record.terms[name] for name in ("adversarial", "clean") if name in record.terms}
            self.seen["strength"] = record.strength
            self._losses = {LOSSES[name]: float(self.seen[name].mean()) for name in LOSSES if name in self.seen}
            # a method without an attack has but the loss that it learns from
            self._losses = self._losses or {"loss": record.losses["total"]}

    @torch.inference_mode(False)
    def measure(self) -> None:
        """Measure the score of the present encoder.

        Raises:
            NonFiniteError: as `quick_score`.
        """
        engine, judge = self.engine, self.engine.settings.judge
        parts = (engine.method.routes.evaluation, engine.data.train, engine.data.test)
        found = quick_score(engine.learner.encoder, *parts, judge.epsilon, self.seed)
        self.sa, self.ra = found.SA / 100, found.RA / 100
        before, share = self.score, judge.attacked_share
        self.score = share * self.ra + (1 - share) * self.sa
        self.rise = self.score - before
        self.history.append(
            asdict(self.budget) | self.factors | self._losses | {"SA": self.sa, "RA": self.ra, "score": self.score}
        )

    def fail(self) -> None:
        """End with the score 0, because a value is not finite."""
        self.failed, self.rise, self.score = True, -self.score, 0.0

    def _values(self) -> dict[str, Any]:
        """All but the world."""
        names = ("name", "seed", "decisions", "failed", "score", "sa", "ra", "rise")
        return {name: getattr(self, name) for name in names} | {
            "factors": dict(self.factors),
            "budget": asdict(self.budget),
            "seen": dict(self.seen),
            "losses": dict(self._losses),
            "history": copy.deepcopy(self.history),
        }

    def _restore(self, values: Mapping[str, Any]) -> None:
        for name in ("decisions", "failed", "score", "sa", "ra", "rise"):
            setattr(self, name, values[name])
        self.factors, self.budget = dict(values["factors"]), ConstantBudget(**values["budget"])
        self.seen, self._losses = dict(values["seen"]), dict(values["losses"])
        self.history = copy.deepcopy(values["history"])
        self.set_levers()

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        return self._values() | {"engine": copy.deepcopy(self.engine.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, of the same instance and seed."""
        self.engine.load_state_dict(copy.deepcopy(state["engine"]))
        self._restore(state)

    def __getstate__(self) -> dict[str, Any]:
        # the levers act by functions of this world, which in a copy would be of another one
        return self._values() | {"engine": self.engine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Episode.__init__(self, state["name"], state["seed"], state["engine"])
        self._restore(state)


class TrainingRunEnv(gym.Env[np.ndarray, np.ndarray]):
    """Choose the schedule of an adversarial pre-training, and be paid what its encoder is worth at the end.

    ## Description
    An episode is a whole training of one *instance*: data, method, size, judged radius and passes. A step trains for a
    twelfth of the passes under one attack, and then the encoder's score is measured. Instances differ, because on one
    instance a constant is hard to beat: train agents on the set `train`, and score them on `test`, with which it has no
    image, no seed and no judged radius in common.

    ## Action Space
    `MultiDiscrete`, an index for each part of the levers: radius, steps and step size of the attack (`attack`: 0 to
    96/255, 0 to 14 steps, 1/255 to 64/255), a factor of the learning rate (`lr`: 1/4 to 4), and a factor of the
    augmentation's strength (`strength`: 0 to 2, at most strength 1), which acts from the next drawn batch on. Only
    `attack` is offered by default.

    ## Observation Space
    `Box(-10, 10, (24,), float32)`, the same for all instances: the entries are named in `OBSERVED`. Losses are in units
    of that of a uniform guess; quantiles are over the views of one batch; gains and perturbations are those of the last
    update; radii are in 32/255; images and passes are decimal logarithms.

    ## Rewards
    The rise of the score by the step, in [-1, 1]; the first includes the score of the untrained encoder, so the return
    is the final score. Score: the mean of clean accuracy and of accuracy under PGD-10 at the judged radius (or the
    latter alone, as `judge_score` says), by a ridge regression on frozen features (`quick_score`). It is fitted on the
    images that are trained on and measured on training images held out from them; test images are never used.

    ## Starting State
    `reset(seed=s)` makes a new world from the seed, `reset()` one of a seed drawn from the environment's generator.
    `options={"instance": NAME}` names the instance; else it is drawn.

    ## Episode End
    *Terminated* after twelve steps, when the passes are spent: forward-backward passes over the views, of which an
    update counts 3.3 and each attack step 1. The learning rate follows the share that is spent. If a value is not
    finite the episode ends at once, and the score is 0.

    `info` holds the `instance`, `world_seed`, `score`, `SA` and `RA` (fractions), `passes` spent, `step` (the target
    updates made, as in a world's `info`) and whether the episode has `failed`.

    ## Rendering
    `render_mode="rgb_array"`: the schedule so far, the share of the passes that is spent, SA and RA and the losses
    after each decision, and four views of the last update, clean and attacked. Drawing changes no random stream.

    ## Wrappers
    `RecordVideo`, `RecordEpisodeStatistics`, `NormalizeReward` and `NormalizeObservation` work, and Gymnasium's own
    vector environments.

    Args:
        instances: `train`, `test`, or instances by name (`astra_gym.envs.training_run.instances.Instance`).
        levers: what actions choose, some of `LEVERS`, in their order.
        device: device of the target network.
        data_dir: folder of CIFAR-10; with it `train` and `test` hold its instances too.
        render_mode: `rgb_array` or None.
        others: refused.

    Raises:
        TypeError: if an argument is unknown.
        ValueError: if a name is unknown, or the images of an instance cannot be read.

    ## Version History
    * v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = {**DRAWN}  # type: ignore[misc]

    # the score's attack needs labels that are no tensors of inference mode
    @torch.inference_mode(False)
    def __init__(
        self,
        *,
        instances: str | Mapping[str, Instance] = "train",
        levers: Sequence[str] = ("attack",),
        device: str = "cpu",
        data_dir: str | None = None,
        render_mode: str | None = None,
        **others: Any,
    ) -> None:
        check_arguments(type(self), others)
        if isinstance(levers, str) or not isinstance(levers, Sequence):
            raise ValueError(f"levers is {shown(levers)}: expected a list of some of {', '.join(LEVERS)}")
        for lever in levers:
            pick(lever, LEVERS, "lever")
        if not levers or [lever for lever in LEVERS if lever in levers] != list(levers):
            raise ValueError(f"levers is {list(levers)}: expected some of {', '.join(LEVERS)}, in this order")
        one_thread_in_worker()
        self.instances = instances_called(instances, data_dir)
        self.levers, self.device = tuple(levers), usable_device(device)
        self.render_mode = check_render_mode(render_mode)
        self.sets = next(iter(self.instances.values())).settings.ranges.sets
        sizes = [len(each) for each in self.sets.by_name.values()] if "attack" in levers else []
        sizes += [len(FACTORS[lever]) for lever in levers if lever in FACTORS]
        self.action_space = spaces.MultiDiscrete(sizes)
        self.observation_space = spaces.Box(-BOUND, BOUND, (len(OBSERVED),), np.float32)
        loaded: dict[DataSection, Split] = {}
        for each in self.instances.values():
            if (data := each.settings.data) not in loaded:
                loaded[data] = data.load()
        self._splits = {name: each.data(loaded[each.settings.data]) for name, each in self.instances.items()}
        self._episode: Episode | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode; see the class for `options`.

        Raises:
            ValueError: if the options or the instance are unknown.
        """
        super().reset(seed=seed)
        if not isinstance(options, Mapping | None):
            raise ValueError(f"options is {shown(options)}: expected a dict with the key instance, or None")
        given = dict(options or {})
        drawn = list(self.instances)[int(self.np_random.integers(len(self.instances)))]
        name = given.pop("instance", drawn)
        if given:
            raise ValueError(f"options has {', '.join(map(str, given))}: expected only the key instance")
        pick(name, self.instances, "instance")
        # seeds of both parts are disjoint, whatever seed is given
        low = PARTS.index(self.instances[name].part) * SEEDS
        self._begin(name, low + int(self.np_random.integers(SEEDS)))
        return self._observation(), self._info()

    def _begin(self, name: str, seed: int) -> None:
        instance = self.instances[name]
        engine = AttackEngine(instance.settings, seed, self.device, self._splits[name])
        self._episode = Episode(name, seed, engine)

    @property
    def episode(self) -> Episode:
        """The running episode."""
        if self._episode is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        return self._episode

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Train for a twelfth of the passes under the chosen attack."""
        now = self.episode
        if now.decisions == DECISIONS or now.failed:
            raise gym.error.ResetNeeded("the episode is over: call reset()")
        indices = as_actions(action).numpy()
        if not self.action_space.contains(indices):
            raise ValueError(f"the action is {shown(action)}: expected an element of {self.action_space}, of integers")
        budget = self._chosen(indices.tolist())
        now.decisions += 1
        try:
            now.train(budget, now.decisions / DECISIONS)
            now.measure()
        except NonFiniteError:
            now.fail()
        over = now.failed or now.decisions == DECISIONS
        return self._observation(), now.rise, over, False, self._info()

    def _chosen(self, indices: list[int]) -> ConstantBudget:
        """Set the levers, and return the attack."""
        now, left = self.episode, list(indices)
        budget = now.engine.method.budget_at(0)
        if "attack" in self.levers:
            epsilon, steps, step_size = (members[left.pop(0)] for members in self.sets.by_name.values())
            budget = ConstantBudget(epsilon=epsilon, step_size=step_size, steps=int(steps))
        for lever in (lever for lever in self.levers if lever in FACTORS):
            now.factors[lever] = FACTORS[lever][left.pop(0)]
        now.set_levers()
        return budget

    def _observation(self) -> np.ndarray:
        now, settings = self.episode, self.episode.engine.settings
        guess = math.log(max(2, 2 * settings.optimizer.batch_size))
        clean = torch.zeros(1)
        if not now.failed:
            clean = now.engine.raw_observation(now.engine.all_views)[0][:, -1].double().cpu() / guess
        nothing = torch.zeros(1, dtype=torch.float64)
        attacked, before = (now.seen.get(name, nothing).double() / guess for name in ("adversarial", "clean"))
        gain, level = attacked - before, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        strength, budget = now.seen.get("strength", nothing), now.budget
        values = [
            2 * now.decisions / DECISIONS - 1,
            1 - now.engine.progress,
            float(clean.mean()),
            *clean.double().quantile(level).tolist(),
            float(attacked.mean()),
            float(gain.mean()),
            *gain.quantile(level).tolist(),
            float(strength.mean()) * 255 / 32,
            budget.epsilon * 255 / 32,
            budget.steps / 14,
            budget.step_size * 255 / 32,
            *(math.log2(now.factors["lr"]) / 2, now.factors["strength"] - 1),
            *(now.sa, now.ra, now.rise),
            settings.judge.epsilon * 255 / 32,
            1 - settings.judge.attacked_share,
            math.log10(len(now.engine.data.train)) - 3,
            math.log10(float(settings.optimizer.passes or 1)) - 3,
        ]
        return np.clip(np.nan_to_num(np.array(values, dtype=np.float32)), -BOUND, BOUND)

    def _info(self) -> dict[str, Any]:
        now = self.episode
        return {
            "instance": now.name,
            "world_seed": now.seed,
            "score": now.score,
            "SA": now.sa,
            "RA": now.ra,
            "passes": now.engine.plan.spent(now.engine.step),
            "step": now.engine.step,
            "failed": now.failed,
        }

    def render(self) -> Any:
        """Draw the training so far, (h, w, 3) uint8; None, with a warning, without a render mode.

        Raises:
            ResetNeeded: before the first reset.
        """
        if self.render_mode is None:
            warn_without_mode()
            return None
        now = self.episode
        plan, budget = now.engine.plan, now.engine.settings.optimizer.passes
        about = (
            f"{now.name}, seed {now.seed}",
            f"decision {now.decisions} of {DECISIONS}, {plan.spent(now.engine.step):.0f} of {budget:g} passes",
        )
        tops = {name: members[-1] for name, members in self.sets.by_name.items()} if "attack" in self.levers else {}
        tops |= {lever: FACTORS[lever][-1] for lever in self.levers if lever in FACTORS}
        return draw_run(now.engine, about, now.history, DECISIONS, tops)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on within an episode: plain values and tensors."""
        return {"episode": self.episode.state_dict(), "generator": self.np_random.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the episode of `state_dict`.

        Raises:
            ValueError: if its instance is not among these.
        """
        saved = state["episode"]
        pick(saved["name"], self.instances, "instance")
        self._begin(saved["name"], saved["seed"])
        self.episode.load_state_dict(saved)
        self.np_random.bit_generator.state = state["generator"]
