"""Measure whether the quick score ranks encoders as an evaluation does: python docs/check_score.py COMPARISON ...

The comparisons are folders with their runs, as compare_agents.py leaves them. Writes results/score.json.
"""

import sys
from pathlib import Path

import torch

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from astra_gym.experiments.tuning.score_check import record, scored  # noqa: E402
from astra_gym.ssl_core.utils.files import write_json  # noqa: E402

torch.set_num_threads(1)
groups = {}
for folder in map(Path, sys.argv[1:]):
    groups[folder.name] = scored(folder)
    print(folder.name, len(groups[folder.name]), "runs", flush=True)
write_json(DOCS.parent / "results" / "score.json", record(groups))
