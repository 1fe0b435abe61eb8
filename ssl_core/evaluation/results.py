"""Results as data: every measured value is a typed row with its origin."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.files import write_json
from astra_gym.ssl_core.utils.finite import is_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.provenance import versions

SCHEMA = 3
PERCENT = (0.0, 100.0)
PROTOCOLS: Mapping[str, str] = {
    "slf": "standard linear fine-tuning: a linear head on the frozen encoder",
    "alf": "adversarial linear fine-tuning: a linear head trained on attacked images",
    "aff": "adversarial full fine-tuning: head and encoder, dual-branch TRADES",
    "lp-aff": "linear probing, then adversarial full fine-tuning from that head",
    "knn": "k nearest neighbors of the frozen encoder's features, weighted by similarity",
    "ridge": "a ridge-regression head on the frozen encoder, in closed form: for screening",
    "classifier": "a model's own logits",
    "features": "the frozen encoder's features or embeddings, without a classifier",
}
METRICS: Mapping[str, tuple[float, float]] = {
    "SA": PERCENT,
    "RA": PERCENT,
    "CA": PERCENT,
    "PA": PERCENT,
    "alignment": (0.0, 4.0),
    "uniformity": (-8.0, 0.0),
    "effective_rank": (1.0, math.inf),
    "embedding_std": (0.0, 1.0),
    "sharpness": (-math.inf, math.inf),
    "train_SA": PERCENT,
    "train_RA": PERCENT,
    "cross_entropy": (0.0, math.inf),
}
"""Metrics and their ranges. Percent: SA clean, RA attacked, CA common corruptions, PA perspective distortion; train_SA
and train_RA are SA and RA on images that the classifier was trained on."""
TRAIN = "train_"
"""Prefix of metrics on training images."""
ATTACKS: Mapping[str, str] = {
    "none": "no attack",
    "fgsm": "one step of the size of the radius, from the image",
    "pgd20": "20 steps of 2/255 from a random start",
    "apgd-ce": "AutoAttack's first: Auto-PGD on the cross entropy",
    "apgd-t": "images that are still classified correctly after AutoAttack's second attack, targeted Auto-PGD",
    "fab-t": "images that are still right after AutoAttack's third: FAB, targeted",
    "square": "images that are still right after AutoAttack's fourth: Square, without gradients",
    "autoattack": "AutoAttack, version standard",
    "autoattack-quick": "AutoAttack's first two attacks only: never comparable with the standard version",
    "worst": "right under every attack of the same norm and epsilon",
}
NORMS = ("Linf", "L2", "L1")
INTERVALS = ("wilson", "bootstrap", "none")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured value with its origin.

    Args:
        protocol: how the encoder was turned into a classifier, a name of `PROTOCOLS`.
        metric: a name of `METRICS`.
        attack: a name of `ATTACKS`: `none` for all metrics but RA and train_RA.
        epsilon: radius of the attack, in the unit of pixels in [0, 1] (8/255, not 8); 0.0 without an attack.
        norm: norm of epsilon, a name of `NORMS`.
        restarts: number of random starts of the attack.
        condition: other change, such as `fog/3` (corruption and severity), `weather` (the mean over a family),
            `left/padded` or `moved 0.5` (of the weights); empty for none.
        value: accuracies in percent, other metrics in their own unit.
        n: number of images.
        interval: 95 % interval of the value, or None.
        interval_method: a name of `INTERVALS`.
        label_fraction: share of the training labels that the classifier was trained with, in (0, 1].
        route: batch-norm route on which the encoder was evaluated.
        dataset: data set on which the classifier was trained and tested.
        seed: seed of the evaluation.
        checkpoint: name of the checkpoint, or of the control, that was evaluated.
        checkpoint_hash: SHA-256 of the encoder's weights and statistics, or `unknown`.
        deviations: differences from the published protocol; empty means standard.
        seconds: duration of the measurement; None if unknown.
        commit: git commit of the project, with `-dirty` if files differed from it, or `unknown`.
        versions: versions of Python and of the libraries.

    Raises:
        ValueError: if a field has the wrong type or is out of its range.
    """

    protocol: str
    metric: str
    value: float
    n: int
    route: str
    seed: int
    checkpoint: str
    commit: str
    versions: Mapping[str, str]
    attack: str = "none"
    epsilon: float = 0.0
    norm: str = "Linf"
    restarts: int = 1
    condition: str = ""
    interval: tuple[float, float] | None = None
    interval_method: str = "none"
    label_fraction: float = 1.0
    dataset: str = "unknown"
    checkpoint_hash: str = "unknown"
    deviations: tuple[str, ...] = ()
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("protocol", "metric", "attack", "route", "checkpoint", "checkpoint_hash", "commit", "dataset"):
            text = getattr(self, name)
            _require(isinstance(text, str) and text, name, self, "a string that is not empty")
        _require(isinstance(self.condition, str), "condition", self, "a string")
        for name in ("n", "seed", "restarts"):
            _require(type(getattr(self, name)) is int, name, self, "an integer")
        for name in ("epsilon", "value", "label_fraction"):
            _require(is_number(getattr(self, name)), name, self, "a finite number")
        for name, known in (
            ("protocol", PROTOCOLS),
            ("metric", METRICS),
            ("attack", ATTACKS),
            ("norm", NORMS),
            ("interval_method", INTERVALS),
        ):
            _require(getattr(self, name) in known, name, self, f"one of {', '.join(known)}")
        low, high = METRICS[self.metric]
        unit = "percent, " if (low, high) == PERCENT else ""
        _require(low <= self.value <= high, "value", self, f"{unit}in [{low:g}, {high:g}]")
        limit = 1 if self.norm == "Linf" else math.inf
        _require(0 <= self.epsilon <= limit, "epsilon", self, "a radius in [0, 1], such as 8/255")
        _require(self.n >= 1, "n", self, "at least one image")
        _require(self.restarts >= 1, "restarts", self, "at least 1")
        _require(0 < self.label_fraction <= 1, "label_fraction", self, "a share in (0, 1]")
        attacked = self.metric.removeprefix(TRAIN) == "RA"
        _require(attacked == (self.attack != "none"), "attack", self, "an attack for RA and none for other metrics")
        _require(attacked or self.epsilon == 0, "epsilon", self, "0 without an attack")
        _require(self.interval is None or _is_interval(self.interval), "interval", self, "two finite numbers, or None")
        _require((self.interval is None) == (self.interval_method == "none"), "interval_method", self, "how it was got")
        reasons = isinstance(self.deviations, tuple) and all(isinstance(one, str) and one for one in self.deviations)
        _require(reasons, "deviations", self, "a tuple of strings")
        _require(self.seconds is None or is_number(self.seconds), "seconds", self, "a finite number, or None")
        strings = isinstance(self.versions, Mapping) and all(
            isinstance(text, str) for item in self.versions.items() for text in item
        )
        _require(strings, "versions", self, "a mapping from package names to versions")

    @property
    def standard(self) -> bool:
        """Whether the value was measured exactly by the published protocol."""
        return not self.deviations

    @property
    def void(self) -> str:
        """Why the attack says nothing about robustness, by a deviation that begins with `VOID`; "" if it does."""
        return next((one.removeprefix(VOID) for one in self.deviations if one.startswith(VOID)), "")


