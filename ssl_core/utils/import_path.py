"""Custom code by a dotted path, `package.module:Name`."""

import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from astra_gym.ssl_core.utils.messages import brief, shown

Base = TypeVar("Base")
PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_CHECK: ContextVar[Callable[[str, str], None] | None] = ContextVar("check", default=None)
_CUSTOM: set[str] = set()
"""Top-level names of the modules that were imported by a dotted path."""
LIBRARIES = ("astra_gym", "stable_baselines3", "sb3_contrib")
"""Modules that call the world: they stand on the way to its errors, and are not where these come from."""


@contextmanager
def imports_checked(check: Callable[[str, str], None]) -> Iterator[None]:
    """Let `imported` import only what `check` accepts, inside this context.

    Args:
        check: function of the kind and the dotted path, "agent" and "my_module:MyAgent"; it raises a ValueError to
            refuse.
    """
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


def is_dotted(name: object) -> bool:
    """Whether a name is meant as a dotted path, not as a name of a table."""
    return isinstance(name, str) and ":" in name


def imported(path: str, what: str, example: str) -> Any:
    """Import the object at a dotted path: an attribute of a module, which may be in the current directory.

    Args:
        path: `package.module:Name`.
        what: kind of the expected object, for messages: "agent".
        example: an example of such a path, for messages.

    Raises:
        ValueError: if the path is malformed, its module cannot be imported or has no such attribute, or it may not be
            imported at present (`imports_checked`).
    """
    if not isinstance(path, str) or not PATH.fullmatch(path):
        raise ValueError(f"{what} {shown(path)} is no dotted path: expected module:Name, such as {example}")
    if (check := _CHECK.get()) is not None:
        check(what, path)
    module_name, _, names = path.partition(":")
    _CUSTOM.update({module_name.partition(".")[0]} - {*LIBRARIES})
    look_here()
    try:
        module = pkgutil.resolve_name(f"{module_name}:")
    except (Exception, SystemExit) as error:
        # SystemExit, since a script without a guard ends the process on import
        reason = " ".join(str(error).split())
        module_name, reason = brief(module_name), brief(reason, 100)
        raise ValueError(
            f"{what} {shown(path)}: cannot import {module_name}: {type(error).__name__}: {reason}"
        ) from error
    try:
        return pkgutil.resolve_name(path)
    except AttributeError:
        place = f"the module {brief(module_name)} ({_place(module)})"
        raise ValueError(f"{what} {shown(path)}: {place} has no {brief(names)}") from None


def located(error: BaseException) -> str:
    """Return an error's words and, if custom code raised it or made the call that did, that line of the code."""
    place = ""
    cause: BaseException | None = error
    while cause is not None:
        for frame, line in traceback.walk_tb(cause.__traceback__):
            if str(frame.f_globals.get("__name__")).partition(".")[0] in _CUSTOM:
                place = f" ({frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name})"
        cause = cause.__cause__
    return f"{error}{place}"


def look_here() -> None:
    """Let Python find modules in the current directory too."""
    if os.getcwd() not in sys.path:
        # last, so that a user's file never hides an installed module
        sys.path.append(os.getcwd())


def imported_class(path: str, base: type[Base], place: str, what: str) -> type[Base]:
    """Import a subclass at a dotted path.

    Args:
        path: `package.module:Name`.
        base: class that it has to be derived from.
        place: where users import the base from, for messages: `astra_gym.ssl_core.methods`.
        what: as in `imported`.

    Raises:
        ValueError: as `imported`, or if the object is no subclass.
    """
    found = imported(path, what, f"my_module:My{base.__name__.removeprefix('Reward')}")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{what} {shown(path)} is {described(found)}: expected a subclass of {place}.{base.__name__}")
    return found


def described(found: object) -> str:
    """Describe an object in a few words, for a message about an unexpected object."""
    return f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"


def _place(module: Any) -> str:
    return getattr(module, "__file__", None) or ("a namespace package" if hasattr(module, "__path__") else "built in")
