"""Short messages of one line: long values and lists are shortened, terminal codes are removed."""

import re
import reprlib
from collections.abc import Iterable

LIMIT = 300
"""Largest number of characters of a message; paths are not counted."""
SHOWN = 60
"""Largest number of characters of a value in a message."""
FEW = 3
"""Largest number of names in a message."""
PATH = re.compile(r"(?<![\w/])(?:~|\.{1,2}|[\w.-]+)?/[^\s'\",;:()]*[A-Za-z_][^\s'\",;:()]*")
"""A path in a message, which is not counted. A fraction such as 8/255 does not match."""
FIRST, MOST, LONGEST = 0xE000, 99, 1000


class _Repr(reprlib.Repr):
    """A repr in which radii and step sizes stand as users write them: 8/255, not 0.03137254901960784."""

    def repr_float(self, value: float, level: int) -> str:
        text = repr(value)
        of_255 = round(255 * value) if abs(value) <= 1 else 0
        # 85/255 is more likely meant as 1/3
        exact = of_255 / 255 == value and of_255 % 85
        return f"{of_255}/255" if exact and len(text) > len("0.03137") else text


_repr = _Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 10 * SHOWN
_repr.maxdict = _repr.maxlist = _repr.maxtuple = _repr.maxset = 10


def shown(value: object, most: int = SHOWN) -> str:
    """Return a value's repr on one line; of a long one the beginning and the end."""
    try:
        text = _repr.repr(value)
    except Exception:  # a custom object's repr may raise any error
        text = f"<{type(value).__name__}>"
    return brief(text, most)


def brief(value: object, most: int = SHOWN) -> str:
    """Return a text or plain value without quotation marks, on one line; of a long one the beginning and the end."""
    text = plain(str(value))
    return text if len(text) <= most else f"{text[: most - 15]} ... {text[-10:]}"


def few(names: Iterable[object], where: str = "", most: int = FEW) -> str:
    """Format the first names, the number of the others, and where all are listed: `a, b, c and 9 more (see --list)`."""
    listed = [brief(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    place = f" (see {where})" if more and where else ""
    return ", ".join(listed[:most]) + more + place


def plural(noun: str, count: int) -> str:
    """Return a noun as it stands after a number: "run" after 1, else "runs"."""
    return noun if count == 1 else f"{noun}s"


def amount(count: int, noun: str) -> str:
    """Return a number of things: "1 run", "2 runs"."""
    return f"{count} {plural(noun, count)}"


def plain(text: str) -> str:
    """Return a text on one line, without terminal codes, with `?` for characters that cannot be printed."""
    return printable(" ".join(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).split()))


def printable(text: str) -> str:
    """Replace characters that cannot be printed by `?`: a path may contain line breaks and terminal codes."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def said(program: str, message: object, kind: str = "error") -> str:
    """Format a command's message for the standard error, `PROGRAM: error: MESSAGE`, shortened as a whole (`short`)."""
    return short(f"{program}: {kind}: {message}")


def short(message: object, limit: int = LIMIT) -> str:
    """Shorten a message to one line of at most `limit` characters beside its paths, by leaving out the middle.

    The beginning of a message says what is wrong, and its end what to do.
    """
    text, paths = _without_paths(plain(str(message)))
    if len(text) > limit + len(paths):
        head = limit * 3 // 5
        gap = " ... "
        text = text[:head] + gap + text[len(text) - (limit - head - len(gap)) :]
    return re.sub(f"[{chr(FIRST)}-{chr(FIRST + MOST)}]", lambda match: paths[ord(match[0]) - FIRST], text)


def counted(text: str) -> int:
    """Return the length of a message without its paths."""
    text, paths = _without_paths(text)
    return len(text) - len(paths)


def _without_paths(text: str) -> tuple[str, list[str]]:
    """Return the text with a private-use character for each path, and the paths.

    Paths are shortened to `LONGEST` characters.
    """
    text = re.sub(f"[{chr(FIRST)}-{chr(FIRST + MOST)}]", "?", text)
    paths: list[str] = []

    def mask(match: re.Match[str]) -> str:
        if len(paths) > MOST:
            return match[0]
        path = match[0]
        paths.append(path if len(path) <= LONGEST else f"{path[: LONGEST // 2]}...{path[-LONGEST // 2 :]}")
        return chr(FIRST + len(paths) - 1)

    return PATH.sub(mask, text), paths
