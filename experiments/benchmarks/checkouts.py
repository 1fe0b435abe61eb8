"""The part of the benchmark that measures training here against another checkout, such as an earlier commit."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from astra_gym.experiments.benchmarks.measure import Figure, Result, ratios
from astra_gym.experiments.benchmarks.workloads import BenchmarkError, Options
from astra_gym.ssl_core.utils.provenance import ROOT, commit

COMMAND = ("experiments/train_agent.py", "--preset", "digits-grid", "--agent", "reinforce", "--evaluate", "false")
"""A training on the digits, whose preset has been the same since version 0.1."""
QUICK = ("--epochs", "1", "--limit", "48", "--batch_size", "8", "--width", "4")


def check_checkout(path: Path) -> Path:
    """Return the folder of another checkout.

    Raises:
        ValueError: if it holds no training command.
    """
    if not (path / COMMAND[0]).is_file():
        raise ValueError(
            f"--against: {path} has no {COMMAND[0]}: expected another checkout, e.g. of `git worktree add`"
        )
    return path.resolve()


def measure_training(options: Options, rounds: int, say: Callable[[str], None]) -> Result:
    """Measure the seconds of a training in another checkout, divided by the seconds here.

    The two run in turn, with this interpreter and its packages, each in its own default precision; a round has its own
    seed. There is no warm-up round, since a run is much longer than its start, which is not counted.

    Raises:
        ValueError: if no other checkout was given.
        BenchmarkError: if a run fails.
    """
    if options.against is None:
        raise ValueError("the part `training` needs --against CHECKOUT")
    seconds: dict[Path, list[float]] = {options.against: [], ROOT: []}
    for number in range(1, rounds + 1):
        say(f"training: round {number} of {rounds}")
        for checkout, took in seconds.items():
            took.append(trained_seconds(checkout, number - 1, options))
    other, ours = seconds.values()
    figure = Figure("training", "digits, against the other checkout", "times faster", ratios(other, ours))
    return [figure], {"seconds": {"other": other, "ours": ours}, "other": commit(options.against)}


def trained_seconds(checkout: Path, seed: int, options: Options) -> float:
    """Return the seconds of a checkout's training run, as it reports them.

    Raises:
        BenchmarkError: if the run fails.
    """
    environment = os.environ | {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        words = [sys.executable, *COMMAND, *(QUICK if options.quick else ()), "--seed", str(seed)]
        # an older checkout knows only types of devices: give no number where it is not needed
        device = str(options.device) if options.device.index else options.device.type
        words += ["--device", device, "--run_dir", str(run), "--progress", "off"]
        done = subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f"the run in {checkout} failed (status {done.returncode}): {done.stderr[-500:]}")
        report = json.loads((run / "results" / "training.json").read_text(encoding="utf-8"))
    # the seconds are reported in tenths, and could be 0.0
    return max(0.1, sum(stretch["seconds"] for stretch in report["stretches"]))
