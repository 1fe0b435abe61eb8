"""Record tiny runs of a checkout, and compare two recordings number by number: does a change of structure move any bit?

python tests/helpers/tiny_runs.py record DIR [--checkout CHECKOUT] [--only NAME ...]
python tests/helpers/tiny_runs.py compare BEFORE AFTER

`record` runs the commands of a checkout (this one by default) as a user would, each in a process with one thread.
`compare` reads what both recordings left: checkpoints tensor by tensor, JSON and YAML value by value, figures pixel by
pixel. Seconds, memory, commits, paths and command lines are not compared.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from astra_gym.ssl_core.settings import renamed

TINY = "--limit=26 --test_limit=30 --batch_size=4 --image_size=8 --width=2 --epochs=2 --probe_epochs=1"
TRAIN = f"train_agent.py {TINY} --progress=off"
CASES: dict[str, str] = {
    "teacher": f"{TRAIN} --method simclr --run_dir teacher",
    "astra": f"{TRAIN} --agent reinforce --keep_every 1 --run_dir astra",
    "astra-paper": f"{TRAIN} --agent reinforce-paper --image_size 16 --run_dir astra-paper",
    "astra-ppo": f"{TRAIN} --agent ppo --reward_lookahead 0.5 --lookahead_images 4 --run_dir astra-ppo",
    "astra-dqn": f"{TRAIN} --agent dqn --reward_cost 0.01 --run_dir astra-dqn",
    "astra-lints": f"{TRAIN} --agent lints --reward_progress 0.5 --run_dir astra-lints",
    "batch": f"{TRAIN} --env batch --agent reinforce --run_dir batch",
    "batch-ppo": f"{TRAIN} --env batch --agent ppo --actions continuous --run_dir batch-ppo",
    "acl": f"{TRAIN} --method acl --agent fixed --run_dir acl",
    "acl-rcs": f"{TRAIN} --method acl --agent fixed --coreset rcs --coreset_fraction 0.5 --coreset_warmup 1 "
    "--run_dir acl-rcs",
    "dynacl++": f"{TRAIN} --method dynacl++ --agent fixed --run_dir dynacl++",
    "deacl": f"{TRAIN} --method deacl --teacher teacher --agent random --run_dir deacl",
    "daq-sdp": f"{TRAIN} --method daq-sdp --teacher teacher --agent fixed --run_dir daq-sdp",
    "profeat": f"{TRAIN} --method profeat --teacher teacher --agent random --run_dir profeat",
    "fare": f"{TRAIN} --method fare --init_from teacher --agent fixed --run_dir fare",
    "cf-amc-ssl": f"{TRAIN} --method cf-amc-ssl --agent reinforce --batch_size 2 --run_dir cf-amc-ssl",
    "advcl": f"{TRAIN} --method advcl --method_kwargs.clusters=[2,3] --teacher teacher --agent fixed --run_dir advcl",
    "byol": f"{TRAIN} --method byol --agent fixed --perspective moebius --run_dir byol",
    "taro": f"{TRAIN} --method taro --agent bandit --run_dir taro",
    "comparison": f"compare_agents.py --agents reinforce fixed --seeds 1 --jobs 1 --dir comparison {TINY}",
    "comparison-report": "report.py comparison",
    "evaluation": "evaluate_encoder.py astra --protocols slf knn --attacks pgd20 autoattack --epsilons 8/255 "
    "--epochs 1 --test_limit 16 --shifts perspective --severities 3 --health --progress off --out evaluation",
    "evaluation-report": "report.py evaluation",
    "along": "evaluate_encoder.py astra --every 1 --epsilons 8/255 --epochs 1 --test_limit 10 --progress off "
    "--out along",
    "export": "export_encoder.py astra --out encoder.pt",
}
"""Commands by name, in order: later ones read what earlier ones wrote."""
SKIPPED = re.compile(
    r"second|^took|commit|command|^argv|peak|memory|path|^run_dir$|^dir$|_dir$|^machine$|^jobs$|^wall|^began|^teacher$|^init_from$|^sha256$|^crc32$"
)
"""Names of values that may differ between equal runs."""
PRESENT = {**renamed.SETTINGS, **renamed.METRICS}
"""Names of settings and of metrics in earlier versions, and the present ones."""
READ = {".pt", ".json", ".jsonl", ".yaml", ".png"}
UNREAD = re.compile(r"training\.json$|^(evaluation|along)/(parts|states|classifiers)/")
"""Files of times, and parts of evaluations, named after the commit; the rows made of them are compared."""


def record(folder: Path, checkout: Path, python: str, only: list[str]) -> int:
    """Run the commands, with `folder` as the working folder, so that paths in results are the same everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    status = 0
    for name, words in CASES.items():
        if only and name not in only:
            continue
        script, *rest = shlex.split(words)
        start = time.perf_counter()
        command = [python, str(checkout.resolve() / "experiments" / script), *rest]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        print(f"{name}: status {done.returncode}, {time.perf_counter() - start:.0f} s", flush=True)
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-2000:], flush=True)
            status = 1
    return status


