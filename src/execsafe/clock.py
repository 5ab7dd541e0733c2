"""Time as execsafe uses it: the only place that reads the system's clocks."""

from __future__ import annotations

import time


class SystemClock:
    """Unix milliseconds that never jump while the process lives.

    Anchored to the wall clock once, then carried by the monotonic clock: a step of the wall clock (NTP, an
    operator) changes no verdict of a running process.
    """

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ms(self) -> int:
        """Current time in Unix milliseconds."""
        return (time.monotonic_ns() + self._offset_ns) // 1_000_000
