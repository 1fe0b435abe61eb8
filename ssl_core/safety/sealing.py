"""Seals: a file holds the SHA-256 of its other bytes, which shows damage whenever it is read.

Place of the seal, by kind of file:

- JSON: the entry `sha256`, alone on the second line.
- YAML: a comment, which is the first line.
- checkpoints, which are zip archives: the archive's comment, at the very end; `torch.load` ignores it.
- a line of a log: a CRC-32 at its end, since a log is appended to.

A seal is part of its file: one rename replaces both. A damaged seal is still recognized (`_resembles`): no single
flipped bit turns a sealed file into one without a seal. Files without a seal, as from version 0.1, are read;
`unsealed_collected` collects their names.
"""

import hashlib
import json
import zipfile
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
"""First bytes of the last record of a zip archive: 22 bytes, the last two the length of the comment after it."""
ZIP_END_SIZE = 22
RESTORE = "restore it from a copy"

_unsealed: ContextVar[list[Path] | None] = ContextVar("unsealed", default=None)


class DamagedError(ValueError):
    """Error for a file that has changed since it was written."""


@contextmanager
def unsealed_collected() -> Iterator[list[Path]]:
    """Yield a list that collects the path of each file without a seal that is read inside, once each."""
    found: list[Path] = []
    token = _unsealed.set(found)
    try:
        yield found
    finally:
        _unsealed.reset(token)


def note_unsealed(path: Path | str) -> None:
    """Add a file to the list of `unsealed_collected`; outside of it, do nothing."""
    found = _unsealed.get()
    if found is not None and Path(path) not in found:
        found.append(Path(path))


def sealed_json(text: str) -> bytes:
    """Return a JSON object with its seal as the first entry.

    Args:
        text: the object with the indentation of `json.dumps`: it begins with a brace, a line break and a blank.

    Raises:
        ValueError: if it begins otherwise: it is no object, or is empty.
    """
    if not text.startswith("{\n "):
        raise ValueError("only an indented JSON object with an entry or more can be sealed")
    return _with_head(b"{\n", text.encode()[2:], JSON_HEAD, JSON_TAIL)


def sealed_yaml(text: str) -> bytes:
    """Return YAML with its seal as a comment in the first line."""
    return _with_head(b"", text.encode(), YAML_HEAD, YAML_TAIL)


def _with_head(before: bytes, rest: bytes, head: bytes, tail: bytes) -> bytes:
    return head + hashlib.sha256(before + rest).hexdigest().encode() + tail + rest


def read_json(path: Path | str, advice: str = RESTORE) -> Any:
    """Read the document in a JSON file, without its seal; a file without a seal is read too.

    Args:
        path: the file.
        advice: remedy for a damaged file, for the error.

    Raises:
        DamagedError: if the content does not fit the seal, or another program has rewritten it with the seal inside.
        ValueError: if a file without a seal is not JSON.
        OSError: if the file cannot be read.
    """
    content = _opened(Path(path), b"{\n", JSON_HEAD, JSON_TAIL, advice)
    try:
        document = json.loads(content.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)[:100]
        raise ValueError(f"{path} is not readable JSON ({reason}): {advice}") from error
    if isinstance(document, dict) and SEAL in document:
        # another program has rewritten the file, with the seal as an entry
        raise damaged(path, advice)
    return document


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def check_yaml(path: Path | str, advice: str = RESTORE) -> None:
    """Raise a DamagedError if a YAML file does not fit its seal; note a file without a seal.

    Call it before the file is read. It ignores a file that cannot be read: the reader reports that.
    """
    with suppress(OSError):
        _opened(Path(path), b"", YAML_HEAD, YAML_TAIL, advice)


def without_seal(content: bytes) -> bytes:
    """Return YAML without its seal, intact or damaged; the seal is not checked."""
    head, _, rest = content.partition(b"\n")
    return rest if _resembles(head[: len(YAML_HEAD)], YAML_HEAD) else content


