"""Messages of one line that stay short: a long value is shown in part, lists are cut, no terminal code gets in."""

import re
import reprlib
from collections.abc import Iterable

LIMIT = 300
"""Characters of a message; paths are not counted."""
SHOWN = 60
"""Characters of a value that a message shows."""
FEW = 3
"""Names that a message lists."""
PATH = re.compile(r"(?<![\w/])(?:~|\.{1,2}|[\w.-]+)?/[^\s'\",;:()]*[A-Za-z_][^\s'\",;:()]*")
"""A path in a message: not counted. A fraction such as 8/255 is none."""
FIRST, MOST, LONGEST = 0xE000, 99, 1000

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 10 * SHOWN
_repr.maxdict = _repr.maxlist = _repr.maxtuple = _repr.maxset = 10


def shown(value: object, most: int = SHOWN) -> str:
    """A value as Python writes it, on one line; of a long one the beginning and the end."""
    try:
        text = _repr.repr(value)
    except Exception:  # a user's own object may fail at anything
        text = f"<{type(value).__name__}>"
    return brief(text, most)


def brief(value: object, most: int = SHOWN) -> str:
    """A text or plain value as a person writes it, without quotation marks; of a long one the beginning and the end."""
    text = plain(str(value))
    return text if len(text) <= most else f"{text[: most - 15]} ... {text[-10:]}"


def few(names: Iterable[object], where: str = "", most: int = FEW) -> str:
    """The first names, how many more there are, and where all of them are listed: `a, b, c and 9 more (see --list)`."""
    listed = [brief(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    place = f" (see {where})" if more and where else ""
    return ", ".join(listed[:most]) + more + place


def plain(text: str) -> str:
    """A text on one line: without the terminal's codes, and with `?` for signs that cannot be printed."""
    return printable(" ".join(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).split()))


def printable(text: str) -> str:
    """A text with `?` for signs that cannot be printed: a path may have line breaks and a terminal's codes in it."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def said(program: str, message: object, kind: str = "error") -> str:
    """What a command says on the standard error, `PROGRAM: error: MESSAGE`: all of it is `short`."""
    return short(f"{program}: {kind}: {message}")


def short(message: object, limit: int = LIMIT) -> str:
    """A message on one line, of at most `limit` characters beside its paths: the middle of a longer one is left out.

    What is wrong stands at the beginning of a message, and what to do at its end.
    """
    text, paths = _without_paths(plain(str(message)))
    if len(text) > limit + len(paths):
        head = limit * 3 // 5
        gap = " ... "
        text = text[:head] + gap + text[len(text) - (limit - head - len(gap)) :]
    return re.sub(f"[{chr(FIRST)}-{chr(FIRST + MOST)}]", lambda match: paths[ord(match[0]) - FIRST], text)


def counted(text: str) -> int:
    """The length of a message without its paths."""
    text, paths = _without_paths(text)
    return len(text) - len(paths)


def _without_paths(text: str) -> tuple[str, list[str]]:
    """The text with a sign of Unicode's private area for each of its paths, and the paths, shortened to what a file
    system takes."""
    text = re.sub(f"[{chr(FIRST)}-{chr(FIRST + MOST)}]", "?", text)
    paths: list[str] = []

    def mask(match: re.Match[str]) -> str:
        if len(paths) > MOST:
            return match[0]
        path = match[0]
        paths.append(path if len(path) <= LONGEST else f"{path[: LONGEST // 2]}...{path[-LONGEST // 2 :]}")
        return chr(FIRST + len(paths) - 1)

    return PATH.sub(mask, text), paths
