"""What an installation brings, and that the project's papers agree."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import astra_gym
from astra_gym.experiments.config.commands import COMMANDS
from tests.helpers.oldest_versions import oldest_versions

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("ssl_core", "envs", "agents", "experiments")
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Where the name that is imported is not the one that is installed."""
WITH_TORCH = {"triton"}
"""What torch for a GPU brings along, and nobody asks for where it is not."""
OWN_EXTRAS = {"timm": "timm", "ray": "ray", "submitit": "slurm"}
"""What only some need, and its extra."""


def third_party_imports() -> set[str]:
    names = set()
    for file in [file for package in (*PACKAGES, "astra_gym") for file in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"astra_gym"}


def declared() -> set[str]:
    return {re.split(r"[<>=\[ ]", line)[0] for line in PROJECT["project"]["dependencies"]}


def test_all_that_is_imported_is_declared() -> None:
    imported = {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in third_party_imports()}
    assert "torch" in imported
    extras = PROJECT["project"]["optional-dependencies"]
    assert imported - declared() == WITH_TORCH | {*OWN_EXTRAS}
    assert all(any(line.startswith(name) for line in extras[extra]) for name, extra in OWN_EXTRAS.items())


def installed_here() -> bool:
    """Whether this checkout is what the environment has as astra-gym."""
    code = "import astra_gym; print(astra_gym.__file__)"
    # isolated mode sees site-packages only: neither PYTHONPATH nor the working folder
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    return done.stdout.strip() == str(ROOT / "astra_gym" / "__init__.py")


def test_an_editable_installation_is_imported_from_any_folder(tmp_path: Path) -> None:
    if not installed_here():
        pytest.skip("this checkout is not installed here, its dependencies are")
    code = "import astra_gym.envs.engine, gymnasium; "
    code += "print(astra_gym.envs.engine.__file__, astra_gym.VIEW_ID in gymnasium.registry)"
    run = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(ROOT / "envs" / "engine.py"), "True"]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("where", ["", "PYTHONPATH"])
def test_the_folders_refuse_their_plain_names_and_name_the_new_import(package: str, where: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(ROOT)} if where else {}
    command = [sys.executable, "-c", f"import {package}"]
    run = subprocess.run(command, cwd=tmp_path if where else ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        f"ImportError: {package} is a part of astra_gym, not a package of its own: import astra_gym.{package}"
    )


DECOY = "raise ImportError('the decoy was imported instead of the checkout')\n"
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.4.0\n"
AS_SITE = "import runpy, site, sys; site.addsitedir(sys.argv[1]); sys.argv = sys.argv[2:]; "
AS_SITE += "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.parametrize("place", ["PYTHONPATH", pytest.param("site", marks=pytest.mark.every_agent)])
def test_the_main_command_finds_the_checkout_beside_distributions_of_the_same_names(tmp_path: Path, place: str) -> None:
    decoys, elsewhere = tmp_path / "decoys", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in (*PACKAGES, "astra_gym"):
        (decoys / name).mkdir(parents=True)
        (decoys / name / "__init__.py").write_text(DECOY)
        (decoys / f"{name}-1.4.0.dist-info").mkdir()
        (decoys / f"{name}-1.4.0.dist-info" / "METADATA").write_text(METADATA.format(name=name))
    script = [str(ROOT / "experiments" / "train_agent.py"), "--help"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if place == "PYTHONPATH":
        environment["PYTHONPATH"] = os.pathsep.join([str(decoys), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        command = [sys.executable, *script]
    else:
        environment |= {key: value for key, value in os.environ.items() if key == "PYTHONPATH"}
        command = [sys.executable, "-c", AS_SITE, str(decoys), *script]
    run = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for flag in ("--agent", "--method", "--dataset", "--resume", "--config"):
        assert flag in run.stdout


@pytest.mark.every_agent
@pytest.mark.parametrize("name", ["config", "report", "stats", "runs", "console"])
def test_a_users_module_is_found_before_ours_of_the_same_name(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("def mine(observations):\n    raise SystemExit('the module of the user')\n")
    tiny = "--limit=26 --batch_size=4 --image_size=8 --width=2 --epochs=1 --evaluate=false --run_dir=run"
    command = [sys.executable, str(ROOT / "experiments" / "train_agent.py"), "--agent", f"{name}:mine", *tiny.split()]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "the module of the user" in run.stderr, run.stderr


@pytest.mark.parametrize("script", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.stem)
def test_every_command_replaces_its_folder_on_the_path(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    is_command = script.stem in COMMANDS.values()
    assert (
        "if not __package__:" in text
        and "sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]" in text
    ) == is_command


def test_the_packages_of_the_distribution_are_those_of_the_tree() -> None:
    tree = {"astra_gym"}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("__init__.py"):
            tree.add(".".join(["astra_gym", *file.parent.relative_to(ROOT).parts]))
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == tree
    links = {path.name: path.resolve() for path in (ROOT / ".typing" / "astra_gym").iterdir()}
    inside = [path for path in (ROOT / "astra_gym").iterdir() if path.is_file()]
    assert links == {path.name: path for path in [*(ROOT / name for name in PACKAGES), *inside]}


def test_the_templates_are_package_data() -> None:
    folder = ROOT / "experiments" / "reports" / "templates"
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in (".j2", ".css")]
    assert {path.parent for path in found} == {folder} and {*folder.iterdir()} == {*found}
    assert PROJECT["tool"]["setuptools"]["package-data"]["astra_gym.experiments.reports"] == ["templates/*"]


def test_the_versions_agree() -> None:
    version = astra_gym.__version__
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "astra_gym.__version__"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation["version"] == version
    assert released is not None
    assert released[1] == version
    assert citation["license"] == PROJECT["project"]["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_the_oldest_versions_of_all_that_users_need_can_be_tested() -> None:
    found = dict(line.split("==") for line in oldest_versions())
    assert found.keys() == declared() | OWN_EXTRAS.keys()
    # the tests need no newer ones of these
    assert {f"{name}>={found[name]}" for name in ("submitit", "timm")} <= {
        line for extra in ("dev", *OWN_EXTRAS.values()) for line in PROJECT["project"]["optional-dependencies"][extra]
    }
    planned = subprocess.run(["make", "-n", "test-oldest"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert planned.find("--constraint") < planned.find("-m pytest -n 2")


def test_ci_runs_make_test_and_make_test_runs_everything() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-3:] == ["make test", "make test-wheel", "make docs"]
    planned = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = ["ruff check .", "ruff format --check .", "bin/mypy", "-m pytest -n 2"]
    positions = [planned.find(command) for command in commands]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert "OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 .venv/bin/python -m pytest" in planned
