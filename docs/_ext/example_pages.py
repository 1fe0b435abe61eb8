"""The gallery of examples: where their runs go, a picture of these, and titles out of their docstrings."""

import atexit
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
from sphinx.application import Sphinx
from sphinx_gallery.scrapers import figure_rst

matplotlib.use("agg")
from matplotlib import pyplot

from astra_gym.experiments.runs.metrics import read_metrics

RUNS = Path(tempfile.mkdtemp(prefix="gallery-"))
atexit.register(shutil.rmtree, RUNS, ignore_errors=True)
CURVES = {
    "custom_reward": ("reward/shift", "reward/mean"),
    "custom_observation": ("reward/mean", "budget/epsilon_255"),
    "custom_agent": ("budget/epsilon_255", "budget/steps"),
    "custom_method": ("loss/total", "reward/adversarial"),
    "custom_dataset": ("loss/total", "reward/mean"),
    "custom_start": ("loss/total", "reward/adversarial"),
    "load_encoder": ("loss/total", "reward/mean"),
}
"""The curves of an example's picture, by their names in metrics.jsonl."""


RUNNING: set[str] = set()
"""The example that is being run: one that calls `sys.exit` ends the build, and its output is lost."""


@atexit.register
def unfinished() -> None:
    """Name the example that ended the build."""
    for name in RUNNING:
        print(f"examples/{name}.py ended the build: `python examples/{name}.py` shows why", file=sys.stderr)


def arguments(gallery: dict[str, Any], script: dict[str, Any]) -> list[str]:
    """The command line of an example: a folder that is removed afterwards."""
    name = Path(script["src_file"]).stem
    RUNNING.add(name)
    return [str(RUNS / name)]


def picture(block: tuple[str, str, int], block_vars: dict[str, Any], gallery: dict[str, Any]) -> str:
    """The picture that an example has drawn, or two curves of its runs, as rST; nothing before it has run."""
    name = Path(block_vars["src_file"]).stem
    RUNNING.discard(name)
    if (drawn := RUNS / name / "reward.png").is_file() and not block_vars.get("pictured"):
        path = next(block_vars["image_path_iterator"])
        shutil.copyfile(drawn, path)
        block_vars["pictured"] = True
        return figure_rst([path], gallery["src_dir"])
    logs = sorted((RUNS / name).rglob("metrics.jsonl"))
    if not logs or block_vars.get("pictured"):
        return ""
    figure, axes = pyplot.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    for log in logs:
        rows = read_metrics(log)
        for axis, curve in zip(axes, CURVES[name], strict=True):
            points = [(row["step"], row[curve]) for row in rows if curve in row]
            axis.plot(*zip(*points, strict=True), label=log.parent.name)
            axis.set(title=curve, xlabel="update")
    if len(logs) > 1:
        axes[0].legend()
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    block_vars["pictured"] = True
    return figure_rst([path], gallery["src_dir"])


def titled(app: Sphinx, page: str, source: list[str]) -> None:
    """A title and a command as rST has them, from an example's docstring, `What it is: what it does.`"""
    if not page.startswith("gallery/") or page == "gallery/index":
        return
    text = re.sub(
        r"^(An? \w[^:\n]*): (\w)(.*)$",
        lambda match: f"{match[1]}\n{'=' * len(match[1])}\n\n{match[2].upper()}{match[3]}",
        source[0],
        count=1,
        flags=re.MULTILINE,
    )
    source[0] = re.sub(r"^((?:python|tensorboard) .*\n)+", lambda match: _literal(match[0]), text, flags=re.MULTILINE)


def _literal(lines: str) -> str:
    return "::\n\n" + re.sub(r"^", "    ", lines.rstrip(), flags=re.MULTILINE) + "\n"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", titled)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
