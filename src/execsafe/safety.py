"""``SafetyMonitor``: ACTIVE / REDUCE_ONLY / HALTED, tripped by what happens, durable, asked before every entry."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import anyio
import attrs
from anyio.abc import TaskStatus

from execsafe.buses.surviving import survived
from execsafe.buses.telling import tell
from execsafe.clock import SystemClock
from execsafe.core import safety
from execsafe.core.health import Window
from execsafe.core.safety import (
    AUTH_KINDS,
    STARTS,
    DenyReason,
    SafetyPolicy,
    SafetyRecord,
    TradingState,
    TripReason,
)
from execsafe.errors import StoreCorrupt, StoreError, StoreUnavailable, TradingDenied, VersionConflict
from execsafe.intents import IntentRegistry
from execsafe.model.event import Event, EventType
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent, IntentState
from execsafe.model.position import Unavailable
from execsafe.model.values import Params, check_seconds, shorten, to_text
from execsafe.ports import Batch, Clock, Listener, Put, Store
from execsafe.stores.codec import register
from execsafe.stores.commits import commit_shielded
from execsafe.views import VenueReader

__all__ = ["DenyReason", "SafetyMonitor", "SafetyPolicy", "TradingState", "TripReason"]

_log = logging.getLogger("execsafe.safety")
COLLECTION: Final = "safety"
_HEARD_MAX: Final = 10_000
_CONFLICTS_MAX: Final = 20
_EVENTS_AT_ONCE: Final = 1_000
_STORE_TIMEOUT_S: Final = 10.0
_STORE: Final = "store"
_VENUE: Final = "venue"
_CHAIN_MAX: Final = 10
_NOTE_MAX: Final = 200
_UNWRITTEN_MAX: Final = 1_000

_Change: TypeAlias = Callable[[SafetyRecord], SafetyRecord]

register(SafetyRecord, "SafetyRecord")


class SafetyMonitor:
    """Says what may be sent, and changes its mind by itself when things go wrong.

    It is three things in one: a *listener* (give :meth:`on_event` to whatever tells events), a *pre-trade check* (give
    the monitor to ``OrderGateway(checks=[…])``, as the last one), and a *switch* for people (:meth:`set`,
    :meth:`reset`). Its record lives in the store: a restart, or another process, finds the same state. What happened
    between the last write and a crash is read again from the outbox.

    Exits (``reduce_only``) and cancels always pass. When the store fails no entry passes.

    Args:
        store: where the record lives; the registry's own, because the outbox is read from it.
        clock: source of Unix milliseconds.
        policy: thresholds, cool-downs, escalation.
        listeners: told of ``trading_state_changed``, ``breaker_tripped`` and ``entry_denied``, at once. One that raises
            is logged and ignored.
        name: which state, where one store serves several.
        refresh_s: how old the view of the store may be when an entry is checked. 1 s: another process's halt takes
            effect here within that time.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock | None = None,
        policy: SafetyPolicy | None = None,
        listeners: Sequence[Listener] = (),
        name: str = "default",
        refresh_s: float = 1.0,
    ) -> None:
        check_seconds(refresh_s, "refresh_s", least=0)
        to_text(name, "name", _NOTE_MAX)
        self.policy: SafetyPolicy = policy if policy is not None else SafetyPolicy()
        self.name: str = name
        self._store = store
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._listeners = tuple(listeners)
        self._refresh_ms = round(refresh_s * 1000)
        self._record = SafetyRecord()
        self._stored = SafetyRecord()
        self._version = 0
        self._refreshed_at_ms: int | None = None
        self._answers = Window(span_ms=round(self.policy.reject_window_s * 1000))
        self._pending: list[_Change] = []  # made since the last write; made again if somebody else wrote first
        self._events: list[Event] = []
        self._heard: deque[Event] = deque(maxlen=_HEARD_MAX)
        self._turn = anyio.Lock()

    # --- what it says ----------------------------------------------------------------------------

    @property
    def state(self) -> TradingState:
        """What may be sent, as far as this process knows."""
        return safety.state_of(self._record)

    @property
    def reasons(self) -> tuple[TripReason, ...]:
        """Why; empty when ACTIVE."""
        return safety.reasons_of(self._record)

    @property
    def record(self) -> SafetyRecord:
        """Breakers and causes in full."""
        return self._record

    async def check(self, intent: Intent, instrument: Instrument) -> None:  # noqa: ARG002 - the port's face
        """Let an entry pass, or refuse it; exits pass.

        After the cool-down one entry passes on trial: its acceptance closes the breakers, its failure opens them again.

        Raises:
            TradingDenied: with ``reason`` (a :class:`DenyReason`) and ``state``.
        """
        if intent.reduce_only:
            return
        try:
            if self._is_old():
                await self.refresh()
            now_ms = self._clock.now_ms()
            after, denial = safety.admit(self._record, intent.identity, self.policy, now_ms=now_ms)
            if denial is None and after is not self._record:
                # On trial: written down first, so that of several processes one sends.
                self._change(lambda r: safety.admit(r, intent.identity, self.policy, now_ms=now_ms)[0], by="probe")
                await self.refresh()
                _, denial = safety.admit(self._record, intent.identity, self.policy, now_ms=self._clock.now_ms())
        except StoreError as error:
            why = f"the trading state could not be read ({type(error).__name__}); no entry is sent without it"
            raise self._denied(intent, DenyReason.STATE_UNKNOWN, why) from error
        if denial is not None:
            raise self._denied(intent, denial.reason, denial.message)

    # --- what it hears ---------------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """Take in an event: a listener. The state changes at once; it is written at the next refresh."""
        if safety.matters(event.type) or event.error is not None:
            self._heard.append(event)
            self._take_in(event)

    def caught(self, error: BaseException) -> None:
        """Take in an exception that no event tells of: a refused key halts, a failing store restricts trading."""
        kind = _auth_kind(error)
        now_ms = self._clock.now_ms()
        if kind:
            self._change(
                lambda r: safety.trip(r, TripReason.AUTHENTICATION, self.policy, now_ms=now_ms, note=kind), by="caught"
            )
        elif isinstance(error, StoreError) and not isinstance(error, VersionConflict):
            self._store_failed(error)

    async def self_check(self, reader: VenueReader) -> bool:
        """Ask the venue one signed question before trading begins: whether the key works at this endpoint.

        A refused key halts trading; a venue that cannot be asked restricts it until a later call succeeds.
        """
        reading = await reader.balances()
        now_ms = self._clock.now_ms()
        if not isinstance(reading, Unavailable):
            self._change(
                lambda r: safety.remove_cause(r, TripReason.HEALTH, _VENUE, self.policy, now_ms=now_ms), by="self_check"
            )
            return True
        kind = reading.error.kind
        if safety.is_auth(reading.error):
            self._change(
                lambda r: safety.trip(r, TripReason.AUTHENTICATION, self.policy, now_ms=now_ms, note=kind),
                by="self_check",
            )
        else:
            self._change(
                lambda r: safety.add_cause(r, TripReason.HEALTH, _VENUE, self.policy, now_ms=now_ms, note=kind),
                by="self_check",
            )
        return False

    # --- by hand ---------------------------------------------------------------------------------

    async def set(self, state: TradingState, *, note: str) -> None:
        """Restrict trading by hand. ACTIVE takes that back; what tripped by itself stays: :meth:`reset`.

        It holds in this process at once, whatever the store says.

        Raises:
            InvalidInput: *note* is empty, too long (200) or not printable.
            StoreError: it could not be written: other processes, and this one after a restart, do not know.
        """
        to_text(note, "note", _NOTE_MAX)
        now_ms = self._clock.now_ms()
        self._change(lambda r: safety.set_by_hand(r, state, note, self.policy, now_ms=now_ms), by=f"hand: {note}")
        await self.refresh()

    async def reset(self, *reasons: TripReason, note: str) -> None:
        """Close breakers by hand (none named: all), with their causes: somebody has looked, and says so in *note*.

        Raises:
            InvalidInput: *note* is empty, too long (200) or not printable.
            StoreError: it could not be written; it holds in this process only.
        """
        to_text(note, "note", _NOTE_MAX)
        chosen = reasons or None
        self._change(lambda r: safety.reset(r, chosen), by=f"hand: {note}")
        await self.refresh()

    # --- the store -------------------------------------------------------------------------------

    async def open(self, registry: IntentRegistry | None = None) -> None:
        """Read the record and what happened since. With *registry*, its unresolved intents count, and only they.

        Raises:
            StoreError: it could not be read; no entry passes until it can.
        """
        await self.refresh()
        if registry is None:
            return
        records = await registry.open_records()
        now = frozenset(r.intent.identity for r in records if r.state is IntentState.UNRESOLVED)
        known = frozenset(c.subject for c in self._record.causes if c.reason is TripReason.UNRESOLVED)
        now_ms = self._clock.now_ms()
        for subject in sorted(known - now):
            self._settle(subject, now_ms)
        for subject in sorted(now - known):
            self._doubt(subject, now_ms)
        await self.refresh()

    async def refresh(self) -> None:
        """Bring memory and store together: read what others wrote and what was not heard, write what is new.

        Raises:
            StoreError: the store failed; no entry passes until it works again.
        """
        try:
            async with self._turn:
                with anyio.move_on_after(_STORE_TIMEOUT_S) as scope:
                    await self._load()
                    await self._catch_up()
                if scope.cancelled_caught:
                    raise StoreUnavailable(f"the store did not answer within {_STORE_TIMEOUT_S} s")
                now_ms = self._clock.now_ms()
                self._change(lambda r: safety.tidied(r, self.policy, now_ms=now_ms), by="calm")
                self._change(
                    lambda r: safety.remove_cause(r, TripReason.STORE_FAILURE, _STORE, self.policy, now_ms=now_ms),
                    by=_STORE,
                )
                await self._save()
                self._refreshed_at_ms = self._clock.now_ms()
        except StoreError as error:
            self._store_failed(error)
            raise

    async def run(self, *, interval_s: float = 1.0, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Refresh every *interval_s* until cancelled; run it in a task group. What fails is logged and tried again."""
        check_seconds(interval_s, "interval_s")
        task_status.started()
        while True:
            await survived(self.refresh, "refreshing the trading state", log=_log)
            await anyio.sleep(interval_s)

    # --- inside ----------------------------------------------------------------------------------

    def _is_old(self) -> bool:
        at_ms = self._refreshed_at_ms
        return at_ms is None or bool(self._pending) or self._clock.now_ms() - at_ms >= self._refresh_ms

    def _change(self, change: _Change, *, by: str) -> None:
        before = self._record
        after = change(before)
        if after is before or after == before:
            return
        self._record = after
        self._pending.append(change)
        told = safety.narrate(before, after, subject=self.name, by=by, now_ms=self._clock.now_ms())
        self._events += told
        # While the store is down; the record itself has it all, these are for other writers' records and the outbox.
        del self._pending[:-_UNWRITTEN_MAX]
        del self._events[:-_UNWRITTEN_MAX]
        tell(self._listeners, *told)

    def _take_in(self, event: Event) -> None:
        now_ms, answers = self._clock.now_ms(), self._answers
        _, self._answers = safety.observed(self._record, answers, event, self.policy, now_ms=now_ms)
        self._change(lambda r: safety.observed(r, answers, event, self.policy, now_ms=now_ms)[0], by=event.type.value)

    def _settle(self, subject: str, now_ms: int) -> None:
        self._change(
            lambda r: safety.remove_cause(r, TripReason.UNRESOLVED, subject, self.policy, now_ms=now_ms), by="registry"
        )

    def _doubt(self, subject: str, now_ms: int) -> None:
        self._change(
            lambda r: safety.add_cause(r, TripReason.UNRESOLVED, subject, self.policy, now_ms=now_ms), by="registry"
        )

    def _store_failed(self, error: StoreError) -> None:
        now_ms, note = self._clock.now_ms(), type(error).__name__
        self._refreshed_at_ms = None
        self._change(
            lambda r: safety.add_cause(r, TripReason.STORE_FAILURE, _STORE, self.policy, now_ms=now_ms, note=note),
            by=_STORE,
        )

    def _denied(self, intent: Intent, reason: DenyReason, message: str) -> TradingDenied:
        details = {"reason": reason.value, "message": shorten(message, 300), "numbers": {"state": self.state.value}}
        event = Event(
            type=EventType.ENTRY_DENIED,
            at_ms=self._clock.now_ms(),
            subject=intent.identity,
            symbol=intent.symbol,
            quantity=intent.quantity,
            note=reason.value,
            details=Params.of(details),
        )
        tell(self._listeners, event)
        return TradingDenied(message, intent_key=intent.key, reason=reason.value, state=self.state.value)

    async def _load(self) -> None:
        stored = await self._store.find(COLLECTION, self.name)
        if stored is None:
            if self._version == 0 and self._stored.seq == 0:
                await self._begin()
            return
        if stored.version == self._version:
            return
        if not isinstance(stored.value, SafetyRecord):
            raise StoreCorrupt("a record of another kind was found where the trading state belongs", key=stored.key)
        self._adopt(stored.value, stored.version)

    def _adopt(self, newer: SafetyRecord, version: int) -> None:
        """Somebody else wrote: their record, with what this process has to add."""
        before, after = self._record, newer
        for change in self._pending:
            after = change(after)
        self._stored, self._version = newer, version
        self._record = attrs.evolve(after, seq=max(newer.seq, before.seq))
        tell(
            self._listeners, *safety.narrate(before, after, subject=self.name, by="store", now_ms=self._clock.now_ms())
        )

    async def _begin(self) -> None:
        """First use over this store: what happened before is the past; what is open is the registry's to say."""
        seq = 0
        while items := await self._store.read_events(seq, _EVENTS_AT_ONCE):
            seq = items[-1].seq
        self._record = attrs.evolve(self._record, seq=seq)
        try:
            await self._write()
        except VersionConflict:
            await self._load()  # another process began at the same time

    async def _catch_up(self) -> None:
        """What was recorded and not heard here: before a crash, or by another process."""
        heard, seq, since = list(self._heard), self._record.seq, self._record.seq
        while items := await self._store.read_events(seq, _EVENTS_AT_ONCE):
            for event in (item.event for item in items):
                is_news = self._is_news(event)
                if is_news and event in self._heard:
                    self._heard.remove(event)
                elif is_news:
                    self._take_in(event)
            seq = items[-1].seq
        # All that was heard before the reading began has been read, or is in no outbox.
        for event in heard:
            if event in self._heard:
                self._heard.remove(event)
        if seq != since:
            self._record = attrs.evolve(self._record, seq=seq)

    def _is_news(self, event: Event) -> bool:
        """Whether an event that was not heard counts. Rejects of the past do not: their ratio was for its own time."""
        is_about_probe = event.subject == self._record.probe != ""
        return is_about_probe or event.type in STARTS or event.type in safety.ENDS or safety.is_auth(event.error)

    async def _save(self) -> None:
        """Write what is new; where somebody else wrote first, theirs with ours on top of it."""
        for _ in range(_CONFLICTS_MAX):
            if attrs.evolve(self._record, seq=0) == attrs.evolve(self._stored, seq=0):
                self._pending.clear()
                self._events.clear()
                if self._record.seq - self._stored.seq < _EVENTS_AT_ONCE:
                    return  # nothing but the reading position: it is written once in a while
            try:
                await self._write()
            except VersionConflict:
                await self._load()
            else:
                return
        raise StoreUnavailable("the trading state kept changing while it was being written")

    async def _write(self) -> None:
        record, made, events = self._record, len(self._pending), len(self._events)
        now_ms = self._clock.now_ms()
        put = Put(collection=COLLECTION, key=self.name, value=record, version=self._version)
        batch = Batch(now_ms=now_ms, puts=(put,), events=tuple(self._events))
        await commit_shielded(self._store, batch, timeout_s=_STORE_TIMEOUT_S)
        self._stored, self._version = record, self._version + 1
        del self._pending[:made]  # what came during the write waits for the next one
        del self._events[:events]


def _auth_kind(error: BaseException) -> str:
    """The class name that says that the key is refused, of the error or of what it came from; "" if none does."""
    seen: BaseException | None = error
    for _ in range(_CHAIN_MAX):
        if seen is None:
            break
        names = AUTH_KINDS.intersection(cls.__name__ for cls in type(seen).__mro__)
        if names:
            return min(names)
        seen = seen.__cause__
    return ""
