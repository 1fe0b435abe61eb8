"""Do the tests notice a wrong line? Mutants drawn by a seed, each applied to a copy of the project and tested there.

python -m tests.torture.mutants --count 60 --seed 0 --output results/mutants.json

A mutant changes one expression: a comparison, an arithmetic or a boolean operator, a number, True or False. At least
two are drawn of every package. First the tests that mirror its module run, then, if none fails, those of its whole
folder. What is finished is kept: the same command continues, in the commit in which it began. With `--again` the
same mutants are tried in the commit of now, which adds the verdicts of now to those of before. Where a line has been
rewritten or moved, the same mistake is written in its record by hand: `now` has those of the fields `file`, `within`,
`before` and `after` that have changed.
"""

import argparse
import ast
import copy
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.files import write_json
from astra_gym.ssl_core.utils.provenance import ROOT, commit

PACKAGES = ("ssl_core", "envs", "agents", "experiments")
TIME = "time"
"""In the place of a test: the limit has ended the tests."""
GONE = "gone"
"""In the place of a test: the line is not what it was, and not what the record says that it is now."""
NO_TESTS = pytest.ExitCode.NO_TESTS_COLLECTED
LEAST = 2
"""Mutants of every package."""
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """One changed expression.

    Args:
        file: from the project's root.
        line: of the expression.
        start, end: offsets of the expression in the file, in bytes.
        before, after: its text.
        within: the whole line before.
    """

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str
    within: str


def mutated(node: ast.expr) -> ast.expr | None:
    """The expression, wrong in one place; None where nothing is changed in its kind."""
    made = copy.copy(node)
    if isinstance(made, ast.Compare) and type(made.ops[0]) in SWAPS:
        made.ops = [SWAPS[type(made.ops[0])](), *made.ops[1:]]  # type: ignore[list-item]
    elif isinstance(made, ast.BinOp | ast.BoolOp) and type(made.op) in SWAPS:
        made.op = SWAPS[type(made.op)]()  # type: ignore[assignment]
    elif isinstance(made, ast.UnaryOp) and isinstance(made.op, ast.Not):
        return made.operand
    elif isinstance(made, ast.Constant) and isinstance(made.value, bool):
        made.value = not made.value
    elif isinstance(made, ast.Constant) and isinstance(made.value, int | float):
        made.value = made.value + 1
    else:
        return None
    return made


def expressions(tree: ast.AST) -> Iterator[ast.expr]:
    """The expressions that compute: none in annotations, texts or what is raised."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "exc", "msg"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST) and not isinstance(node, ast.JoinedStr):
                if isinstance(node, ast.expr):
                    yield node
                yield from expressions(node)


def mutants_of(file: Path, root: Path = ROOT) -> list[Mutant]:
    """All that a module offers."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    found = []
    for node in expressions(ast.parse(text)):
        wrong = mutated(node)
        if wrong is not None and node.end_lineno is not None and node.end_col_offset is not None:
            place = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            before = text.encode()[slice(*place)].decode()
            after = f"({ast.unparse(wrong)})"
            within = lines[node.lineno - 1].strip()
            found.append(Mutant(file.relative_to(root).as_posix(), node.lineno, *place, before, after, within))
    return found


def found_again(mutant: Mutant, root: Path = ROOT, now: Mapping[str, str] | None = None) -> Mutant | None:
    """The same change of the same line in a tree that has gone on, with the fields that are others `now`; the nearest
    if there are several, None if the line is gone."""
    mutant = replace(mutant, **now or {})
    file = root / mutant.file
    offered = mutants_of(file, root) if file.exists() else []
    change = mutant.within, mutant.before, mutant.after
    same = [one for one in offered if (one.within, one.before, one.after) == change]
    return min(same, key=lambda one: abs(one.start - mutant.start), default=None)


def drawn(count: int, seed: int, root: Path = ROOT) -> list[Mutant]:
    """So many mutants, `LEAST` of every package and the others of any, each of another place."""
    chance = random.Random(seed)
    packages: dict[str, list[Mutant]] = {}
    for file in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        packages.setdefault(file.parent.relative_to(root).as_posix(), []).extend(mutants_of(file, root))
    chosen = [one for name in packages for one in chance.sample(packages[name], min(LEAST, len(packages[name])))]
    taken = set(chosen)
    others = [one for made in packages.values() for one in made if one not in taken]
    return chosen + chance.sample(others, max(0, count - len(chosen)))


