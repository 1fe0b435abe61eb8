"""A clock that adds up time over many intervals."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of wall time spent inside `running()`; queued GPU work counts where the program waits for it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time inside, also if it ends with an error."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start
