"""The house's rules, read from the code: imports go down the floors, and a few things are nowhere or in one place."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ssl_core", "envs", "agents", "experiments")
# A room is a file or a whole folder; within a folder that is one room, files import each other freely (but no cycle).
FLOORS = {
    "ssl_core/__init__.py": 0,
    "ssl_core/rng.py": 0,
    "ssl_core/lookup.py": 0,
    "ssl_core/memory.py": 0,
    "ssl_core/clock.py": 0,
    "ssl_core/dotted.py": 0,
    "ssl_core/overrides.py": 1,
    "ssl_core/plan.py": 0,
    "ssl_core/severities.py": 0,
    "ssl_core/route_norm.py": 0,
    "ssl_core/initialising.py": 0,
    "ssl_core/ema.py": 0,
    "ssl_core/losses.py": 1,
    "ssl_core/fingerprints.py": 1,
    "ssl_core/health.py": 1,
    "ssl_core/corruptions.py": 1,
    "ssl_core/perspective.py": 1,
    "ssl_core/convolution.py": 1,
    "ssl_core/attacks.py": 1,
    "ssl_core/views.py": 1,
    "ssl_core/optim.py": 1,
    "ssl_core/projectors.py": 1,
    "ssl_core/perturbation.py": 1,
    "ssl_core/decoding.py": 1,
    "ssl_core/images.py": 1,
    "ssl_core/sampler.py": 1,
    "ssl_core/networks.py": 2,
    "ssl_core/heads.py": 2,
    "ssl_core/folders.py": 2,
    "ssl_core/loading.py": 2,
    "ssl_core/labels.py": 2,
    "ssl_core/cosine_losses.py": 2,
    "ssl_core/multiview_losses.py": 2,
    "ssl_core/invariance.py": 2,
    "ssl_core/targets.py": 2,
    "ssl_core/crops.py": 2,
    "ssl_core/frequency.py": 1,
    "ssl_core/trivial_augment.py": 2,
    "ssl_core/perspective_views.py": 2,
    "ssl_core/colour.py": 0,
    "ssl_core/filters.py": 0,
    "ssl_core/divergences.py": 2,
    "ssl_core/folding.py": 3,
    "ssl_core/exporting.py": 3,
    "ssl_core/landscape.py": 3,
    "ssl_core/gradcache.py": 3,
    "ssl_core/datasets.py": 3,
    "ssl_core/clustering.py": 3,
    "ssl_core/methods/": 3,
    "ssl_core/learner.py": 4,
    "ssl_core/checkpoint.py": 4,
    "ssl_core/results.py": 4,
    "ssl_core/sanity.py": 4,
    "ssl_core/masking.py": 4,
    "ssl_core/gradients.py": 4,
    "ssl_core/probes.py": 4,
    "ssl_core/neighbours.py": 4,
    "ssl_core/finetuning.py": 4,
    "ssl_core/postprocessing.py": 4,
    "ssl_core/coreset.py": 4,
    "ssl_core/autoattack.py": 4,
    "ssl_core/attack_suite.py": 4,
    "ssl_core/shifts.py": 4,
    "ssl_core/foreign.py": 4,
    "ssl_core/robustness.py": 4,
    "envs/actions.py": 5,
    "envs/engine.py": 5,
    "envs/rewards.py": 5,
    "envs/world.py": 5,
    "envs/data_settings.py": 5,
    "envs/building.py": 5,
    "envs/records.py": 5,
    "envs/torch_env.py": 5,
    "envs/__init__.py": 6,
    "envs/batch_env.py": 6,
    "envs/view_env.py": 6,
    "envs/sb3_env.py": 6,
    "agents/": 7,
    "experiments/": 8,
}
# On the floors that build things, these neighbours may be used; the floors of pure functions (0 to 2) know none.
NEIGHBOURS = {
    ("ssl_core/autoattack.py", "ssl_core/results.py"),
    ("ssl_core/autoattack.py", "ssl_core/robustness.py"),
    ("ssl_core/autoattack.py", "ssl_core/sanity.py"),
    ("ssl_core/attack_suite.py", "ssl_core/autoattack.py"),
    ("ssl_core/attack_suite.py", "ssl_core/results.py"),
    ("ssl_core/attack_suite.py", "ssl_core/robustness.py"),
    ("ssl_core/attack_suite.py", "ssl_core/sanity.py"),
    ("ssl_core/sanity.py", "ssl_core/results.py"),
    ("ssl_core/masking.py", "ssl_core/results.py"),
    ("ssl_core/shifts.py", "ssl_core/results.py"),
    ("ssl_core/shifts.py", "ssl_core/robustness.py"),
    ("ssl_core/masking.py", "ssl_core/sanity.py"),
    ("ssl_core/masking.py", "ssl_core/gradients.py"),
    ("ssl_core/masking.py", "ssl_core/robustness.py"),
    ("ssl_core/gradients.py", "ssl_core/robustness.py"),
    ("ssl_core/gradients.py", "ssl_core/sanity.py"),
    ("ssl_core/probes.py", "ssl_core/sanity.py"),
    ("ssl_core/neighbours.py", "ssl_core/sanity.py"),
    ("ssl_core/finetuning.py", "ssl_core/probes.py"),
    ("ssl_core/finetuning.py", "ssl_core/learner.py"),
    ("ssl_core/methods/", "ssl_core/clustering.py"),
    ("ssl_core/postprocessing.py", "ssl_core/finetuning.py"),
    ("ssl_core/postprocessing.py", "ssl_core/probes.py"),
    ("ssl_core/coreset.py", "ssl_core/learner.py"),
    ("ssl_core/foreign.py", "ssl_core/checkpoint.py"),
    ("envs/building.py", "envs/world.py"),
    ("envs/engine.py", "envs/building.py"),
    ("envs/engine.py", "envs/records.py"),
    ("envs/engine.py", "envs/rewards.py"),
    ("envs/engine.py", "envs/world.py"),
    ("envs/rewards.py", "envs/world.py"),
    ("envs/world.py", "envs/data_settings.py"),
    ("envs/torch_env.py", "envs/actions.py"),
    ("envs/torch_env.py", "envs/engine.py"),
}
SEEDED_IN = "agents/sb3.py"
GLOBAL_SEEDS = {
    "torch.manual_seed",
    "torch.seed",
    "torch.random.manual_seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
    "set_random_seed",
}


def python_files() -> list[str]:
    """Every Python file of the project, tests too, as a path from its root."""
    skipped = {"build", "runs", "data", "shared"}
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in skipped]
    found = [*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    return sorted(file.relative_to(ROOT).as_posix() for file in found)


SOURCES = [file for file in python_files() if not file.startswith("tests/")]


def parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), file)


def room(file: str) -> str:
    """The room that a file belongs to."""
    [found] = [name for name in FLOORS if file == name or (name.endswith("/") and file.startswith(name))] or [""]
    return found


def file_of(module: str) -> str | None:
    """The project's file of a dotted module name; None for a module of somebody else, or a name within a module."""
    path = ROOT / module.replace(".", "/")
    if module.split(".")[0] not in PACKAGES:
        return None
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate.relative_to(ROOT).as_posix()
    return None


