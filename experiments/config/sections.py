"""The sections of a run's settings that its world does not have: the agent, the probe, and the run itself."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from astra_gym.agents import AGENTS, learns
from astra_gym.agents.entries import BUDGET
from astra_gym.agents.reinforce import SETTINGS
from astra_gym.envs.actions import ACTION_KINDS
from astra_gym.envs.observations import OBSERVATIONS, observation_for
from astra_gym.experiments.config.devices import check_device
from astra_gym.experiments.config.presets import PRESETS
from astra_gym.ssl_core.downstream.postprocessing import PostSettings
from astra_gym.ssl_core.evaluation.results import check_radii
from astra_gym.ssl_core.settings.checks import check_options, check_path, check_truth
from astra_gym.ssl_core.settings.records import Notes, check_choices
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.import_path import is_dotted
from astra_gym.ssl_core.utils.overrides import by_present_names, replaced

ENVS = {"view": "one action for each attacked view", "batch": "one action for the whole batch"}
PROGRESS = {"auto": "live in a terminal, else lines", "live": "a display", "lines": "one an epoch", "off": "nothing"}
EPSILONS = (2 / 255, 4 / 255, 8 / 255, 12 / 255, 16 / 255)
SCHEDULE = (7 / 255, 9 / 255, 11 / 255, 13 / 255)
"""The best of the epoch-wise schedules in ASTrA's slides."""


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name}" for name in names)


