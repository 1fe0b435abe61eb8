"""Which modules a command may import: those that its user names, not those that only a file names.

Importing a module runs its code. A dotted path (`my_module:MyAgent`) in a config file, in a run's record or in a
comparison's plan is refused unless the command line repeats it, or has `--trust`. That holds for `--config FILE` too:
a file that the user wrote and the `config.yaml` of a stranger's run look alike.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

from astra_gym.ssl_core.safety.yaml_files import load_yaml
from astra_gym.ssl_core.utils.import_path import imports_checked, is_dotted
from astra_gym.ssl_core.utils.messages import LIMIT, counted, shown

NAMED = ("agent", "method", "dataset", "observation", "attack_start")
"""Settings whose value may be a dotted path; names in `reward_weights` may be dotted paths too."""
ROOM = 80
"""Characters of the error reserved for what a caller adds, such as the arm of a comparison."""


def only_named(names: Collection[str | None], again: str) -> AbstractContextManager[None]:
    """While entered, allow the import of the named modules only.

    Args:
        names: dotted paths that the user has named.
        again: the command with `--trust`, for the error; if it is too long, the error describes it.
    """

    def check(what: str, path: str) -> None:
        if path not in names:
            said = (
                f"the {what} {shown(path)} is named in a file, not on this command line, and importing it runs its "
                f"code; if you trust it, type `{again}`"
            )
            # a command that is cut short does not work
            whole = counted(said) <= LIMIT - ROOM
            raise ValueError(said if whole else said.replace(f"type `{again}`", "repeat your command with --trust"))

    return imports_checked(check)


def nothing(file: Path | str) -> AbstractContextManager[None]:
    """While entered, refuse every import of a user's module: reading a record needs none."""

    def check(what: str, path: str) -> None:
        raise ValueError(f"{file} is no complete record of a run: to read it, the {what} {path!r} would be imported")

    return imports_checked(check)


def named_by(settings: Mapping[str, Any]) -> list[str]:
    """Return the flags that name the modules of a run's settings, given flat; empty if nothing is custom."""
    flags = [word for name in NAMED if is_dotted(settings.get(name)) for word in (f"--{name}", settings[name])]
    weights = settings.get("reward_weights") or {}
    return flags + [f"--reward_weights.{name}={weight}" for name, weight in weights.items() if is_dotted(name)]


def named_in(argv: Sequence[str]) -> set[str]:
    """Return the dotted paths that a command line names, as values of `NAMED` or as names in `reward_weights`."""
    found: set[Any] = set()
    for token, after in pairwise([*argv, ""]):
        flag, equals, text = token.partition("=")
        name, _, term = flag.removeprefix("--").partition(".")
        text = text if equals else after
        if flag.startswith("--") and name in NAMED:
            found.add(text)
        elif flag.startswith("--") and name == "reward_weights":
            found |= {term} if term else set(_mapping(text))
    return set(filter(is_dotted, found))


def _mapping(text: str) -> Mapping[Any, Any]:
    try:
        values = load_yaml(text)
    except ValueError:
        # the parser reports the error
        return {}
    return values if isinstance(values, dict) else {}


def trusting(settings: Mapping[str, Any]) -> list[str]:
    """Return the flags that a resuming command needs besides the run's folder: `--trust` if a module is imported."""
    return ["--trust"] if named_by(settings) else []