def loaded(file: Path) -> Any:
    """A file's content as nested values, or None for a kind that says nothing more (logs, pages, TensorBoard's)."""
    if file.suffix == ".pt":
        return torch.load(file, map_location="cpu", weights_only=True)
    if file.suffix == ".json":
        return json.loads(file.read_text(encoding="utf-8"))
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if file.suffix == ".yaml":
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    if file.suffix == ".png":
        return np.asarray(Image.open(file).convert("RGB"))
    return None


def differences(before: Any, after: Any, where: str) -> Iterator[str]:
    """Where two nested values differ, to the last bit; NaN equals NaN."""
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        before, after = _as_array(before), _as_array(after)
    if isinstance(before, np.ndarray) and isinstance(after, np.ndarray):
        if before.dtype != after.dtype:
            yield f"{where}: {before.dtype} and {after.dtype}"
        elif before.shape != after.shape or not np.array_equal(before, after, equal_nan=before.dtype.kind == "f"):
            yield f"{where}: arrays {before.shape} and {after.shape} differ"
    elif isinstance(before, dict) and isinstance(after, dict):
        before, after = ({PRESENT.get(key, key): value for key, value in found.items()} for found in (before, after))
        for key in [*before, *(key for key in after if key not in before)]:
            if isinstance(key, str) and SKIPPED.search(key):
                continue
            if key not in before or key not in after:
                yield f"{where}/{key}: only {'before' if key in before else 'after'}"
            else:
                yield from differences(before[key], after[key], f"{where}/{key}")
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple):
        if len(before) != len(after):
            yield f"{where}: {len(before)} and {len(after)} entries"
        for number, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from differences(one, other, f"{where}/{number}")
    elif before != after and not (before != before and after != after):
        yield f"{where}: {str(before)[:60]!r} and {str(after)[:60]!r}"


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    # NumPy has no bfloat16, and every one of its values is a float32
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy()


def compared(before: Path, after: Path, unread: re.Pattern[str] = UNREAD) -> dict[str, list[str]]:
    """What differs, by the name of every file that was compared.

    Args:
        before, after: folders.
        unread: pattern of the files that are left out.
    """
    names = {
        path.relative_to(folder).as_posix()
        for folder in (before, after)
        for path in folder.rglob("*")
        if path.suffix in READ and not unread.search(path.relative_to(folder).as_posix())
    }
    found = {}
    for name in sorted(names):
        if not (before / name).is_file() or not (after / name).is_file():
            found[name] = [f"{name}: only {'before' if (before / name).is_file() else 'after'}"]
        else:
            found[name] = list(differences(loaded(before / name), loaded(after / name), name))
    return found


def compare(before: Path, after: Path) -> int:
    """Print every difference and how much was compared; 1 where anything differs."""
    found = compared(before, after)
    for line in (line for lines in found.values() for line in lines):
        print(line)
    wrong = sum(map(bool, found.values()))
    print(f"{len(found)} files compared, {wrong} differ")
    return 1 if wrong or not found else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--checkout", type=Path, default=Path(__file__).resolve().parents[2])
    recording.add_argument("--python", default=sys.executable)
    recording.add_argument("--only", nargs="+", default=[])
    comparing = verbs.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.verb == "record":
        return record(given.folder, given.checkout, given.python, given.only)
    return compare(given.before, given.after)


if __name__ == "__main__":
    sys.exit(main())
