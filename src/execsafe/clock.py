"""Time as execsafe uses it: the only place that reads the system's clocks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from execsafe.ports import Clock

_NS_PER_MS = 1_000_000


def _elapsed_ns() -> int:
    """Time that has passed, a suspend of the machine included, in nanoseconds since some moment."""
    if hasattr(time, "CLOCK_BOOTTIME"):  # Linux: its CLOCK_MONOTONIC stands still during a suspend
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":  # there CLOCK_MONOTONIC goes on, unlike what time.monotonic() reads
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return time.monotonic_ns()


def _wall_ns() -> int:
    return time.time_ns()


class SystemClock:
    """Unix milliseconds that never jump while the process lives.

    Anchored to the wall clock once, then carried by a clock that no one can set and that goes on while the machine is
    suspended: a step of the wall clock (NTP, an operator) changes no verdict of a running process. Followed forward,
    such a step would put an order's deadline into the past while the order is still under way, and make a proof of
    absence of a look that began too early.

    For one question that is not enough: is this still fresh? A paused virtual machine counts no time, and only its
    wall clock is put right afterwards. So freshness is judged by :meth:`latest_ms`, the later of the two: an entry is
    refused rather than sent when they disagree.
    """

    def __init__(self, *, elapsed_ns: Callable[[], int] = _elapsed_ns, wall_ns: Callable[[], int] = _wall_ns) -> None:
        self._elapsed_ns = elapsed_ns
        self._wall_ns = wall_ns
        self._offset_ns = wall_ns() - elapsed_ns()

    def now_ms(self) -> int:
        """Current time in Unix milliseconds."""
        return (self._elapsed_ns() + self._offset_ns) // _NS_PER_MS

    def latest_ms(self) -> int:
        """The latest that it may be: never behind the wall clock."""
        return max(self.now_ms(), self._wall_ns() // _NS_PER_MS)


def latest_ms(clock: Clock) -> int:
    """By which time freshness is judged: the clock's ``latest_ms`` where it has one, else its time."""
    return clock.latest_ms() if isinstance(clock, SystemClock) else clock.now_ms()