def _is_interval(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value))


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Common fields of the rows of one classifier or encoder, as in `Row`."""

    protocol: str
    route: str
    seed: int
    checkpoint: str
    commit: str
    dataset: str = "unknown"
    checkpoint_hash: str = "unknown"
    label_fraction: float = 1.0
    deviations: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: versions())

    def accuracy(self, metric: str, correct: int, n: int, **what: Any) -> Row:
        """Make the row of an accuracy, with its Wilson interval.

        Args:
            metric: SA, RA, CA, PA, train_SA or train_RA.
            correct: number of images classified correctly.
            n: number of images.
            **what: `attack`, `epsilon`, `norm`, `restarts`, `condition`, `seconds`, and `deviations`, which are added
                to the origin's.
        """
        interval = wilson_interval(correct, n)
        return self.figure(metric, 100 * correct / n, n, interval=interval, interval_method="wilson", **what)

    def figure(self, metric: str, value: float, n: int, **what: Any) -> Row:
        """Make the row of any metric; `what` are fields of `Row`, and `deviations` are added to the origin's."""
        common = {item.name: getattr(self, item.name) for item in fields(self)}
        deviations = (*self.deviations, *what.pop("deviations", ()))
        return Row(metric=metric, value=value, n=n, **(common | what | {"deviations": deviations}))


def _require(holds: object, name: str, row: Row, expected: str) -> None:
    if not holds:
        raise ValueError(f"a result's {name} is {shown(getattr(row, name))}: expected {expected}")


