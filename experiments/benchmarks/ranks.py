"""The part of the benchmark that measures several ranks (torchrun) against one process on as many cores."""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from astra_gym.experiments.benchmarks.checkouts import QUICK
from astra_gym.experiments.benchmarks.measure import Figure, Result, ratios
from astra_gym.experiments.benchmarks.workloads import BenchmarkError, Options
from astra_gym.ssl_core.evaluation.results import read_results
from astra_gym.ssl_core.utils.provenance import ROOT

TRAIN = ("experiments/train_agent.py", "--preset", "digits-grid", "--agent", "random")
"""Uniform draws from ASTrA's sets: each view has 3 to 14 steps."""
EVALUATE = ("experiments/evaluate_encoder.py", "--protocols", "slf", "--attacks", "pgd20", "autoattack-quick")
FULL = ("--epochs", "3")
QUICK_EVALUATION = ("--epochs", "1", "--test_limit", "20")


def measure_ranks(options: Options, rounds: int, say: Callable[[str], None]) -> Result:
    """Measure the seconds of one process with as many threads as cores, divided by those of one rank for each core.

    Both train the same run, and evaluate one encoder by PGD-20 and the quick AutoAttack, in turn. Starts are not
    counted.

    Raises:
        ValueError: if there is one thread only, or the device is a GPU.
        BenchmarkError: if a process fails.
    """
    if options.threads < 2 or options.device.type != "cpu":
        raise ValueError(
            f"the part `ranks` divides 2 or more --threads of the CPU, not {options.threads} on {options.device}"
        )
    took: dict[tuple[str, int], list[float]] = defaultdict(list)
    waited: list[float] = []
    for number in range(1, rounds + 1):
        for ranks in (1, options.threads):
            say(f"ranks: round {number} of {rounds}, {ranks} of {options.threads}")
            with tempfile.TemporaryDirectory() as temporary:
                run, out = Path(temporary) / "run", Path(temporary) / "out"
                seed = ("--seed", str(number - 1))
                train = [*TRAIN, *seed, "--evaluate", "false", "--run_dir", str(run)]
                _run([*train, *(QUICK if options.quick else FULL)], ranks, options.threads)
                report = json.loads((run / "results" / "training.json").read_text(encoding="utf-8"))
                [stretch] = report["stretches"]
                took["training", ranks].append(max(0.1, stretch["seconds"]))
                if ranks > 1:
                    waited.append(stretch["exchange_seconds"] / max(0.1, stretch["seconds"]))
                evaluate = [EVALUATE[0], str(run), *EVALUATE[1:], "--epsilons", "16/255", "--out", str(out)]
                evaluate += ["--autoattack_epsilons", "16/255", *(QUICK_EVALUATION if options.quick else ())]
                _run(evaluate, ranks, options.threads)
                for row in read_results(out / "evaluation.json"):
                    if row.attack in ("pgd20", "autoattack-quick"):
                        took[f"evaluation, {row.attack}", ranks].append(row.seconds or 0.0)
    figures = [
        Figure("ranks", name, "times faster", ratios(took[name, 1], took[name, options.threads]))
        for name, ranks in took
        if ranks == 1
    ]
    figures.append(Figure("ranks", "exchange and waiting, of the training", "share", tuple(waited)))
    return figures, {"seconds": {f"{name}, {ranks}": values for (name, ranks), values in took.items()}}


def _run(words: Sequence[str], ranks: int, threads: int) -> None:
    each = str(threads // ranks)
    environment = os.environ | {name: each for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    start = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}") if ranks > 1 else ()
    command = [sys.executable, *start, *words, "--device", "cpu", "--progress", "off"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"{words[0]} on {ranks} ranks failed (status {done.returncode}): {done.stderr[-500:]}")
