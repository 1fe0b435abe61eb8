"""Available memory of the machine or of a GPU."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def available(device: torch.device | str) -> int | None:
    """Return the available bytes on a device; None if unknown.

    On the CPU this is Linux's MemAvailable (free, or a cache that it gives back), at most the limit of the container or
    batch job. What the job already uses is not subtracted from that limit.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        entries = dict(line.split(":", 1) for line in (PROC / "meminfo").read_text().splitlines())
        free = 1024 * int(entries["MemAvailable"].split()[0])
    except (OSError, ValueError, LookupError):
        return None
    return min([free, *_limits()])


def _limits() -> Iterator[int]:
    """Yield the memory limits of this process's control group and of its parents, in both versions of the layout."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
        group = PurePosixPath(path)
        for part in (group, *group.parents):
            try:
                text = (root / str(part).lstrip("/") / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit():  # else "max": no limit
                yield int(text)