def radius_text(norm: str, epsilon: float) -> str:
    """Text of a radius: `8/255`, `L2 0.5`."""
    return f"{255 * epsilon:.4g}/255" if norm == "Linf" else f"{norm} {epsilon:g}"


def check_radii(name: str, epsilons: Sequence[float], norm: str = "Linf") -> None:
    """Raise a ValueError if two radii are the same, or have the same text, by which results are named."""
    seen: dict[str, float] = {}
    for epsilon in epsilons:
        text = radius_text(norm, epsilon)
        if text in seen:
            raise ValueError(
                f"{name} has {seen[text]!r} and {epsilon!r}, which results both call {text}: expected radii with "
                "different names"
            )
        seen[text] = epsilon


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion, in percent.

    Unlike the normal approximation it stays in [0, 100] and keeps its coverage near both ends.

    Args:
        correct: successes, in 0..n.
        n: trials, at least 1.
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: if a value is out of its range.
    """
    if not (n >= 1 and 0 <= correct <= n and 0 < confidence < 1):
        raise ValueError(
            f"expected 0 <= correct <= n, n >= 1 and 0 < confidence < 1, not correct={correct}, n={n}, {confidence=}"
        )
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = correct / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * max(0.0, center - half), 100 * min(1.0, center + half)


def write_results(path: Path | str, rows: Iterable[Row]) -> None:
    """Write `{"schema": 3, "rows": [...]}` to `path`, atomically; missing folders are created."""
    entries = [{**asdict(row), "versions": dict(row.versions), "standard": row.standard} for row in rows]
    write_json(path, {"schema": SCHEMA, "rows": entries})


def read_results(path: Path | str) -> list[Row]:
    """Read a file of `write_results`, of any schema.

    Rows of schema 1 were short linear probes, never standard. Rows of schema 2, from version 0.1, are not changed,
    except for full fine-tuning: its attack started at noise of 0.001, which is a deviation now.

    Raises:
        ValueError: if the file is damaged, is not JSON or has an unknown schema, or if a field of a row is missing,
            unknown or invalid.
        FileNotFoundError: if there is no such file.
    """
    document = read_json(path, "restore it from a copy, or measure it again")
    if not isinstance(document, dict) or "schema" not in document or not isinstance(document.get("rows"), list):
        raise ValueError(f'{path} is not a results file: expected {{"schema": {SCHEMA}, "rows": [...]}}')
    if document["schema"] not in range(1, SCHEMA + 1):
        raise ValueError(f"{path} has schema {shown(document['schema'])}; this version reads schemas 1 to {SCHEMA}")
    rows = []
    for index, entry in enumerate(document["rows"]):
        try:
            rows.append(_row(entry, document["schema"]))
        except ValueError as error:
            raise ValueError(f"{path}, row {index}: {error}") from error
    return rows


VOID = "void: "
"""Beginning of a deviation of rows whose attack says nothing about robustness; the reason follows."""
FIRST_SCHEMA = "results of schema 1 do not say how the probe was trained"
NOISE_OF_SECOND_SCHEMA = "start_noise 0.001, not 0"
"""Deviation of "aff" and "lp-aff" in schema 2, in the words of a current row with the same noise."""


def _row(entry: Any, schema: int) -> Row:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, not {shown(entry)}")
    known = {item.name: item.default is MISSING for item in fields(Row)} | {"standard": False}
    first = {"attack", "epsilon"}
    expected = {name for name, needed in known.items() if schema > 1 or needed} | first
    if missing := sorted(expected - entry.keys()):
        raise ValueError(f"lacks {', '.join(missing)}")
    if unknown := sorted(entry.keys() - expected):
        raise ValueError(f"has unknown fields: {', '.join(unknown)}")
    if schema == 1:
        row = Row(**entry, deviations=(FIRST_SCHEMA,))
        interval = wilson_interval(round(row.value * row.n / 100), row.n)
        return replace(row, interval=interval, interval_method="wilson")
    standard = entry["standard"]
    values: dict[str, Any] = {name: value for name, value in entry.items() if name != "standard"}
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    row = Row(**values)
    if standard is not row.standard:
        raise ValueError(f"standard is {shown(standard)}, but the deviations are {list(row.deviations)}")
    if schema == 2 and row.protocol in ("aff", "lp-aff"):
        return replace(row, deviations=(*row.deviations, NOISE_OF_SECOND_SCHEMA))
    return row
