"""Everything that defines one world, as one typed record: the sections of the settings that a world has."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from astra_gym.envs.actions import RangesSection
from astra_gym.envs.rewards.judge_settings import JudgeSection
from astra_gym.envs.rewards.settings import RewardSection
from astra_gym.ssl_core.attacks.settings import AttackSection
from astra_gym.ssl_core.data.datasets import find_dataset
from astra_gym.ssl_core.data.settings import DataSection
from astra_gym.ssl_core.methods import is_own
from astra_gym.ssl_core.methods.settings import SHARED, MethodSection
from astra_gym.ssl_core.models.backbones.timm_vit import is_vit
from astra_gym.ssl_core.models.settings import NetworkSection
from astra_gym.ssl_core.settings.records import Composed, leaves
from astra_gym.ssl_core.training.settings import CoresetSection, OptimizerSection
from astra_gym.ssl_core.transforms.settings import ViewsSection
from astra_gym.ssl_core.utils.import_path import is_dotted
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.training_plan import PassesPlan, TrainingPlan


@dataclass(frozen=True, kw_only=True)
class WorldSettings(Composed):
    """A world's settings; `WorldSettings.of` takes them flat, by the names of the flags. Settings that only a run
    resolves (those given as `auto`, and `drop_last`) get fixed values in a world without a run: view, fp32 and true.

    Args:
        data: the images, and how they are kept.
        method: the self-supervised method.
        network: the target network.
        optimizer: batches, epochs, and how the target network learns from them.
        views: the augmentations.
        coreset: training on chosen batches.
        attack: where attacks start.
        ranges: what actions choose among.
        reward: the terms of the reward and their weights.
        judge: what its encoders are judged by.

    Raises:
        ValueError: if the sections do not fit each other.
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

    def __post_init__(self) -> None:
        self._resolve(drop_last=True, precision="fp32", reward_scope="view")
        size, stem = self.data.image_size, self.network.stem
        self.network.check_size(size)
        if self.optimizer.precision == "bf16" and not self.network.bf16_is_reliable(size):
            # on a CPU torch's bfloat16 convolution then leaves parts of its weight gradient unwritten
            raise ValueError(
                f"images of {size} pixels shrink to one before the last stage of the {stem} stem, where bf16 is not "
                "reliable: take --precision fp32, or larger images"
            )
        if not is_own(self.method.method):
            self.check_method()

    @classmethod
    def given(cls, **settings: Any) -> Self:
        """Make settings from a user's choices; besides wrong settings, refuse those that would have no effect."""
        made = cls.of(**settings)
        made.check_given(settings)
        return made

    def check_given(self, *choices: Mapping[str, Any]) -> None:
        """Check that every given option has an effect. The record of a run is not checked: it may be from a version
        that ignored such options.

        Args:
            choices: settings that a user chose, by name. What changes nothing is refused here, but not where it is the
                default, a preset's or a recipe's.

        Raises:
            ValueError: if an option belongs to a part that is left out, has no effect, or is given twice.
        """
        self.coreset.check_given(self.optimizer.epochs)
        self.views.check_given()
        self.method.check_given()
        self.network.check_given()
        if self.reward.cost_target is not None and not is_own(self.method.method):
            self._check_target(self.reward.cost_target)
        usual = {leaf.name: leaf.default for leaf in leaves(type(self))}
        chosen = {name: value for each in choices for name, value in _named(each) if value != usual.get(name)}
        for name, reason in self._idle.items():
            if name in chosen:
                raise ValueError(f"{name} is {shown(chosen[name])}, but {reason}, so it changes nothing: leave it out")

    @property
    def _idle(self) -> dict[str, str]:
        """Settings that change nothing beside the values of others, each with the reason."""
        kinds = self.reward.paid_terms()
        idle = {name: f"in the method {self.method.method} {reason}" for name, reason in self.method.idle.items()}
        idle |= self.optimizer.idle | self.views.idle
        if not any(kind.holds_out for kind in kinds.values()):
            idle["lookahead_images"] = "no term of the reward holds images out (reward_weights.lookahead)"
        # a custom term may read what the judge is without giving exams
        examiners = {name for name, kind in kinds.items() if kind.examines or is_dotted(name)}
        if not examiners:
            exams = ("judge_images", "judge_batch", "judge_steps", "judge_block", "judge_redraw", "judge_until")
            idle |= dict.fromkeys(exams, "no term of the reward gives exams (reward_weights.judge or .alignment)")
        elif examiners == {"alignment"}:
            idle["judge_redraw"] = "the term alignment draws other images for every exam"
        return idle

    def _check_target(self, target: float) -> None:
        """Raise a ValueError if no attack has as many steps: the price would fall to 0, or rise for ever."""
        method, steps = self.method.make(), self.ranges.sets.steps
        # an attack that stops by itself may be shorter than what was chosen
        low = 0 if self.attack.attack_stop is not None else steps[0]
        if not method.attack.has_steps:
            raise ValueError(f"cost_target is {target:g}, but {self.method.method} has no attack steps: leave it out")
        if not low <= target <= steps[-1]:
            raise ValueError(
                f"cost_target is {target:g}, but attacks of this world have {low} to {steps[-1]} steps: give a number "
                "of steps between these, or other --action_steps"
            )

    def check_method(self) -> None:
        """Check that the method and its options fit each other and the settings.

        A custom method is checked only when a world is made, because the check imports the method's module, and reading
        a run's record must import none.

        Raises:
            ValueError: if they do not.
        """
        name, teacher, chunks = self.method.method, self.method.teacher, self.optimizer.update_chunks
        method = self.method.make()
        lost = [
            f"method_kwargs.{option} is {value}"
            for option, value in self.method.shared.items()
            if not hasattr(method, option) and value != SHARED[option]
        ]
        if self.reward.reward_mixed != 0 and not hasattr(method, "mixed_reading"):
            lost.append(f"reward_weights.mixed is {self.reward.reward_mixed}")
        if lost:
            raise ValueError(f"{lost[0]}: only the methods astra and astra++ have a mixed loss")
        if (begin := self.attack.attack_start) is not None and not method.attack.has_steps:
            raise ValueError(f"attack_start is {begin}, but {name} has no such attack: leave it out")
        if (stop := self.attack.attack_stop) is not None and not (method.retrieves and method.attack.mode == "eval"):
            raise ValueError(
                f"attack_stop is {stop} (the agent friendly sets it), but {name} does not contrast attacked views with "
                "each other: take a method that does, such as acl or astra"
            )
        if chunks > 1 and not method.loss.paired:
            raise ValueError(
                f"update_chunks is {chunks}, but the method {name} does not take its views in pairs, which chunks "
                "need: take 1, or --recompute true to save memory"
            )
        if not self.data.drop_last and (method.attack.free or self.coreset.coreset != "none"):
            what = f"the method {name} carries an attack over batches of one size"
            what = what if method.attack.free else "a coreset is made of full batches"
            raise ValueError(f"drop_last is false, but {what}: leave it out")
        if not self.data.drop_last and chunks > 1:
            raise ValueError(f"drop_last is false and update_chunks is {chunks}: give one of them")
        if self.optimizer.passes is not None and self.coreset.coreset != "none":
            raise ValueError(
                f"passes is {self.optimizer.passes:g}, but a coreset is planned by epochs: leave one of them out"
            )
        if self.coreset.coreset == "rcs":
            lacks = {
                f"the method {name} has no attack": not method.attack.exists,
                f"the loss of the method {name} is not made of NT-Xents": not method.loss.nt_xent_based,
                "there is no projector (--projector none)": self.network.projector == "none",
            }
            if missing := [reason for reason, holds in lacks.items() if holds]:
                raise ValueError(f"coreset is 'rcs', but {' and '.join(missing)}: take --coreset random or none")
        self.reward.check_terms(method)
        if method.routes.needed and is_vit(self.network.arch):
            raise ValueError(
                f"the method {name} keeps batch norms apart by the routes {', '.join(method.routes.names)}, and "
                f"{self.network.arch} has no batch norm: take a ResNet, or a method such as acl, astra or deacl"
            )
        start = self.network.init_from
        if "initial" in method.networks.others and start is None:
            raise ValueError(
                f"the method {name} keeps the features of the encoder that it starts from: give its file as "
                "--init_from FILE, a run, an export, or a ResNet of torchvision or timm"
            )
        if start is not None and method.starts_from_teacher:
            raise ValueError(
                f"init_from is {start}, but the method {name} starts from its teacher: leave it out, or give "
                "--method_kwargs.scratch true"
            )
        if method.networks.shares_projector and self.network.projector == "none":
            raise ValueError(f"projector is none, but the method {name} compares projections: give the teacher's kind")
        needs_teacher = "teacher" in method.networks.others
        if needs_teacher and teacher is None:
            own = "cifar10-teacher-daq" if name == "daq-sdp" else "cifar10-teacher"
            raise ValueError(
                f"the method {name} learns from a teacher: train one by --method simclr, or another without an attack "
                f"(for the preset cifar10 by --preset {own}), and give its run folder (or another checkpoint) as "
                "--teacher RUN"
            )
        if teacher is not None and not needs_teacher:
            raise ValueError(f"teacher is {teacher}, but the method {name} has none: leave it out")

    def check_custom(self) -> None:
        """Import what names with a colon mean, except the method, to check that it exists.

        Raises:
            ValueError: if not.
        """
        self.reward.paid_terms()
        self.attack.find()
        find_dataset(self.data.dataset)
        self.network.check_installed(self.data.image_size)

    def make_plan(self, batches: int, replays: int = 1) -> TrainingPlan:
        """Plan the run's updates.

        Args:
            batches: full batches in the training images.
            replays: updates in a row on each batch.
        """
        epochs, passes = self.optimizer.epochs, self.optimizer.passes
        if passes is not None:
            return PassesPlan(epochs, batches * replays, replays, passes=passes)
        if self.coreset.coreset == "none":
            return TrainingPlan(epochs, batches * replays, replays)
        # whole batches, as in the released code; the summand makes up for rounding: 0.29 * 100 is 28.999...
        kept = max(1, int(self.coreset.coreset_fraction * batches + 1e-9)) * replays
        return TrainingPlan(epochs, batches * replays, replays, self.coreset.calendar(epochs)[0], kept)


def _named(choices: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings, and their options by dotted name."""
    for name, value in choices.items():
        yield name, value
        if isinstance(value, Mapping):
            yield from ((f"{name}.{option}", each) for option, each in value.items())
