"""The house's rules, read from the code: imports go down the floors, and a few things are nowhere or in one place."""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from astra_gym.experiments.config.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ssl_core", "envs", "agents", "experiments")
# A room may import from the floors below it, and within itself. Two rooms of one floor do not know each other.
FLOORS = (
    ("ssl_core/safety",),
    ("ssl_core/utils",),
    ("ssl_core/settings",),
    ("ssl_core/data", "ssl_core/transforms", "ssl_core/losses", "ssl_core/kernels", "ssl_core/distributed"),
    ("ssl_core/models",),
    ("ssl_core/attacks",),
    ("ssl_core/methods", "ssl_core/evaluation"),
    ("ssl_core/training", "ssl_core/downstream"),
    ("envs/api",),
    ("envs", "agents"),
    ("experiments/config", "experiments/console", "experiments/stats"),
    ("experiments/runs", "experiments/plotting"),
    ("experiments/evaluation", "experiments/engines"),
    ("experiments/comparison",),
    ("experiments/tuning",),
    ("experiments/headroom", "experiments/benchmarks"),
    ("experiments/reports",),
    ("experiments", "astra_gym"),
    ("examples",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
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


SOURCES = [file for file in python_files() if not file.startswith(("tests/", "docs/"))]
NO_PACKAGES = ("ssl_core", "astra_gym", "examples")
FOLDERS = sorted({str(Path(file).parent) for file in SOURCES} - set(NO_PACKAGES))


@cache
def parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), file)


@cache
def nodes(file: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parsed(file)))


def room(file: str) -> str:
    """The room that a file belongs to: the innermost of those whose name its path begins with; empty if none."""
    stem = file.removesuffix(".py")
    found = [name for name in FLOOR if stem == name or stem.startswith(f"{name}/")]
    return max(found, key=len, default="")


@cache
def file_of(module: str) -> str | None:
    """The project's file of a dotted module name; None for a module of somebody else, or a name within a module."""
    first, _, rest = module.partition(".")
    if first != "astra_gym" or not rest:
        return "astra_gym/__init__.py" if module == "astra_gym" else None
    path = ROOT / rest.replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py", ROOT / "astra_gym" / f"{rest}.py"):
        if candidate.is_file():
            return candidate.relative_to(ROOT).as_posix()
    return None