def tests_of(file: str, root: Path = ROOT) -> list[list[str]]:
    """The tests that run against a module's mutants, one call after the other."""
    module = Path(file)
    folder = root / "tests" / module.parent
    mirrored = sorted(str(test.relative_to(root)) for test in folder.glob(f"test_{module.stem}*.py"))
    return [tests for tests in (mirrored, [str(folder.relative_to(root))] if folder.is_dir() else []) if tests]


def killed_by(mutant: Mutant, place: Path, limit: float) -> str | None:
    """The first test that fails with the mutant in a copy of the project at `place`, or "time" past the limit; None if
    all pass."""
    file = place / mutant.file
    whole = file.read_bytes()
    file.write_bytes(whole[: mutant.start] + mutant.after.encode() + whole[mutant.end :])
    try:
        for tests in tests_of(mutant.file, place):
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
            # of two mutants of one size within a second, Python would take the compiled file of the first
            alone = {
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                "GPU_TESTS_ON": "cpu",
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            try:
                done = subprocess.run(
                    command, cwd=place, env=os.environ | alone, capture_output=True, text=True, timeout=limit
                )
            except subprocess.TimeoutExpired:
                return TIME
            if done.returncode not in (0, NO_TESTS):
                found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
                return found[1] if found else f"status {done.returncode}"
    finally:
        file.write_bytes(whole)
    return None


def checked_out(at: str, place: Path) -> Path:
    """A copy of the project as it was in a commit."""
    for words in (["clone", "--quiet", "--shared", "--no-checkout", ROOT, place], ["-C", place, "checkout", "-q", at]):
        subprocess.run(["git", *map(str, words)], check=True)
    return place


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=300, help="seconds of one call of pytest")
    parser.add_argument("--output", type=Path, default=Path("results/mutants.json"))
    parser.add_argument("--again", action="store_true", help="try what is recorded in the commit of now")
    parser.add_argument(
        "--of", default="", help="with --again, those whose file or killer begins with this; None: survivors"
    )
    given = parser.parse_args()
    now = commit(ROOT).removesuffix("-dirty")
    document: dict[str, Any] = {"schema": 1, "seed": given.seed, "commit": now, "killed": 0, "mutants": []}
    if given.output.exists():
        document |= read_json(given.output)
    with tempfile.TemporaryDirectory() as temporary:
        chosen = drawn(given.count, given.seed, checked_out(document["commit"], Path(temporary) / "then"))
        known = {(one["file"], one["start"], one["after"]): one for one in document["mutants"]}
        records = [asdict(one) | known.get((one.file, one.start, one.after), {}) for one in chosen]
        place = checked_out(now, Path(temporary) / "now") if given.again else Path(temporary) / "then"
        for mutant, record in zip(chosen, records, strict=True):
            if given.again:
                if not any(str(record.get(name)).startswith(given.of) for name in ("file", "killed_by")):
                    continue
                again = found_again(mutant, place, record.get("now"))
                record["again"] = killed_by(again, place, given.limit) if again else GONE
                record["again_commit"] = now
            elif "killed_by" not in record:
                began = time.monotonic()
                record["killed_by"] = killed_by(mutant, place, given.limit)
                record["seconds"] = round(time.monotonic() - began, 1)
            else:
                continue
            finished = [one for one in records if "killed_by" in one]
            # past the limit the tests may have been slow, or the mutant without end: that is no verdict
            for name, verdict in (("killed", "killed_by"), ("killed_again", "again")):
                document[name] = sum(one.get(verdict) not in (None, TIME, GONE) for one in finished)
            write_json(given.output, document | {"mutants": finished})
            verdict = record["again" if given.again else "killed_by"]
            print(f"{mutant.file}:{mutant.line} {mutant.before!r} -> {mutant.after!r}: {verdict}", flush=True)


if __name__ == "__main__":
    main()
