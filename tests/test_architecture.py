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
    "ssl_core/utils/rng.py": 0,
    "ssl_core/utils/registry.py": 0,
    "ssl_core/utils/memory.py": 0,
    "ssl_core/utils/clock.py": 0,
    "ssl_core/utils/import_path.py": 0,
    "ssl_core/utils/overrides.py": 1,
    "ssl_core/utils/training_plan.py": 0,
    "ssl_core/evaluation/severities.py": 0,
    "ssl_core/models/route_norm.py": 0,
    "ssl_core/models/init.py": 0,
    "ssl_core/models/ema.py": 0,
    "ssl_core/losses/contrastive.py": 1,
    "ssl_core/utils/hashing.py": 1,
    "ssl_core/evaluation/embedding_metrics.py": 1,
    "ssl_core/evaluation/corruptions.py": 1,
    "ssl_core/transforms/moebius.py": 1,
    "ssl_core/models/fixed_conv.py": 1,
    "ssl_core/attacks/pgd.py": 1,
    "ssl_core/transforms/views.py": 1,
    "ssl_core/training/optim.py": 1,
    "ssl_core/models/projectors.py": 1,
    "ssl_core/attacks/weight_perturbation.py": 1,
    "ssl_core/data/decoding.py": 1,
    "ssl_core/data/image_set.py": 1,
    "ssl_core/data/sampler.py": 1,
    "ssl_core/models/target_network.py": 2,
    "ssl_core/models/heads.py": 2,
    "ssl_core/data/image_folder.py": 2,
    "ssl_core/data/batch_source.py": 2,
    "ssl_core/data/labels.py": 2,
    "ssl_core/losses/cosine.py": 2,
    "ssl_core/losses/multiview.py": 2,
    "ssl_core/losses/invariance.py": 2,
    "ssl_core/losses/targets.py": 2,
    "ssl_core/transforms/multi_crop.py": 2,
    "ssl_core/transforms/high_frequency.py": 1,
    "ssl_core/transforms/trivial_augment.py": 2,
    "ssl_core/transforms/perspective_views.py": 2,
    "ssl_core/transforms/color.py": 0,
    "ssl_core/transforms/blur.py": 0,
    "ssl_core/losses/divergences.py": 2,
    "ssl_core/models/folding.py": 3,
    "ssl_core/models/export.py": 3,
    "ssl_core/evaluation/landscape.py": 3,
    "ssl_core/models/gradcache.py": 3,
    "ssl_core/data/datasets.py": 3,
    "ssl_core/models/clustering.py": 3,
    "ssl_core/methods/": 3,
    "ssl_core/training/learner.py": 4,
    "ssl_core/models/checkpoint.py": 4,
    "ssl_core/evaluation/results.py": 4,
    "ssl_core/evaluation/sanity.py": 4,
    "ssl_core/evaluation/masking.py": 4,
    "ssl_core/evaluation/gradient_checks.py": 4,
    "ssl_core/downstream/linear_probe.py": 4,
    "ssl_core/downstream/knn.py": 4,
    "ssl_core/downstream/finetuning.py": 4,
    "ssl_core/downstream/postprocessing.py": 4,
    "ssl_core/training/coreset.py": 4,
    "ssl_core/evaluation/autoattack.py": 4,
    "ssl_core/evaluation/attack_suite.py": 4,
    "ssl_core/evaluation/shifts.py": 4,
    "ssl_core/models/foreign.py": 4,
    "ssl_core/evaluation/robustness.py": 4,
    "envs/actions.py": 5,
    "envs/engine.py": 5,
    "envs/rewards.py": 5,
    "envs/world_config.py": 5,
    "envs/data_config.py": 5,
    "envs/builders.py": 5,
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
    ("ssl_core/evaluation/autoattack.py", "ssl_core/evaluation/results.py"),
    ("ssl_core/evaluation/autoattack.py", "ssl_core/evaluation/robustness.py"),
    ("ssl_core/evaluation/autoattack.py", "ssl_core/evaluation/sanity.py"),
    ("ssl_core/evaluation/attack_suite.py", "ssl_core/evaluation/autoattack.py"),
    ("ssl_core/evaluation/attack_suite.py", "ssl_core/evaluation/results.py"),
    ("ssl_core/evaluation/attack_suite.py", "ssl_core/evaluation/robustness.py"),
    ("ssl_core/evaluation/attack_suite.py", "ssl_core/evaluation/sanity.py"),
    ("ssl_core/evaluation/sanity.py", "ssl_core/evaluation/results.py"),
    ("ssl_core/evaluation/masking.py", "ssl_core/evaluation/results.py"),
    ("ssl_core/evaluation/shifts.py", "ssl_core/evaluation/results.py"),
    ("ssl_core/evaluation/shifts.py", "ssl_core/evaluation/robustness.py"),
    ("ssl_core/evaluation/masking.py", "ssl_core/evaluation/sanity.py"),
    ("ssl_core/evaluation/masking.py", "ssl_core/evaluation/gradient_checks.py"),
    ("ssl_core/evaluation/masking.py", "ssl_core/evaluation/robustness.py"),
    ("ssl_core/evaluation/gradient_checks.py", "ssl_core/evaluation/robustness.py"),
    ("ssl_core/evaluation/gradient_checks.py", "ssl_core/evaluation/sanity.py"),
    ("ssl_core/downstream/linear_probe.py", "ssl_core/evaluation/sanity.py"),
    ("ssl_core/downstream/knn.py", "ssl_core/evaluation/sanity.py"),
    ("ssl_core/downstream/finetuning.py", "ssl_core/downstream/linear_probe.py"),
    ("ssl_core/downstream/finetuning.py", "ssl_core/training/learner.py"),
    ("ssl_core/methods/", "ssl_core/models/clustering.py"),
    ("ssl_core/downstream/postprocessing.py", "ssl_core/downstream/finetuning.py"),
    ("ssl_core/downstream/postprocessing.py", "ssl_core/downstream/linear_probe.py"),
    ("ssl_core/training/coreset.py", "ssl_core/training/learner.py"),
    ("ssl_core/models/foreign.py", "ssl_core/models/checkpoint.py"),
    ("envs/builders.py", "envs/world_config.py"),
    ("envs/engine.py", "envs/builders.py"),
    ("envs/engine.py", "envs/records.py"),
    ("envs/engine.py", "envs/rewards.py"),
    ("envs/engine.py", "envs/world_config.py"),
    ("envs/rewards.py", "envs/world_config.py"),
    ("envs/world_config.py", "envs/data_config.py"),
    ("envs/torch_env.py", "envs/actions.py"),
    ("envs/torch_env.py", "envs/engine.py"),
}
SEEDED_IN = "agents/sb3/algorithms.py"
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
