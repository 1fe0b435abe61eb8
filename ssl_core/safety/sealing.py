"""Seals: the SHA-256 that a file carries of its own other bytes, so that damage is seen whenever the file is read.

Where the seal is, by the kind of file:

- JSON: the entry `sha256`, alone on the second line.
- YAML: a comment, which is the first line.
- checkpoints, which are zip archives: the archive's comment, at the very end; `torch.load` passes over it.
- a line of a log: a CRC-32 at its end, since a log is appended to.

A file and its seal are one file: they are replaced in one renaming. A seal that is itself damaged still looks like one
(`_resembles`), so that no single flipped bit turns a sealed file into one that never had a seal. Files without a seal,
as version 0.1 wrote them, are read; `unsealed_collected` learns their names.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, NoReturn

LENGTH = 64
"""Hexadecimal digits of a SHA-256."""
SEAL = "sha256"
JSON_HEAD, JSON_TAIL = b'{\n "sha256": "', b'",\n'
YAML_HEAD, YAML_TAIL = b"# sha256 ", b" of the lines below\n"
ZIP_HEAD, ZIP_TAIL = b"astra-gym sha256 ", b"\n"
ZIP_SEAL = len(ZIP_HEAD) + LENGTH + len(ZIP_TAIL)
ZIP_END = b"PK\x05\x06"
"""Begins the last record of a zip archive, 22 bytes; its last two are the length of the comment that follows it."""
ZIP_END_SIZE = 22
RESTORE = "restore it from a copy"

_unsealed: ContextVar[list[Path] | None] = ContextVar("unsealed", default=None)


class DamagedError(ValueError):
    """A file is not as it was written."""


@contextmanager
def unsealed_collected() -> Iterator[list[Path]]:
    """Yield a list that takes the path of every file without a seal that is read inside, once each."""
    found: list[Path] = []
    token = _unsealed.set(found)
    try:
        yield found
    finally:
        _unsealed.reset(token)


def note_unsealed(path: Path | str) -> None:
    """Add a file to the list of `unsealed_collected`; nothing outside of one."""
    found = _unsealed.get()
    if found is not None and Path(path) not in found:
        found.append(Path(path))


def sealed_json(text: str) -> bytes:
    """A JSON object with its seal as the first entry.

    Args:
        text: the object as `json.dumps` indents it: it begins with a brace, a line break and a blank.

    Raises:
        ValueError: if it begins otherwise: it is no object, or an empty one.
    """
    if not text.startswith("{\n "):
        raise ValueError("only an indented JSON object with an entry or more can be sealed")
    return _with_head(b"{\n", text.encode()[2:], JSON_HEAD, JSON_TAIL)


def sealed_yaml(text: str) -> bytes:
    """YAML with its seal as a comment in the first line."""
    return _with_head(b"", text.encode(), YAML_HEAD, YAML_TAIL)


def _with_head(before: bytes, rest: bytes, head: bytes, tail: bytes) -> bytes:
    return head + hashlib.sha256(before + rest).hexdigest().encode() + tail + rest


def read_json(path: Path | str, advice: str = RESTORE) -> Any:
    """The document in a JSON file, without its seal; a file without a seal is read, too.

    Args:
        path: the file.
        advice: what to do about a damaged file, for the error.

    Raises:
        DamagedError: if the content does not fit the seal, or has been written anew around it.
        ValueError: if a file without a seal is not JSON.
        OSError: if it cannot be read.
    """
    content = _opened(Path(path), b"{\n", JSON_HEAD, JSON_TAIL, advice)
    try:
        document = json.loads(content.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)[:100]
        raise ValueError(f"{path} is not readable JSON ({reason}): {advice}") from error
    if isinstance(document, dict) and SEAL in document:
        # a program has written the file anew, and took the seal for an entry
        raise damaged(path, advice)
    return document


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def check_yaml(path: Path | str, advice: str = RESTORE) -> None:
    """Raise a DamagedError if a YAML file does not fit its seal; one that has none is noted.

    To be called before the file is read: whatever keeps it from being read is left to the reader.
    """
    with suppress(OSError):
        _opened(Path(path), b"", YAML_HEAD, YAML_TAIL, advice)


def without_seal(content: bytes) -> bytes:
    """YAML without the comment that is or was its seal, whether that fits or not."""
    head, _, rest = content.partition(b"\n")
    return rest if _resembles(head[: len(YAML_HEAD)], YAML_HEAD) else content


def _opened(path: Path, before: bytes, head: bytes, tail: bytes, advice: str) -> bytes:
    """A file's content without its seal, which is checked."""
    content = path.read_bytes()
    if not _resembles(content[: len(head)], head):
        note_unsealed(path)
        return content
    rest = before + content[len(head) + LENGTH + len(tail) :]
    if content[: len(head) + LENGTH + len(tail)] != head + hashlib.sha256(rest).hexdigest().encode() + tail:
        raise damaged(path, advice)
    return rest


