"""Waves: many candidates at once, of which a few are to become positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import anyio

from execsafe.clock import SystemClock
from execsafe.core.funnel import Stage, WavePlan, WaveProgress, WaveStep
from execsafe.core.safety import is_for_now
from execsafe.core.signals import DropReason
from execsafe.errors import (
    InvalidInput,
    InvalidOrder,
    StoreCorrupt,
    StoreError,
    TradingDenied,
    UnsupportedByVenue,
    VenueUnavailable,
    VersionConflict,
)
from execsafe.model.values import check_seconds, text_validator
from execsafe.ports import Batch, Clock, Put, Store
from execsafe.signals.work import NOT_NOW, Executed, Pending, Refused, SignalHandler, SignalResult, SignalWork, stage_of
from execsafe.stores.codec import register
from execsafe.stores.commits import commit_shielded

COLLECTION: Final = "waves"
_NOTHING_SENT: Final = (TradingDenied, InvalidOrder, UnsupportedByVenue, VenueUnavailable)
_NAME: Final = text_validator("wave name", 200)
_STORE_TIMEOUT_S: Final = 10.0
_NOT_YET: Final = Pending(note="those under way may be enough", attempted=False)

_Change: TypeAlias = Callable[[WaveProgress], WaveProgress]

register(WaveProgress)


class Wave:
    """A handler around a handler: lets through as many candidates as the plan needs, refuses the rest.

    Those that are not let through are :attr:`~execsafe.core.signals.DropReason.NOT_ATTEMPTED`, which is no failure.
    A candidate that waited is judged by its age again. Make one per wave, and one again after a restart: with *store*
    and *name* it knows which candidates were begun and what came of them, so that a kill spends no candidate twice and
    opens no position too many. Which candidate was begun is durable before its handler is called.

    A candidate that was refused for now only (a reading failed, trading is restricted for a minute) keeps its place
    for ``wait_s`` and is tried again whenever it comes; then others have their turn. It was no attempt.

    Args:
        plan: how many positions, and how many candidates may be tried for them.
        handler: executes one.
        wait_s: how long a candidate waits to learn whether it is needed; then it is put off, and comes again: resume
            the gate with the wave itself as the handler. 30 s; it must be shorter than the gate's budget, which counts
            waiting as execution.
        clock: source of Unix milliseconds.
        store: keeps the progress; None: a restart begins to count anew, and what the gate resumes is executed unasked.
        name: of this wave, in *store*. The same after a restart, another one for every other wave.

    Raises:
        InvalidInput: *store* without *name*, or a name without a store.
    """

    def __init__(
        self,
        plan: WavePlan,
        handler: SignalHandler,
        *,
        wait_s: float = 30.0,
        clock: Clock | None = None,
        store: Store | None = None,
        name: str = "",
    ) -> None:
        if (store is None) is not (name == ""):
            raise InvalidInput("a wave that is to survive a restart needs both a store and a name")
        if store is not None:
            _NAME(self, "name", name)
        self.plan: WavePlan = plan
        self.name: str = name
        self.progress: WaveProgress = WaveProgress()
        self._handler = handler
        self._wait_s = check_seconds(wait_s, "wait_s")
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._store = store
        self._saved = WaveProgress()
        self._version: int | None = None  # of what is in the store; None: to be read
        self._put_off: set[str] = set()
        self._held_since: dict[str, int] = {}  # refused for now, and still in their place
        self._back_at: dict[str, int] = {}  # gave their place up, and when they may have one again
        self._turn = anyio.Lock()
        self._changed = anyio.Event()

    @property
    def opened(self) -> int:
        """How many candidates own something, or may."""
        return len(self.progress.opened)

    @property
    def failed(self) -> int:
        """How many were attempted, and nothing came of them."""
        return len(self.progress.failed)

    @property
    def under_way(self) -> int:
        """How many were begun and have not ended."""
        return len(self.progress.under_way)

    async def __call__(self, work: SignalWork) -> SignalResult:
        """Execute one candidate, wait until it is known whether it is needed, or refuse it.

        Raises:
            StoreError: the progress could not be read or written.
            Exception: whatever the handler raises.
        """
        answer = await self._ask(work)
        if answer is _NOT_YET and not work.is_resumed:  # what is resumed comes again by itself
            with anyio.move_on_after(self._wait_s):
                while answer is _NOT_YET:
                    await self._changed.wait()
                    answer = await self._ask(work)
        if answer is _NOT_YET:
            self._put_off.add(work.key)  # it owns nothing: when it comes again, it is asked again
            return answer
        self._put_off.discard(work.key)
        return await self._attempt(work) if answer is None else answer

    async def _ask(self, work: SignalWork) -> SignalResult | None:
        """None: it is to be attempted, and that is written down. Else why not, or ``_NOT_YET``."""
        async with self._turn:
            await self._load()
            while not self._is_begun(work):
                step = self._step(work.key)
                if step is WaveStep.WAIT:
                    return _NOT_YET
                if step is WaveStep.STOP:
                    note = f"{self.opened} of {self.plan.target} opened, {self.failed} failed"
                    return Refused(reason=DropReason.NOT_ATTEMPTED, note=note)
                if work.is_late(self._clock.now_ms()):
                    return Refused(reason=DropReason.STALE, note="it waited too long for its turn in the wave")
                await self._begin(work.key)
            return None

    async def _begin(self, key: str) -> None:
        try:
            await self._change(lambda progress: progress.begin(key))
        except StoreError:
            self.progress = self.progress.forget(key)  # not known to be durable: it is not handed out
            raise

    def _is_begun(self, work: SignalWork) -> bool:
        """Whether it may own something already: then it is not asked again whether it is needed."""
        if self.progress.knows(work.key):
            return True
        return work.is_resumed and self._store is None and work.key not in self._put_off

    def _step(self, key: str) -> WaveStep:
        step = self.progress.step(self.plan)
        is_back = self._clock.now_ms() >= self._back_at.get(key, 0)
        return WaveStep.WAIT if step is WaveStep.ATTEMPT and not is_back else step

    async def _attempt(self, work: SignalWork) -> SignalResult:
        try:
            result = await self._handler(work)
        except _NOTHING_SENT as error:
            if is_for_now(error):
                await self._hold(work.key)
            else:
                await self._end(work.key, opened=False)
            raise
        except NOT_NOW:
            raise  # in doubt: it stays under way, and comes again
        except Exception:
            await self._end(work.key, opened=True)  # it may own something, and nobody may ever say so
            raise
        match result:
            case Pending(attempted=False):
                await self._hold(work.key)
            case Pending():
                pass  # in doubt, as above
            case Refused() if stage_of(result) is not Stage.ATTEMPTED:
                await self._forget(work.key)  # too small, too wide a spread, …: no order was placed, nothing is spent
            case _:
                await self._end(work.key, opened=isinstance(result, Executed))
        return result

    async def _hold(self, key: str) -> None:
        """Nothing was attempted: it keeps its place for a while, then it goes behind the others."""
        now_ms, wait_ms = self._clock.now_ms(), round(self._wait_s * 1000)
        if now_ms - self._held_since.setdefault(key, now_ms) < wait_ms:
            return
        await self._forget(key)
        self._back_at[key] = now_ms + wait_ms
        self._put_off.add(key)

    async def _forget(self, key: str) -> None:
        self._held_since.pop(key, None)
        self._back_at.pop(key, None)
        async with self._turn:
            await self._insist(lambda progress: progress.forget(key))

    async def _end(self, key: str, *, opened: bool) -> None:
        self._held_since.pop(key, None)
        self._back_at.pop(key, None)
        async with self._turn:
            await self._insist(lambda progress: progress.end(key, opened=opened))

    # --- the progress ----------------------------------------------------------------------------

    async def _insist(self, change: _Change) -> None:
        """Make a change, whatever others changed meanwhile."""
        while not await self._change(change):
            continue

    async def _change(self, change: _Change) -> bool:
        """Make a change, durably; False: another process changed something first, decide again."""
        self.progress = after = change(self.progress)
        self._changed.set()
        self._changed = anyio.Event()
        if self._store is None or after == self._saved:
            return True
        now_ms = self._clock.now_ms()
        put = Put(
            collection=COLLECTION,
            key=self.name,
            value=after,
            version=self._version or 0,
            is_open=False,  # it is needed for as long as signals are remembered, and no longer
            ended_at_ms=now_ms,
        )
        try:
            await commit_shielded(self._store, Batch(now_ms=now_ms, puts=(put,)), timeout_s=_STORE_TIMEOUT_S)
        except VersionConflict:
            self._version = None
            await self._load()
            return False
        self._version, self._saved = put.version + 1, after
        return True

    async def _load(self) -> None:
        if self._store is None or self._version is not None:
            return
        stored = await self._store.find(COLLECTION, self.name)
        found = WaveProgress() if stored is None else stored.value
        if not isinstance(found, WaveProgress):
            raise StoreCorrupt("a record of another kind was found among the waves", key=self.name)
        self._version = 0 if stored is None else stored.version
        self.progress = self._saved = found
