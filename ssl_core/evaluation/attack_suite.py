"""Evaluation of a classifier: its accuracy, clean and under a list of attacks, as typed rows."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.evaluation.attack_library import check_class_count
from astra_gym.ssl_core.evaluation.autoattack import (
    BATCH_SIZE,
    VERSIONS,
    autoattack_accuracy,
    check_radius,
    check_state,
    deviations,
    passes_per_image,
)
from astra_gym.ssl_core.evaluation.results import NORMS, Origin, Row, radius_text
from astra_gym.ssl_core.evaluation.robustness import (
    STEP_SIZE,
    clean_accuracy,
    device_of,
    fgsm_accuracy,
    logits_of,
    pgd_accuracy,
    step_size_for,
)
from astra_gym.ssl_core.evaluation.sanity import check_rows
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.device import ieee_fp32
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.rng import Streams

AUTOATTACKS: Mapping[str, str] = {"autoattack": "standard", "autoattack-quick": "quick"}
SIGN_ATTACKS = ("fgsm", "pgd20")
NAMES = ("none", *SIGN_ATTACKS, *AUTOATTACKS, "worst")
QUICK = "AutoAttack's first two attacks only"
PASSES = {"fgsm": 3, "pgd20": 41}
"""Forward passes for an image; a backward pass to the image counts as one, as in `passes_per_image`."""

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Attack:
    """An attack of an evaluation. Two names are for results only: `none` for clean images, and `worst` for images that
    are classified correctly under all other attacks of that norm and epsilon.

    Args:
        name: none, fgsm, pgd20, autoattack, autoattack-quick or worst.
        epsilon: radius, in the unit of pixels in [0, 1] (8/255, not 8): 0 for none, above 0 for AutoAttack.
        norm: Linf, L2 or L1; only Linf for fgsm and pgd20.
        restarts: random starts of pgd20; 1 for all others.
        step_size: step size of pgd20, in (0, 1]; None: `step_size_for(epsilon)`. A value equal to it becomes None.

    Raises:
        ValueError: if an argument is not as above.
    """

    name: str
    epsilon: float
    norm: str = "Linf"
    restarts: int = 1
    step_size: float | None = None

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"unknown attack {shown(self.name)}: choose from {', '.join(NAMES)}")
        if self.norm not in NORMS or (self.norm != "Linf" and self.name in ("none", *SIGN_ATTACKS)):
            known = NORMS if self.name not in ("none", *SIGN_ATTACKS) else ("Linf",)
            raise ValueError(f"the norm of {self.name} is {shown(self.norm)}: expected {' or '.join(known)}")
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, int | float):
            raise ValueError(f"the epsilon of {self.name} is {shown(self.epsilon)}: expected a number, such as 8/255")
        # an integer is the same radius, with the same random stream
        object.__setattr__(self, "epsilon", float(self.epsilon))
        if self.name in AUTOATTACKS:
            check_radius(self.epsilon, self.norm)
        if self.name == "none" and self.epsilon != 0:
            raise ValueError(f"the epsilon of none is {shown(self.epsilon)}: expected 0")
        if not (0 <= self.epsilon <= 1 or (self.norm != "Linf" and 1 < self.epsilon < math.inf)):
            raise ValueError(
                f"the epsilon of {self.name} is {shown(self.epsilon)}: expected in [0, 1], 8/255 and not 8"
            )
        if type(self.restarts) is not int or self.restarts < 1 or (self.restarts > 1 and self.name != "pgd20"):
            expected = "an integer of at least 1" if self.name == "pgd20" else "1, which only pgd20 can raise"
            raise ValueError(f"the restarts of {self.name} are {shown(self.restarts)}: expected {expected}")
        if self.step_size is not None:
            self._check_step(self.step_size)

    def _check_step(self, step: float) -> None:
        given = f"the step size of {self.name} is {shown(step)}"
        if self.name != "pgd20":
            raise ValueError(f"{given}: expected None, since only pgd20 takes one")
        if isinstance(step, bool) or not isinstance(step, int | float):
            raise ValueError(f"{given}: expected a number, such as 2/255, or None")
        usual = step == step_size_for(self.epsilon)
        if not (usual or 0 < step <= 1):
            raise ValueError(f"{given}: expected in (0, 1], 2/255 and not 2")
        # equal attacks compare equal, however they are written
        object.__setattr__(self, "step_size", None if usual else float(step))


CLEAN = Attack("none", 0.0)


class Evaluation(NamedTuple):
    """Results of `evaluate`.

    Attributes:
        rows: SA, then the rows of each attack in the order given, then the worst cases.
        correct: bool (n,), which test images are classified correctly ("right") under each of the attacks, `CLEAN` and
            each worst case.
        notes: sentences to report with the rows.
    """

    rows: list[Row]
    correct: Mapping[Attack, Tensor]
    notes: list[str]


def check_classes(attacks: Sequence[Attack], classes: int) -> None:
    """Raise a ValueError if one of the attacks cannot attack a classifier with this number of classes.

    `evaluate` checks this before it attacks; a caller can check it before it trains a classifier.
    """
    if any(attack.name in AUTOATTACKS for attack in attacks):
        check_class_count(classes)


@ieee_fp32()
def evaluate(
    classifier: nn.Module,
    test: ImageSet,
    attacks: Sequence[Attack],
    *,
    origin: Origin,
    batch_size: int = 256,
    state_dir: Path | None = None,
    progress: Report | None = None,
    void: bool = False,
) -> Evaluation:
    """Measure SA, and RA under each attack; on the CPU repeated results are equal bit for bit, except for seconds.

    AutoAttack gives a row after each of its attacks, for the images that are still right, and one for itself. If both
    the standard and the quick version are given at one norm and epsilon, the quick result is taken from the standard
    run. Two or more attacks of one norm and epsilon give a row `worst`: right under all of them.

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes), in eval mode.
        test: labeled images.
        attacks: attacks, all different; the clean accuracy and the worst cases are added automatically.
        origin: origin of the rows. PGD's random starts come from its seed, with a stream for each epsilon, so that
            adding one attack does not change another; AutoAttack uses the seed as the library does.
        batch_size: images attacked together; AutoAttack uses at most the protocol's 100.
        state_dir: folder for states from which AutoAttack resumes, one file for each version, norm, epsilon, batch size
            and seed; None: no files.
        progress: called with the work done so far and its maximum, in forward passes of one image; the maximum falls
            with every fooled image.
        void: whether attacks are known to fail on the classifier, so that rows may contradict each other.

    Raises:
        ValueError: if `test` has no labels, an argument is not as above, an attack cannot attack so few classes, or a
            state in `state_dir` is damaged or of another evaluation; all before the first attack.
        RuntimeError: if the rows contradict each other (`check_rows`), or an attack fails.
    """
    labels = _check(test, attacks)
    began = time.monotonic()
    clean = clean_accuracy(classifier, test.images, labels, batch_size)
    rows = [origin.accuracy("SA", int(clean.sum()), len(clean), seconds=time.monotonic() - began)]
    correct = {CLEAN: clean}
    suite = _Suite(
        classifier,
        test.images,
        labels,
        clean,
        origin,
        batch_size,
        state_dir,
        classes=logits_of(classifier, as_float(test.images[:1].to(device_of(classifier)))).shape[1],
        full={(attack.norm, attack.epsilon) for attack in attacks if attack.name == "autoattack"},
    )
    check_classes(attacks, suite.classes)
    suite.check_states(attacks)
    meter = _Meter(suite.plan(attacks), progress)
    for attack in attacks:
        run = suite.autoattack if attack.name in AUTOATTACKS else suite.sign_attack
        found, correct[attack] = run(attack, meter.next())
        rows += found
        meter.close()
    for ball in dict.fromkeys((attack.norm, attack.epsilon) for attack in attacks):
        together = [attack for attack in attacks if (attack.norm, attack.epsilon) == ball]
        if len(together) > 1:
            worst, right, row = suite.worst(together, correct)
            correct[worst] = right
            rows.append(row)
    return Evaluation(rows, correct, [] if void else check_rows(rows))


class _Stages(NamedTuple):
    """AutoAttack's results by attack: which images are right after it, and its seconds."""

    right: Mapping[str, Tensor]
    seconds: Mapping[str, float]


