"""The gate: what arrives is understood, judged, remembered, and executed once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import attrs

from execsafe.clock import SystemClock
from execsafe.core.funnel import Funnel, Stage
from execsafe.core.payloads import read_signal
from execsafe.core.signals import (
    UNDONE_BY,
    Accept,
    DeadLetter,
    Drop,
    DropReason,
    OnFlat,
    SignalPolicy,
    age_ms,
    decide,
    decide_content,
    is_superseded,
)
from execsafe.errors import (
    AlreadyInFlight,
    LeaseHeld,
    StaleFencingToken,
    StoreError,
    VersionConflict,
)
from execsafe.locks import DedupLock, Hold, OnBusy
from execsafe.model.event import Event, EventType
from execsafe.model.signal import ExecutionMode, Signal, SignalSide
from execsafe.model.values import check_count, check_seconds, shorten, text_validator
from execsafe.ports import Clock, Listener, Put, Store
from execsafe.signals._running import result_of_handler
from execsafe.signals._tally import Tally
from execsafe.signals.records import SignalRecord, SignalRecords, SignalState, content_put
from execsafe.signals.work import (
    DeadLettered,
    Dropped,
    Executed,
    Handled,
    Pending,
    Refused,
    SignalHandler,
    SignalOutcome,
    SignalWork,
    Unfinished,
    stage_of,
)

_log = logging.getLogger("execsafe.signals")
_NAME: Final = text_validator("gate name", 32)
_NOTE_LENGTH_MAX: Final = 300
_RESULTS: Final = (Executed, Refused, Pending)


class SignalGate:
    """Lets each signal through once, while it is fresh, and remembers what became of it.

    A signal is recorded before it is executed, and its end when it has ended: a crash in between leads to
    :attr:`SignalWork.is_resumed`, not to a second execution. Two keys keep signals apart: the *identity* is
    remembered for ``retention_s``; the *content* (symbol and side) only excludes others while one is in flight. (An
    exit is not excluded: it waits for its turn.)

    Args:
        store: remembers. Without it nothing is executed.
        policy: which signals may be executed.
        name: of this gate; two strategies that both execute the same signals need two names.
        locks: exclusion while in flight. By default leases in *store*, so that several processes share the work.
        turns: one signal of a symbol at a time. By default within this process; with exits by leases in *store*, as one
            undoes the other. Give one of this process's own where no other process works on the store.
        budget_s: how long one execution may take; then it is cancelled and handed out again. 60 s outlives the
            patience of one order at most venues.
        failures_max: how often a handler may fail on one signal before that becomes a dead letter. 3.
        store_timeout_s: how long one write may take.
        listeners: told of ``signal_…`` events. One that raises is logged and ignored.
        clock: source of Unix milliseconds.
    """

    def __init__(
        self,
        store: Store,
        policy: SignalPolicy | None = None,
        *,
        name: str = "signals",
        locks: DedupLock | None = None,
        turns: DedupLock | None = None,
        budget_s: float = 60.0,
        failures_max: int = 3,
        store_timeout_s: float = 10.0,
        listeners: Sequence[Listener] = (),
        clock: Clock | None = None,
    ) -> None:
        _NAME(self, "name", name)
        self.policy: SignalPolicy = policy if policy is not None else SignalPolicy()
        self.name: str = name
        self._mode = self.policy.mode
        self.clock: Clock = clock if clock is not None else SystemClock()
        self._locks = locks if locks is not None else DedupLock(store=store, clock=self.clock)
        shared = store if self._is_ordered else None
        self._turns = turns if turns is not None else DedupLock(store=shared, clock=self.clock)
        self._budget_s = check_seconds(budget_s, "budget_s")
        self._failures_max = check_count(failures_max, "failures_max")
        self._records = SignalRecords(
            store, clock=self.clock, listeners=listeners, store_timeout_s=store_timeout_s, gate=name
        )
        self._tally = Tally()

    @property
    def mode(self) -> ExecutionMode:
        """What is done with signals that pass; set it at any time. The policy's at first."""
        return self._mode

    @mode.setter
    def mode(self, mode: ExecutionMode | str) -> None:
        self._mode = ExecutionMode(mode)  # a word that is none must not pass for LIVE

    @property
    def funnel(self) -> Funnel:
        """Counts by stage since this gate was made; each signal once."""
        return self._tally.funnel

    async def run(
        self, payload: Mapping[str, Any], handler: SignalHandler, *, published_at_ms: int | None = None
    ) -> SignalOutcome:
        """Understand *payload*, judge it, and have it executed by *handler* if it may be.

        Never raises for anything that the payload, the store or the handler does.

        Args:
            payload: as received, see :func:`execsafe.core.payloads.read_signal`.
            handler: executes it.
            published_at_ms: when the bus took it, by the bus's clock.
        """
        found = read_signal(payload, self.policy)
        if isinstance(found, DeadLetter):
            return self._reject_unread(found)
        self._tell(EventType.SIGNAL_RECEIVED, found, note=self.mode, age_ms=age_ms(found, self.clock.now_ms()))
        return await self._exclusively(found, handler, published_at_ms)

    async def find(self, signal_id: str) -> SignalRecord | None:
        """What is remembered of a signal; None if it was never accepted, or its retention has passed.

        Raises:
            StoreError: the store could not be read.
        """
        return await self._records.find(self._prefix, signal_id)

    async def unfinished(self) -> list[SignalRecord]:
        """All signals that were accepted and have not ended, as they arrived.

        Raises:
            StoreError: the store cannot say which these are.
        """
        return await self._records.unfinished()

    def key_of(self, record: SignalRecord) -> str:
        """The intent key under which *record* is executed; :attr:`SignalWork.key`."""
        return f"{_prefix(record.gate, record.mode)}:{record.signal.id}"

    async def resume(self, handler: SignalHandler) -> list[SignalOutcome]:
        """Go on with every signal that was accepted and has not ended, whatever became of its message.

        Raises:
            StoreError: the store cannot say which these are.
        """
        return [
            await self._exclusively(record.signal, handler, None, resuming=True)
            for record in await self._records.unfinished()
            if (record.mode is ExecutionMode.PAPER) == (self.mode is ExecutionMode.PAPER)
        ]

    # --- Inside --------------------------------------------------------------------------------------

    @property
    def _prefix(self) -> str:
        # What was played on paper was not executed: it is remembered apart.
        return _prefix(self.name, self.mode)

    async def _exclusively(
        self, signal: Signal, handler: SignalHandler, published_at_ms: int | None, *, resuming: bool = False
    ) -> SignalOutcome:
        try:
            async with self._locks.hold(("signal", self._prefix, signal.id)):
                return await self._run(signal, handler, published_at_ms, resuming=resuming)
        except (AlreadyInFlight, StaleFencingToken) as error:
            return Unfinished(signal=signal, why="in_flight", note=type(error).__name__)
        except (StoreError, LeaseHeld) as error:
            self._tell(EventType.SIGNAL_FAILED, signal, note="store", error=type(error).__name__)
            return Unfinished(signal=signal, why="store", note=type(error).__name__)

    async def _run(
        self, signal: Signal, handler: SignalHandler, published_at_ms: int | None, *, resuming: bool
    ) -> SignalOutcome:
        now_ms = self.clock.now_ms()
        prefix, mode = self._prefix, self.mode
        record = await self._records.find(prefix, signal.id)
        seen = None if record is None else record.seen
        decision = decide(signal, now_ms, self.policy, seen, published_at_ms=published_at_ms, mode=mode)
        match decision:
            case DeadLetter():
                self._tally.dropped_at_once(Stage.ADAPTED, decision.reason)
                self._tell(EventType.SIGNAL_DEAD_LETTERED, signal, note=decision.reason, why=decision.note)
                return DeadLettered(reason=decision.reason, note=decision.note, signal=signal)
            case Drop() if resuming and signal.id not in self._tally:  # ended since it was found; nothing arrived
                return Dropped(signal=signal, reason=decision.reason, age_ms=age_ms(signal, now_ms))
            case Drop():
                return await self._drop(signal, decision, prefix, now_ms)
            case Accept() if record is not None:
                return await self._execute(record, handler, prefix, is_resumed=True)
        fresh = SignalRecord(
            gate=self.name,
            signal=signal,
            mode=ExecutionMode.PAPER if mode is ExecutionMode.PAPER else ExecutionMode.LIVE,
            fresh_until_ms=decision.fresh_until_ms,
            received_at_ms=now_ms,
            updated_at_ms=now_ms,
        )
        return await self._execute(fresh, handler, prefix, is_resumed=False)

    async def _execute(
        self, record: SignalRecord, handler: SignalHandler, prefix: str, *, is_resumed: bool
    ) -> SignalOutcome:
        signal = record.signal
        if signal.side is SignalSide.FLAT:
            return await self._execute_exit(record, handler, prefix, is_resumed=is_resumed)
        try:
            async with self._locks.hold(("content", prefix, *signal.content_key)):
                if not is_resumed:
                    accepted = await self._accept(record, prefix)
                    if isinstance(accepted, Dropped):
                        return accepted
                    record = accepted
                self._tally.count(signal.id, Stage.VALIDATED)
                async with self._turn(signal, prefix):
                    return await self._handle(record, handler, prefix, is_resumed=is_resumed)
        except AlreadyInFlight:
            if is_resumed or not await self._is_another_at_it(signal, prefix):
                return Unfinished(signal=signal, why="in_flight")
            busy = Drop(reason=DropReason.IN_FLIGHT, note="another signal for this symbol and side is being executed")
            return await self._drop(signal, busy, prefix, self.clock.now_ms())

    async def _is_another_at_it(self, signal: Signal, prefix: str) -> bool:
        """Whether the content's claim is another signal's, and not what is left of a process that died with this one.

        The claims of a dead process do not end at the same instant. One that came in between must not be dropped.
        """
        if self._locks.in_flight(("content", prefix, *signal.content_key)):  # by this process, which is alive
            return True
        return any(
            record.signal.content_key == signal.content_key and record.signal.id != signal.id
            for record in await self._records.unfinished()
        )

    async def _execute_exit(
        self, record: SignalRecord, handler: SignalHandler, prefix: str, *, is_resumed: bool
    ) -> SignalOutcome:
        """No other signal is a reason to leave an exit out. What does not get its turn soon is resumed."""
        if not is_resumed:
            accepted = await self._accept_exit(record, prefix)
            if isinstance(accepted, Dropped):
                return accepted
            record = accepted
        self._tally.count(record.signal.id, Stage.VALIDATED)
        try:
            async with self._turn(record.signal, prefix, timeout_s=_TURN_S):
                return await self._handle(record, handler, prefix, is_resumed=is_resumed)
        except AlreadyInFlight:
            return Unfinished(signal=record.signal, why="in_flight", note="another signal of the symbol is executed")

    def _turn(self, signal: Signal, prefix: str, *, timeout_s: float | None = None) -> Hold:
        return self._turns.hold(("turn", prefix, signal.symbol), on_busy=OnBusy.WAIT, timeout_s=timeout_s)

    async def _accept_exit(self, record: SignalRecord, prefix: str) -> SignalRecord | Dropped:
        for _ in range(_CONFLICTS_MAX):
            with suppress(VersionConflict):  # another exit of the symbol was accepted meanwhile
                return await self._accept(record, prefix)
        return await self._accept(record, prefix)

    async def _accept(self, record: SignalRecord, prefix: str) -> SignalRecord | Dropped:
        """Record it as accepted: from here on it is executed, by whomever."""
        signal, now_ms = record.signal, record.received_at_ms
        noted = self._is_ordered or self.policy.content_interval_ms > 0
        last = await self._records.content(prefix, signal.symbol, signal.side) if noted else None
        too_soon = decide_content(None if last is None else last.at_ms, now_ms, self.policy)
        is_exit = signal.side is SignalSide.FLAT
        if too_soon is not None and not is_exit:
            return await self._drop(signal, too_soon, prefix, now_ms)
        event = self._event(EventType.SIGNAL_ACCEPTED, signal, note=record.mode, age_ms=age_ms(signal, now_ms))
        also = [content_put(prefix, record, last, counts=is_exit)] if noted else []
        return await self._records.save(prefix, record, event, also=also)

    async def _handle(
        self, record: SignalRecord, handler: SignalHandler, prefix: str, *, is_resumed: bool
    ) -> SignalOutcome:
        signal = record.signal
        work = SignalWork(
            signal=signal,
            key=self.key_of(record),
            fresh_until_ms=record.fresh_until_ms,
            mode=record.mode,
            is_resumed=is_resumed,
        )
        # What was begun before is settled: an entry by its handler, which sends no more of it; an exit by itself.
        is_begun = is_resumed and signal.side is not SignalSide.FLAT
        if await self._is_superseded(record, prefix):
            if not is_begun:
                note = "a later signal wants the symbol otherwise"
                return await self._end(record, Refused(reason=DropReason.SUPERSEDED, note=note), prefix)
            work = attrs.evolve(work, fresh_until_ms=0)
        if work.is_late(self.clock.now_ms()) and not is_begun:
            return await self._end(record, Refused(reason=DropReason.STALE, note="it waited too long"), prefix)
        result = await result_of_handler(work, handler, self._budget_s)
        if isinstance(result, Pending):
            self._tally.count(signal.id, Stage.ATTEMPTED if result.attempted else Stage.VALIDATED)
            return Unfinished(signal=signal, why="pending", note=result.note)
        if isinstance(result, str):
            return await self._fail(record, result, prefix)
        return await self._end(record, result, prefix)

    @property
    def _is_ordered(self) -> bool:
        """Whether it counts which of two signals was said later: with exits, one undoes the other."""
        return self.policy.on_flat is OnFlat.EXIT

    async def _is_superseded(self, record: SignalRecord, prefix: str) -> bool:
        if not self._is_ordered:
            return False
        signal, latest = record.signal, dict[SignalSide, int]()
        for other in UNDONE_BY[signal.side]:
            content = await self._records.content(prefix, signal.symbol, other)
            latest[other] = 0 if content is None else content.said_at_ms
        return is_superseded(signal.side, record.said_at_ms, latest)

    async def _opened(self, record: SignalRecord, prefix: str) -> list[Put]:
        """What is to be remembered of an entry that was executed."""
        signal = record.signal
        if not self._is_ordered or signal.side is SignalSide.FLAT:
            return []
        before = await self._records.content(prefix, signal.symbol, signal.side)
        return [content_put(prefix, record, before, counts=True)]

    async def _end(self, record: SignalRecord, result: Executed | Refused, prefix: str) -> SignalOutcome:
        state, reason = SignalState.EXECUTED, None
        if isinstance(result, Refused):
            state, reason = SignalState.REFUSED, result.reason
        event = self._event(EventType.SIGNAL_HANDLED, record.signal, note=reason or "executed", why=result.note)
        ended = self._ended(record, state, reason, result.note)
        also = await self._opened(ended, prefix) if isinstance(result, Executed) else []
        await self._records.save(prefix, ended, event, also=also)
        if isinstance(result, Refused):
            self._tally.count(record.signal.id, stage_of(result))
            self._tally.dropped(record.signal.id, result.reason)
        else:
            self._tally.opened(record.signal.id)
        return Handled(signal=record.signal, result=result)

    async def _fail(self, record: SignalRecord, error: str, prefix: str) -> SignalOutcome:
        failed = attrs.evolve(record, failures=record.failures + 1, note=error, updated_at_ms=self.clock.now_ms())
        if failed.failures < self._failures_max:
            event = self._event(EventType.SIGNAL_FAILED, record.signal, note="handler", error=error)
            await self._records.save(prefix, failed, event)
            return Unfinished(signal=record.signal, why="failed", note=error)
        note = f"its handler failed {failed.failures} times, last with {error}"
        event = self._event(EventType.SIGNAL_DEAD_LETTERED, record.signal, note=DropReason.POISON, why=note)
        ended = self._ended(failed, SignalState.DEAD_LETTERED, DropReason.POISON, note)
        await self._records.save(prefix, ended, event)
        self._tally.dropped(record.signal.id, DropReason.POISON)
        return DeadLettered(reason=DropReason.POISON, note=note, signal=record.signal)

    async def _drop(self, signal: Signal, drop: Drop, prefix: str, now_ms: int) -> Dropped:
        """Drops that another look could judge otherwise are remembered; the others judge themselves again."""
        age = age_ms(signal, now_ms)
        why = shorten(drop.note, 300) if drop.note else ""
        event = self._event(EventType.SIGNAL_DROPPED, signal, note=drop.reason, age_ms=age, why=why)
        if drop.reason in _REMEMBERED:
            record = SignalRecord(
                gate=self.name, signal=signal, mode=self.mode, received_at_ms=now_ms, updated_at_ms=now_ms
            )
            await self._records.save(prefix, self._ended(record, SignalState.DROPPED, drop.reason, drop.note), event)
        else:
            self._records.tell(event)
        if signal.id in self._tally:  # its execution began here and ended elsewhere
            self._tally.dropped(signal.id, drop.reason)
        else:
            self._tally.dropped_at_once(Stage.ADAPTED, drop.reason)
        return Dropped(signal=signal, reason=drop.reason, note=drop.note, age_ms=age)

    def _ended(self, record: SignalRecord, state: SignalState, reason: DropReason | None, note: str) -> SignalRecord:
        now_ms = self.clock.now_ms()
        return attrs.evolve(record, state=state, reason=reason, note=note, updated_at_ms=now_ms, ended_at_ms=now_ms)

    # --- Telling ------------------------------------------------------------------------------------

    def _reject_unread(self, found: DeadLetter) -> DeadLettered:
        self._tally.dropped_at_once(Stage.RECEIVED, found.reason)
        details = {"why": shorten(found.note, 500)}
        now_ms = self.clock.now_ms()
        self._records.tell(
            Event(
                type=EventType.SIGNAL_DEAD_LETTERED,
                at_ms=now_ms,
                subject=self.name,
                note=found.reason.value,
                details=details,
            )
        )
        return DeadLettered(reason=found.reason, note=found.note)

    def _tell(self, kind: EventType, signal: Signal, *, note: str, **details: Any) -> None:
        self._records.tell(self._event(kind, signal, note=note, **details))

    def _event(self, kind: EventType, signal: Signal, *, note: str, **details: Any) -> Event:
        facts = {"side": signal.side.value, "source": signal.source, "trace_id": signal.trace_id, **details}
        return Event(
            type=kind,
            at_ms=self.clock.now_ms(),
            subject=signal.id,
            symbol=signal.symbol,
            note=str(note),
            details=facts,
        )


def _prefix(name: str, mode: ExecutionMode) -> str:
    return f"paper:{name}" if mode is ExecutionMode.PAPER else name


_TURN_S: Final = 1.0
_CONFLICTS_MAX: Final = 5
_REMEMBERED: Final = frozenset({DropReason.DRAIN, DropReason.IN_FLIGHT, DropReason.TOO_SOON})
