"""What is remembered of signals: one record per identity, in the store."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from typing import Final

import attrs

from execsafe.buses.telling import tell
from execsafe.core.signals import DropReason, Seen, said_at_ms
from execsafe.errors import StoreCorrupt
from execsafe.model.event import Event
from execsafe.model.signal import ExecutionMode, Signal, SignalSide
from execsafe.model.values import check_seconds
from execsafe.ports import Batch, Clock, Listener, Put, Store, Stored
from execsafe.stores.codec import register
from execsafe.stores.commits import commit_shielded

COLLECTION: Final = "signals"
CONTENTS: Final = "signal_contents"


class SignalState(enum.StrEnum):
    """Where a signal stands."""

    ACCEPTED = "accepted"  # to be executed; never forgotten before it ends
    EXECUTED = "executed"
    REFUSED = "refused"
    DROPPED = "dropped"
    DEAD_LETTERED = "dead_lettered"

    @property
    def is_terminal(self) -> bool:
        """Whether its execution has ended."""
        return self is not SignalState.ACCEPTED


@register
@attrs.frozen(kw_only=True)
class SignalRecord:
    """One signal, as remembered.

    ``gate`` is the name of the gate that accepted it, ``failures`` how often its handler failed.
    """

    gate: str
    signal: Signal
    mode: ExecutionMode
    state: SignalState = SignalState.ACCEPTED
    fresh_until_ms: int | None = None
    received_at_ms: int = 0
    updated_at_ms: int = 0
    ended_at_ms: int | None = None
    reason: DropReason | None = None
    note: str = ""
    failures: int = 0
    version: int = 0

    @property
    def said_at_ms(self) -> int:
        """When it was said, for the order of signals."""
        return said_at_ms(self.signal, self.received_at_ms)

    @property
    def seen(self) -> Seen:
        """What the decision needs to know."""
        return Seen(
            fingerprint=self.signal.fingerprint,
            is_ended=self.state.is_terminal,
            fresh_until_ms=self.fresh_until_ms,
        )


@register
@attrs.frozen(kw_only=True)
class ContentRecord:
    """What is remembered of a symbol and side.

    ``at_ms``: when a signal for them was last accepted. ``said_at_ms``: when the latest was said that counts: of
    entries, one that was executed; of exits, one that was accepted.
    """

    at_ms: int
    version: int = 0
    said_at_ms: int = 0


class SignalRecords:
    """The gate's part of the store. Writes are conditional, shielded from cancellation, and carry their events."""

    def __init__(
        self, store: Store, *, clock: Clock, listeners: Sequence[Listener], store_timeout_s: float, gate: str
    ) -> None:
        self._store = store
        self._clock = clock
        self._listeners = tuple(listeners)
        self._timeout_s = check_seconds(store_timeout_s, "store_timeout_s")
        self._gate = gate

    async def find(self, prefix: str, signal_id: str) -> SignalRecord | None:
        """The record of a signal's id."""
        stored = await self._store.find(COLLECTION, _key(prefix, signal_id))
        return None if stored is None else _record(stored)

    async def unfinished(self) -> list[SignalRecord]:
        """All signals of this gate that were accepted and have not ended, as they arrived."""
        found = [_record(stored) for stored in await self._store.scan_open(COLLECTION)]
        return sorted((record for record in found if record.gate == self._gate), key=_received)

    async def content(self, prefix: str, symbol: str, side: SignalSide) -> ContentRecord | None:
        """When *symbol* and *side* were last accepted."""
        stored = await self._store.find(CONTENTS, _key(prefix, symbol, side.value))
        if stored is None:
            return None
        if not isinstance(stored.value, ContentRecord):
            raise StoreCorrupt("a record of another kind was found among the signals' contents", key=stored.key)
        return stored.value

    async def save(
        self,
        prefix: str,
        record: SignalRecord,
        *events: Event,
        also: Sequence[Put] = (),
    ) -> SignalRecord:
        """Write *record* on top of the version it was read at, and *also* what belongs to it; returns its new version.

        Raises:
            VersionConflict: somebody else wrote it meanwhile.
            StoreError: nothing is known to be written.
        """
        stored = attrs.evolve(record, version=record.version + 1)
        put = Put(
            collection=COLLECTION,
            key=_key(prefix, record.signal.id),
            value=stored,
            version=record.version,
            is_open=not record.state.is_terminal,
            ended_at_ms=record.ended_at_ms,
        )
        await self._write(Batch(now_ms=self._clock.now_ms(), puts=(put, *also), events=events))
        tell(self._listeners, *events)
        return stored

    def tell(self, *events: Event) -> None:
        """Tell the listeners of what changes no record."""
        tell(self._listeners, *events)

    async def _write(self, batch: Batch) -> None:
        await commit_shielded(self._store, batch, timeout_s=self._timeout_s)


def content_put(prefix: str, record: SignalRecord, before: ContentRecord | None, *, counts: bool) -> Put:
    """What *record* adds to what is remembered of its symbol and side; ``counts``: for the order of signals, too."""
    known = ContentRecord(at_ms=0) if before is None else before
    return Put(
        collection=CONTENTS,
        key=_key(prefix, *record.signal.content_key),
        value=ContentRecord(
            at_ms=max(known.at_ms, record.received_at_ms),
            version=known.version + 1,
            said_at_ms=max(known.said_at_ms, record.said_at_ms) if counts else known.said_at_ms,
        ),
        version=known.version,
        is_open=False,
        ended_at_ms=record.updated_at_ms,
    )


def _key(*parts: str) -> str:
    # As JSON, because ids and symbols may hold any separator themselves.
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def _received(record: SignalRecord) -> tuple[int, str]:
    return record.received_at_ms, record.signal.id


def _record(stored: Stored) -> SignalRecord:
    if not isinstance(stored.value, SignalRecord):
        raise StoreCorrupt("a record of another kind was found among the signals", key=stored.key)
    return stored.value