@dataclass
class _Suite:
    """Shared data of the attacks of one evaluation.

    Args:
        classes: number of logits.
        full: norms and epsilons with AutoAttack's standard version.
        stages: AutoAttack's results by norm and epsilon.
    """

    classifier: nn.Module
    images: Tensor
    labels: Tensor
    clean: Tensor
    origin: Origin
    batch_size: int
    state_dir: Path | None
    classes: int
    full: set[tuple[str, float]]
    stages: dict[tuple[str, float], _Stages] = field(default_factory=dict)

    def check_states(self, attacks: Sequence[Attack]) -> None:
        """Raise a ValueError if one of AutoAttack's states would be refused."""
        # with both versions, the quick result is taken from the state of the standard one
        states = {self._state_path(attack): attack for attack in attacks if attack.name in AUTOATTACKS}
        for path, attack in states.items():
            if path is not None:
                check_state(*self._data(attack), **self._how(attack), state_path=path)

    def plan(self, attacks: Sequence[Attack]) -> list[int]:
        """Work of each attack if no image is fooled, in forward passes."""
        work, seen = [], set()
        for attack in attacks:
            ball = attack.norm, attack.epsilon
            if attack.name not in AUTOATTACKS:
                each = PASSES[attack.name] * attack.restarts if attack.epsilon else 0
            else:
                each = 0 if ball in seen else passes_per_image(attack.norm, self._version(attack), self.classes)
                seen.add(ball)
            work.append(each * int(self.clean.sum()))
        return work

    def row(self, attack: Attack, right: Tensor, part: str = "", **what: Any) -> Row:
        """Make the row of RA under an attack, or after a part of AutoAttack."""
        what |= {"attack": part or attack.name, "epsilon": attack.epsilon, "norm": attack.norm}
        return self.origin.accuracy("RA", int(right.sum()), len(right), **what)

    def sign_attack(self, attack: Attack, progress: Report) -> tuple[list[Row], Tensor]:
        """Run FGSM or PGD; return its row, and which images are right."""
        began = time.monotonic()
        passes = PASSES[attack.name]

        def report(done: int, total: int) -> None:
            progress(passes * done, passes * total)

        shared: dict[str, Any] = {"batch_size": self.batch_size, "clean": self.clean, "progress": report}
        if attack.name == "fgsm":
            right = fgsm_accuracy(*self._data(attack), **shared)
        else:
            # a new generator for each attack, so that the first restarts do not depend on their number
            generator = Streams(self.origin.seed, device_of(self.classifier)).on_device(f"pgd20/{attack.epsilon!r}")
            shared |= {"generator": generator, "restarts": attack.restarts, "step_size": attack.step_size}
            right = pgd_accuracy(*self._data(attack), **shared)
        seconds, reasons = time.monotonic() - began, self.deviations(attack)
        return [self.row(attack, right, restarts=attack.restarts, seconds=seconds, deviations=reasons)], right

    def autoattack(self, attack: Attack, progress: Report) -> tuple[list[Row], Tensor]:
        """Run AutoAttack; return its attacks' rows (unless made before), its row, and which images are right."""
        ball, names = (attack.norm, attack.epsilon), VERSIONS[AUTOATTACKS[attack.name]]
        rows = []
        if ball not in self.stages:
            right, seconds = self.stages[ball] = self._run(attack, progress)
            for name, survivors in right.items():
                reasons = deviations(name, attack.norm, self.classes)
                rows.append(self.row(attack, survivors, name, seconds=seconds[name], deviations=reasons))
        right, seconds = self.stages[ball]
        whole = sum(seconds[name] for name in names)
        rows.append(self.row(attack, right[names[-1]], seconds=whole, deviations=self.deviations(attack)))
        return rows, right[names[-1]]

    def deviations(self, attack: Attack) -> tuple[str, ...]:
        """Deviations of the attack's row."""
        if attack.name == "pgd20" and attack.epsilon:
            step = step_size_for(attack.epsilon) if attack.step_size is None else attack.step_size
            taken, published = radius_text(attack.norm, step), radius_text(attack.norm, STEP_SIZE)
            return () if taken == published else (f"PGD-20 with steps of {taken}, not {published}",)
        if attack.name not in AUTOATTACKS:
            return ()
        own = (QUICK,) if attack.name == "autoattack-quick" else ()
        return own + deviations(VERSIONS[AUTOATTACKS[attack.name]][-1], attack.norm, self.classes)

    def worst(self, attacks: Sequence[Attack], correct: Mapping[Attack, Tensor]) -> tuple[Attack, Tensor, Row]:
        """Combine attacks of one norm and epsilon; return the worst case, which images are right, and its row."""
        attack = Attack("worst", attacks[0].epsilon, attacks[0].norm)
        right = torch.stack([correct[one] for one in attacks]).all(0)
        # with the standard version of AutoAttack, the quick one is no deviation
        whole = any(one.name == "autoattack" for one in attacks)
        counted = [one for one in attacks if not (whole and one.name == "autoattack-quick")]
        reasons = dict.fromkeys(reason for one in counted for reason in self.deviations(one))
        return attack, right, self.row(attack, right, deviations=tuple(reasons))

    def _version(self, attack: Attack) -> str:
        return "standard" if (attack.norm, attack.epsilon) in self.full else "quick"

    def _data(self, attack: Attack) -> tuple[nn.Module, Tensor, Tensor, float]:
        return self.classifier, self.images, self.labels, attack.epsilon

    def _how(self, attack: Attack) -> dict[str, Any]:
        """Arguments of AutoAttack besides the data."""
        size = min(self.batch_size, BATCH_SIZE)
        return {"norm": attack.norm, "version": self._version(attack), "seed": self.origin.seed, "batch_size": size}

    def _state_path(self, attack: Attack) -> Path | None:
        how = self._how(attack)
        [name] = [name for name, version in AUTOATTACKS.items() if version == how["version"]]
        key = f"{attack.norm}-{attack.epsilon!r}-batch{how['batch_size']}-seed{how['seed']}"
        return self.state_dir and self.state_dir / f"{name}-{key}.json"

    def _run(self, attack: Attack, progress: Report) -> _Stages:
        seconds: dict[str, float] = {}
        right = autoattack_accuracy(
            *self._data(attack),
            **self._how(attack),
            state_path=self._state_path(attack),
            progress=progress,
            finished=seconds.__setitem__,
        )
        return _Stages(right, seconds)


class _Meter:
    """Common progress of all attacks.

    Args:
        planned: maximum work of each attack.
        report: called with the work done and its maximum.
    """

    def __init__(self, planned: Sequence[int], report: Report | None) -> None:
        self.ahead, self.report = list(planned), report
        self.before = self.done = 0

    def next(self) -> Report:
        """Start the next attack; return its report function."""
        self.ahead.pop(0)
        return self._tell

    def close(self) -> None:
        """Finish the attack: add its work to the total."""
        self.before, self.done = self.before + self.done, 0
        if self.before:
            self._tell(0, 0)

    def _tell(self, done: int, total: int) -> None:
        self.done = done
        if self.report is not None:
            self.report(self.before + done, self.before + total + sum(self.ahead))


def _check(test: ImageSet, attacks: Sequence[Attack]) -> Tensor:
    labels = required_labels(test, "accuracy")
    if len(set(attacks)) != len(attacks):
        raise ValueError(f"the attacks are {list(attacks)}: expected all different")
    if own := [attack.name for attack in attacks if attack.name in ("none", "worst")]:
        raise ValueError(f"the attacks hold {shown(own[0])}, which comes by itself: leave it out")
    return labels
