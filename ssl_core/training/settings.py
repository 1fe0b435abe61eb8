"""The sections of the settings on the optimizer and on coresets."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from astra_gym.ssl_core.models.gradcache import chunk_sizes
from astra_gym.ssl_core.models.target_network import PRECISIONS
from astra_gym.ssl_core.settings.checks import check_options, check_truth
from astra_gym.ssl_core.settings.records import Notes, check_choices
from astra_gym.ssl_core.training.coreset import SELECTIONS, CoresetSettings
from astra_gym.ssl_core.training.optim import OPTIMIZERS, PEAK_LR, warmup_cosine, warmup_cosine_by_epoch
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import amount, shown
from astra_gym.ssl_core.utils.overrides import replaced
from astra_gym.ssl_core.utils.training_plan import TrainingPlan

LR_INTERVALS = {"update": "the learning rate changes at every update", "epoch": "it changes once an epoch"}


@dataclass(frozen=True, kw_only=True)
class OptimizerSection:
    """Batches, epochs, and how the target network learns from them.

    Args:
        batch_size: images per step; each gives as many views as the method makes, two for most.
        epochs: planned epochs over the training images; they also span the learning-rate schedule.
        passes: forward-backward passes that the run spends, per attacked view, instead of its epochs: an update costs
            3.3, each step of its attack 1, and what a reward measures counts too. So runs of one number have the same
            compute under any agent. The learning rate follows the share that is spent, and `epochs` sets only the
            warm-up's share. null: the run has `epochs`.
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
        precision: precision of training; fp32: without TF32 on a GPU; auto: bf16 where the device computes in it, else
            fp32. The evaluation is always in fp32.
        recompute: whether an update keeps only the inputs of the stem and of every residual block (an attack only the
            images) and computes the rest again. The result is the same, with less memory, for a third (attack: half)
            more time.
        compile_blocks: whether an update compiles the stem and the residual blocks by `torch.compile`, which merges
            batch norm, addition and ReLU. It starts later, and results differ by rounding.
        update_chunks: number of chunks of images in which an update passes a batch through the target network. This
            needs less memory, and about a third more time. More than 1 changes the result (ghost batch norm): each
            chunk is normalized by its own statistics. The loss couples the whole batch in any case.

    Raises:
        ValueError: if a name is unknown or a value is out of its range.
    """

    batch_size: Annotated[int, Notes(unit="IMAGES")] = 128
    epochs: Annotated[int, Notes(unit="EPOCHS")] = 20
    passes: float | None = None
    optimizer: Annotated[str, Notes(choices=OPTIMIZERS, what="optimizer")] = "adamw"
    lr: float | None = None
    weight_decay: float = 1e-6
    warmup_epochs: Annotated[int, Notes(unit="EPOCHS")] = 1
    warmup_start: Annotated[float | None, Notes(unit="SHARE")] = None
    final_lr: float = 1e-6
    lr_interval: Annotated[str, Notes(choices=LR_INTERVALS, what="interval of the learning rate")] = "update"
    precision: Annotated[str, Notes(choices=("auto", *PRECISIONS), what="precision")] = "auto"
    recompute: bool = False
    compile_blocks: bool = False
    update_chunks: Annotated[int, Notes(unit="CHUNKS")] = 1

    def __post_init__(self) -> None:
        check_choices(self)
        check_number("epochs", self.epochs, 1, math.inf, "a positive integer", whole=True)
        if self.passes is not None:
            check_number("passes", self.passes, 0, math.inf, "a positive number", above=True)
        pairs = "2 or more images, since each needs negatives"
        check_number("batch_size", self.batch_size, 2, math.inf, pairs, whole=True)
        check_number("update_chunks", self.update_chunks, 1, math.inf, "1, for the whole batch, or more", whole=True)
        chunk_sizes(self.batch_size, self.update_chunks)
        check_truth("recompute", self.recompute)
        check_truth("compile_blocks", self.compile_blocks)
        check_number("warmup_epochs", self.warmup_epochs, 0, math.inf, "an integer of 0 or more", whole=True)
        if self.lr is not None:
            check_number("lr", self.lr, 0, math.inf, "0 or more")
        if self.final_lr != OptimizerSection.final_lr:
            check_number("final_lr", self.final_lr, 0, self.peak_lr, f"0 to the peak learning rate, {self.peak_lr:g}")
        if self.warmup_start is not None:
            check_number("warmup_start", self.warmup_start, 0, 1, "a share of the peak learning rate, in [0, 1]")
        check_number("weight_decay", self.weight_decay, 0, math.inf, "0 or more")

    @property
    def peak_lr(self) -> float:
        """The peak learning rate: the given one, or the optimizer's usual one."""
        return PEAK_LR[self.optimizer] if self.lr is None else self.lr

    @property
    def idle(self) -> dict[str, str]:
        """Settings that change nothing beside the values of others, each with the reason."""
        short = self.lr_interval == "epoch" and self.warmup_updates(1) < 2
        return {"warmup_start": "there is no warm-up from it"} if short or not self.warmup_epochs else {}

    def warmup_updates(self, steps_per_epoch: int) -> int:
        """Return the length of the warm-up in updates."""
        return min(2 * self.warmup_epochs, self.epochs) * steps_per_epoch // 2

    def schedule(self, plan: TrainingPlan) -> Callable[[int], float]:
        """Make the function from the number of updates so far to the next learning rate."""
        peak, floor, start = self.peak_lr, self.final_lr, self.warmup_start
        if self.lr_interval == "epoch":
            # whole epochs; the warm-up is cut to half of the run
            epochs = self.warmup_updates(1)
            first = peak * (1 / max(1, epochs) if start is None else start)
            return lambda step: warmup_cosine_by_epoch(plan.moment(step).epoch, plan.epochs, epochs, peak, floor, first)
        updates, total = self.warmup_updates(plan.steps), plan.epochs * plan.steps
        first = peak * (start or 0.0)
        return lambda step: warmup_cosine(plan.full_steps(step), total, updates, peak, floor, first)


