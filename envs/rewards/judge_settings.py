"""The section of the settings on what a world's encoders are judged by."""

import math
from dataclasses import dataclass
from typing import Annotated

from astra_gym.ssl_core.settings.records import Notes, check_choices
from astra_gym.ssl_core.utils.finite import check_number

JUDGES = {"robust": "RA at the judged radius", "mean": "the mean of SA and RA there"}
USUAL = 8 / 255
"""The judged radius of a world that names none."""


@dataclass(frozen=True, kw_only=True)
class JudgeSection:
    """The judge of a world, and the exams that reward terms give the target network in its place.

    Args:
        judge_epsilon: radius at which runs of this world are compared, one of eval_epsilons; null: as a comparison's
            rule says.
        judge_score: what decides there: robust (RA) or mean (of SA and RA).
        judge_images: training images held out for the exams of the terms judge and alignment; they enter no training
            batch. Fewer than 256 may rank attacks wrongly.
        judge_batch: images of an exam, drawn anew from these, 2 or more.
        judge_steps: steps of an exam's attack at the judged radius; they add up to 2.5 radii.
        judge_block: share of the run between two exams, in (0, 1]: of its passes, if it has a number of them.
        judge_redraw: blocks, between two exams each, with the same images, 1 or more.
        judge_until: share of the run after which there are no more exams, in (0, 1].

    Raises:
        ValueError: if a name is unknown or a value is out of its range.
    """

    judge_epsilon: Annotated[float | None, Notes(unit="FRACTION")] = None
    judge_score: Annotated[str, Notes(choices=JUDGES, what="judge's score")] = "robust"
    judge_images: Annotated[int, Notes(unit="IMAGES")] = 256
    judge_batch: Annotated[int, Notes(unit="IMAGES")] = 64
    judge_steps: Annotated[int, Notes(unit="STEPS")] = 2
    judge_block: Annotated[float, Notes(unit="SHARE")] = 0.1
    judge_redraw: Annotated[int, Notes(unit="BLOCKS")] = 1
    judge_until: Annotated[float, Notes(unit="SHARE")] = 1.0

    def __post_init__(self) -> None:
        check_choices(self)
        if self.judge_epsilon is None and self.judge_score != "robust":
            raise ValueError(f"judge_score is {self.judge_score}: give the judged radius too, --judge_epsilon")
        if self.judge_epsilon is not None:
            check_number("judge_epsilon", self.judge_epsilon, 0, 1, "a fraction in (0, 1], such as 8/255", above=True)
        check_number("judge_images", self.judge_images, 2, math.inf, "2 or more images", whole=True)
        pairs = f"2 to judge_images ({self.judge_images}) images, since each needs negatives"
        check_number("judge_batch", self.judge_batch, 2, self.judge_images, pairs, whole=True)
        check_number("judge_steps", self.judge_steps, 1, math.inf, "1 or more steps", whole=True)
        check_number("judge_redraw", self.judge_redraw, 1, math.inf, "1 or more blocks", whole=True)
        for name in ("judge_block", "judge_until"):
            check_number(name, getattr(self, name), 0, 1, "a share of the run in (0, 1]", above=True)

    @property
    def epsilon(self) -> float:
        """The judged radius, `USUAL` if none is named."""
        return self.judge_epsilon or USUAL

    @property
    def attacked_share(self) -> float:
        """Weight of attacked views in the judge, in [0, 1]; clean views have the rest."""
        return 1.0 if self.judge_score == "robust" else 0.5
