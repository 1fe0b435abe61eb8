"""What is changed in a module, and that a failing test is found."""

from collections import Counter
from pathlib import Path

from tests.torture.mutants import LEAST, drawn, found_again, killed_by, mutants_of

MODULE = '''"""Text stays: 1 < 2."""

LIMIT: "int" = 3


def half(x: float = 2.0) -> float:
    """1 + 1."""
    if not x < LIMIT:
        raise ValueError(f"{x + 1} is too much: {2}")
    return x / 2
'''


def project(place: Path) -> Path:
    for name, text in {
        "envs/half.py": MODULE,
        "tests/envs/test_half.py": "from envs.half import half\n\n\ndef test_half():\n    assert half() == 1\n",
        "pytest.ini": "[pytest]\npythonpath = .\n",
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place / "envs" / "half.py"


def test_what_computes_is_changed_and_no_text_annotation_or_error(tmp_path: Path) -> None:
    found = {(one.line, one.before): one.after for one in mutants_of(project(tmp_path), tmp_path)}
    assert found == {
        (3, "3"): "(4)",
        (6, "2.0"): "(3.0)",
        (8, "not x < LIMIT"): "(x < LIMIT)",
        (8, "x < LIMIT"): "(x <= LIMIT)",
        (10, "x / 2"): "(x * 2)",
        (10, "2"): "(3)",
    }


def test_the_test_that_fails_is_named_and_the_file_is_put_back(tmp_path: Path) -> None:
    file = project(tmp_path)
    by_change = {one.after: one for one in mutants_of(file, tmp_path)}
    assert killed_by(by_change["(x * 2)"], tmp_path, 60) == "tests/envs/test_half.py::test_half"
    assert killed_by(by_change["(4)"], tmp_path, 60) is None
    assert file.read_text() == MODULE


def test_a_change_is_found_again_where_its_line_has_moved(tmp_path: Path) -> None:
    file = project(tmp_path)
    limit, half = (one for one in mutants_of(file, tmp_path) if one.before in ("3", "x / 2"))
    file.write_text(MODULE.replace("\n\nLIMIT", "\nOTHER = 3\n\nLIMIT").replace("x / 2", "x / 4"))
    moved = found_again(limit, tmp_path)
    assert moved is not None and (moved.line, moved.after) == (4, "(4)")
    assert found_again(half, tmp_path) is None
    rewritten = {"within": "return x / 4", "before": "x / 4", "after": "(x * 4)"}
    changed = found_again(half, tmp_path, rewritten)
    assert changed is not None and (changed.file, changed.line, changed.after) == (half.file, 11, "(x * 4)")
    file.rename(tmp_path / "envs" / "whole.py")
    assert found_again(half, tmp_path, rewritten) is None
    assert found_again(half, tmp_path, rewritten | {"file": "envs/whole.py"}) is not None


def test_a_seed_draws_the_same(tmp_path: Path) -> None:
    project(tmp_path)
    assert drawn(3, seed=4, root=tmp_path) == drawn(3, seed=4, root=tmp_path) != drawn(3, seed=5, root=tmp_path)


def test_every_package_has_its_share() -> None:
    chosen = drawn(80, seed=4)
    assert len(set(chosen)) == 80
    packages = Counter(str(Path(one.file).parent) for one in chosen)
    assert all(count >= LEAST for name, count in packages.items() if name != "ssl_core") and len(packages) > 20
