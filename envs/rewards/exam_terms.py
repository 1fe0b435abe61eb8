"""Terms that know the judge: exams on held-out training images at the judged radius."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from astra_gym.envs.rewards.term import ExamImages, FrozenAttack, RewardTerm, RewardWorld
from astra_gym.ssl_core.attacks.pgd import strided_budget
from astra_gym.ssl_core.methods import Method
from astra_gym.ssl_core.training.exams import Exam, gradient, make_exam, value
from astra_gym.ssl_core.training.forward_credit import ForwardCredit, descent

ROWS, NOISE = "exams/rows", "exams/noise"
"""The streams of an exam's images and of its attack's random start."""


class ExamTerm(RewardTerm):
    """The base of terms that examine the target network after every `judge_block` of the run, until `judge_until`.

    An exam's images are drawn from `judge_images` training images that enter no batch, with new views. `attack_steps`
    counts an exam's gradient steps, and one more for its forward passes.

    Raises:
        ValueError: if the world holds out no images for exams.
    """

    examines = True

    def __init__(self, world: RewardWorld) -> None:
        super().__init__(world)
        if world.exam_images is None:
            raise ValueError("the world holds no images out for exams: expected judge_images of them")
        self.images: ExamImages = world.exam_images
        self._block = 0
        """Number of the running block, from 0."""

    @classmethod
    def check(cls, method: Method) -> None:
        """Raise a ValueError if the attack does not maximize the method's loss."""
        if not method.loss.is_objective:
            raise ValueError(
                f"what the attack of {type(method).__name__} maximizes is not its loss, which exams are about"
            )

    def _drawn(self) -> Tensor:
        """Return all views (v, 3, h, w) of newly drawn images."""
        rows, judge = self.images.rows, self.world.judge
        drawn = torch.randperm(len(rows), generator=self.world.streams[ROWS])[: judge.judge_batch]
        return self.images.views_of(rows[drawn])

    def _exam(self, views: Tensor) -> Exam:
        """Attack views on the present weights, from the noise stream's present state."""
        learner, judge = self.world.learner, self.world.judge
        budget, noise = strided_budget(judge.epsilon, judge.judge_steps), self.world.streams.on_device(NOISE)
        made = make_exam(learner, [views], budget, judge.attacked_share, noise)
        self.attack_steps += (judge.judge_steps + 1) * len(learner.method.attacked(views))
        return made

    def _due(self) -> bool:
        """Return whether a block with an exam at its end is over, and go to the block of the present."""
        # a share is a sum of many parts
        now = int(self.world.learner.moment.progress / self.world.judge.judge_block + 1e-9)
        due = self._examined and now > self._block
        self._block = now
        return due

    @property
    def _examined(self) -> bool:
        """Whether the running block has an exam at its end."""
        return self._block * self.world.judge.judge_block < self.world.judge.judge_until - 1e-9

    def state_dict(self) -> dict[str, Any]:
        """Return the held-out rows, and the number of the running block."""
        return {"rows": self.images.rows, "block": self._block}

    def load_state_dict(self, state: Mapping[str, Any], restarted: Collection[str] = ()) -> None:
        """Restore what `state_dict` gave, as `RewardTerm.load_state_dict`."""
        if len(state["rows"]) != len(self.images.rows):
            found, ours = len(state["rows"]), len(self.images.rows)
            raise ValueError(
                f"the state holds out {found} images for exams, this run {ours}: resume with the same judge_images"
            )
        self.images.rows, self._block = state["rows"], state["block"]


