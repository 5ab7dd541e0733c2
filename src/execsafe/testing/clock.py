"""Clocks for tests: one that follows the event loop's virtual time, one moved by hand."""

from __future__ import annotations

from typing import Final

import anyio
from anyio.lowlevel import RunVar

EPOCH_MS: Final = 1_700_000_000_000
"""Where virtual clocks start: 2023-11-14, an instant that every venue format can carry."""


class _Run:
    """One run of an event loop: its identity, and from when on its time counts."""

    def __init__(self) -> None:
        self.start_s = anyio.current_time()


_run: Final = RunVar[_Run]("execsafe_run")


def note_start() -> None:
    """Let clocks count this run's time from here on, although they may be read for the first time much later."""
    _run.set(_Run())


class VirtualClock:
    """Unix milliseconds that follow the running event loop, real or virtual.

    Time runs on from run to run (a killed process and its successor share one clock) and stands still
    between runs. Give each simulated machine its own skewed view of one clock: :meth:`skewed`.
    """

    def __init__(self, epoch_ms: int = EPOCH_MS, *, skew_ms: int = 0) -> None:
        self.skew_ms = skew_ms
        self._base_ms = epoch_ms  # at the start of the current run
        self._passed_ms = 0  # since then
        self._run: _Run | None = None
        self.true_ms()
        self._base_ms = epoch_ms - self._passed_ms  # made inside a loop, time counts from here

    def now_ms(self) -> int:
        """Current time, skew included."""
        return self.true_ms() + self.skew_ms

    def true_ms(self) -> int:
        """Current time without skew."""
        try:
            loop_s = anyio.current_time()
            run = _run.get(None)
        except Exception:  # noqa: BLE001 - outside any loop, each backend in its own words: time stands still
            return self._base_ms + self._passed_ms
        if run is None:
            run = _Run()
            _run.set(run)
        if run is not self._run:
            self._run, self._base_ms = run, self._base_ms + self._passed_ms
        # Sums of float delays fall short of a whole millisecond by a hair; never by a tenth of one.
        self._passed_ms = int((loop_s - run.start_s) * 1000 + 0.001)
        return self._base_ms + self._passed_ms

    def skip(self, ms: int) -> None:
        """Let *ms* milliseconds pass at once, e.g. while a process is down."""
        self.true_ms()
        self._base_ms += ms

    def skewed(self, skew_ms: int) -> SkewedClock:
        """A view of this clock that is *skew_ms* ahead (negative: behind)."""
        return SkewedClock(self, skew_ms)


class SkewedClock:
    """Another machine's view of the same time. ``skew_ms`` may be changed at any moment: a step."""

    def __init__(self, clock: VirtualClock, skew_ms: int) -> None:
        self.clock = clock
        self.skew_ms = skew_ms

    def now_ms(self) -> int:
        """Current time as that machine sees it."""
        return self.clock.true_ms() + self.skew_ms


class ManualClock:
    """A clock that only moves when told to."""

    def __init__(self, epoch_ms: int = EPOCH_MS) -> None:
        self._now_ms = epoch_ms

    def now_ms(self) -> int:
        """Current time."""
        return self._now_ms

    def advance(self, *, ms: int = 0, s: float = 0.0) -> int:
        """Move on and return the new time. Negative values step the clock back."""
        self._now_ms += ms + round(s * 1000)
        return self._now_ms

    def set(self, now_ms: int) -> None:
        """Jump to an instant."""
        self._now_ms = now_ms
