"""Waves: many candidates at once, of which a few are to become positions."""

from __future__ import annotations

from typing import Final

import anyio

from execsafe.clock import SystemClock
from execsafe.core.funnel import WavePlan, WaveStep, wave_step
from execsafe.core.signals import DropReason
from execsafe.errors import InvalidOrder, TradingDenied, UnsupportedByVenue, VenueUnavailable
from execsafe.model.values import check_seconds
from execsafe.ports import Clock
from execsafe.signals.work import Pending, Refused, SignalHandler, SignalResult, SignalWork

_NOTHING_SENT: Final = (TradingDenied, InvalidOrder, UnsupportedByVenue, VenueUnavailable)


class Wave:
    """A handler around a handler: lets through as many candidates as the plan needs, refuses the rest.

    Those that are not let through are :attr:`~execsafe.core.signals.DropReason.NOT_ATTEMPTED`, which is no failure.
    A candidate that waited is judged by its age again. Make one per wave.

    Args:
        plan: how many positions, and how many candidates may be tried for them.
        handler: executes one.
        wait_s: how long a candidate waits to learn whether it is needed; then it is put off, and comes again: resume
            the gate with the wave itself as the handler. 30 s; it must be shorter than the gate's budget, which counts
            waiting as execution.
        clock: source of Unix milliseconds.
    """

    def __init__(
        self, plan: WavePlan, handler: SignalHandler, *, wait_s: float = 30.0, clock: Clock | None = None
    ) -> None:
        self.plan: WavePlan = plan
        self.opened: int = 0
        self.failed: int = 0
        self.under_way: int = 0
        self._handler = handler
        self._wait_s = check_seconds(wait_s, "wait_s")
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._put_off: set[str] = set()
        self._changed = anyio.Event()

    async def __call__(self, work: SignalWork) -> SignalResult:
        """Execute one candidate, wait until it is known whether it is needed, or refuse it."""
        if work.is_resumed and work.key not in self._put_off:
            return await self._handler(work)  # it may own something already: whether it is needed is not asked again
        with anyio.move_on_after(self._wait_s):
            while self._step() is WaveStep.WAIT:
                await self._changed.wait()
        step = self._step()
        if step is WaveStep.WAIT:
            self._put_off.add(work.key)  # it owns nothing: when it comes again, it is asked again
            return Pending(note="those under way may be enough", attempted=False)
        self._put_off.discard(work.key)
        if step is WaveStep.STOP:
            note = f"{self.opened} of {self.plan.target} opened, {self.failed} failed"
            return Refused(reason=DropReason.NOT_ATTEMPTED, note=note)
        if work.is_late(self._clock.now_ms()):
            return Refused(reason=DropReason.STALE, note="it waited too long for its turn in the wave")
        return await self._attempt(work)

    def _step(self) -> WaveStep:
        return wave_step(self.plan, opened=self.opened, failed=self.failed, under_way=self.under_way)

    async def _attempt(self, work: SignalWork) -> SignalResult:
        self.under_way += 1
        has_failed = False
        try:
            result = await self._handler(work)
            has_failed = isinstance(result, Refused)
            return result
        except _NOTHING_SENT:
            has_failed = True
            raise
        finally:
            # Whatever else happened (in doubt, cancelled, an unlisted error): it may own something.
            self.under_way -= 1
            self.failed += has_failed
            self.opened += not has_failed
            self._changed.set()
            self._changed = anyio.Event()