class Judge(ExamTerm):
    """The fall of the loss in an exam over a block of the run; 0 before its end, and in blocks without an exam.

        value = L(theta_before) - L(theta_now)        L = share * attacked loss + (1 - share) * clean loss

    with the share by `judge_score`: 1 (robust) or 1/2 (mean). Both losses are of the same images and views, attacked at
    the judged radius from the same random start on the weights of their time. After `judge_redraw` blocks the next exam
    has others: blocks on the same images are compared with less noise, and share an exam. In a run of a number of
    passes time is in it: cheap attacks leave more updates to the same share. As LAS-AT's R2 (CVPR 2022), with the loss
    in place of labels, over many updates, and at the judge's radius. All views get the same value.

    Cost: an exam at the end of a block, and one where the images are drawn anew.
    """

    summary = "the fall of held-out views' loss at the judged radius, from exam to exam"

    def __init__(self, world: RewardWorld) -> None:
        super().__init__(world)
        self._views: Tensor | None = None
        """The views of the exam that has begun."""
        self._before = 0.0
        self._start: Tensor | None = None
        """The noise stream's state at the exam's begin."""
        self._shared = 0
        """Blocks since the views were drawn."""

    def _begin(self) -> None:
        self._views, self._start, self._shared = self._drawn(), self.world.streams.on_device(NOISE).get_state(), 0
        self._before = value(self.world.learner, self._exam(self._views))

    def before_update(self, rows: Tensor, losses: Tensor) -> Mapping[str, Tensor]:
        """Begin the first exam; return no values yet."""
        if self._views is None and self._examined:
            self._begin()
        return {}

    def after_update(self, n: int) -> Mapping[str, Tensor]:
        """Return `judge` (n,)."""
        fall = 0.0
        if self._due():
            if self._views is None or self._start is None:
                raise ValueError("no exam has begun: call before_update() before the update")
            noise = self.world.streams.on_device(NOISE)
            noise.set_state(self._start)
            now = value(self.world.learner, self._exam(self._views))
            fall, self._before, self._shared = self._before - now, now, self._shared + 1
            if self._shared == self.world.judge.judge_redraw:
                self._views = None
                if self._examined:
                    self._begin()
        return {"judge": torch.full((n,), fall, device=self.world.learner.device)}

    def numbers(self) -> dict[str, Any]:
        """Return the exam's loss, which must be finite."""
        return {"before": self._before}

    def state_dict(self) -> dict[str, Any]:
        """Return what `ExamTerm` does, and the exam that has begun."""
        begun = {"views": self._views, "before": self._before, "start": self._start, "shared": self._shared}
        return super().state_dict() | begun

    def load_state_dict(self, state: Mapping[str, Any], restarted: Collection[str] = ()) -> None:
        """Restore what `state_dict` gave, as `RewardTerm.load_state_dict`."""
        super().load_state_dict(state, restarted)
        views, device = state["views"], self.world.learner.device
        # losses from another random start are not comparable, so the exam begins anew
        lost = views is None or NOISE in restarted
        self._views = None if lost else views.to(device).contiguous(memory_format=torch.channels_last)
        self._before, self._start, self._shared = state["before"], None if lost else state["start"], state["shared"]


class Alignment(ExamTerm):
    """The share of each attacked view in the fall of an exam's loss by the coming update; 0 where there is no exam.

        value_i = <dL/dz_i, z'_i> of the attacked view i - the same of its clean view

    L is the training loss, z_i a view's embedding, and z'_i its derivative along the exam's gradient as the optimizer
    scales it, by one forward-mode pass (`ForwardCredit`). The exam is as `Judge`'s. It is the first-order view of one
    update, as in-run data attribution has it (Ren et al. 2018; TracIn, 2020): a view's share leaves out what it does to
    the others.

    Cost: an exam, its gradient, and two passes with tangents after every block.

    Raises:
        ValueError: if the optimizer's scale is not known, or the method perturbs weights or mixes views.
    """

    summary = "each attacked view's share in the coming update's fall of held-out views' loss at the judged radius"

    def __init__(self, world: RewardWorld) -> None:
        super().__init__(world)
        self._attack: FrozenAttack | None = None

    def frozen(self, attack: FrozenAttack) -> Mapping[str, Tensor]:
        """Remember the attack, which may be the one that is played; return no values yet."""
        self._attack = attack
        return {}

    def before_update(self, rows: Tensor, losses: Tensor) -> Mapping[str, Tensor]:
        """Return `alignment` (n,)."""
        values = torch.zeros_like(losses)
        # before its first step AdamW has no scale
        if self._due() and self.world.learner.step and self._attack is not None:
            learner, exam = self.world.learner, self._exam(self._drawn())
            direction = descent(learner, gradient(learner, exam))
            credit = ForwardCredit(learner, self._attack.all_views, direction)
            values = credit.shares(self._attack.adversarial).to(losses)
            # the gradient is a pass over the exam's views, clean and attacked; a forward pass with tangents is one too
            views = len(exam.batches[0][1])
            self.attack_steps += 2 * views + 2 * len(losses)
        return {"alignment": values}
