"""Everything that defines one world: the data, the target network, its method and its reward, as one typed record."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self

from astra_gym.envs.data_config import DataSettings, check_numbers, check_options, check_path
from astra_gym.envs.rewards.registry import check_terms, paid_terms, settle_weights
from astra_gym.envs.world_checks import check_effect
from astra_gym.ssl_core.attacks.pgd import STARTS, find_start
from astra_gym.ssl_core.data.datasets import find_dataset
from astra_gym.ssl_core.losses.contrastive import MIXED_READINGS
from astra_gym.ssl_core.methods import METHODS, Method, is_own, make_method
from astra_gym.ssl_core.models.gradcache import chunk_sizes
from astra_gym.ssl_core.models.target_network import (
    ARCHITECTURES,
    NORMALIZATIONS,
    PRECISIONS,
    PROJECTORS,
    STEMS,
    last_strided_map,
)
from astra_gym.ssl_core.settings.records import Notes
from astra_gym.ssl_core.training.coreset import SELECTIONS, CoresetSettings
from astra_gym.ssl_core.training.optim import OPTIMIZERS, PEAK_LR
from astra_gym.ssl_core.transforms.perspective_views import PERSPECTIVES, PerspectiveSettings
from astra_gym.ssl_core.transforms.views import INTERPOLATIONS, ViewSettings
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.overrides import replaced
from astra_gym.ssl_core.utils.training_plan import TrainingPlan

REWARD_SCOPES = {"view": "each view is paid for its own attack", "batch": "one shared scalar, as in the paper"}
LR_INTERVALS = {"update": "the learning rate changes at every update", "epoch": "it changes once an epoch"}


@dataclass(frozen=True, kw_only=True)
class WorldSettings(DataSettings):
    """A world's settings: those of its data, and all others.

    Args:
        method: the self-supervised method, or the dotted path of a custom method, my_module:MyMethod.
        method_kwargs: the method's own options, which override its defaults; ASTrA's are method_kwargs.mixed_weight and
            method_kwargs.mixed_reading (pairs: as in its code; views: as in its drawings).
        teacher: a run or checkpoint of this project whose encoder the methods deacl, daq-sdp and advcl learn from.
        arch: the backbone.
        width: channels of the first stage (64 in the paper).
        stem: the backbone's first layers: cifar (3x3, stride 1), cifar-padded (the same with 2 pixels of padding:
            DeACL) or imagenet (7x7, stride 2, max-pool).
        projector: kind of the projector, named after the method that uses it.
        projector_hidden: width of the projector's second layer (2048 in ASTrA, 512 in ACL).
        projector_dim: dimension of the embeddings.
        neck: width of a further layer behind the backbone, whose outputs are the features (EMP-SSL); 0: none.
        normalization: normalization of the input, in the network; imagenet: as in ACL, DynACL, AIR, RCS and ASTrA.
        batch_size: images per step; each gives as many views as the method makes, two for most.
        epochs: planned passes over the training images; they also span the learning-rate schedule.
        optimizer: optimizer of the target network: lars (ACL's), lars-excluded (BYOL's), lars-emp (EMP-SSL's),
            lars-torchlars (RoCL's), sgd, sgd-classic (without Nesterov's momentum) or adamw.
        lr: the target network's peak learning rate; null: the optimizer's usual one (5.0 for lars, 0.3 for sgd, 0.003
            for adamw; `PEAK_LR`).
        weight_decay: the target network's weight decay.
        warmup_epochs: length of the linear warm-up; cut to half of the epochs if it is longer.
        warmup_start: share of the peak learning rate that the warm-up begins with; null: 0, or 1 / warmup_epochs if
            lr_interval is epoch.
        final_lr: the learning rate at the end of the cosine decay.
        lr_interval: how often the learning rate changes; epoch: the warm-up's last epoch has the peak.
        temperature: temperature of the contrastive losses.
        mixed_weight: weight of ASTrA's mixed loss (0.5 in its run).
        mixed_reading: reading of ASTrA's mixed loss: pairs (as in its code) or views (as in its drawings).
        strength: strength of the augmentations, in [0, 1]; 1 is ACL's, which crops most of a digit away.
        crop_scale: smallest and largest share of the area that the random crop of a strong view keeps; null: from
            1 - 0.9 * strength to 1, as ACL and DynACL do.
        jitter: how far a strong view's brightness, contrast, saturation and hue change at strength 1.
        flip: probability of a horizontal flip.
        blur: probability of a Gaussian blur of a strong view at strength 1; null: 0, but 0.1 (their authors') for the
            crops of emp-ssl and cf-amc-ssl.
        solarize: probability that an image's second strong view (or any crop) is solarized at strength 1; null: 0, but
            0.1 for the crops of emp-ssl and cf-amc-ssl.
        perspective: a further augmentation of every view: moebius (MPD) or lcm (log conformal maps; experimental, with
            this project's own ranges).
        perspective_kwargs: settings of the perspective (`PerspectiveSettings`), which override its defaults.
        interpolation: interpolation of the random resized crop.
        coreset: whether later epochs train on chosen batches only; rcs (robustness-aware coreset selection, for methods
            made of NT-Xents): on those whose gradients most reduce what an attack changes; random: its control, on as
            many random batches.
        coreset_fraction: share of the batches that epochs on a coreset keep.
        coreset_warmup: number of first epochs, on all data; null: a tenth of the epochs (RCS: 100 of 1000).
        coreset_every: epochs from one selection to the next; null: a fiftieth of the epochs (20 of 1000), at least 1.
        coreset_kwargs: settings of the selection (`CoresetSettings`), which override its defaults:
            coreset_kwargs.divergence, coreset_kwargs.form (`released`, or `softmax` as in version 0.1),
            coreset_kwargs.biases (true as in version 0.1).
        attack_start: where the attack begins: uniform (in the view's own ball), zero (the clean view), or the dotted
            path of a custom function, my_module:my_start (`Start`); null: as the method's authors do.
        reward_scope: view: a reward for each view's own attack; batch: the paper's one scalar for all.
        reward_adversarial: weight of the attacked loss in the reward (1/3 in ASTrA's run).
        reward_clean: weight of the clean loss, which is subtracted (1/3).
        reward_mixed: weight of the mixed loss, which is subtracted (0).
        reward_cost: weight of the attack's cost in gradient steps, which is subtracted; 0: not computed.
        reward_lookahead: weight of how much the update lowered the attacked plus the clean loss of held-out views,
            which is added (`LookAhead`); 0: not computed, and nothing is held out.
        lookahead_images: training images held out for the term lookahead, 2 or more; they enter no training batch.
        reward_progress: weight of the fall of a view's own attacked loss since its image was last seen, which is added;
            0: not computed.
        reward_weights: weights of reward terms by name (adversarial and clean: 1/3 by default, mixed, cost, lookahead,
            progress: 0), or by the dotted path of a custom term, my_module:MyTerm (`RewardTerm`).
        precision: precision of training.
        recompute: whether an update keeps only the inputs of the stem and of every residual block, and an attack only
            the images, and computes the rest again: the same result with less memory, for a third (attack: half) more
            time.
        update_chunks: number of chunks of images in which an update passes a batch through the target network: less
            memory for about a third more time. More than 1 changes the result (ghost batch norm): each chunk is
            normalized by its own statistics. The loss couples the whole batch in any case.

    Raises:
        ValueError: if a name is unknown or a value is out of its range.
    """

    method: Annotated[str, Notes("method", choices=METHODS, what="method", custom=True)] = "astra"
    method_kwargs: Annotated[dict[str, Any] | None, Notes("method")] = None
    teacher: Annotated[str | None, Notes("method", unit="RUN")] = None
    arch: Annotated[str, Notes("network", choices=ARCHITECTURES, what="architecture")] = "resnet10"
    width: Annotated[int, Notes("network", unit="CHANNELS")] = 16
    stem: Annotated[str, Notes("network", choices=STEMS, what="stem")] = "cifar"
    projector: Annotated[str, Notes("network", choices=PROJECTORS, what="projector")] = "acl"
    projector_hidden: Annotated[int, Notes("network", unit="UNITS")] = 128
    projector_dim: Annotated[int, Notes("network", unit="UNITS")] = 128
    neck: Annotated[int, Notes("network", unit="UNITS")] = 0
    normalization: Annotated[str, Notes("network", choices=NORMALIZATIONS, what="normalization")] = "imagenet"
    batch_size: Annotated[int, Notes("optimizer", unit="IMAGES")] = 128
    epochs: Annotated[int, Notes("optimizer", unit="EPOCHS")] = 20
    optimizer: Annotated[str, Notes("optimizer", choices=OPTIMIZERS, what="optimizer")] = "adamw"
    lr: Annotated[float | None, Notes("optimizer")] = None
    weight_decay: Annotated[float, Notes("optimizer")] = 1e-6
    warmup_epochs: Annotated[int, Notes("optimizer", unit="EPOCHS")] = 1
    warmup_start: Annotated[float | None, Notes("optimizer", unit="SHARE")] = None
    final_lr: Annotated[float, Notes("optimizer")] = 1e-6
    lr_interval: Annotated[str, Notes("optimizer", choices=LR_INTERVALS, what="interval of the learning rate")] = (
        "update"
    )
    temperature: Annotated[float, Notes("method")] = 0.5
    mixed_weight: Annotated[float, Notes("method", instead="method_kwargs.mixed_weight")] = 0.5
    mixed_reading: Annotated[
        str, Notes("method", choices=MIXED_READINGS, what="mixed reading", instead="method_kwargs.mixed_reading")
    ] = "pairs"
    strength: Annotated[float, Notes("views", unit="SHARE")] = 0.5
    crop_scale: Annotated[tuple[float, ...] | None, Notes("views", unit="[MIN,MAX]")] = None
    jitter: Annotated[tuple[float, ...], Notes("views", unit="[B,C,S,H]")] = (0.4, 0.4, 0.4, 0.1)
    flip: Annotated[float, Notes("views", unit="PROBABILITY")] = 0.0
    blur: Annotated[float | None, Notes("views", unit="PROBABILITY")] = None
    solarize: Annotated[float | None, Notes("views", unit="PROBABILITY")] = None
    perspective: Annotated[str, Notes("views", choices=PERSPECTIVES, what="kind of perspective")] = "none"
    perspective_kwargs: Annotated[dict[str, Any] | None, Notes("views")] = None
    interpolation: Annotated[str, Notes("views", choices=INTERPOLATIONS, what="interpolation")] = "bicubic"
    coreset: Annotated[str, Notes("coreset", choices=("none", *SELECTIONS), what="coreset")] = "none"
    coreset_fraction: Annotated[float, Notes("coreset", unit="SHARE")] = 0.2
    coreset_warmup: Annotated[int | None, Notes("coreset", unit="EPOCHS")] = None
    coreset_every: Annotated[int | None, Notes("coreset", unit="EPOCHS")] = None
    coreset_kwargs: Annotated[dict[str, Any] | None, Notes("coreset")] = None
    attack_start: Annotated[str | None, Notes("attack", choices=STARTS, what="attack start", custom=True)] = None
    reward_scope: Annotated[str, Notes("reward", choices=REWARD_SCOPES, what="reward scope")] = "view"
    reward_adversarial: Annotated[float, Notes("reward", instead="reward_weights.adversarial")] = 1 / 3
    reward_clean: Annotated[float, Notes("reward", instead="reward_weights.clean")] = 1 / 3
    reward_mixed: Annotated[float, Notes("reward", instead="reward_weights.mixed")] = 0.0
    reward_cost: Annotated[float, Notes("reward", instead="reward_weights.cost")] = 0.0
    reward_lookahead: Annotated[float, Notes("reward", instead="reward_weights.lookahead")] = 0.0
    lookahead_images: Annotated[int, Notes("reward", unit="IMAGES")] = 24
    reward_progress: Annotated[float, Notes("reward", instead="reward_weights.progress")] = 0.0
    reward_weights: Annotated[dict[str, Any] | None, Notes("reward")] = None
    precision: Annotated[str, Notes("optimizer", choices=PRECISIONS, what="precision")] = "fp32"
    recompute: Annotated[bool, Notes("optimizer")] = False
    update_chunks: Annotated[int, Notes("optimizer", unit="CHUNKS")] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("method_kwargs", "perspective_kwargs", "coreset_kwargs"):
            check_options(name, getattr(self, name))
        check_path("teacher", self.teacher)
        for name in ("width", "projector_hidden", "projector_dim", "epochs"):
            check_number(name, getattr(self, name), 1, math.inf, "a positive integer", whole=True)
        pairs = "2 or more images, since each needs negatives"
        check_number("batch_size", self.batch_size, 2, math.inf, pairs, whole=True)
        check_number("update_chunks", self.update_chunks, 1, math.inf, "1, for the whole batch, or more", whole=True)
        chunk_sizes(self.batch_size, self.update_chunks)
        if type(self.recompute) is not bool:
            raise ValueError(f"recompute is {shown(self.recompute)}: expected true or false")
        check_number("warmup_epochs", self.warmup_epochs, 0, math.inf, "an integer of 0 or more", whole=True)
        if self.precision == "bf16" and last_strided_map(self.image_size, self.stem) < 2:
            # on a CPU torch's bfloat16 convolution then leaves parts of its weight gradient unwritten
            raise ValueError(
                f"images of {self.image_size} pixels shrink to one before the last stage of the {self.stem} stem, "
                "where bf16 is not reliable: take --precision fp32, or larger images"
            )
        if self.lr is not None:
            check_number("lr", self.lr, 0, math.inf, "0 or more")
        if self.final_lr != WorldSettings.final_lr:
            check_number("final_lr", self.final_lr, 0, self.peak_lr, f"0 to the peak learning rate, {self.peak_lr:g}")
        if self.warmup_start is not None:
            check_number("warmup_start", self.warmup_start, 0, 1, "a share of the peak learning rate, in [0, 1]")
        for name in ("weight_decay", "mixed_weight"):
            check_number(name, getattr(self, name), 0, math.inf, "0 or more")
        for name, length in (("crop_scale", 2), ("jitter", 4)):
            value = getattr(self, name)
            if value is not None or name == "jitter":
                check_numbers(name, value, length)
            object.__setattr__(self, name, None if value is None else tuple(value))
        check_number("coreset_fraction", self.coreset_fraction, 1e-6, 1, "a share in (0, 1]")
        for name, least in (("coreset_warmup", 0), ("coreset_every", 1)):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), least, math.inf, f"an integer of {least} or more", whole=True)
        check_number("neck", self.neck, 0, math.inf, "0 for none, or a positive width", whole=True)
        check_number("temperature", self.temperature, 1e-3, math.inf, "0.001 or more")
        for name in ("strength", "flip", "blur", "solarize"):
            if getattr(self, name) is not None or name in ("strength", "flip"):
                check_number(name, getattr(self, name), 0, 1, "a number in [0, 1]")
        settle_weights(self)
        check_number("lookahead_images", self.lookahead_images, 2, math.inf, pairs, whole=True)
        self.make_views()
        self.make_perspective()
        self.make_coreset(1)
        if not is_own(self.method):
            # a subclass calls this itself after checking its own settings
            WorldSettings.check_method(self)

    @classmethod
    def given(cls, **settings: Any) -> Self:
        """Make settings from a user's choices; besides wrong settings, refuse those that would have no effect."""
        made = cls(**settings)
        made.check_given()
        return made

    def check_given(self) -> None:
        """Check that every given option has an effect. The record of a run is not checked: it may be from a version
        that ignored such options.

        Raises:
            ValueError: if an option belongs to a part that is left out, or is given twice.
        """
        check_effect(self, {item.name: item.default for item in fields(WorldSettings)})

    def check_method(self) -> None:
        """Check that the method and its options fit each other and the settings.

        A custom method is checked only when a world is made: the check imports the method's module, and a run's record
        is read without that.

        Raises:
            ValueError: if they do not.
        """
        method = self.make_method()
        if not hasattr(method, "mixed_reading"):
            for name in ("mixed_weight", "mixed_reading", "reward_mixed"):
                if getattr(self, name) != getattr(WorldSettings, name):
                    raise ValueError(
                        f"{name} is {getattr(self, name)}: only the methods astra and astra++ have a mixed loss"
                    )
        if self.attack_start is not None and (method.free or not method.attacks):
            raise ValueError(f"attack_start is {self.attack_start}, but {self.method} has no such attack: leave it out")
        if self.update_chunks > 1 and not method.paired:
            raise ValueError(
                f"update_chunks is {self.update_chunks}, but the method {self.method} does not take its views in "
                "pairs, which chunks need: take 1, or --recompute true to save memory"
            )
        if not self.drop_last and (method.free or self.coreset != "none"):
            what = f"the method {self.method} carries an attack over batches of one size"
            what = what if method.free else "a coreset is made of full batches"
            raise ValueError(f"drop_last is false, but {what}: leave it out")
        if not self.drop_last and self.update_chunks > 1:
            raise ValueError(f"drop_last is false and update_chunks is {self.update_chunks}: give one of them")
        if self.coreset == "rcs":
            lacks = {
                f"the method {self.method} has no attack": not method.attacks,
                f"the loss of the method {self.method} is not made of NT-Xents": not method.nt_xent_based,
                "there is no projector (--projector none)": self.projector == "none",
            }
            if missing := [reason for reason, holds in lacks.items() if holds]:
                raise ValueError(f"coreset is 'rcs', but {' and '.join(missing)}: take --coreset random or none")
        check_terms(self, method)
        needs_teacher = "teacher" in method.others
        if needs_teacher and self.teacher is None:
            own = "cifar10-teacher-daq" if self.method == "daq-sdp" else "cifar10-teacher"
            raise ValueError(
                f"the method {self.method} learns from a teacher: train one by --method simclr (for the preset cifar10 "
                f"by --preset {own}), and give its run folder (or another checkpoint) as --teacher RUN"
            )
        if self.teacher is not None and not needs_teacher:
            raise ValueError(f"teacher is {self.teacher}, but the method {self.method} has none: leave it out")

    def check_custom(self) -> None:
        """Import what dotted paths name, except the method, to check that it exists.

        Raises:
            ValueError: if not.
        """
        paid_terms(self)
        find_start(self.attack_start or "zero")
        find_dataset(self.dataset)

    def make_method(self) -> Method:
        """Make the method with its settings.

        Raises:
            ValueError: if an option is unknown, or the options do not fit together.
        """
        return make_method(
            self.method,
            self.method_kwargs,
            temperature=self.temperature,
            mixed_weight=self.mixed_weight,
            mixed_reading=self.mixed_reading,
        )

    @property
    def peak_lr(self) -> float:
        """The peak learning rate: the given one, or the optimizer's usual one."""
        return PEAK_LR[self.optimizer] if self.lr is None else self.lr

    def warmup_updates(self, steps_per_epoch: int) -> int:
        """Return the length of the warm-up in updates."""
        return min(2 * self.warmup_epochs, self.epochs) * steps_per_epoch // 2

    def make_views(self) -> ViewSettings:
        """Make the settings of the augmentations."""
        return ViewSettings(
            strength=self.strength,
            flip=self.flip,
            interpolation=self.interpolation,
            crop=None if self.crop_scale is None else (self.crop_scale[0], self.crop_scale[1]),
            jitter=(self.jitter[0], self.jitter[1], self.jitter[2], self.jitter[3]),
            blur_probability=self.blur,
            solarize_probability=self.solarize,
        )

    def make_perspective(self) -> PerspectiveSettings:
        """Make the settings of the perspective augmentation.

        Raises:
            ValueError: if one is unknown or out of its range.
        """
        if "kind" in (self.perspective_kwargs or {}):
            raise ValueError("perspective_kwargs has a kind: give it as --perspective")
        chosen = PerspectiveSettings(kind=self.perspective)
        return replaced(chosen, self.perspective_kwargs or {}, "the perspective augmentation")

    def make_plan(self, batches: int, replays: int = 1) -> TrainingPlan:
        """Plan the run's updates.

        Args:
            batches: full batches in the training images.
            replays: updates in a row on each batch.
        """
        if self.coreset == "none":
            return TrainingPlan(self.epochs, batches * replays, replays)
        # whole batches, as in the released code; the summand makes up for rounding: 0.29 * 100 is 28.999...
        kept = max(1, int(self.coreset_fraction * batches + 1e-9)) * replays
        return TrainingPlan(self.epochs, batches * replays, replays, self.coreset_epochs[0], kept)

    def make_coreset(self, batches: int) -> CoresetSettings:
        """Make the settings by which a coreset of `batches` batches is chosen; the random control uses neither
        divergence nor attack.

        Raises:
            ValueError: if a setting is unknown or out of its range.
        """
        kind = "random" if self.coreset == "none" else self.coreset
        options = self.coreset_kwargs or {}
        for name, flag in (("kind", "--coreset"), ("batches", "--coreset_fraction")):
            if name in options:
                raise ValueError(f"coreset_kwargs have {shown(name)}: give it as {flag}")
        return replaced(CoresetSettings(batches, kind), options, "the coreset")

    @property
    def coreset_epochs(self) -> tuple[int, int]:
        """The first epoch on a coreset (from 0), and the epochs between two selections."""
        first = -(-self.epochs // 10) if self.coreset_warmup is None else self.coreset_warmup
        return first, max(1, self.epochs // 50) if self.coreset_every is None else self.coreset_every
