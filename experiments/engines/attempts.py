"""Attempts at the cells on other machines, which share only files with the comparison.

An order, NAME.order.json, says which attempt may run. A report, NAME.report.json, says which does, and how it ended.
An attempt that is no longer ordered, or whose report another has replaced, ends itself within `WATCH` seconds, and the
next one waits for that: so two do not write one folder, even if a machine that was given up comes back, and on a file
system without locks. Where there are locks, the run's own lock keeps them apart too.
"""

import contextlib
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.safety.writers import is_running
from astra_gym.ssl_core.utils.files import write_json

ATTEMPTS = "attempts"
"""Name of the folder in a comparison's folder with the orders and reports."""
ORDER, REPORT = ".order.json", ".report.json"
WATCH = 1.0
"""Seconds between two looks of an attempt at its order."""
GRACE = 10.0
"""Seconds after which an attempt that was called off, and whose end is not known, is taken to have ended."""


class Attempt:
    """An attempt at a cell, seen from the comparison that orders it or from the machine that makes it.

    Args:
        folder: folder of the orders and reports.
        name: name of the cell.
        token: the attempt's own name; by default a new one.
    """

    def __init__(self, folder: Path, name: str, token: str = "") -> None:
        self.token = token or secrets.token_hex(8)
        self._order, self._report = folder / f"{name}{ORDER}", folder / f"{name}{REPORT}"
        self._me = {"token": self.token, "holder": secrets.token_hex(8), "host": socket.gethostname()}

    def order(self, stop: bool = False) -> None:
        """Order the attempt, or ask it to stop; an earlier attempt is thereby called off."""
        write_json(self._order, {"token": self.token, "stop": stop})

    def call_off(self) -> None:
        """Call the attempt off: it ends without saving."""
        self._order.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the order and the report of an attempt that has ended."""
        self.call_off()
        self._report.unlink(missing_ok=True)

    @property
    def has_begun(self) -> bool:
        """Whether the attempt runs or has ended, and does not wait for a machine, at first or again."""
        report = self._reported()
        return report.get("token") == self.token and (not report.get("left") or report.get("status") is not None)

    @property
    def status(self) -> int | None:
        """The exit status of the attempt; None if it has not ended, or nobody saw its end."""
        report = self._reported()
        return report.get("status") if report.get("token") == self.token else None

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether the attempt is asked to stop."""
        return self._ordered().get("stop", False)

    @property
    def is_ordered(self) -> bool:
        """Whether this is the attempt that may run."""
        return self._ordered().get("token") == self.token

    @property
    def is_mine(self) -> bool:
        """Whether the attempt may run, and it is this process that makes it: a batch system may begin a job again."""
        return self.is_ordered and self._reported().get("holder") == self._me["holder"]

    def take(self) -> bool:
        """Begin the attempt in this process, when the earlier ones have ended; return whether it may run."""
        before = self._reported()
        if not self.is_ordered:
            return False
        self._tell()
        deadline = time.monotonic() + GRACE
        while _may_run(before) and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.is_mine

    def leave(self, status: int | None = None) -> None:
        """Tell that this process has ended its part of the attempt, with an exit status if the run has ended."""
        if self._reported().get("holder") == self._me["holder"]:
            self._tell(left=True, status=status)

    def _tell(self, **more: Any) -> None:
        write_json(self._report, self._me | {"pid": os.getpid()} | more)

    def _ordered(self) -> dict[str, Any]:
        return _read(self._order)

    def _reported(self) -> dict[str, Any]:
        return _read(self._report)


def recall(comparison: Path) -> None:
    """Call off all attempts of an earlier process that ran a comparison, and wait for their end, up to `GRACE` seconds.

    Jobs of theirs that still wait in the queue of a batch system end as soon as they begin.
    """
    folder = comparison / ATTEMPTS
    for order in folder.glob(f"*{ORDER}"):
        order.unlink(missing_ok=True)
    reports = [*folder.glob(f"*{REPORT}")]
    deadline = time.monotonic() + GRACE
    while any(_may_run(_read(report)) for report in reports) and time.monotonic() < deadline:
        time.sleep(0.1)
    for report in reports:
        report.unlink(missing_ok=True)
    remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """Remove a folder if it is there and empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path, "remove it"))
    except FileNotFoundError:
        return {}


def _may_run(report: dict[str, Any]) -> bool:
    """Whether the process of a report may still run, as far as can be seen from here."""
    if not report or report.get("left"):
        return False
    return report["host"] != socket.gethostname() or is_running(report["pid"])
