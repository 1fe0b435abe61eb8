"""Draw how the agent escalating answers a collapse: python docs/draw_escalation.py [ONE_STEP_RUN ESCALATING_RUN]

With two run folders the gains of their attacks are kept first, in results/escalation.json. The picture is of that file
and of the evaluations collapse-24-along and escalating-along.
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "results"
sys.path.insert(0, str(DOCS.parent))

from astra_gym.experiments.evaluation.store import EvaluationStore  # noqa: E402
from astra_gym.experiments.plotting.style import BLUE, ORANGE, STYLE, new_figure, save_figure  # noqa: E402
from astra_gym.experiments.runs.metrics import read_metrics  # noqa: E402
from astra_gym.ssl_core.evaluation.results import read_results  # noqa: E402
from astra_gym.ssl_core.safety.sealing import read_json  # noqa: E402
from astra_gym.ssl_core.utils.files import write_json  # noqa: E402

WINDOW = 20
EPOCH = 10_000 // 64
"""Updates of an epoch of cifar10-16."""
RUNS = {"one step": "collapse-24-along", "escalating": "escalating-along"}
"""The evaluation of each run's encoders, by its name in the picture."""
LINES: Any = {"one step": {"color": ORANGE, "linestyle": "--"}, "escalating": {"color": BLUE, "linestyle": "-"}}


def gains(run: Path) -> dict[str, list[float]]:
    """Return the mean gain of the attacks and their mean steps over windows of updates."""
    rows = [row for row in read_metrics(run / "metrics.jsonl", []) if row.get("reward/adversarial") is not None]
    whole = len(rows) // WINDOW * WINDOW
    gain = np.array([row["reward/adversarial"] - row["reward/clean"] for row in rows[:whole]])
    steps = np.array([row["budget/steps"] for row in rows[:whole]])
    parts = {"gain": gain.reshape(-1, WINDOW).mean(1), "steps": steps.reshape(-1, WINDOW).mean(1)}
    return {name: [round(float(value), 4) for value in values] for name, values in parts.items()}


def accuracies(name: str, updates: int) -> tuple[list[int], list[float]]:
    """Return where a run's encoders were kept, in updates, and their accuracy under PGD-20 at 8/255."""
    rows = [row for row in read_results(EvaluationStore(RESULTS / "evaluations" / name).file) if row.attack == "pgd20"]
    found = {EPOCH * int(row.checkpoint.removeprefix("epoch-")): row.value for row in rows if row.epsilon == 8 / 255}
    kept = {at: value for at, value in found.items() if at <= updates}
    return list(kept), list(kept.values())


def main(runs: list[str]) -> None:
    file = RESULTS / "escalation.json"
    if runs:
        kept = {name: gains(Path(run)) for name, run in zip(RUNS, runs, strict=True)}
        write_json(file, {"window": WINDOW, "runs": kept})
    found = read_json(file)
    with matplotlib.rc_context(STYLE):
        figure, (above, middle, below) = new_figure(3, 5.2, sharex=True)
        for name, run in found["runs"].items():
            updates = found["window"] * (np.arange(len(run["gain"])) + 0.5)
            above.plot(updates, run["gain"], label=name, **LINES[name])
            middle.plot(updates, run["steps"], **LINES[name])
            at, accuracy = accuracies(RUNS[name], len(run["gain"]) * found["window"])
            below.plot(at, accuracy, marker="o", ms=4, **LINES[name])
        above.set_title("What an attack gains (loss)")
        middle.set_title("Attack steps")
        below.set_title("Accuracy under PGD-20 at 8/255 (%)")
        below.set_xlabel("target updates")
        middle.set_yticks([1, 2])
        for axis in (above, middle, below):
            axis.grid(axis="y")
            axis.margins(x=0.02)
        below.set_ylim(bottom=0)
        above.legend(loc="center right")
        save_figure(figure, DOCS / "_static" / "pictures" / "escalation.png")


main(sys.argv[1:])
