"""Print the oldest versions that `pyproject.toml` allows, as constraints for pip; `make test-oldest` installs them.

Of the tools in the extras `dev` and `docs` no user needs an old one.
"""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def oldest_versions() -> list[str]:
    """Return "name==version" for each distribution that users need, alone or with an extra."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(line for name in extras.keys() - {"dev", "docs"} for line in extras[name])]
    return sorted(re.sub(r"([\w-]+)>=([\d.]+).*", r"\1==\2", line) for line in needed)


if __name__ == "__main__":
    print("\n".join(oldest_versions()))
