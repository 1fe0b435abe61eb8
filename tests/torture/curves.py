"""TensorBoard's curves of two runs: whether a run that was interrupted looks like one that was not."""

import logging
import math
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TIMES = ("time/", "memory/")
"""Tags that tell of the machine and may differ."""


def curves(before: Path, after: Path) -> list[str]:
    """Where the scalars of two run folders differ, as TensorBoard shows them."""
    found = []
    wanted, got = _scalars(before), _scalars(after)
    for tag in sorted(wanted.keys() | got.keys()):
        one, other = wanted.get(tag, []), got.get(tag, [])
        if len(one) != len(other):
            found.append(f"curve {tag}: {len(one)} and {len(other)} points")
        elif any(a != b for a, b in zip(one, other, strict=True)):
            first = next(pair for pair in zip(one, other, strict=True) if pair[0] != pair[1])
            found.append(f"curve {tag}: {first[0]} and {first[1]}")
    return found


def _scalars(folder: Path) -> dict[str, list[tuple[int, float | str]]]:
    # it says what it purges, which is what a resumed run has asked it to
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(TIMES)]
    return {tag: [(point.step, _plain(point.value)) for point in events.Scalars(tag)] for tag in tags}


def _plain(value: float) -> float | str:
    # NaN is equal to nothing, and here it is to be equal to itself
    return "nan" if math.isnan(value) else value