def damaged(path: Path | str, advice: str = RESTORE) -> DamagedError:
    """The error for a file that does not fit its seal."""
    return DamagedError(f"{path} is damaged or was changed: its content does not fit the SHA-256 in it; {advice}")


def _resembles(found: bytes, mark: bytes) -> bool:
    """Whether this is a mark, or one in which up to two bytes were changed."""
    return len(found) == len(mark) and sum(a != b for a, b in zip(found, mark, strict=True)) <= 2


def seal_zip(file: IO[bytes]) -> None:
    """Seal a zip archive that was just written: its comment becomes the SHA-256 of all bytes before it.

    Args:
        file: open for reading and writing, the archive from its first byte to its last; it has no comment yet.

    Raises:
        ValueError: if the file does not end as such an archive does.
    """
    file.seek(-ZIP_END_SIZE, 2)
    end = file.read(ZIP_END_SIZE)
    if not (end.startswith(ZIP_END) and end.endswith(b"\0\0")):
        raise ValueError("only a zip archive without a comment can be sealed")
    file.seek(-2, 2)
    file.write(ZIP_SEAL.to_bytes(2, "little"))
    found = _digest(file, file.tell())
    file.seek(0, 2)
    file.write(ZIP_HEAD + found + ZIP_TAIL)


def _digest(file: IO[bytes], size: int) -> bytes:
    """SHA-256 of a file's first bytes, in hexadecimal digits."""
    file.seek(0)
    found = hashlib.sha256()
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        found.update(part)
        size -= len(part)
    return found.hexdigest().encode()


def check_zip(path: Path | str, advice: str = RESTORE, *, ours: bool = True) -> None:
    """Raise a DamagedError if an archive does not fit its seal, or has lost it; one that never had a seal is noted.

    Args:
        path: a file, an archive or not.
        advice: what to do about a damaged one, for the error.
        ours: whether a missing seal is worth a note; others do not seal their files.

    Raises:
        DamagedError: as above.
        OSError: if the file cannot be read.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - ZIP_SEAL))
        seal = file.read()
        if _resembles(seal[: len(ZIP_HEAD)], ZIP_HEAD):
            if seal != ZIP_HEAD + _digest(file, size - ZIP_SEAL) + ZIP_TAIL:
                raise damaged(path, advice)
            return
        file.seek(max(0, size - ZIP_SEAL - ZIP_END_SIZE))
        last = file.read()
        start = last.rfind(ZIP_END)
        said = int.from_bytes(last[start + ZIP_END_SIZE - 2 : start + ZIP_END_SIZE], "little")
        if start >= 0 and said == ZIP_SEAL and len(last) - start < ZIP_END_SIZE + ZIP_SEAL:
            raise damaged(path, advice)
    if ours:
        note_unsealed(path)


LINE_SEAL = "crc32"
LINE_HEAD, LINE_TAIL = b', "crc32": "', b'"}'
CRC = 8
"""Hexadecimal digits of a CRC-32."""


def sealed_line(text: str) -> bytes:
    """A line of a log, with its CRC-32 as the last entry, and the line break.

    Args:
        text: a JSON object with an entry or more, on one line.
    """
    body = text.encode()[:-1]
    return body + LINE_HEAD + f"{zlib.crc32(body):08x}".encode() + LINE_TAIL + b"\n"


def opened_line(line: bytes) -> bytes | None:
    """A line of a log, without its line break, as it was before `sealed_line`; None if it is damaged.

    A line without a CRC is given as it is.
    """
    length = len(LINE_HEAD) + CRC + len(LINE_TAIL)
    seal, body = line[-length:], line[:-length]
    if not _resembles(seal[: len(LINE_HEAD)] + seal[len(LINE_HEAD) + CRC :], LINE_HEAD + LINE_TAIL):
        return line
    if seal != LINE_HEAD + f"{zlib.crc32(body):08x}".encode() + LINE_TAIL:
        return None
    return body + b"}"


def check_png(path: Path | str) -> None:
    """Raise a DamagedError if a PNG does not fit the CRC-32 that each of its parts carries.

    Raises:
        DamagedError: as above, or if it is no PNG.
        OSError: if the file cannot be read.
    """
    content, at = Path(path).read_bytes(), 8
    whole = content[:8] == b"\x89PNG\r\n\x1a\n"
    kind = b""
    while whole and at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        kind, body = content[at + 4 : at + 8], content[at + 4 : at + 8 + size]
        whole = int.from_bytes(content[at + 8 + size : at + 12 + size], "big") == zlib.crc32(body)
        at += 12 + size
    if not whole or at != len(content) or kind != b"IEND":
        raise DamagedError(f"{path} is a damaged PNG, its content does not fit its CRC: draw it again")
