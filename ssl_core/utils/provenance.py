"""Where a result comes from: the commit of the project, the versions of what it stands on."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout; of an installed distribution, the folder of its package."""
CHECKOUT = ROOT if (ROOT / "astra_gym").is_dir() else None
"""The checkout, from which `import astra_gym` finds this copy; None where it is installed without one."""
DISTRIBUTION = "astra-gym"
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "gymnasium",
    "stable-baselines3",
    "sb3-contrib",
    "pyautoattack",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries among `PACKAGES`."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(root: Path | str) -> str:
    """The git commit checked out in `root`.

    Returns:
        40 hex digits, with `-dirty` where tracked files were changed or Python files are not tracked; `unknown`
        without git, without a commit, or where `root` is not itself a work tree's root: a copy of the project
        inside some other repository must not pass that one's commit off as its own. Of an installed distribution,
        its name and version.
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
