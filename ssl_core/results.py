"""Results as data: every measured number is a typed row that says where it came from."""

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from statistics import NormalDist
from typing import Any

SCHEMA = 1
PROTOCOLS = ("slf",)
METRICS = ("SA", "RA")
ATTACKS = ("none", "pgd20")
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "gymnasium", "stable-baselines3", "sb3-contrib")


@dataclass(frozen=True)
class Row:
    """One measured accuracy.

    Args:
        protocol: how the encoder was turned into a classifier, a name of `PROTOCOLS`.
        metric: `SA` (clean accuracy) or `RA` (accuracy under attack).
        attack: `none` for SA, else a name of `ATTACKS`.
        epsilon: L-infinity radius of the attack as a fraction (8/255, not 8); 0.0 for SA.
        value: accuracy in percent.
        n: number of test images.
        route: batch-norm route on which the encoder was evaluated.
        seed: of the evaluation.
        checkpoint: name of the checkpoint, or of the control, the row came from.
        commit: git commit of the project, with `-dirty` where files differed from it, or `unknown`.
        versions: versions of Python and of the libraries.

    Raises:
        ValueError: if a field has the wrong type or is out of its range.
    """

    protocol: str
    metric: str
    attack: str
    epsilon: float
    value: float
    n: int
    route: str
    seed: int
    checkpoint: str
    commit: str
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        for name in ("protocol", "metric", "attack", "route", "checkpoint", "commit"):
            text = getattr(self, name)
            _require(isinstance(text, str) and text, name, self, "a string that is not empty")
        for name in ("n", "seed"):
            _require(type(getattr(self, name)) is int, name, self, "an integer")
        for name in ("epsilon", "value"):
            number = getattr(self, name)
            _require(type(number) in (int, float) and math.isfinite(number), name, self, "a finite number")
        for name, known in (("protocol", PROTOCOLS), ("metric", METRICS), ("attack", ATTACKS)):
            _require(getattr(self, name) in known, name, self, f"one of {', '.join(known)}")
        _require(0 <= self.epsilon <= 1, "epsilon", self, "a fraction in [0, 1], such as 8/255")
        _require(0 <= self.value <= 100, "value", self, "percent, in [0, 100]")
        _require(self.n >= 1, "n", self, "at least one image")
        clean = self.metric == "SA"
        _require(clean == (self.attack == "none"), "attack", self, "none for SA and an attack for RA")
        _require(not clean or self.epsilon == 0, "epsilon", self, "0 for SA")
        strings = isinstance(self.versions, Mapping) and all(
            isinstance(text, str) for item in self.versions.items() for text in item
        )
        _require(strings, "versions", self, "a mapping from package names to versions")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy, in percent."""
        return wilson_interval(round(self.value * self.n / 100), self.n)


def _require(holds: object, name: str, row: Row, expected: str) -> None:
    if not holds:
        raise ValueError(f"a result's {name} is {getattr(row, name)!r}: expected {expected}")


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion, as percentages.

    Unlike the normal approximation it stays in [0, 100] and keeps its coverage near both ends.

    Args:
        correct: successes, in 0..n.
        n: trials, at least 1.
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: if a figure is out of its range.
    """
    if not (n >= 1 and 0 <= correct <= n and 0 < confidence < 1):
        raise ValueError(
            f"expected 0 <= correct <= n, n >= 1 and 0 < confidence < 1, not correct={correct}, n={n}, {confidence=}"
        )
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary file's path beside `path`, which it replaces on success: no reader ever sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept, since writers such as matplotlib read the format from it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_results(path: Path | str, rows: Iterable[Row]) -> None:
    """Write `{"schema": 1, "rows": [...]}` to `path`, atomically; folders are made."""
    document = {"schema": SCHEMA, "rows": [{**asdict(row), "versions": dict(row.versions)} for row in rows]}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_results(path: Path | str) -> list[Row]:
    """Read what `write_results` wrote.

    Raises:
        ValueError: if the file is not JSON, has another schema, or a row lacks a field, has an unknown or a bad one.
        FileNotFoundError: if there is no such file.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a results file: {error}") from error
    if not isinstance(document, dict) or "schema" not in document or not isinstance(document.get("rows"), list):
        raise ValueError(f'{path} is not a results file: expected {{"schema": {SCHEMA}, "rows": [...]}}')
    if document["schema"] != SCHEMA:
        raise ValueError(f"{path} has schema {document['schema']!r}; this version reads schema {SCHEMA}")
    rows = []
    for index, entry in enumerate(document["rows"]):
        try:
            rows.append(_row(entry))
        except ValueError as error:
            raise ValueError(f"{path}, row {index}: {error}") from error
    return rows


def _row(entry: Any) -> Row:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, not {entry!r}")
    expected = {field.name for field in fields(Row)}
    if missing := sorted(expected - entry.keys()):
        raise ValueError(f"lacks {', '.join(missing)}")
    if unknown := sorted(entry.keys() - expected):
        raise ValueError(f"has unknown fields: {', '.join(unknown)}")
    return Row(**entry)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries among `PACKAGES`."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(root: Path | str) -> str:
    """The git commit checked out in `root`.

    Returns:
        40 hex digits, with `-dirty` where tracked files were changed or Python files are not tracked; `unknown`
        without git, without a commit, or where `root` is not itself a work tree's root: a copy of the project
        inside some other repository must not pass that one's commit off as its own.
    """
    root = Path(root).resolve()

    def git(*words: str) -> str:
        run = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        return run.stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != root:
            return "unknown"
        head = git("rev-parse", "--verify", "HEAD").strip()
        status = git("status", "--porcelain", "--untracked-files=all").splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    dirty = any(not line.startswith("??") or line.rstrip('"').endswith(".py") for line in status)
    return f"{head}-dirty" if dirty else head
