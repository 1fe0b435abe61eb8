"""The distribution as a stranger has it: a wheel in an environment of its own, used from an empty folder.

`make test-wheel` runs this. The environment has the wheel, a path file to the dependencies of the tests' environment,
and distributions called `envs`, `agents` and `experiments`, which must neither be imported nor be in the way.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.helpers.documents import PYTHON

ROOT = Path(__file__).resolve().parent.parent
DECOYS = ("envs", "agents", "experiments")
TINY = (
    "--limit=26",
    "--test_limit=30",
    "--batch_size=4",
    "--image_size=8",
    "--width=2",
    "--probe_epochs=1",
    "--epochs=1",
)
pytestmark = pytest.mark.wheel


def run(*words: object, cwd: Path, status: int = 0) -> str:
    """What a command prints; it must end with the status."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == status, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the working tree, so that no earlier build's files are in it."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in listed:
        if not name.startswith(("tests/", "results/")) and (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "source" / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "wheel", ".", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", folder, cwd=folder / "source")
    [made] = folder.glob("astra_gym-*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and the decoys."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    interpreter = folder / "bin" / "python"
    run(interpreter, "-m", "pip", "--quiet", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    [site] = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name in DECOYS:
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("DECOY = True\n")
        (site / f"{name}-1.4.0.dist-info").mkdir()
        (site / f"{name}-1.4.0.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.4.0\n"
        )
    return interpreter


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"astra_gym", wheel.name.split("-py3")[0] + ".dist-info"}
    packages = ("ssl_core", "envs", "agents", "experiments")
    sources = {path.relative_to(ROOT).as_posix() for name in packages for path in (ROOT / name).rglob("*.py")}
    assert {name.removeprefix("astra_gym/") for name in names if name.endswith(".py")} == {
        *sources,
        "__init__.py",
        "__main__.py",
    }
    assert "astra_gym/py.typed" in names
    templates = {f"astra_gym/{path.relative_to(ROOT)}" for path in (ROOT / "experiments/reports/templates").iterdir()}
    assert len(templates) > 3 and templates <= set(names)


def test_it_is_imported_from_where_it_is_installed(python: Path, tmp_path: Path) -> None:
    site = python.parent.parent
    printed = run(python, "-c", "import astra_gym; print(astra_gym.__file__, astra_gym.__path__)", cwd=tmp_path)
    assert printed.split()[0].startswith(str(site)) and str(ROOT) not in printed
    for name in DECOYS:
        run(python, "-c", f"import astra_gym, {name}; assert {name}.DECOY", cwd=tmp_path)
    run(python, "-c", "import ssl_core", cwd=tmp_path, status=1)


def test_gymnasium_finds_the_environments(python: Path, tmp_path: Path) -> None:
    code = """
import gymnasium
env = gymnasium.make("astra_gym:ASTrA/BatchAttack-v1", dataset="digits", batch_size=4, image_size=8, width=2)
env.reset(seed=0)
print(env.step(env.action_space.sample())[1])
env = gymnasium.make_vec("astra_gym:ASTrA/ViewAttack-v1", dataset="digits", batch_size=64)
observations, _ = env.reset(seed=0)
for step in range(2):
    observations, rewards, *_ = env.step(env.action_space.sample())
print(observations.shape, rewards.mean())
import astra_gym
assert "site-packages" in astra_gym.__file__
"""
    assert "(128, " in run(python, "-c", code, cwd=tmp_path)


@pytest.mark.parametrize("number", [0, 1])
def test_the_readmes_loops_run(python: Path, tmp_path: Path, number: int) -> None:
    text = PYTHON[number].replace("batch_size=64", "batch_size=4, image_size=8, width=2")
    assert text != PYTHON[number]
    assert run(python, "-W", "error", "-c", text, cwd=tmp_path).strip()


def test_a_method_and_an_agent_of_the_users_own(python: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "custom_method.py", tmp_path / "my_method.py")
    # modules with names of ours: those of the user are found
    (tmp_path / "runs.py").write_text(
        "from numpy import zeros\n\n\ndef first(seen):\n    return zeros((len(seen), 3), int)\n"
    )
    command = python.parent / "astra-gym"
    own = ("--method", "my_method:AlignUniform", "--agent", "runs:first", "--run_dir", "own", "--progress", "off")
    run(command, "train", *TINY, *own, cwd=tmp_path)
    assert (tmp_path / "own" / "results" / "slf.json").is_file()
    assert (tmp_path / "own" / "command.txt").read_text("utf-8").startswith("astra-gym train ")


def test_every_command_runs(python: Path, tmp_path: Path) -> None:
    command = python.parent / "astra-gym"
    assert run(command, "--version", cwd=tmp_path).startswith("astra-gym ")
    quiet = ("--progress", "off")
    run(command, "train", *TINY, "--agent", "fixed", "--run_dir", "runs/small", *quiet, cwd=tmp_path)
    [commit] = (
        line for line in (tmp_path / "runs/small/environment.json").read_text("utf-8").splitlines() if "commit" in line
    )
    assert f'"astra-gym {metadata.version("astra-gym")}"' in commit
    run(command, "train", "--resume", "runs/small", *quiet, cwd=tmp_path)
    grid = ("--agents", "fixed", "random", "--seeds", "1", "--dir", "grid")
    printed = run(command, "compare", *TINY, *grid, cwd=tmp_path)
    assert "astra-gym report grid" in printed
    assert (tmp_path / "grid/cells/fixed-seed0/command.txt").read_text("utf-8").startswith("astra-gym train ")
    attack = ("--attacks", "pgd20", "--epsilons", "8/255", "--epochs", "1", "--test_limit", "20")
    run(command, "evaluate", "runs/small", "--protocols", "slf", *attack, *quiet, cwd=tmp_path)
    run(command, "report", "runs/small/evaluation", cwd=tmp_path)
    run(command, "report", "grid", cwd=tmp_path)
    run(command, "export", "runs/small", "--out", "encoder.pt", cwd=tmp_path)
    (tmp_path / "notes.md").write_text("<!-- table accuracy mine -->\n<!-- end -->\n", encoding="utf-8")
    assert "--results DIR" in run(command, "publish", "runs/small", cwd=tmp_path, status=2)
    kept = ("--results", "kept", "--readme", "notes.md", "--group", "mine")
    run(command, "publish", "runs/small", *kept, cwd=tmp_path)
    assert "astra-fixed" in (tmp_path / "notes.md").read_text(encoding="utf-8")
    run(command, "benchmark", "--quick", "--parts", "attack", "start", "--output", "speed.json", cwd=tmp_path)
    assert (tmp_path / "speed.json").is_file()
    for words in (("train", "--agent", "nobody"), ("report", "nowhere"), ("tain",)):
        assert "error: " in run(command, *words, cwd=tmp_path, status=2)


LOADED = """
import runpy, sys
script, sys.argv = sys.argv[1], [sys.argv[1], "--list"]
sys.path[0] = script.rpartition("/")[0]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit:
    pass
files = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "astra_gym"]
print("\\n".join(files))
"""


def test_two_checkouts_and_the_wheel_never_mix(python: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name in ("astra_gym", "ssl_core", "envs", "agents", "experiments"):
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    for checkout, here in ((ROOT, other), (other, ROOT), (ROOT, ROOT)):
        script = checkout / "experiments" / "train_agent.py"
        for interpreter in (python, sys.executable):
            printed = run(interpreter, "-c", LOADED, script, cwd=here)
            files = [line for line in printed.splitlines() if line.endswith(".py")]
            assert len(files) > 50 and all(file.startswith(f"{checkout}/") for file in files)
    # nor do the workers of a comparison, where PYTHONPATH is not read
    grid = ("--agents", "fixed", "--seeds", "1", "--dir", tmp_path / "grid", *TINY)
    run(python, "-I", other / "experiments" / "compare_agents.py", *grid, cwd=tmp_path)
    command = (tmp_path / "grid" / "cells" / "fixed-seed0" / "command.txt").read_text(encoding="utf-8")
    assert command.startswith("other/experiments/train_agent.py ")
    # the installed command is the wheel's, in a checkout too
    shown = run(
        python.parent / "astra-gym", "train", "--agent", "nobody", "--run_dir", tmp_path / "x", cwd=other, status=2
    )
    assert "astra-gym train: error" in shown
    where = "import sys; sys.path.pop(0); import astra_gym.envs.engine as module; print(module.__file__)"
    assert run(python, "-c", where, cwd=other).startswith(str(python.parent.parent))


def test_mypy_sees_the_types(python: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from astra_gym.ssl_core.attacks.pgd import ConstantBudget\n\n"
        "reveal_type(ConstantBudget(epsilon=0.1, step_size=0.1, steps=1).steps)\n"
        'ConstantBudget(epsilon="far", step_size=0.1, steps=1)\n'
    )
    words = ("--python-executable", python, "--follow-imports", "silent", "--cache-dir", tmp_path / "cache", file)
    printed = run(sys.executable, "-m", "mypy", *words, cwd=tmp_path, status=1)
    assert 'Revealed type is "int"' in printed or 'Revealed type is "builtins.int"' in printed
    assert 'Argument "epsilon"' in printed and "py.typed" not in printed


def test_the_floors_of_the_dependencies_go_together(tmp_path: Path) -> None:
    floors = {"gymnasium": "1.4.0", "stable-baselines3": "2.9.0", "sb3-contrib": "2.9.0"}
    pinned = [f"{name}=={version}" for name, version in floors.items()]
    run(sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--target", tmp_path, *pinned, cwd=tmp_path)
    needed = [Requirement(line) for line in metadata.requires("astra-gym") or []]
    lowest = {requirement.name: str(requirement.specifier) for requirement in needed}
    assert {name: lowest[name] for name in floors} == {
        "gymnasium": "<2,>=1.4",
        "stable-baselines3": "<3,>=2.9",
        "sb3-contrib": "<3,>=2.9",
    }
    for found in metadata.distributions(path=[str(tmp_path)]):
        needed += [Requirement(line) for line in found.requires or [] if "extra ==" not in line]
    for requirement in needed:
        name = requirement.name.lower().replace("_", "-")
        if name in floors:
            assert requirement.specifier.contains(floors[name]), requirement
