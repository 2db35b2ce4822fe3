"""For how long is W&B not waited for, after it could not be reached? So that a study does not wait at every trial."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

# Trials go to disk at once for so long.
OUTAGE_SECONDS = 300.0


class Outage:
    """Remembers for a while that W&B could not be reached; safe in threads.

    Parameters
    ----------
    seconds
        For how long, after each failure.
    clock
        The time in seconds; for tests.
    """

    def __init__(self, seconds: float = OUTAGE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.clock = clock
        self._lock = threading.Lock()
        self._ends = -math.inf

    def is_on(self) -> bool:
        """Return whether W&B is not worth a wait yet."""
        with self._lock:
            return self.clock() < self._ends

    def begin(self) -> None:
        """Note that W&B could not be reached just now."""
        with self._lock:
            self._ends = self.clock() + self.seconds

    def end(self) -> None:
        """Note that W&B was reached."""
        with self._lock:
            self._ends = -math.inf


# That of this process: one unreachable server concerns all its trials.
OUTAGE = Outage()
