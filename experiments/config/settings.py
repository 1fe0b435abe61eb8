"""Settings of a run: one typed record behind the command line, the YAML file and the Python interface."""

from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from astra_gym.agents import AGENTS, AgentEntry, describe, learns
from astra_gym.agents.entries import BudgetRequest
from astra_gym.envs.actions import ActionTable, RangesSection
from astra_gym.envs.observations import observation_for
from astra_gym.envs.reports import AttackReports
from astra_gym.envs.rewards.judge_settings import JudgeSection
from astra_gym.envs.rewards.settings import RewardSection
from astra_gym.envs.world_config import WorldSettings
from astra_gym.experiments.config.devices import resolve_device
from astra_gym.experiments.config.presets import PRESETS, usual_agent
from astra_gym.experiments.config.recipes import KEEP_LAST, fitting, recipe, with_options
from astra_gym.experiments.config.sections import AgentSection, ProbeSection, RunSection
from astra_gym.experiments.config.superseded import named_forms
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.attacks.settings import AttackSection
from astra_gym.ssl_core.data.settings import DataSection
from astra_gym.ssl_core.methods import find_method, is_own
from astra_gym.ssl_core.methods.settings import MethodSection
from astra_gym.ssl_core.models.settings import NetworkSection
from astra_gym.ssl_core.models.target_network import bf16_is_native
from astra_gym.ssl_core.safety.yaml_files import dump_yaml
from astra_gym.ssl_core.settings.records import Composed
from astra_gym.ssl_core.training.settings import CoresetSection, OptimizerSection
from astra_gym.ssl_core.transforms.settings import ViewsSection
from astra_gym.ssl_core.utils.import_path import is_dotted
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.registry import pick
from astra_gym.ssl_core.utils.training_plan import UPDATE_PASSES

WRITTEN_FIRST = """
dataset data_dir cache_dir keep_data download limit test_limit image_size drop_last method method_kwargs teacher arch
width stem projector projector_hidden projector_dim neck normalization batch_size epochs optimizer lr weight_decay
warmup_epochs warmup_start final_lr lr_interval temperature mixed_weight mixed_reading strength crop_scale jitter flip
blur solarize perspective perspective_kwargs interpolation coreset coreset_fraction coreset_warmup coreset_every
coreset_kwargs attack_start reward_scope reward_adversarial reward_clean reward_mixed reward_cost reward_lookahead
lookahead_images reward_progress reward_weights precision recompute update_chunks preset agent agent_kwargs env
observation actions seed device deterministic run_dir epsilon step_size steps schedule checkpoint_every post_kwargs
probe_every keep_every images_every evaluate controls probe_epochs probe_lr probe_batch_size probe_augment eval_epsilons
"""
"""The order of the settings in a written record; settings added later follow, section by section, and `progress` is
last."""