@dataclass(frozen=True, kw_only=True)
class CoresetSection:
    """Training on chosen batches.

    Args:
        coreset: how later epochs choose the batches that they train on; rcs (robustness-aware coreset selection, for
            methods made of NT-Xents): batches whose gradients most reduce what an attack changes; random (the control
            of rcs): as many random batches; none: all.
        coreset_fraction: share of the batches that epochs on a coreset keep.
        coreset_warmup: number of first epochs, on all data; null: a tenth of the epochs (RCS: 100 of 1000).
        coreset_every: epochs from one selection to the next; null: a fiftieth of the epochs (20 of 1000), at least 1.
        coreset_kwargs: settings of the selection (`CoresetSettings`), which override its defaults:
            coreset_kwargs.divergence, coreset_kwargs.form (`released`, or `softmax` as in version 0.1),
            coreset_kwargs.biases (true as in version 0.1).

    Raises:
        ValueError: if a name is unknown or a value is out of its range.
    """

    coreset: Annotated[str, Notes(choices=("none", *SELECTIONS), what="coreset")] = "none"
    coreset_fraction: Annotated[float, Notes(unit="SHARE")] = 0.2
    coreset_warmup: Annotated[int | None, Notes(unit="EPOCHS")] = None
    coreset_every: Annotated[int | None, Notes(unit="EPOCHS")] = None
    coreset_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        check_options("coreset_kwargs", self.coreset_kwargs)
        check_number("coreset_fraction", self.coreset_fraction, 1e-6, 1, "a share in (0, 1]")
        for name, least in (("coreset_warmup", 0), ("coreset_every", 1)):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), least, math.inf, f"an integer of {least} or more", whole=True)
        self.make(1)

    def check_given(self, epochs: int) -> None:
        """Raise a ValueError if a given option has no effect in a run of `epochs` epochs."""
        if self.coreset == "none":
            for name in ("coreset_fraction", "coreset_warmup", "coreset_every", "coreset_kwargs"):
                if getattr(self, name) not in (getattr(CoresetSection, name), {}):
                    raise ValueError(f"{name} is {getattr(self, name)}, but there is no coreset: add --coreset rcs")
        elif self.coreset == "random" and self.coreset_kwargs:
            raise ValueError("coreset_kwargs: a coreset that is drawn at random has no settings: leave them out")
        elif self.make(1).divergence == "ot" and "form" in (self.coreset_kwargs or {}):
            raise ValueError("coreset_kwargs.form is of the divergences kl and js, and not of ot: leave it out")
        elif (first := self.calendar(epochs)[0]) >= epochs:
            raise ValueError(
                f"coreset is {self.coreset!r}, which begins after {amount(first, 'epoch')} on all data, but epochs is "
                f"{epochs}: take more epochs, or a shorter --coreset_warmup"
            )

    def make(self, batches: int) -> CoresetSettings:
        """Make the settings by which a coreset of `batches` batches is chosen; the random control uses neither
        divergence nor attack."""
        kind = "random" if self.coreset == "none" else self.coreset
        options = self.coreset_kwargs or {}
        for name, flag in (("kind", "--coreset"), ("batches", "--coreset_fraction")):
            if name in options:
                raise ValueError(f"coreset_kwargs have {shown(name)}: give it as {flag}")
        return replaced(CoresetSettings(batches, kind), options, "the coreset")

    def calendar(self, epochs: int) -> tuple[int, int]:
        """Return the first of a run's epochs on a coreset (from 0), and the epochs between two selections."""
        first = -(-epochs // 10) if self.coreset_warmup is None else self.coreset_warmup
        return first, max(1, epochs // 50) if self.coreset_every is None else self.coreset_every
