"""``IntentRegistry``: the durable, write-ahead record of what was meant, attempt by attempt."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeAlias

import attrs

from execsafe.buses.telling import tell
from execsafe.clock import SystemClock
from execsafe.core import transitions
from execsafe.core.narration import narrate
from execsafe.errors import IntentConflict, InvalidInput, StoreCorrupt, StoreError, StoreUnavailable, VersionConflict
from execsafe.model.event import Event, EventType
from execsafe.model.intent import TERMINAL, Intent, IntentRecord, IntentState
from execsafe.model.order import OrderReport
from execsafe.model.trusted import trusted
from execsafe.model.values import check_seconds, to_text
from execsafe.ports import Batch, Clock, Lease, LeaseRequest, Listener, Put, Store, Stored
from execsafe.retention import TTLStore
from execsafe.stores.commits import commit_shielded

_log = logging.getLogger("execsafe.intents")
COLLECTION: Final = "intents"
_CONFLICTS_MAX: Final = 50
_NOTE_LENGTH_MAX: Final = 500
_new_record: Final = trusted(IntentRecord)
_new_put: Final = trusted(Put)
_new_batch: Final = trusted(Batch)

Transition: TypeAlias = Callable[[IntentRecord], IntentRecord]
"""A pure change of a record; it may be applied again to a newer version."""


def never(_record: IntentRecord) -> bool:
    """For no record."""
    return False


def lease_name(intent: Intent) -> str:
    """Name of the lease under which an intent is worked on."""
    return f"intent:{intent.identity}"


# Accounts, symbols and ids may hold any separator themselves: each is quoted like a text in JSON.
_quoted: Final[Callable[[str], str]] = json.encoder.encode_basestring


def order_alias(account: str, symbol: str, venue_order_id: str, venue: str = "") -> str:
    """Alias under which a record is found by the venue's order id; with its *venue* where two give out the same id."""
    where = f"{_quoted(venue)}," if venue else ""
    return f"order:[{where}{_quoted(account)},{_quoted(symbol)},{_quoted(venue_order_id)}]"


def _client_alias(account: str, client_order_id: str) -> str:
    return f"client:[{_quoted(account)},{_quoted(client_order_id)}]"


