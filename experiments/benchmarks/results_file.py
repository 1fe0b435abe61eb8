"""The results file of the benchmark, written after every part, with the circumstances and details of the values."""

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
    """Return the processor's name as the system reports it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def document_of(
    options: Options, figures: Sequence[Figure], details: dict[str, Any], failed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the content of the results file: circumstances, values, summaries, details, and why parts `failed`."""
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
    """The results so far; the file is written after every part, the figure at the end.

    Args:
        options: options of the benchmark.
        output: path of the results file.
        picture: path of the figure beside it.
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
        # read now, since the output may be tracked by git, and is changed after the first part
        self.commit = commit(ROOT)
        self.commits: dict[str, str | None] = {}

    def take_over(self, earlier: Mapping[str, Any], measured: Sequence[str]) -> None:
        """Take the parts of an earlier result that are not measured now, each with its commit."""
        self.figures = [
            Figure(figure["part"], figure["name"], figure["unit"], tuple(figure["values"]))
            for figure in earlier["figures"]
            if figure["part"] not in measured
        ]
        parts = dict.fromkeys(figure.part for figure in self.figures)
        self.commits = {part: earlier.get("commits", {}).get(part, earlier["commit"]) for part in parts}
        self.details = {part: found for part, found in earlier["details"].items() if part in parts}

    def add(self, part: str, result: Result) -> None:
        """Add the result of a part, and write."""
        figures, self.details[part] = result
        self.figures += figures
        self.commits[part] = self.commit
        self.write()

    def fail(self, part: str, why: str) -> None:
        """Record why a part has no result, and write if there are values."""
        self.failed[part] = why
        self.write()

    def write(self) -> None:
        """Replace the file; an earlier one stays until there are values."""
        if not self.figures:
            return
        found = document_of(self.options, self.figures, self.details, self.failed)
        self.document = {"commit": self.commit, "commits": self.commits} | found
        write_json(self.output, self.document)

    def draw(self) -> None:
        """Replace the figure, if there is something to draw."""
        self.drawn = draw(self.figures, self.details, self.picture)

    def __str__(self) -> str:
        if not self.figures:
            return "nothing was written"
        return f"written: {self.output}" + (f", {self.picture}" if self.drawn else "; there is nothing to draw in it")