def imported_modules(tree: ast.AST, file: str) -> Iterator[str]:
    """Dotted names of all modules that are imported anywhere in `tree`, a part of the project's file."""
    package = file.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import name` names a module or something in the package's __init__.
            parts = [f"{base}.{alias.name}" for alias in node.names]
            yield from (part if file_of(part) else base for part in parts)


def arrows() -> dict[str, set[str]]:
    """Which of the project's files imports which."""
    modules = {file: imported_modules(parsed(file), file) for file in SOURCES}
    return {file: {target for name in names if (target := file_of(name))} - {file} for file, names in modules.items()}


def calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from outside_functions(node)


def test_every_file_has_a_room() -> None:
    assert len(SOURCES) > 20
    assert [file for file in SOURCES if not room(file)] == []


def test_every_room_of_the_slice_is_inhabited_by_at_least_one_file() -> None:
    assert set(FLOORS) - {room(file) for file in SOURCES} == set()


def test_imports_go_down() -> None:
    wrong = []
    for file, targets in arrows().items():
        for target in targets:
            here, there = room(file), room(target)
            downwards = FLOORS[there] < FLOORS[here] or here == there or (here, there) in NEIGHBOURS
            if not downwards or (here == "agents/" and there.startswith("envs/")):
                wrong.append(f"{file} -> {target}")
    assert wrong == []


def test_the_permitted_neighbours_are_in_use_and_on_one_floor() -> None:
    used = {(room(file), room(target)) for file, targets in arrows().items() for target in targets}
    assert used >= NEIGHBOURS
    assert all(FLOORS[one] == FLOORS[other] for one, other in NEIGHBOURS)


def test_imports_have_no_cycle() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_nobody_imports_the_experiments() -> None:
    importers = {
        file for file, targets in arrows().items() if any(room(target) == "experiments/" for target in targets)
    }
    assert {file for file in importers if not file.startswith("experiments/")} == set()


@pytest.mark.parametrize("file", python_files())
def test_no_file_passes_400_lines(file: str) -> None:
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("file", SOURCES)
def test_bad_input_is_never_met_by_an_assert(file: str) -> None:
    assert [node.lineno for node in ast.walk(parsed(file)) if isinstance(node, ast.Assert)] == []


@pytest.mark.parametrize("file", [file for file in SOURCES if file != SEEDED_IN])
def test_the_global_generators_are_seeded_in_one_place(file: str) -> None:
    assert [name for name in calls(parsed(file)) if name in GLOBAL_SEEDS] == []


@pytest.mark.parametrize("file", SOURCES)
def test_torchvision_is_imported_only_where_it_is_used(file: str) -> None:
    at_import = [node for node in outside_functions(parsed(file)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [name for node in at_import for name in imported_modules(node, file)]
    assert [name for name in names if name.split(".")[0] == "torchvision"] == []


@pytest.mark.parametrize("file", [file for file in SOURCES if file.startswith("experiments/")])
def test_no_command_bears_a_standard_modules_name(file: str) -> None:
    # A script's folder comes first on sys.path: its neighbours would hide such a module.
    assert Path(file).stem not in sys.stdlib_module_names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_have_an_init(package: str) -> None:
    # Without one, a package of the same name anywhere on sys.path would win.
    assert (ROOT / package / "__init__.py").is_file()


DECOY = "raise ImportError('the decoy was imported instead of the checkout')\n"
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.4.0\n"
AS_SITE = "import runpy, site, sys; site.addsitedir(sys.argv[1]); sys.argv = sys.argv[2:]; "
AS_SITE += "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.parametrize("place", ["PYTHONPATH", "site"])
def test_the_main_command_finds_the_checkout_beside_distributions_of_the_same_names(tmp_path: Path, place: str) -> None:
    decoys, elsewhere = tmp_path / "decoys", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in PACKAGES:
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
