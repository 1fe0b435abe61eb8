"""What an installation brings, and that the project's papers agree."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("ssl_core", "envs", "agents", "experiments")
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Where the name that is imported is not the one that is installed."""


def third_party_imports() -> set[str]:
    names = set()
    for file in [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - set(PACKAGES)


def declared() -> set[str]:
    return {re.split(r"[<>=\[ ]", line)[0] for line in PROJECT["project"]["dependencies"]}


def test_all_that_is_imported_is_declared() -> None:
    imported = {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in third_party_imports()}
    assert "torch" in imported
    assert imported - declared() == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_of_ours_is_importable_without_the_checkout(package: str, tmp_path: Path) -> None:
    # Isolated mode sees site-packages only: neither PYTHONPATH nor the working folder.
    code = f"import importlib.util as u; spec = u.find_spec({package!r}); print(spec.origin if spec else '')"
    run = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() != str(ROOT / package / "__init__.py")


def test_an_installation_lists_no_file_of_ours() -> None:
    try:
        files = metadata.distribution(PROJECT["project"]["name"]).files or []
    except metadata.PackageNotFoundError:
        pytest.skip("astra-gym is not installed here, its dependencies are")
    assert [str(file) for file in files if file.parts[0] in PACKAGES] == []


def test_the_versions_agree() -> None:
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation["version"] == version
    assert released is not None
    assert released[1] == version
    assert citation["license"] == PROJECT["project"]["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_ci_runs_make_test_and_make_test_runs_everything() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-1] == "make test"
    planned = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = ["ruff check .", "ruff format --check .", "bin/mypy", "-m pytest -n 2"]
    positions = [planned.find(command) for command in commands]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert "OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 .venv/bin/python -m pytest" in planned
