"""What version 0.1 wrote is still read: runs that were stopped, a comparison, an evaluation and an exported encoder.

`fixtures/v0_1` was made by 0.1.0 at tiny sizes; `continuation-NAME.jsonl` is how that version itself continued a run:
`run` is ACL on a coreset (RCS), `paper` is ASTrA with the agent reinforce-paper, before its tenth step. `agent.zip` is
an agent's own file.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from astra_gym.agents import REINFORCE
from astra_gym.experiments import compare_agents, evaluate_encoder, report, train_agent
from astra_gym.experiments.comparison.cell_results import read_comparison
from astra_gym.experiments.runs.metrics import metrics_rows, read_metrics
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.ssl_core.evaluation.results import read_results
from astra_gym.ssl_core.models.checkpoint import load_network
from astra_gym.ssl_core.settings import renamed

FIXTURES = Path(__file__).resolve().parent / "fixtures" / "v0_1"


@pytest.fixture
def fixture(tmp_path: Path) -> Path:
    """A copy that may be written to."""
    return Path(shutil.copytree(FIXTURES, tmp_path / "v0_1"))


@pytest.mark.parametrize(("name", "updates_made"), [("run", 6), ("paper", 16)])
def test_a_run_continues_as_its_own_version_continued_it(
    fixture: Path, interrupt, name: str, updates_made: int
) -> None:
    before = read_metrics(fixture / name / "metrics.jsonl")
    assert '"budget/epsilon"' in (fixture / name / "metrics.jsonl").read_text("utf-8")
    updates = [row for row in metrics_rows(fixture / f"continuation-{name}.jsonl") if "loss/total" in row]
    interrupt(updates[-1]["step"])
    assert train_agent.main(["--resume", str(fixture / name), "--progress", "off"]) == 130
    rows = read_metrics(fixture / name / "metrics.jsonl")
    assert rows[: len(before)] == before
    assert [row["step"] for row in rows][-1] > before[-1]["step"]
    found = {row["step"]: row for row in rows if "loss/total" in row}
    assert len(updates) == updates_made
    # another processor or version of torch rounds otherwise, and later a drawn action may tip
    for row in updates[:2]:
        assert found[row["step"]].keys() >= row.keys() >= set(renamed.METRICS.values()) - {"loss/regularizer"}
        values = {name: value for name, value in row.items() if isinstance(value, float)}
        assert {name: found[row["step"]][name] for name in values} == pytest.approx(values, rel=1e-2, abs=1e-3)


def test_the_run_is_reported_evaluated_and_loaded(fixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = RunFolder.open(fixture / "run").settings()
    assert (settings.method.method, settings.coreset.coreset, settings.agent.agent) == ("acl", "rcs", "reinforce")
    assert settings.data.drop_last and settings.coreset.coreset_kwargs == {"form": "softmax", "biases": True}
    network, route = load_network(fixture / "run")
    features = network.features(torch.rand(2, 3, 8, 8), route)
    assert features.shape == (2, network.feature_dim) and features.isfinite().all()
    words = "--protocols knn --attacks pgd20 --epsilons 8/255 --test_limit 8 --progress off"
    assert evaluate_encoder.main([str(fixture / "run"), *words.split(), "--out", str(fixture / "again")]) == 0
    assert {row.metric for row in read_results(fixture / "again" / "evaluation.json")} == {"SA", "RA"}


def test_the_comparison_is_complete_and_is_reported(fixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fixture / "comparison"
    before = (folder / "comparison.json").read_text(encoding="utf-8")
    assert compare_agents.main(["--resume", str(folder)]) == 0
    cells = read_comparison(folder / "comparison.json").cells
    assert {cell.arm for cell in cells} == {"reinforce", "fixed"}
    after = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["cells"]
    # what 0.1 did without a name has one now
    names: dict[str, object] = {"drop_last": True, "deterministic": False, "compile_blocks": False}
    names |= dict.fromkeys(("passes", "cost_target", "patch_size", "attack_start", "attack_stop", "reward_weights"))
    names |= dict.fromkeys(("action_epsilons", "action_steps", "action_step_sizes", "judge_epsilon"))
    names["agent_learns"] = True
    names |= {"judge_score": "robust", "judge_images": 256, "judge_batch": 64, "judge_steps": 2}
    names |= {"judge_block": 0.1, "judge_redraw": 1, "judge_until": 1.0}
    names |= dict.fromkeys(("reward_judge", "reward_alignment"), 0.0)
    older = json.loads(before)["cells"]
    kept = [{renamed.SETTINGS.get(name, name): value for name, value in cell["settings"].items()} for cell in older]
    assert after == [cell | {"settings": settings | names} for cell, settings in zip(older, kept, strict=True)]
    assert report.main([str(folder)]) == 0
    assert "reinforce" in (folder / "report.md").read_text(encoding="utf-8")


def test_the_evaluation_is_read_and_reported(fixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_results(fixture / "evaluation" / "evaluation.json")
    assert {row.protocol for row in rows} == {"slf", "knn"}
    assert report.main([str(fixture / "evaluation")]) == 0
    assert (fixture / "evaluation" / "report.html").is_file()


def test_the_export_is_read(fixture: Path) -> None:
    exported = torch.load(fixture / "encoder.pt", weights_only=True)
    assert any(name.startswith("layer1.") for name in exported.get("state_dict", exported))
    words = "--format torchvision --dataset digits --image_size 8 --protocols knn --attacks pgd20 --epsilons 8/255"
    words += " --test_limit 8 --progress off"
    assert evaluate_encoder.main([str(fixture / "encoder.pt"), *words.split(), "--out", str(fixture / "again")]) == 0


def test_an_agent_s_file_is_read_by_present_names() -> None:
    # REINFORCE of 0.1, with entropy_coef=0.05 and normalise_advantage=False, which learned that (2, 1, 1) pays
    agent = REINFORCE.load(FIXTURES / "agent", device="cpu")
    assert (agent.settings.ent_coef, agent.settings.normalize_advantage, agent.num_timesteps) == (0.05, False, 80)
    assert agent.predict(np.zeros((2, 3), np.float32), deterministic=True)[0].tolist() == [[2, 1, 1]] * 2
