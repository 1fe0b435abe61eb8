"""Settings of a run: one typed record behind the command line, the YAML file and the Python interface."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from astra_gym.agents import AGENTS, describe, learns
from astra_gym.agents.reinforce import SETTINGS
from astra_gym.envs.actions import ACTION_KINDS, ActionTable
from astra_gym.envs.observations import OBSERVATIONS, observation_for
from astra_gym.envs.world_config import REWARD_SCOPES, WorldSettings
from astra_gym.experiments.config.devices import check_device, resolve_device
from astra_gym.experiments.config.presets import AGENT_OF_PRESET, PRESETS
from astra_gym.experiments.config.recipes import KEEP_LAST, recipe, with_options
from astra_gym.experiments.config.superseded import named_forms
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.downstream.postprocessing import PostSettings
from astra_gym.ssl_core.methods import find_method, is_own
from astra_gym.ssl_core.models.target_network import PRECISIONS, bf16_is_native, last_strided_map
from astra_gym.ssl_core.safety.yaml_files import dump_yaml
from astra_gym.ssl_core.settings.records import Notes
from astra_gym.ssl_core.utils.import_path import is_dotted
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.overrides import by_present_names, replaced
from astra_gym.ssl_core.utils.registry import pick

ENVS = {"view": "one action for each attacked view", "batch": "one action for the whole batch"}
PROGRESS = {"auto": "live in a terminal, else lines", "live": "a display", "lines": "one an epoch", "off": "nothing"}
TUPLES = ("eval_epsilons", "schedule", "crop_scale", "jitter")
"""Settings that are tuples here and lists in YAML."""
HARDEST = ConstantBudget(epsilon=15 / 255, step_size=4 / 255, steps=14)
"""Budget of the agent `fixed-max`: largest radius, most steps, a step size that reaches every corner of the ball."""
SCHEDULE = (7 / 255, 9 / 255, 11 / 255, 13 / 255)
"""The best of the epoch-wise schedules in ASTrA's slides."""