@dataclass(frozen=True, kw_only=True)
class AgentSection:
    """Who chooses the attacks, and what it sees.

    Args:
        agent: who chooses the attacks, or the dotted path of a custom agent, my_module:MyAgent; auto: reinforce, in the
            preset cifar10 reinforce-paper, for astra on a folder of images escalating, and none for a method without
            an attack.
        agent_kwargs: the agent's own settings, which override its defaults, for example agent_kwargs.learning_rate.
        agent_from: a run whose agent, of the same name, has learned something that this one begins with; null: nothing.
        agent_learns: whether the agent learns on; false: it acts as that run's agent does.
        env: view: one action for each attacked view, discount 0; batch: one for the batch, discount 0.9.
        observation: what the agent sees, or the dotted path of a custom observation, my_module:MyObservation; auto:
            features, or what reinforce-paper fixes.
        actions: the action space; auto: the agent's usual one (fixed, schedule and the rules: one that can express
            their budgets exactly), or none for a method without an attack.
        epsilon: radius of the agents `fixed`, `delayed`, `accelerating`, `escalating` and `friendly`, and largest of
            `customized`: 8/255, not 8; by default the method's own (`escalating`: 24/255, or the world's nearest;
            ranges that are not given become wide for it).
        step_size: step size of these agents and of `schedule`; by default the method's own (`escalating`: 32/255, or
            the world's nearest).
        steps: number of attack steps of these agents, the largest for `friendly` and `accelerating`, the least for
            `escalating`; by default the method's own (`accelerating`: 8; `escalating`: the world's least from 1 on).
        schedule: radii of the agent `schedule`, one for each part of the training.

    Raises:
        ValueError: if a name is unknown, a value is out of its range, or the agent takes no such value.
    """

    agent: Annotated[str, Notes(choices=("auto", *AGENTS), what="agent", custom=True)] = "auto"
    agent_kwargs: dict[str, Any] | None = None
    agent_from: Annotated[str | None, Notes(unit="RUN")] = None
    agent_learns: bool = True
    env: Annotated[str, Notes(choices=ENVS, what="environment")] = "view"
    observation: Annotated[str, Notes(choices=("auto", *OBSERVATIONS), what="observation", custom=True)] = "auto"
    actions: Annotated[str, Notes(choices=("auto", *ACTION_KINDS), what="kind of actions")] = "auto"
    epsilon: Annotated[float | None, Notes("attack", unit="FRACTION")] = None
    step_size: Annotated[float | None, Notes("attack", unit="FRACTION")] = None
    steps: Annotated[int | None, Notes("attack", unit="STEPS")] = None
    schedule: Annotated[tuple[float, ...], Notes("attack", unit="[FRACTION,...]")] = SCHEDULE

    def __post_init__(self) -> None:
        known = self.agent != "auto"
        if known:
            learns(self.agent)
        check_choices(self)
        if self.observation != "auto" and not is_dotted(self.observation):
            observation_for(self.env, self.observation)
        check_options("agent_kwargs", self.agent_kwargs)
        if self.agent in SETTINGS and self.agent_kwargs:
            present = by_present_names(self.agent_kwargs, SETTINGS[self.agent].RENAMED)
            object.__setattr__(self, "agent_kwargs", present)
        check_path("agent_from", self.agent_from)
        check_truth("agent_learns", self.agent_learns)
        if not self.agent_learns and self.agent_from is None:
            raise ValueError("agent_learns is false, but the agent has learned nothing: give a run too, --agent_from")
        if self.agent_from is not None and known and not learns(self.agent):
            raise ValueError(f"agent_from is given, but the agent {self.agent} learns nothing: leave it out")
        if self.steps is not None:
            check_number("steps", self.steps, -math.inf, math.inf, "an integer, or nothing", whole=True)
        for name in ("epsilon", "step_size"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, 0, 1, "a fraction in [0, 1]: 8/255, not 8")
        object.__setattr__(self, "schedule", tuple(self.schedule))
        if not self.schedule:
            raise ValueError("schedule is (): expected at least one radius")
        if known:
            self._check_taken()
        if self.agent in AGENTS and self.env not in (envs := AGENTS[self.agent].envs):
            raise ValueError(f"env is {self.env}: the agent {self.agent} needs --env {' or '.join(envs)}")

    def _check_taken(self) -> None:
        """Raise a ValueError for a given part of a budget, or schedule, that the agent does not take."""
        taken = AGENTS[self.agent].takes if self.agent in AGENTS else ()
        # no agent takes a schedule and a radius
        for given in (sorted(self.budget), ["schedule"] * (self.schedule != SCHEDULE)):
            if not (refused := [name for name in given if name not in taken]):
                continue
            takers = [name for name, entry in AGENTS.items() if {*refused} <= {*entry.takes}]
            few = f"agent {takers[0]} takes" if len(takers) == 1 else f"agents {', '.join(takers)} take"
            instead = f" ({self.agent} takes {_flags(taken)})" if taken else ""
            raise ValueError(f"{_flags(refused)}: only the {few} it, and the agent is {self.agent}{instead}")

    @property
    def budget(self) -> dict[str, Any]:
        """The given parts of a budget, by name."""
        given = {name: getattr(self, name) for name in BUDGET}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ProbeSection:
    """The evaluation at the end, and the probe along the run.

    Args:
        probe_every: epochs between two measurements by a probe on training images (`OnlineProbe`), which does not
            change the run: TensorBoard shows clean accuracy (SA) and accuracy under PGD-10 at 8/255 (RA); 0: none. Ten
            of them take 4 % of a run of the preset digits.
        evaluate: whether to evaluate and draw figures at the end.
        controls: whether to evaluate random weights and raw pixels as well, as trivial encoders to compare with.
        probe_epochs: epochs of the linear probe.
        probe_lr: learning rate of the linear probe.
        probe_batch_size: batch size of the linear probe.
        probe_augment: whether the linear probe's training images are flipped at random, and cropped (padding 4) if they
            have 32 x 32 pixels or more.
        eval_epsilons: radii under which the probe is attacked.

    Raises:
        ValueError: if a value is out of its range.
    """

    probe_every: Annotated[int, Notes(unit="EPOCHS")] = 0
    evaluate: bool = True
    controls: bool = False
    probe_epochs: Annotated[int, Notes(unit="EPOCHS")] = 100
    probe_lr: float = 0.5
    probe_batch_size: Annotated[int, Notes(unit="IMAGES")] = 128
    probe_augment: bool = False
    eval_epsilons: Annotated[tuple[float, ...], Notes(unit="[FRACTION,...]")] = EPSILONS

    def __post_init__(self) -> None:
        check_choices(self)
        check_number("probe_every", self.probe_every, 0, math.inf, "a number of epochs, or 0 for none", whole=True)
        for name in ("probe_epochs", "probe_batch_size"):
            check_number(name, getattr(self, name), 1, math.inf, "1 or more", whole=True)
        check_number("probe_lr", self.probe_lr, 0, math.inf, "a positive number", above=True)
        object.__setattr__(self, "eval_epsilons", tuple(self.eval_epsilons))
        for epsilon in self.eval_epsilons:
            check_number("eval_epsilons", epsilon, 0, 1, "fractions in (0, 1], such as 8/255", above=True)
        check_radii("eval_epsilons", self.eval_epsilons)


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Preset, seed, device, folder, checkpoints.

    Args:
        preset: defaults of the other settings; by default the preset of the data set. digits-grid: short runs, for
            comparisons; digits-wide and cifar10-16: small worlds with wide ranges of attacks and a judge (-half and
            -quarter: a part of the images; -r8: judged at 8/255); cifar10: the paper's; cifar10-quick: 4,000 images,
            also of cifar100 and stl10 (at 32 pixels); cifar10-teacher and cifar10-teacher-daq: CIFAR-10 teachers for
            deacl and for daq-sdp.
        seed: seed of everything random in the run.
        device: auto, cpu, cuda or cuda:N.
        deterministic: whether a run on a GPU is repeatable, which costs speed (how much is not measured yet); a run on
            a CPU always is.
        run_dir: the run's folder, which must be new; by default runs/DATASET-METHOD-AGENT-seedSEED.
        checkpoint_every: epochs between checkpoints.
        post_kwargs: settings of the post-processing of astra++, dynacl++ and dynacl-air++ (`PostSettings`), which
            override its defaults, for example post_kwargs.epochs.
        keep_every: epochs between encoders that are kept for later evaluation, in checkpoints/epoch-N.pt; the last
            epoch's is always kept; 0: none.
        images_every: epochs between image grids in TensorBoard.
        progress: how progress is shown: live, lines (one per epoch) or off; auto: live in a terminal, else lines.

    Raises:
        ValueError: if a name is unknown or a value is out of its range.
    """

    preset: Annotated[str, Notes(choices=PRESETS, what="preset")] = "digits"
    seed: int = 0
    device: str = "auto"
    deterministic: bool = False
    run_dir: Annotated[str | None, Notes(unit="DIR")] = None
    checkpoint_every: Annotated[int, Notes(unit="EPOCHS")] = 1
    post_kwargs: Annotated[dict[str, Any] | None, Notes("method")] = None
    keep_every: Annotated[int, Notes(unit="EPOCHS")] = 0
    images_every: Annotated[int, Notes(unit="EPOCHS")] = 5
    progress: Annotated[str, Notes(choices=PROGRESS, what="kind of progress")] = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_device(self.device)
        check_number("seed", self.seed, 0, 2**63 - 1, "an integer from 0 to 2**63 - 1", whole=True)
        for name in ("checkpoint_every", "images_every"):
            check_number(name, getattr(self, name), 1, math.inf, "1 or more", whole=True)
        check_number("keep_every", self.keep_every, 0, math.inf, "a number of epochs, or 0 for none", whole=True)
        self.make_post()

    def make_post(self) -> PostSettings:
        """Make the settings of the method's post-processing."""
        return replaced(PostSettings(), dict(self.post_kwargs or {}), "the post-processing")
