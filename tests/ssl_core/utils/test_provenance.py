import subprocess
from pathlib import Path

import torch

from astra_gym.ssl_core.utils.provenance import CHECKOUT, ROOT, commit, versions


def test_this_is_a_checkout_and_its_root_has_the_project_file() -> None:
    assert CHECKOUT == ROOT and (ROOT / "pyproject.toml").is_file()


def test_versions_name_python_and_torch() -> None:
    found = versions()
    assert found["python"].startswith("3.")
    assert torch.__version__.startswith(found["torch"].split("+")[0])
    assert all(isinstance(version, str) for version in found.values())


def git(root: Path, *words: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", str(root), *identity, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_commit_tells_clean_changed_and_foreign_trees_apart(tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    assert commit(root) == "unknown"
    git(root, "init", "--quiet")
    assert commit(root) == "unknown"
    source = root / "code.py"
    source.write_text("x = 1\n")
    git(root, "add", "code.py")
    git(root, "commit", "--quiet", "-m", "first")
    head = git(root, "rev-parse", "HEAD")
    assert commit(root) == head

    (root / "notes.txt").write_text("not code")
    (root / "inner").mkdir()
    assert commit(root) == head
    assert commit(root / "inner") == "unknown"

    (root / "inner" / "new.py").write_text("")
    assert commit(root) == f"{head}-dirty"
    (root / "inner" / "new.py").unlink()
    source.write_text("x = 2\n")
    assert commit(root) == f"{head}-dirty"
