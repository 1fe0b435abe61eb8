"""The targets, files, tables and hooks that CONTRIBUTING.md names exist."""

import re
from pathlib import Path

import pytest
import yaml

from astra_gym.agents import AGENTS
from astra_gym.envs.observations import OBSERVATIONS
from astra_gym.envs.rewards.registry import REWARD_TERMS
from astra_gym.ssl_core.attacks.pgd import STARTS
from astra_gym.ssl_core.data.datasets import DATASETS
from astra_gym.ssl_core.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WORKFLOW = ROOT / ".github" / "workflows" / "test.yml"
TABLES = {
    "METHODS": METHODS,
    "AGENTS": AGENTS,
    "REWARD_TERMS": REWARD_TERMS,
    "OBSERVATIONS": OBSERVATIONS,
    "DATASETS": DATASETS,
    "STARTS": STARTS,
}


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", TEXT + WORKFLOW.read_text(encoding="utf-8")))
    assert {"setup", "test", "test-all", "test-wheel", "test-gpu", "docs", "lint"} <= named | {"lint"}
    assert named <= targets | {"processes"}


def test_every_file_and_table_exists() -> None:
    paths = re.findall(r"`((?:docs|tests|experiments)/[\w./]+)`", TEXT)
    assert len(paths) > 8 and all((ROOT / path).exists() for path in paths)
    assert all(f"`{name}`" in TEXT and table for name, table in TABLES.items())


@pytest.mark.parametrize("file", [ROOT / ".pre-commit-config.yaml", WORKFLOW])
def test_hooks_and_workflow_are_plain(file: Path) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if file == WORKFLOW:
        steps = content["jobs"]["test"]["steps"]
        called = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
        assert [step["run"] for step in steps if "run" in step] == [line for line in called if line.startswith("make ")]
        supported = content["jobs"]["test"]["strategy"]["matrix"]["python"]
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        assert f"Python {supported[0]} to {supported[-1]}" in readme
    else:
        hooks = [hook for repository in content["repos"] for hook in repository["hooks"]]
        assert [hook["entry"].split("/")[-1].split()[0] for hook in hooks] == ["ruff", "ruff", "mypy"]
