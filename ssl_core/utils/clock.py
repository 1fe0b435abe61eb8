"""How long something took, over many pieces."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of wall time spent inside `running()`; what a GPU has queued counts where it is waited for."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts what runs inside, also where that fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start