def _opened(path: Path, before: bytes, head: bytes, tail: bytes, advice: str) -> bytes:
    """Check a file's seal and return the content without it."""
    content = path.read_bytes()
    if not _resembles(content[: len(head)], head):
        note_unsealed(path)
        return content
    rest = before + content[len(head) + LENGTH + len(tail) :]
    if content[: len(head) + LENGTH + len(tail)] != head + hashlib.sha256(rest).hexdigest().encode() + tail:
        raise damaged(path, advice)
    return rest


def damaged(path: Path | str, advice: str = RESTORE) -> DamagedError:
    """Return the error for a file that does not fit its seal."""
    return DamagedError(f"{path} is damaged or was changed: its content does not fit the SHA-256 in it; {advice}")


def _resembles(found: bytes, mark: bytes) -> bool:
    """Whether bytes equal a mark, or differ from it in at most two bytes."""
    return len(found) == len(mark) and sum(a != b for a, b in zip(found, mark, strict=True)) <= 2


def seal_zip(file: IO[bytes]) -> None:
    """Seal a new zip archive: its comment becomes the SHA-256 of all bytes before it.

    Args:
        file: file open for reading and writing; it holds only the archive, which has no comment yet.

    Raises:
        ValueError: if the file does not end like such an archive.
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
    """Return the SHA-256 of a file's first `size` bytes, in hexadecimal digits."""
    file.seek(0)
    found = hashlib.sha256()
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        found.update(part)
        size -= len(part)
    return found.hexdigest().encode()


def check_zip(path: Path | str, advice: str = RESTORE, *, ours: bool = True) -> None:
    """Raise a DamagedError if an archive does not fit its seal, or has lost it; note one that never had a seal.

    Without a seal, the CRC-32 of each record is checked, which `torch.load` ignores.

    Args:
        path: a file, which need not be an archive.
        advice: remedy for a damaged file, for the error.
        ours: whether to note a missing seal; files of other projects have none.

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
    _check_records(path, advice)
    if ours:
        note_unsealed(path)


def _check_records(path: Path | str, advice: str) -> None:
    """Raise a DamagedError if a record of a zip archive does not fit its CRC-32; pass over a file that is no archive.

    torch writes 0 for a CRC-32 that it was told not to compute.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return  # whoever reads the file says what is wrong with it
    with archive:
        for record in archive.infolist():
            if record.CRC:
                try:
                    with archive.open(record) as content:
                        while content.read(1 << 20):
                            pass
                except (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError, OSError) as error:
                    said = f"its record {record.filename[:60]!r} does not fit its CRC-32"
                    raise DamagedError(f"{path} is damaged: {said}; {advice}") from error


LINE_SEAL = "crc32"
LINE_HEAD, LINE_TAIL = b', "crc32": "', b'"}'
CRC = 8
"""Hexadecimal digits of a CRC-32."""


def sealed_line(text: str) -> bytes:
    """Return a line of a log with its CRC-32 as the last entry, and the line break.

    Args:
        text: a JSON object with an entry or more, on one line.
    """
    body = text.encode()[:-1]
    return body + LINE_HEAD + f"{zlib.crc32(body):08x}".encode() + LINE_TAIL + b"\n"


def opened_line(line: bytes) -> bytes | None:
    """Undo `sealed_line` for a line of a log without its line break; return None if the line is damaged.

    A line without a CRC is returned unchanged.
    """
    length = len(LINE_HEAD) + CRC + len(LINE_TAIL)
    seal, body = line[-length:], line[:-length]
    if not _resembles(seal[: len(LINE_HEAD)] + seal[len(LINE_HEAD) + CRC :], LINE_HEAD + LINE_TAIL):
        return line
    if seal != LINE_HEAD + f"{zlib.crc32(body):08x}".encode() + LINE_TAIL:
        return None
    return body + b"}"


def check_png(path: Path | str) -> None:
    """Raise a DamagedError if a PNG does not fit the CRC-32 in each of its parts.

    Raises:
        DamagedError: as above, or if the file is no PNG.
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