@dataclass(frozen=True, kw_only=True)
class Settings(Composed):
    """A run's settings; `Settings.of` takes them flat, by the names of the flags. A setting given as `auto` is stored
    with the value that it was resolved to.

    Args:
        run: preset, seed, device, folder, checkpoints.
        data: the images, and how they are kept.
        method: the self-supervised method.
        agent: who chooses the attacks, and what it sees.
        attack: where attacks start, and the budgets of agents that learn nothing.
        ranges: what actions choose among.
        reward: the terms of the reward and their weights.
        judge: what encoders are judged by.
        network: the target network.
        views: the augmentations.
        optimizer: batches, epochs, and how the target network learns from them.
        coreset: training on chosen batches.
        probe: the evaluation at the end.

    Raises:
        ValueError: if two sections contradict each other.
    """

    data: DataSection = field(default_factory=DataSection)
    method: MethodSection = field(default_factory=MethodSection)
    network: NetworkSection = field(default_factory=NetworkSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    views: ViewsSection = field(default_factory=ViewsSection)
    coreset: CoresetSection = field(default_factory=CoresetSection)
    attack: AttackSection = field(default_factory=AttackSection)
    ranges: RangesSection = field(default_factory=RangesSection)
    reward: RewardSection = field(default_factory=RewardSection)
    judge: JudgeSection = field(default_factory=JudgeSection)
    agent: AgentSection = field(default_factory=AgentSection)
    probe: ProbeSection = field(default_factory=ProbeSection)
    run: RunSection = field(default_factory=RunSection)

    def __post_init__(self) -> None:
        preset, method = self.run.preset, self.method.method
        own = PRESETS[preset].get("method", method)
        if own != method:
            raise ValueError(f"the preset {preset} is of the method {own}, and not of {method}")
        # in a recorded run the agent is resolved already, and reading the record must import no module of a user
        recorded = is_own(method) and self.agent.agent != "auto"
        attacks = self.agent.agent != "none" if recorded else self.method.make().attack.exists
        self._resolve(agent=usual_agent(preset, method) if attacks else "none")
        agent = self.agent.agent
        if entry := self._entry:
            self._resolve(**entry.usual)
        # in a record these are resolved already, and reading it must import no module of a user
        if not is_dotted(agent) or "auto" in (self.agent.observation, self.agent.actions, self.reward.reward_scope):
            meant_for = describe(agent)
            self._resolve(
                observation=meant_for.observation if self.agent.env == "view" else "features",
                actions=self._kind_of_actions(meant_for.actions) if attacks else "none",
                reward_scope=meant_for.reward_scope,
            )
        # the last batch is kept where the method's authors keep it, unless the agent needs equally many views in every
        # step
        same = self.agent.env == "view" and learns(agent)
        kept = preset == "cifar10" and method in KEEP_LAST and not same and self.coreset.coreset == "none"
        self._resolve(drop_last=not kept)
        before = self.flat()
        self._set(**{name: options | (before[name] or {}) for name, options in named_forms(before).items()})
        if self.optimizer.precision == "auto":
            reliable = self.network.bf16_is_reliable(self.data.image_size)
            native = bf16_is_native(resolve_device(self.run.device))
            self._resolve(precision="bf16" if native and reliable else "fp32")
        for name in ("agent", "actions"):
            value = getattr(self.agent, name)
            if (value == "none") == attacks:
                why = "attacks, and somebody has to choose how" if attacks else "has no attack to choose"
                raise ValueError(f"{name} is {shown(value)}, but the method {method} {why}: leave --{name} out")
        # making the world checks the world's settings
        if not self.world.data.drop_last and same:
            raise ValueError(
                f"drop_last is false: the last batch of an epoch has fewer views, and the agent {agent} learns "
                "from the same number in every step; leave it out, or take --env batch"
            )
        if (epsilon := self.judge.judge_epsilon) is not None and epsilon not in self.probe.eval_epsilons:
            radii = shown(self.probe.eval_epsilons)
            raise ValueError(f"judge_epsilon is {shown(epsilon)}: expected one of eval_epsilons, {radii}")
        self._check_fixed()
        if not is_own(method):
            self.check_method()

    @cached_property
    def world(self) -> WorldSettings:
        """The settings of the run's world."""
        return WorldSettings(**{item.name: getattr(self, item.name) for item in fields(WorldSettings)})

    @property
    def _entry(self) -> AgentEntry | None:
        """What is known of the agent; None of a custom one, whose module a record must not import."""
        return AGENTS.get(self.agent.agent)

    def _kind_of_actions(self, usual: str) -> str:
        """Return the agent's usual kind; `continuous` if the usual one cannot express exactly the method's own budget,
        for `fixed`, or the agent's listed budgets."""
        if self._entry is None or not self._entry.takes:
            return usual
        try:
            for budget in self.listed_budgets or [self.method.make().budget_at(1)]:
                ActionTable(usual, self.ranges.sets).encode(budget)
        except ValueError:
            return "continuous"
        return usual

    def _check_fixed(self) -> None:
        """Raise a ValueError for a setting that the agent fixes to another value; a batch has its own observation."""
        found = self.flat()
        for name in self._entry.fixes if self._entry else ():
            value = getattr(self._entry, name)
            if found[name] != value and (name, self.agent.env) != ("observation", "batch"):
                raise ValueError(
                    f"--{name} {found[name]} contradicts the agent {self.agent.agent}, which fixes it to {value}: "
                    "leave it out, or take another agent"
                )

    def check_method(self) -> None:
        """Check what the world checks, and that post-processing and budgets fit the method."""
        self.world.check_method()
        if self.run.post_kwargs is not None and not find_method(self.method.method).post_processed:
            raise ValueError(f"post_kwargs: the method {self.method.method} has no post-processing (its ++ form has)")
        for budget in (self.fixed_budget, *self.listed_budgets):
            if budget is not None:
                ActionTable(self.agent.actions, self.ranges.sets).encode(budget)
        if not is_dotted(self.agent.agent):
            try:
                AttackReports(self.world).request(*describe(self.agent.agent).reports)
            except ValueError as error:
                raise ValueError(f"agent {self.agent.agent}: {error}") from error

    def check_custom(self) -> None:
        """Check what the world checks, and that the agent and the observation of dotted paths exist."""
        self.world.check_custom()
        describe(self.agent.agent)
        observation_for(self.agent.env, self.agent.observation)

    @property
    def listed_budgets(self) -> list[ConstantBudget]:
        """The budgets of an agent that goes through some, in its order; empty for the others.

        Raises:
            ValueError: if the world's sets have none.
        """
        return self._entry.budgets(self._budget_request) if self._entry and self._entry.budgets else []

    @property
    def fixed_budget(self) -> ConstantBudget | None:
        """The budget of an agent that always plays the same, such as `fixed` and `fixed-max`; None for others."""
        return self._entry.budget(self._budget_request) if self._entry and self._entry.budget else None

    def planned_plays(self, planned_updates: int) -> int:
        """Return the number of plays of the whole run, which agents divide into parts.

        In a run of a number of passes it is an estimate, with attacks of the given budgets' mean number of steps, else
        of the action sets'.
        """
        if (passes := self.optimizer.passes) is None:
            return planned_updates
        given = [self.fixed_budget, *self.listed_budgets]
        steps = [float(each.steps) for each in given if each is not None] or list(self.ranges.sets.steps)
        attacks = self.method.make().attack.exists
        return max(1, round(passes / (UPDATE_PASSES + (fmean(steps) if attacks else 0))))

    @property
    def _budget_request(self) -> BudgetRequest:
        own = self.method.make().budget_at(1)
        return BudgetRequest(own=own, given=self.agent.budget, schedule=self.agent.schedule, sets=self.ranges.sets)

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> "Settings":
        """Make the settings of the preset `name` with its method's own settings and the given changes."""
        own = recipe(name, str(changes.get("method", MethodSection.method)))
        usual = {"preset": name} | pick(name, PRESETS, "preset") | own
        return cls.of(**(fitting(usual, changes) | with_options(own, changes)))

    def flat(self) -> dict[str, Any]:
        """Return a copy of all values by name, in the order in which they are written."""
        values = super().flat()
        return {name: values[name] for name in (*WRITTEN_FIRST.split(), *values)}

    def to_yaml(self) -> str:
        """Return every setting as YAML, for `--config` and `astra_gym.experiments.config.cli.load`."""
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in self.flat().items()}
        return dump_yaml(listed)


def default_run_dir(settings: Settings, root: Path | str = "runs") -> Path:
    """Return the first folder runs/DATASET-METHOD-AGENT-seedSEED, -2, -3, ... that does not exist."""
    parts = settings.data.dataset, settings.method.method, settings.agent.agent, f"seed{settings.run.seed}"
    name = "-".join(part.replace(":", "-").replace(".", "-") for part in parts)
    number, folder = 1, Path(root) / name
    while folder.exists():
        number += 1
        folder = Path(root) / f"{name}-{number}"
    return folder
