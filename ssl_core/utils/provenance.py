"""The origin of a result: the commit of the project and the versions of its libraries."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, or the package's folder in an installed distribution."""
CHECKOUT = ROOT if (ROOT / "astra_gym").is_dir() else None
"""The checkout from which `import astra_gym` loads this copy; None if it is installed without one."""
DISTRIBUTION = "astra-gym"
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "timm",
    "gymnasium",
    "stable-baselines3",
    "sb3-contrib",
    "pyautoattack",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries of `PACKAGES`."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    # each row of an evaluation has them, and to look them up takes ten milliseconds
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(root: Path | str) -> str:
    """Return the git commit checked out in `root`.

    Returns:
        40 hex digits, with `-dirty` if tracked files have changed or Python files are not tracked; `unknown` without
        git, without a commit, or if `root` is not the root of a work tree: a copy of the project inside another
        repository must not report the commit of that repository. For an installed distribution, its name and version.
    """
    root = Path(root).resolve()
    if root == ROOT and CHECKOUT is None:
        return f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}"

    def git(*words: str) -> str:
        run = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        return run.stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != root:
            return "unknown"
        head = git("rev-parse", "--verify", "HEAD").strip()
        status = git("status", "--porcelain", "--untracked-files=all").splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    dirty = any(not line.startswith("??") or line.rstrip('"').endswith(".py") for line in status)
    return f"{head}-dirty" if dirty else head