@dataclass(frozen=True, kw_only=True)
class Settings(WorldSettings):
    """A run's settings. A setting given as `auto` is stored with the value that it was resolved to.

    Args:
        preset: defaults of the other settings: digits, digits-grid (half the work, for comparisons), folder, cifar10
            (the paper's), cifar10-teacher and cifar10-teacher-daq (CIFAR-10 teachers for deacl and for daq-sdp) or
            cifar10-quick; by default the data set's: cifar100 and stl10 (32 pixels, 5,000 labeled images) take
            cifar10-quick.
        agent: who chooses the attacks, or the dotted path of a custom agent, my_module:MyAgent; auto: reinforce,
            reinforce-paper in the preset cifar10, or none for a method without an attack.
        agent_kwargs: the agent's own settings, which override its defaults, for example agent_kwargs.learning_rate.
        env: view: one action for each attacked view, discount 0; batch: one for the batch, discount 0.9.
        observation: what the agent sees, or the dotted path of a custom observation, my_module:MyObservation; auto:
            features, or what reinforce-paper fixes.
        actions: the action space; auto: the agent's usual one (fixed and schedule: one that can express the method's
            own budget exactly), or none for a method without an attack.
        reward_scope: view: a reward for each view's own attack; batch: the paper's one scalar for all; auto: view, or
            what reinforce-paper fixes.
        seed: seed of everything random in the run.
        device: auto, cpu, cuda or cuda:N.
        precision: precision of training; fp32: without TF32 on a GPU; auto: bf16 where the device computes in it, else
            fp32. The evaluation is always in fp32.
        deterministic: whether a run on a GPU is repeatable, which costs speed (how much is not measured yet); a run on
            a CPU always is.
        run_dir: the run's folder, which must be new; by default runs/DATASET-METHOD-AGENT-seedSEED.
        epsilon: radius of the agent `fixed`: 8/255, not 8; by default the method's own.
        step_size: step size of the agent `fixed`; by default the method's own.
        steps: number of attack steps of the agent `fixed`; by default the method's own.
        schedule: radii of the agent `schedule`, one for each part of the training.
        checkpoint_every: epochs between checkpoints.
        post_kwargs: settings of the post-processing of astra++, dynacl++ and dynacl-air++ (`PostSettings`), which
            override its defaults, for example post_kwargs.epochs.
        probe_every: epochs between points of the curves of clean accuracy (SA) and accuracy under PGD-10 at 8/255 (RA)
            in TensorBoard, from a probe on training images (`OnlineProbe`) that does not change the run; 0: none.
        keep_every: epochs between encoders that are kept for later evaluation, in checkpoints/epoch-N.pt, the last
            epoch's always among them; 0: none.
        images_every: epochs between image grids in TensorBoard.
        evaluate: whether to evaluate and draw figures at the end.
        controls: whether to evaluate random weights and raw pixels as well, as trivial encoders to compare with.
        probe_epochs: epochs of the linear probe.
        probe_lr: learning rate of the linear probe.
        probe_batch_size: batch size of the linear probe.
        probe_augment: whether the linear probe's training images are cropped (padding 4) and flipped at random; this
            hurts digits, which fill their frame.
        eval_epsilons: radii under which the probe is attacked.
        progress: how progress is shown: live, lines (one per epoch) or off; auto: live in a terminal, else lines.

    Raises:
        ValueError: if a name is unknown, a value is out of its range, or two settings contradict each other.
    """

    SECTIONS: ClassVar[Mapping[str, str]] = {
        "run": "preset, seed, device, folder, checkpoints",
        "data": "the images, and how they are kept",
        "method": "the self-supervised method",
        "agent": "who chooses the attacks, and what it sees",
        "attack": "where attacks start, and the budgets of agents that learn nothing",
        "reward": "the terms of the reward and their weights",
        "network": "the target network",
        "views": "the augmentations",
        "optimizer": "batches, epochs, and how the target network learns from them",
        "coreset": "training on chosen batches",
        "probe": "the evaluation at the end",
    }

    preset: Annotated[str, Notes("run", choices=PRESETS, what="preset")] = "digits"
    agent: Annotated[str, Notes("agent", choices=("auto", *AGENTS), what="agent", custom=True)] = "auto"
    agent_kwargs: Annotated[dict[str, Any] | None, Notes("agent")] = None
    env: Annotated[str, Notes("agent", choices=ENVS, what="environment")] = "view"
    observation: Annotated[str, Notes("agent", choices=("auto", *OBSERVATIONS), what="observation", custom=True)] = (
        "auto"
    )
    actions: Annotated[str, Notes("agent", choices=("auto", *ACTION_KINDS), what="kind of actions")] = "auto"
    reward_scope: Annotated[str, Notes("reward", choices=("auto", *REWARD_SCOPES), what="reward scope")] = "auto"
    seed: Annotated[int, Notes("run")] = 0
    device: Annotated[str, Notes("run")] = "auto"
    precision: Annotated[str, Notes("optimizer", choices=("auto", *PRECISIONS), what="precision")] = "auto"
    deterministic: Annotated[bool, Notes("run")] = False
    run_dir: Annotated[str | None, Notes("run", unit="DIR")] = None
    epsilon: Annotated[float | None, Notes("attack", unit="FRACTION")] = None
    step_size: Annotated[float | None, Notes("attack", unit="FRACTION")] = None
    steps: Annotated[int | None, Notes("attack", unit="STEPS")] = None
    schedule: Annotated[tuple[float, ...], Notes("attack", unit="[FRACTION,...]")] = SCHEDULE
    checkpoint_every: Annotated[int, Notes("run", unit="EPOCHS")] = 1
    post_kwargs: Annotated[dict[str, Any] | None, Notes("method")] = None
    probe_every: Annotated[int, Notes("probe", unit="EPOCHS")] = 0
    keep_every: Annotated[int, Notes("run", unit="EPOCHS")] = 0
    images_every: Annotated[int, Notes("run", unit="EPOCHS")] = 5
    evaluate: Annotated[bool, Notes("probe")] = True
    controls: Annotated[bool, Notes("probe")] = False
    probe_epochs: Annotated[int, Notes("probe", unit="EPOCHS")] = 100
    probe_lr: Annotated[float, Notes("probe")] = 0.5
    probe_batch_size: Annotated[int, Notes("probe", unit="IMAGES")] = 128
    probe_augment: Annotated[bool, Notes("probe")] = False
    eval_epsilons: Annotated[tuple[float, ...], Notes("probe", unit="[FRACTION,...]")] = (
        2 / 255,
        4 / 255,
        8 / 255,
        12 / 255,
        16 / 255,
    )
    progress: Annotated[str, Notes("run", choices=PROGRESS, what="kind of progress")] = "auto"

    def __post_init__(self) -> None:
        own = PRESETS.get(self.preset, {}).get("method", self.method)
        if own != self.method:
            raise ValueError(f"the preset {self.preset} is of the method {own}, and not of {self.method}")
        # a run's record is complete, and reading it must import no module of a user
        recorded = is_own(self.method) and self.agent != "auto"
        attacks = self.agent != "none" if recorded else find_method(self.method).attacks
        self._resolve("agent", AGENT_OF_PRESET.get(self.preset, "reinforce") if attacks else "none")
        # a written record has all three resolved, and reading it must import no module of a user
        if not is_dotted(self.agent) or "auto" in (self.observation, self.actions, self.reward_scope):
            meant_for = describe(self.agent)
            self._resolve("observation", meant_for.observation if self.env == "view" else "features")
            self._resolve("actions", self._kind_of_actions(meant_for.actions) if attacks else "none")
            self._resolve("reward_scope", meant_for.reward_scope)
        if self.drop_last is None:
            # as the method's authors do, unless the agent needs the same number of views in every step
            varies = self.env == "batch" or not learns(self.agent)
            kept = self.preset == "cifar10" and self.method in KEEP_LAST and varies and self.coreset == "none"
            object.__setattr__(self, "drop_last", not kept)
        if self.agent in SETTINGS and self.agent_kwargs:
            present = by_present_names(self.agent_kwargs, SETTINGS[self.agent].RENAMED)
            object.__setattr__(self, "agent_kwargs", present)
        for name, options in named_forms(vars(self)).items():
            object.__setattr__(self, name, options | (getattr(self, name) or {}))
        if self.precision == "auto":
            reliable = last_strided_map(self.image_size, self.stem) > 1
            native = bf16_is_native(resolve_device(self.device))
            self._resolve("precision", "bf16" if native and reliable else "fp32")
        super().__post_init__()
        check_device(self.device)
        for name in ("agent", "actions"):
            value = getattr(self, name)
            if (value == "none") == attacks:
                why = "attacks, and somebody has to choose how" if attacks else "has no attack to choose"
                raise ValueError(f"{name} is {shown(value)}, but the method {self.method} {why}: leave --{name} out")
        if not is_dotted(self.observation):
            observation_for(self.env, self.observation)
        if not self.drop_last and self.env == "view" and learns(self.agent):
            raise ValueError(
                f"drop_last is false: the last batch of an epoch has fewer views, and the agent {self.agent} learns "
                "from the same number in every step; leave it out, or take --env batch"
            )
        self._check_paper()
        self._check_figures()
        if not is_own(self.method):
            self.check_method()

    def _kind_of_actions(self, usual: str) -> str:
        """Return the agent's usual kind; `continuous` for `fixed` and `schedule` if the usual one cannot express the
        method's own budget exactly."""
        if self.agent not in ("fixed", "schedule"):
            return usual
        try:
            ActionTable(usual).encode(self.make_method().budget_at(1))
        except ValueError:
            return "continuous"
        return usual

    def _resolve(self, name: str, value: str) -> None:
        if getattr(self, name) == "auto":
            object.__setattr__(self, name, value)

    def _check_paper(self) -> None:
        if self.agent != "reinforce-paper":
            return
        fixed = {"reward_scope": AGENTS[self.agent].reward_scope, "actions": "factored"}
        if self.env == "view":
            fixed["observation"] = AGENTS[self.agent].observation
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"--{name} {getattr(self, name)} contradicts the agent reinforce-paper, which fixes it to {value}: "
                    f"leave it out, or take --agent reinforce"
                )

    def _check_figures(self) -> None:
        for name in ("checkpoint_every", "images_every", "probe_epochs", "probe_batch_size"):
            _check(
                name, getattr(self, name), type(getattr(self, name)) is int and getattr(self, name) >= 1, "1 or more"
            )
        for name in ("keep_every", "probe_every"):
            value = getattr(self, name)
            _check(name, value, type(value) is int and value >= 0, "a number of epochs, or 0 for none")
        _check("seed", self.seed, type(self.seed) is int and 0 <= self.seed < 2**63, "an integer from 0 to 2**63 - 1")
        _check("probe_lr", self.probe_lr, 0 < self.probe_lr < math.inf, "a positive number")
        object.__setattr__(self, "eval_epsilons", tuple(self.eval_epsilons))
        different = len(set(self.eval_epsilons)) == len(self.eval_epsilons)
        _check("eval_epsilons", self.eval_epsilons, different, "all different")
        for epsilon in self.eval_epsilons:
            _check("eval_epsilons", epsilon, 0 < epsilon <= 1, "fractions in (0, 1], such as 8/255")
        for name in ("epsilon", "step_size"):
            value = getattr(self, name)
            _check(name, value, value is None or 0 <= value <= 1, "a fraction in [0, 1]: 8/255, not 8")
        _check("steps", self.steps, self.steps is None or type(self.steps) is int, "an integer, or nothing")
        given = {name for name in ("epsilon", "step_size", "steps") if getattr(self, name) is not None}
        if given and self.agent != "fixed":
            flags = ", ".join(f"--{name}" for name in sorted(given))
            raise ValueError(f"{flags}: only the agent fixed takes a budget, and the agent is {self.agent}")
        object.__setattr__(self, "schedule", tuple(self.schedule))
        if self.schedule != SCHEDULE and self.agent != "schedule":
            raise ValueError(f"--schedule: only the agent schedule has one, and the agent is {self.agent}")
        _check("schedule", self.schedule, len(self.schedule) > 0, "at least one radius")
        if self.agent_kwargs is not None and not all(isinstance(name, str) for name in self.agent_kwargs):
            raise ValueError(f"agent_kwargs are {shown(self.agent_kwargs)}: expected settings by name")
        self.make_post()

    def check_method(self) -> None:
        """Check what the world checks, and that post-processing and budgets fit the method."""
        super().check_method()
        if self.post_kwargs is not None and not find_method(self.method).post_processed:
            raise ValueError(f"post_kwargs: the method {self.method} has no post-processing (its ++ form has)")
        for budget in (self.fixed_budget, *self.scheduled_budgets):
            if budget is not None:
                ActionTable(self.actions).encode(budget)

    def check_custom(self) -> None:
        """Check what the world checks, and that the agent and the observation of dotted paths exist."""
        super().check_custom()
        describe(self.agent)
        observation_for(self.env, self.observation)

    def make_post(self) -> PostSettings:
        """Make the settings of the method's post-processing.

        Raises:
            ValueError: if one is unknown or out of its range.
        """
        return replaced(PostSettings(), dict(self.post_kwargs or {}), "the post-processing")

    @property
    def scheduled_budgets(self) -> list[ConstantBudget]:
        """The budgets of the agent `schedule`, one for each part of training; steps and step size are the method's."""
        if self.agent != "schedule":
            return []
        own = self.make_method().budget_at(1)
        return [replace(own, epsilon=epsilon) for epsilon in self.schedule]

    @property
    def fixed_budget(self) -> ConstantBudget | None:
        """The budget of the agent `fixed` (given values, else the method's own) or `fixed-max`; None for others."""
        if self.agent == "fixed-max":
            return HARDEST
        if self.agent != "fixed":
            return None
        given = {name: getattr(self, name) for name in ("epsilon", "step_size", "steps")}
        return replace(
            self.make_method().budget_at(1), **{name: value for name, value in given.items() if value is not None}
        )

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> "Settings":
        """Make the settings of the preset `name` with its method's own settings and the given changes."""
        own = recipe(name, str(changes.get("method", cls.method)))
        return cls(**({"preset": name} | pick(name, PRESETS, "preset") | own | with_options(own, changes)))

    def to_yaml(self) -> str:
        """Return every setting as YAML, for `--config` and `astra_gym.experiments.config.cli.load`."""
        values = asdict(self) | {name: _listed(getattr(self, name)) for name in TUPLES}
        return dump_yaml(values)


def _listed(value: tuple[float, ...] | None) -> list[float] | None:
    return None if value is None else list(value)


def _check(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {shown(value)}: expected {expected}")


def default_run_dir(settings: Settings, root: Path | str = "runs") -> Path:
    """Return the first folder runs/DATASET-METHOD-AGENT-seedSEED, -2, -3, ... that does not exist."""
    parts = settings.dataset, settings.method, settings.agent, f"seed{settings.seed}"
    name = "-".join(part.replace(":", "-").replace(".", "-") for part in parts)
    number, folder = 1, Path(root) / name
    while folder.exists():
        number += 1
        folder = Path(root) / f"{name}-{number}"
    return folder