def imported_modules(among: Iterable[ast.AST], file: str) -> Iterator[str]:
    """Dotted names of all modules that these nodes of the project's file import."""
    package = ["astra_gym", *(part for part in file.split("/")[:-1] if part != "astra_gym")]
    for node in among:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import name` names a module or something in the package's __init__.
            parts = [f"{base}.{alias.name}" for alias in node.names]
            yield from (part if file_of(part) else base for part in parts)


@cache
def arrows() -> dict[str, set[str]]:
    """Which of the project's files imports which."""
    modules = {file: imported_modules(nodes(file), file) for file in SOURCES}
    return {file: {target for name in names if (target := file_of(name))} - {file} for file, names in modules.items()}


def calls(file: str) -> Iterator[str]:
    for node in nodes(file):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from outside_functions(node)


def test_every_file_has_a_room_and_every_room_a_file() -> None:
    assert len(SOURCES) > 100
    outside = [file for file in SOURCES if not room(file)]
    assert outside == ["ssl_core/__init__.py"]
    assert {room(file) for file in SOURCES} - {""} == set(FLOOR)


def test_imports_go_down() -> None:
    wrong = []
    for file, targets in arrows().items():
        for target in targets - {"astra_gym/__init__.py"}:
            here, there = room(file), room(target)
            if here != there and not FLOOR[there] < FLOOR[here]:
                wrong.append(f"{file} -> {target}")
    assert wrong == []


def test_all_imports_begin_with_the_distribution() -> None:
    plain = {
        file: [name for name in imported_modules(nodes(file), file) if name.split(".")[0] in PACKAGES]
        for file in python_files()
    }
    assert {file: names for file, names in plain.items() if names} == {}


def test_no_command_imports_another() -> None:
    commands = {f"experiments/{module}.py" for module in COMMANDS.values()}
    importing = {file: targets & commands for file, targets in arrows().items() if room(file) != "examples"}
    assert {file: targets for file, targets in importing.items() if targets} == {}


def test_only_the_command_imports_the_distribution_itself() -> None:
    importers = {file for file, targets in arrows().items() if "astra_gym/__init__.py" in targets}
    assert importers == {"astra_gym/__main__.py"}


def test_imports_have_no_cycle() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_experiments_holds_commands_and_packages_and_ssl_core_packages_only() -> None:
    files = {Path(file).stem for file in SOURCES if str(Path(file).parent) == "experiments"}
    assert files == {*COMMANDS.values(), "console", "stats", "__init__"}
    assert [file for file in SOURCES if str(Path(file).parent) == "ssl_core"] == ["ssl_core/__init__.py"]


def test_a_package_has_2_to_16_files_and_says_its_purpose_in_one_line() -> None:
    files = Counter(str(Path(file).parent) for file in SOURCES)
    assert {folder: files[folder] for folder in FOLDERS if not 2 <= files[folder] <= 16} == {}
    purposes = {folder: ast.get_docstring(parsed(f"{folder}/__init__.py")) or "" for folder in FOLDERS}
    assert {folder: text for folder, text in purposes.items() if len(text.splitlines()) != 1} == {}


def test_a_class_has_a_name_of_its_own() -> None:
    names = Counter(
        node.name
        for file in SOURCES
        for node in parsed(file).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


ABOUT_SEVERAL = {
    "tests/agents": ("overrides",),
    "tests/examples": ("examples",),
    "tests/envs": ("every_id", "methods_in_worlds", "perspective_in_worlds", "pickling", "waits"),
    "tests/ssl_core/methods": ("every_method",),
    "tests/ssl_core/evaluation": ("frost",),
    "tests/ssl_core/models": ("recompute",),
    "tests/experiments": ("sealed_files",),
    "tests/experiments/config": ("authors_settings",),
    "tests/experiments/runs": ("cached_folders", "fair_runs", "methods", "non_finite", "saving_memory"),
}
"""Tests of something that several modules of their folder make together."""


def test_the_tests_mirror_the_tree() -> None:
    strays = []
    for file in python_files():
        folder, _, name = file.rpartition("/")
        if not name.startswith("test_") or folder in ("tests", "tests/torture", "tests/gpu"):
            continue
        stem, place = name.removeprefix("test_").removesuffix(".py"), ROOT / folder.removeprefix("tests/")
        modules = {path.stem for path in place.glob("*.py")} | set(ABOUT_SEVERAL.get(folder, ()))
        if not any(stem == module or stem.startswith(f"{module}_") for module in modules):
            strays.append(file)
    assert strays == []


def test_no_test_imports_another() -> None:
    imports = {file: imported_modules(nodes(file), file) for file in python_files() if file.startswith("tests/")}
    strays = [
        f"{file} -> {name}"
        for file, names in imports.items()
        for name in names
        if re.fullmatch(r"tests\..*\b(test_\w+|conftest)(\.\w+)?", name)
    ]
    assert strays == []


def test_no_file_passes_400_lines() -> None:
    lines = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in python_files()}
    assert {file: count for file, count in lines.items() if count > 400} == {}


def test_errors_call_no_command_by_its_script_which_an_installed_package_lacks() -> None:
    scripts = re.compile(rf"\b({'|'.join(COMMANDS.values())})\.py\b")
    for file in SOURCES:
        # `experiments` has tables of scripts, and help whose commands are written as they were called
        raised = [node for node in nodes(file) if isinstance(node, ast.Raise)]
        among = [part for each in raised for part in ast.walk(each)] if file.startswith("experiments/") else nodes(file)
        docs = {id(node.value) for node in nodes(file) if isinstance(node, ast.Expr)}
        texts = [node.value for node in among if isinstance(node, ast.Constant) and id(node) not in docs]
        assert not [text for text in texts if isinstance(text, str) and scripts.search(text)], file


def test_bad_input_is_never_met_by_an_assert() -> None:
    found = [(file, node) for file in SOURCES for node in nodes(file)]
    assert [f"{file}:{node.lineno}" for file, node in found if isinstance(node, ast.Assert)] == []


def test_the_global_generators_are_seeded_in_one_place() -> None:
    assert {file for file in SOURCES if set(calls(file)) & GLOBAL_SEEDS} == {SEEDED_IN}


def test_torchvision_is_imported_only_where_it_is_used() -> None:
    found = []
    for file in SOURCES:
        names = imported_modules(outside_functions(parsed(file)), file)
        found += [(file, name) for name in names if name.split(".")[0] == "torchvision"]
    assert found == []
