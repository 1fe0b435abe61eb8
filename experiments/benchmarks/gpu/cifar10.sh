#!/usr/bin/env bash
# The real CIFAR-10 and ResNet-18 on a GPU, without network: three ways to choose the attack, each trained for the same wall
# time. `fixed` is ASTrA's constant budget, `cheap` a wide one of few steps (15/255 in 4 steps of 5/255), `reinforce`
# learns it. Epochs come from step times that are measured first. Then SLF, without augmentation, and PGD-20 on 2,000 test
# images. One seed: differences of a point or two mean nothing. OUT/cifar10.json holds all of it.
#
#   DATA=DIR experiments/benchmarks/gpu/cifar10.sh                            # DIR holds cifar-10-batches-py
#   DEVICE=cpu TINY=1 OUT=DIR DATA=DIR experiments/benchmarks/gpu/cifar10.sh  # tries the script itself, without a GPU
#
# SECONDS_EACH is the training time of an arm, 100 by default.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
DATA=${DATA:?"say where the data are: DATA=DIR, which holds cifar-10-batches-py"}
DEVICE=${DEVICE:-cuda} TINY=${TINY:-} OUT=${OUT:-results/gpu} PYTHON=${PYTHON:-python3} SECONDS_EACH=${SECONDS_EACH:-100}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

sizes=() probe=()
if [ -n "$TINY" ]; then
  SECONDS_EACH=2
  sizes=(--limit 64 --test_limit 40 --batch_size 8 --width 2 --projector_hidden 8 --projector_dim 8)
  probe=(--epochs 1 --test_limit 40)
fi
# the preset's warm-up is longer than these trainings
common=(--preset cifar10 --device "$DEVICE" --data_dir "$DATA" --download false --evaluate false --progress lines
  --warmup_epochs 1 "${sizes[@]}")
fixed=(--agent fixed)
cheap=(--agent fixed --actions continuous --epsilon 15/255 --step_size 5/255 --steps 4)
reinforce=(--agent reinforce)

# seconds_of_an_epoch FLAGS...: of 12 updates, after 4 that a GPU needs to prepare itself.
seconds_of_an_epoch() {
  "$PYTHON" - "$@" <<'P'
import sys

from astra_gym.experiments.benchmarks.measure import DeviceClock
from astra_gym.experiments.config.cli import parse
from astra_gym.experiments.config.devices import arithmetic, resolve_device
from astra_gym.experiments.runs.run import Run

settings = parse([*sys.argv[1:], "--epochs", "2"]).settings
device = resolve_device(settings.device)
with arithmetic(settings.precision, settings.deterministic):
    run = Run(settings, device)
    count = min(12, run.engine.planned_updates - 4)
    run.agent.learn(4 * run.env.num_envs)
    clock = DeviceClock(device)
    began = clock()
    run.agent.learn(count * run.env.num_envs, reset_num_timesteps=False)
print((clock() - began) / count * run.engine.steps_per_epoch)
P
}

for arm in fixed cheap reinforce; do
  declare -n flags=$arm
  each=$(seconds_of_an_epoch "${common[@]}" "${flags[@]}")
  epochs=$("$PYTHON" -c "print(max(2, round($SECONDS_EACH / $each)))")
  echo "$arm: $each s an epoch, $epochs epochs"
  "$PYTHON" experiments/train_agent.py "${common[@]}" "${flags[@]}" --epochs "$epochs" --run_dir "$WORK/$arm"
  "$PYTHON" experiments/evaluate_encoder.py "$WORK/$arm" --protocols slf --attacks pgd20 --epsilons 4/255 8/255 \
    --augment false --test_limit 2000 "${probe[@]}" --device "$DEVICE" --progress lines --out "$WORK/$arm-evaluation"
  echo "$each" > "$WORK/$arm/seconds_of_an_epoch"
done

"$PYTHON" - "$WORK" "$OUT/cifar10.json" fixed cheap reinforce <<'P'
import json
import sys
from pathlib import Path

from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.ssl_core.evaluation.results import read_results
from astra_gym.ssl_core.utils.files import write_json

work, arms = Path(sys.argv[1]), {}
for arm in sys.argv[3:]:
    folder = RunFolder.open(work / arm)
    steps = [row["budget/steps"] for row in read_metrics(work / arm / "metrics.jsonl", []) if "budget/steps" in row]
    rows = read_results(work / f"{arm}-evaluation" / "evaluation.json")
    arms[arm] = {
        "epochs": folder.settings().epochs,
        "seconds_of_an_epoch": float((work / arm / "seconds_of_an_epoch").read_text()),
        "training": json.loads((folder.results / "training.json").read_text())["stretches"],
        "attack_steps": sum(steps) / len(steps),
        "environment": folder.environments()[0],
        "rows": [{"metric": row.metric, "epsilon": row.epsilon, "value": row.value, "n": row.n} for row in rows],
    }
write_json(Path(sys.argv[2]), {"schema": 1, "seeds": 1, "arms": arms})
P
