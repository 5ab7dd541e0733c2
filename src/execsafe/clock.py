"""Time as execsafe uses it: the only place that reads the system's clocks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from operator import index

import attrs

from execsafe.ports import Clock

_NS_PER_MS = 1_000_000


def _elapsed_reader() -> Callable[[], int]:
    """What reads the time that has passed, a suspend of the machine included, in nanoseconds since some moment.

    Chosen once: each reading is then one call of C.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):  # Linux: its CLOCK_MONOTONIC stands still during a suspend
        return partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":  # there CLOCK_MONOTONIC goes on, unlike what time.monotonic() reads
        return partial(time.clock_gettime_ns, time.CLOCK_MONOTONIC)
    return time.monotonic_ns


class SystemClock:
    """Unix milliseconds that never jump while the process lives.

    Anchored to the wall clock once, then carried by a clock that no one can set and that goes on while the machine is
    suspended: a step of the wall clock (NTP, an operator) changes no verdict of a running process. Followed forward,
    such a step would put an order's deadline into the past while the order is still under way, and make a proof of
    absence of a look that began too early.

    For one question that is not enough: is this still fresh? A paused virtual machine counts no time, and only its
    wall clock is put right afterwards. So freshness is judged by :meth:`latest_ms`, the later of the two: an entry is
    refused rather than sent when they disagree. And that a candle has closed has to be true by both:
    :meth:`earliest_ms`. How far they are apart says :meth:`wall_ahead_ms`.
    """

    def __init__(
        self, *, elapsed_ns: Callable[[], int] | None = None, wall_ns: Callable[[], int] | None = None
    ) -> None:
        self._elapsed_ns = _elapsed_reader() if elapsed_ns is None else elapsed_ns
        self._wall_ns = time.time_ns if wall_ns is None else wall_ns
        self._offset_ns = self._wall_ns() - self._elapsed_ns()

    def now_ms(self) -> int:
        """Current time in Unix milliseconds."""
        return (self._elapsed_ns() + self._offset_ns) // _NS_PER_MS

    def latest_ms(self) -> int:
        """The latest that it may be: never behind the wall clock."""
        return max(self.now_ms(), self._wall_ns() // _NS_PER_MS)

    def earliest_ms(self) -> int:
        """The earliest that it may be: never ahead of the wall clock."""
        return min(self.now_ms(), self._wall_ns() // _NS_PER_MS)

    def wall_ahead_ms(self) -> int:
        """By how much the wall clock was put forward since this one was made; below 0: put back.

        What passes between two readings of the clocks is no difference.
        """
        before_ns = self._elapsed_ns() + self._offset_ns
        wall_ns = self._wall_ns()
        after_ns = self._elapsed_ns() + self._offset_ns
        ahead_ns = max(0, wall_ns - after_ns) + min(0, wall_ns - before_ns)
        return round(ahead_ns / _NS_PER_MS)


def latest_ms(clock: Clock) -> int:
    """By which time freshness is judged: the clock's ``latest_ms`` where it has one, else its time."""
    return clock.latest_ms() if isinstance(clock, SystemClock) else clock.now_ms()


def earliest_ms(clock: Clock) -> int:
    """By which time it is judged whether something is over: the clock's ``earliest_ms`` where it has one."""
    return clock.earliest_ms() if isinstance(clock, SystemClock) else clock.now_ms()


def wall_ahead_ms(clock: Clock) -> int:
    """By how much the wall clock was put forward meanwhile; 0 of a clock that knows of no other."""
    return clock.wall_ahead_ms() if isinstance(clock, SystemClock) else 0


@attrs.frozen
class Ticks:
    """A clock read in the unit that costs it least, for what only compares times and does so on every call.

    Of the system's clock these are the nanoseconds of its C function, a third of the price of :meth:`Clock.now_ms`:
    no Python call, no division. Of any other clock they are its milliseconds.

    Attributes:
        read: the current tick.
        per_ms: ticks a millisecond.
        offset: Unix time of tick 0, in ticks.
    """

    read: Callable[[], int]
    per_ms: int
    offset: int

    @classmethod
    def of(cls, clock: Clock) -> Ticks:
        """The ticks of *clock*."""
        if type(clock) is SystemClock:  # not a subclass: it may tell another time
            return cls(clock._elapsed_ns, _NS_PER_MS, clock._offset_ns)
        now_ms = clock.now_ms
        return cls(lambda: index(now_ms()), 1, 0)  # a clock that answers with a float fails at once

    def at_ms(self, unix_ms: int) -> int:
        """The first tick of a Unix millisecond."""
        return index(unix_ms) * self.per_ms - self.offset

    def to_ms(self, tick: int) -> int:
        """The Unix millisecond in which *tick* lies."""
        return (tick + self.offset) // self.per_ms