class IntentRegistry:
    """What was meant, what was tried, and what became of it; durable as far as its store is.

    Every write is conditional on the version read, is shielded from cancellation, and carries its events in the
    same transaction. Two writers never overwrite each other: the loser reads again and decides again.

    Args:
        store: where the records live.
        clock: source of Unix milliseconds.
        listeners: told of every event after it is durable. A listener that raises is logged and ignored.
        store_timeout_s: how long one write may take before :class:`StoreUnavailable` is raised. 10 s: longer
            than any healthy commit, shorter than the patience of an operator.
        retention_s: how long ended records are kept. It must exceed the age at which the same signal could
            still arrive again; a week by default.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock | None = None,
        listeners: Sequence[Listener] = (),
        store_timeout_s: float = 10.0,
        retention_s: float = 7 * 86_400.0,
    ) -> None:
        check_seconds(retention_s, "retention_s")
        check_seconds(store_timeout_s, "store_timeout_s")
        self.store = store
        self.clock: Clock = clock if clock is not None else SystemClock()
        self._listeners = tuple(listeners)
        self._store_timeout_s = store_timeout_s
        self._retention_ms = round(retention_s * 1000)
        # By identity: the payload of what can only reduce. Nothing else ever goes out without the journal.
        self._seen = TTLStore[str, str](ttl_s=retention_s, max_entries=None, clock=self.clock)

    # --- reading ---------------------------------------------------------------------------------

    async def find(self, key: str, *, account: str = "default", leg: str = "") -> IntentRecord | None:
        """The record of an intent key, None if it was never recorded (or is past its retention)."""
        return await self._find(Intent(key=key, symbol="-", side="buy", quantity=1, account=account, leg=leg).identity)

    async def find_identity(self, identity: str) -> IntentRecord | None:
        """The record with that identity (``Intent.identity``, the subject of its events)."""
        return await self._find(identity)

    async def find_order(
        self, account: str, symbol: str, venue_order_id: str, *, venue: str = ""
    ) -> IntentRecord | None:
        """The record to which the venue's order belongs, None if it is not one of ours.

        *venue*: its ``ExchangeAdapter.venue_name``. Two venues in one store may give out the same id.
        """
        record = await self._find(order_alias(account, symbol, venue_order_id))
        if venue and record is not None and record.venue not in {"", venue}:
            record = await self._find(order_alias(account, symbol, venue_order_id, venue))
        return record

    async def find_client_order(self, account: str, client_order_id: str) -> IntentRecord | None:
        """The record to which a client order id belongs, None if it is not one of ours."""
        return await self._find(_client_alias(account, client_order_id))

    async def open_records(self, account: str | None = None) -> list[IntentRecord]:
        """All records that have not ended, optionally of one account, in identity order."""
        stored = await self.store.scan_open(COLLECTION)
        records = [self._read(item) for item in stored]
        return [r for r in records if account is None or r.intent.account == account]

    async def reload(self, record: IntentRecord) -> IntentRecord:
        """The newest version of *record*."""
        return await self._find(record.intent.identity) or record

    async def recorded(self, intent: Intent) -> IntentRecord | None:
        """The record of *intent*, if there is one.

        Raises:
            IntentConflict: the key belongs to another payload.
        """
        record = await self._find(intent.identity)
        if record is not None and record.intent != intent and record.intent.fingerprint != intent.fingerprint:
            raise conflict_of(intent)
        return record

    async def at_hand(self, intent: Intent) -> IntentRecord | None:
        """:meth:`recorded`, for what this registry has met. None also for what others may know, or where a look fails.

        Then the refusal of a second :meth:`create` tells that the key is known: a new one costs no look.

        Raises:
            IntentConflict: the key belongs to another payload.
        """
        if intent.identity not in self._seen:
            return None
        try:
            return await self.recorded(intent)
        except StoreError:
            return None  # the write that follows meets it again, and knows what to do then

    async def _find(self, key: str) -> IntentRecord | None:
        stored = await self.store.find(COLLECTION, key)
        return None if stored is None else self._read(stored)

    def has_seen(self, intent: Intent) -> bool:
        """Whether this registry has written or read a record of *intent*. From memory: the store is not asked.

        What it has not seen, nobody has sent through it.

        Raises:
            IntentConflict: the key belongs to another payload.
        """
        payload = self._seen.get(intent.identity)
        if payload is not None and payload != _payload(intent):
            raise conflict_of(intent)
        return payload is not None

    def _read(self, stored: Stored) -> IntentRecord:
        record = _record(stored)
        self._remember(record)
        return record

    def _remember(self, record: IntentRecord) -> None:
        identity, seen = record.intent.identity, self._seen
        if record.ended_at_ms is None:
            if not seen.is_live(identity):
                seen.put_live(identity, _payload(record.intent))
        elif not seen.mark_ended(identity, record.ended_at_ms):
            seen.put_ended(identity, _payload(record.intent), record.ended_at_ms)

    # --- writing ---------------------------------------------------------------------------------

    async def create(self, record: IntentRecord, *, acquire: LeaseRequest) -> tuple[IntentRecord, Lease]:
        """Store a new record and take its lease, in one durable step.

        Raises:
            VersionConflict: the intent is already recorded.
            LeaseHeld: another process is working on it.
        """
        stored, lease = await self._commit(None, record, acquire=acquire)
        if lease is None:
            raise StoreCorrupt("the store granted no lease with the record", intent_key=record.intent.key)
        return stored, lease

    async def advance(
        self,
        record: IntentRecord,
        change: Transition,
        *,
        lease: Lease | None = None,
        release_when: Callable[[IntentRecord], bool] = never,
    ) -> IntentRecord:
        """Apply *change* to the newest version of *record* and make it durable; return the result.

        With *lease*, nothing is written once the lease has passed to another holder; it is given back, in
        the same step, when *release_when* is true of the result. A change that alters nothing writes nothing.

        Raises:
            StaleFencingToken: the lease passed to another holder.
            VersionConflict: *record* is new, and its intent is already recorded; or it was purged meanwhile.
            StoreError: nothing is known to be written.
        """
        current = record
        for _ in range(_CONFLICTS_MAX):
            after = change(current)
            if after is current:
                if lease is not None and release_when(current):
                    await self.release_lease(lease)
                return current
            released = lease if release_when(after) else None
            try:
                stored, _ = await self._commit(current, after, fence=lease, release=released)
            except VersionConflict:
                newer = await self._find(record.intent.identity)
                if newer is None or record.version == 0:
                    raise  # a new record's key is taken: what is there may be another order altogether
                current = newer
            else:
                return stored
        raise StoreUnavailable(
            f"the record kept changing for {_CONFLICTS_MAX} attempts to write it",
            intent_key=record.intent.key,
        )

    async def take_lease(self, intent: Intent, request: LeaseRequest) -> Lease:
        """Acquire or renew the lease of an intent that is already recorded.

        Raises:
            LeaseHeld: another process is working on it.
        """
        batch = Batch(now_ms=self.clock.now_ms(), acquire=request)
        lease = await self._write(batch)
        if lease is None:
            raise StoreCorrupt("the store granted no lease", intent_key=intent.key)
        return lease

    async def release_lease(self, lease: Lease) -> None:
        """Give a lease back; of no effect if it has passed on."""
        await self._write(Batch(now_ms=self.clock.now_ms(), release=lease))

    async def observe(self, report: OrderReport, *, account: str = "default", venue: str = "") -> IntentRecord | None:
        """Take in late or foreign evidence (a stream event, the user's own read). None: not one of our orders.

        *venue* says where the evidence comes from: orders of other venues, whose ids may be equal, are not touched.

        Evidence is credited whenever it comes, whatever the state (guarantee G11), and applying it twice
        changes nothing.
        """
        record: IntentRecord | None = None
        if report.client_order_id is not None:
            record = await self.find_client_order(account, report.client_order_id)
        if record is None and report.venue_order_id is not None:
            record = await self.find_order(account, report.symbol, report.venue_order_id, venue=venue)
        if record is None or record.intent.symbol != report.symbol:
            return None
        if venue and record.venue not in {"", venue}:
            return None
        now_ms = self.clock.now_ms()
        return await self.advance(record, lambda r: transitions.observed(r, report, now_ms=now_ms))

    async def declare_absent(self, key: str, *, note: str, account: str = "default", leg: str = "") -> IntentRecord:
        """End an unresolved intent by hand: somebody has looked at the venue, and its order is not there.

        For venues that let nothing be proven: without it one lost request would count as exposure for ever. Nothing is
        sent for this key any more; should the order turn up all the same, it is credited and counts again.

        Args:
            key: of the intent.
            note: who looked, and where: 1 to 500 characters, kept in the record.
            account: of the intent.
            leg: of the intent.

        Raises:
            InvalidInput: no such intent, or it is not unresolved.
            StoreError: it could not be written.
        """
        to_text(note, "note", _NOTE_LENGTH_MAX)
        record = await self.find(key, account=account, leg=leg)
        if record is None or record.state is not IntentState.UNRESOLVED:
            why = "is not recorded" if record is None else f"is {record.state.value}, not unresolved"
            raise InvalidInput(f"intent {key!r} of account {account!r} {why}", intent_key=key)
        now_ms = self.clock.now_ms()
        return await self.advance(record, lambda r: transitions.declared_absent(r, note, now_ms=now_ms))

    async def purge(self) -> int:
        """Forget records that ended longer ago than the retention; open and doubtful ones never."""
        return await self.store.purge(max(0, self.clock.now_ms() - self._retention_ms))

    async def _commit(
        self,
        before: IntentRecord | None,
        after: IntentRecord,
        *,
        fence: Lease | None = None,
        acquire: LeaseRequest | None = None,
        release: Lease | None = None,
    ) -> tuple[IntentRecord, Lease | None]:
        version, now_ms = 0 if before is None else before.version, after.updated_at_ms
        events = narrate(before, after, now_ms=now_ms)
        stored = _versioned(after, version + 1)
        put = _new_put(
            collection=COLLECTION,
            key=stored.intent.identity,
            value=stored,
            version=version,
            is_open=stored.state not in TERMINAL,
            ended_at_ms=stored.ended_at_ms,
            aliases=_new_aliases(before, stored),
        )
        batch = _new_batch(now_ms=now_ms, puts=(put,), events=events, fence=fence, acquire=acquire, release=release)
        try:
            lease = await self._write(batch)
        except InvalidInput as error:
            taken = error.context.get("alias")
            if taken not in put.aliases:
                raise
            lease = await self._write_under_other_names(batch, put, _with_venue(stored), taken)
        self._remember(stored)
        if self._listeners:
            self.tell(events)
        return stored, lease

    async def _write_under_other_names(
        self, batch: Batch, put: Put, named: tuple[str, ...], taken: str
    ) -> Lease | None:
        """What became of an order must be written, although another's record has the name that its id would give it.

        Another venue's order may have the same id: then this one's name says where it is. The same venue may give out
        an id again (a reset test network does): then the record is found by its key and its client order ids only.
        """
        left = tuple(alias for alias in put.aliases if alias != taken)
        try:
            return await self._write(attrs.evolve(batch, puts=(attrs.evolve(put, aliases=(*left, *named)),)))
        except InvalidInput as error:
            if error.context.get("alias") not in named:
                raise
        return await self._write(attrs.evolve(batch, puts=(attrs.evolve(put, aliases=left),)))

    def _write(self, batch: Batch) -> Coroutine[Any, Any, Lease | None]:
        return commit_shielded(self.store, batch, timeout_s=self._store_timeout_s)

    def tell(self, events: Sequence[Event]) -> None:
        """Tell the listeners; one that raises never disturbs order flow."""
        tell(self._listeners, *events)

    def note(self, kind: EventType, intent: Intent) -> None:
        """Tell the listeners of something that changes no record (it is not stored)."""
        if self._listeners:
            self.tell((Event(type=kind, at_ms=self.clock.now_ms(), subject=intent.identity),))


def conflict_of(intent: Intent) -> IntentConflict:
    """What is raised when the key of *intent* is found to stand for another payload."""
    return IntentConflict(
        f"intent key {intent.key!r} was already used for a different order; use a new key", intent_key=intent.key
    )


def _payload(intent: Intent) -> str:
    """What must be equal when an exit comes again; "", which none of them has, for what is not one."""
    return intent.fingerprint if intent.reduce_only else ""


def _record(stored: Stored) -> IntentRecord:
    if not isinstance(stored.value, IntentRecord):
        raise StoreCorrupt("a record of another kind was found among the intents", key=stored.key)
    return stored.value


def _versioned(record: IntentRecord, version: int) -> IntentRecord:
    """*record* with another version. In full: attrs.evolve costs five times as much, for every write."""
    return _new_record(
        intent=record.intent,
        quantity=record.quantity,
        limit_price=record.limit_price,
        attempts=record.attempts,
        state=record.state,
        change=record.change,
        given_up=record.given_up,
        created_at_ms=record.created_at_ms,
        updated_at_ms=record.updated_at_ms,
        ended_at_ms=record.ended_at_ms,
        version=version,
        venue=record.venue,
        amendment=record.amendment,
    )


def _new_aliases(before: IntentRecord | None, after: IntentRecord) -> tuple[str, ...]:
    """The names that *before* did not have: of a new attempt, and of one whose order has been named by the venue."""
    account, symbol = after.intent.account, after.intent.symbol
    known = () if before is None else before.attempts
    names: list[str] = []
    for number, attempt in enumerate(after.attempts):
        was = known[number] if number < len(known) else None
        if attempt is was:
            continue
        if was is None:
            names.append(_client_alias(account, attempt.client_order_id))
        if attempt.venue_order_id is not None and (was is None or was.venue_order_id is None):
            names.append(order_alias(account, symbol, attempt.venue_order_id))
    return tuple(names)


def _with_venue(record: IntentRecord) -> tuple[str, ...]:
    """The names that its orders' ids give a record together with its venue."""
    account, symbol = record.intent.account, record.intent.symbol
    ids = [a.venue_order_id for a in record.attempts if a.venue_order_id is not None]
    return tuple(order_alias(account, symbol, each, record.venue) for each in ids if record.venue)


def is_settled(record: IntentRecord) -> bool:
    """Whether nothing is in doubt and nothing is left to do: it rests, or it has ended."""
    return record.state is IntentState.LIVE or record.state in TERMINAL
