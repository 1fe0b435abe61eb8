"""TensorBoard's files of a run, which are read by name: in the order of the seconds in which they were made."""

import re
import time
from pathlib import Path

NAME = re.compile(r"events\.out\.tfevents\.(\d{10})\.(.+)")


def let_the_next_be_last(folder: Path) -> None:
    """Sees to it that a file that is made now is read after those in the folder, and not before or between them.

    A run may resume within a second, which is waited for. Where the clock has gone back, the earlier files get earlier
    names, in their order. A file that somebody has named otherwise is left alone.
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
