"""TensorBoard's event files of a run: their checksums, and their names, in which a second sets the order of reading."""

import re
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

NAME = re.compile(r"events\.out\.tfevents\.(\d{10})\.(.+)")
POLYNOMIAL = 0x82F63B78
PATTERN = "events.out.tfevents.*"
HEAD, FOOT = 12, 4
"""Bytes of a record before its data (a length of 8 and its checksum) and after it (its checksum)."""
ALIKE = 8
"""From this number of records of one length on, they are checked together, in NumPy."""


def _table() -> list[int]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        found.append(value)
    return found


TABLE = _table()


def masked_crc32c(parts: Sequence[bytes]) -> list[int]:
    """Return the masked CRC-32C of byte strings of one length, as in TensorFlow's records."""
    if len(parts) < ALIKE:
        found = []
        for part in parts:
            crc = 0xFFFFFFFF
            for byte in part:
                crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
            found.append(crc ^ 0xFFFFFFFF)
        crcs = np.array(found, dtype=np.uint32)
    else:
        table = np.array(TABLE, dtype=np.uint32)
        columns = np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(len(parts), -1).T
        crcs = np.full(len(parts), 0xFFFFFFFF, dtype=np.uint32)
        for column in np.ascontiguousarray(columns):
            crcs = table[(crcs ^ column) & 0xFF] ^ crcs >> np.uint32(8)
        crcs = crcs ^ np.uint32(0xFFFFFFFF)
    return ((crcs >> np.uint32(15) | crcs << np.uint32(17)) + np.uint32(0xA282EAD8)).tolist()


def damaged_records(path: Path) -> str | None:
    """Return what is wrong with an event file, in words; None if every record fits its checksums.

    A half-written record of a killed process, at the end, is no damage: TensorBoard skips it.

    Raises:
        OSError: if the file cannot be read.
    """
    content, at = path.read_bytes(), 0
    by_length: dict[int, list[tuple[int, bytes, int]]] = {}
    number = 0
    while at + HEAD <= len(content):
        number += 1
        head, (length, said) = content[at : at + 8], struct.unpack_from("<QI", content, at)
        if masked_crc32c([head]) != [said]:
            return f"record {number}, and what follows it"
        end = at + HEAD + length
        if end + FOOT > len(content):
            break
        said = int.from_bytes(content[end : end + FOOT], "little")
        by_length.setdefault(length, []).append((number, content[at + HEAD : end], said))
        at = end + FOOT
    wrong = []
    for records in by_length.values():
        crcs = masked_crc32c([data for _, data, _ in records])
        wrong += [number for (number, _, said), crc in zip(records, crcs, strict=True) if said != crc]
    return f"record {min(wrong)}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else "") if wrong else None


def let_the_next_be_last(folder: Path) -> None:
    """Make sure that a file made now is read after those in the folder, not before or between them.

    A run may resume within a second: this waits for the next second. If the clock has gone back, the earlier files get
    earlier names, in their order. A file with a name of another form is left alone.
    """
    earlier = sorted(file for file in folder.iterdir() if NAME.fullmatch(file.name))
    if not earlier:
        return
    last, now = _second(earlier[-1]), time.time()
    if last < int(now):
        return
    if last + 1 - now <= 1:
        time.sleep(last + 1 - now)
        return
    for index, file in enumerate(earlier):
        second = int(now) - len(earlier) + index
        if second < _second(file):
            file.rename(file.with_name(NAME.sub(rf"events.out.tfevents.{second:010d}.\2", file.name)))


def _second(file: Path) -> int:
    found = NAME.fullmatch(file.name)
    return int(found[1]) if found else 0
