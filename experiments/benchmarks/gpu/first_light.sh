#!/usr/bin/env bash
# First light on a GPU, without network and in about 5 minutes: the tests that need one, short trainings, a profile, and
# the parts of the benchmark that matter there. What it finds goes to OUT as JSON: first_light.json says of each step how
# it ended and how long it took, benchmark.json holds the figures, *.txt what was printed.
#
#   experiments/benchmarks/gpu/first_light.sh
#   OUT=DIR WHEELS=DIR experiments/benchmarks/gpu/first_light.sh             # packages from a folder of wheels, first
#   DEVICE=cpu TINY=1 OUT=DIR experiments/benchmarks/gpu/first_light.sh      # tries the script itself, without a GPU
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
DEVICE=${DEVICE:-cuda} TINY=${TINY:-} OUT=${OUT:-results/gpu} WHEELS=${WHEELS:-} PYTHON=${PYTHON:-python3}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT"
: > "$WORK/steps"
export PYTHONPATH=$WORK/site:$PWD PYTHONUNBUFFERED=1
if [ -n "$WHEELS" ]; then
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$WORK/site" "$WHEELS"/*.whl || exit 1
  [ ! -e "$WHEELS/pyautoattack.tar" ] || tar xf "$WHEELS/pyautoattack.tar" -C "$WORK/site"
fi

# step NAME SECONDS COMMAND...: runs it for so long at most, and writes down how it ended; the next one runs in any case.
step() {
  local name=$1 limit=$2 began status
  shift 2
  began=$(date +%s.%N)
  timeout "$limit" "$@" > "$OUT/$name.txt" 2>&1
  status=$?
  tail -n 8 "$OUT/$name.txt"
  printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$status" "$began" "$(date +%s.%N)" "$*" >> "$WORK/steps"
}

quick=() sizes=() only=()
if [ -n "$TINY" ]; then
  quick=(--quick) sizes=(--width 2 --limit 32 --test_limit 20 --batch_size 8 --probe_epochs 1) only=(-k "waits or lars")
fi
[ "$DEVICE" != cpu ] || export GPU_TESTS_ON=cpu
benchmark=("$PYTHON" experiments/benchmark.py --device "$DEVICE" "${quick[@]}")
step tests 80 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu -rs "${only[@]}" \
  tests/gpu tests/ssl_core/transforms tests/ssl_core/data
step train 50 "$PYTHON" experiments/train_agent.py --agent reinforce --preset digits --epochs 3 "${sizes[@]}" \
  --device "$DEVICE" --progress lines --run_dir "$WORK/digits"
step compiled 50 "$PYTHON" experiments/train_agent.py --agent fixed --preset digits --epochs 1 "${sizes[@]}" \
  --device "$DEVICE" --compile_blocks true --no-evaluate --progress lines --run_dir "$WORK/compiled"
step profile 40 "${benchmark[@]}" --profile "$WORK/profile"
step benchmark 110 "${benchmark[@]}" --parts efficiency precision step --repeats 2 --output "$OUT/benchmark.json"
[ ! -e "$WORK/profile/operators.txt" ] || cp "$WORK/profile/operators.txt" "$OUT/operators.txt"

"$PYTHON" - "$WORK" "$OUT/first_light.json" "$DEVICE" <<'P'
import sys
from pathlib import Path

import torch

from astra_gym.experiments.config.devices import resolve_device
from astra_gym.ssl_core.utils.files import write_json
from astra_gym.ssl_core.utils.provenance import ROOT, commit, versions

work, device = Path(sys.argv[1]), resolve_device(sys.argv[3])
steps = {}
for line in (work / "steps").read_text().splitlines():
    name, status, began, ended, command = line.split("\t")
    steps[name] = {"status": int(status), "seconds": round(float(ended) - float(began), 1), "command": command}
document = {
    "schema": 1,
    "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    "memory_bytes": torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None,
    "versions": versions(),
    "commit": commit(ROOT),
    "steps": steps,
}
write_json(Path(sys.argv[2]), document)
sys.exit(any(step["status"] for step in steps.values()))
P
