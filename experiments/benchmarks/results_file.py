"""The results file of the benchmark: written after every part, with the circumstances and what explains the figures."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from astra_gym.experiments.benchmarks.compare import SCHEMA
from astra_gym.experiments.benchmarks.measure import Figure, Result
from astra_gym.experiments.benchmarks.tables import draw
from astra_gym.experiments.benchmarks.workloads import Options
from astra_gym.ssl_core.utils.device import convolves_in_tf32
from astra_gym.ssl_core.utils.files import write_json
from astra_gym.ssl_core.utils.provenance import ROOT, commit, versions


def processor() -> str:
    """The processor's name as the system tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def document_of(
    options: Options, figures: Sequence[Figure], details: dict[str, Any], failed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What the results file holds: the circumstances, the figures with their summaries, what explains them, and why
    parts `failed`."""
    device = options.device
    return {
        "schema": SCHEMA,
        "quick": options.quick,
        "versions": versions(),
        "processor": processor(),
        "threads": options.threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "tf32": convolves_in_tf32(device),
        "figures": [figure.record() for figure in figures],
        "details": details,
        "failed": dict(failed or {}),
    }


class ResultsFile:
    """What was measured so far; the file is written after every part, the picture at the end.

    Args:
        options: of the benchmark.
        output: the results file.
        picture: beside it.
    """

    def __init__(self, options: Options, output: Path, picture: Path) -> None:
        self.options = options
        self.output = output
        self.picture = picture
        self.figures: list[Figure] = []
        self.details: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.document: dict[str, Any] = {}
        self.drawn = False
        # now: the file itself may be tracked, and is changed after the first part
        self.commit = commit(ROOT)
        self.commits: dict[str, str | None] = {}

    def take_over(self, earlier: Mapping[str, Any], measured: Sequence[str]) -> None:
        """Takes the parts of an earlier result that are not measured now, each with the commit that it is of."""
        self.figures = [
            Figure(figure["part"], figure["name"], figure["unit"], tuple(figure["values"]))
            for figure in earlier["figures"]
            if figure["part"] not in measured
        ]
        parts = dict.fromkeys(figure.part for figure in self.figures)
        self.commits = {part: earlier.get("commits", {}).get(part, earlier["commit"]) for part in parts}
        self.details = {part: found for part, found in earlier["details"].items() if part in parts}

    def add(self, part: str, result: Result) -> None:
        """Takes what a part gave, and writes."""
        figures, self.details[part] = result
        self.figures += figures
        self.commits[part] = self.commit
        self.write()

    def fail(self, part: str, why: str) -> None:
        """Notes why a part gave nothing, and writes, if there are figures."""
        self.failed[part] = why
        self.write()

    def write(self) -> None:
        """Replaces the file; an earlier one stays until there are figures."""
        if not self.figures:
            return
        found = document_of(self.options, self.figures, self.details, self.failed)
        self.document = {"commit": self.commit, "commits": self.commits} | found
        write_json(self.output, self.document)

    def draw(self) -> None:
        """Replaces the picture, if there is something to draw."""
        self.drawn = draw(self.figures, self.details, self.picture)

    def __str__(self) -> str:
        if not self.figures:
            return "nothing was written"
        return f"written: {self.output}" + (f", {self.picture}" if self.drawn else "; there is nothing to draw in it")
