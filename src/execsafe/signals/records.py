"""What is remembered of signals: one record per identity, in the store."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from typing import Final

import attrs

from execsafe.buses.telling import tell
from execsafe.core.signals import DropReason, Seen
from execsafe.errors import StoreCorrupt
from execsafe.model.event import Event
from execsafe.model.signal import ExecutionMode, Signal
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
    """When a signal with some symbol and side was last accepted."""

    at_ms: int
    version: int = 0


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
        """All signals of this gate that were accepted and have not ended, in key order."""
        found = [_record(stored) for stored in await self._store.scan_open(COLLECTION)]
        return [record for record in found if record.gate == self._gate]

    async def content(self, prefix: str, signal: Signal) -> ContentRecord | None:
        """When the same symbol and side were last accepted."""
        stored = await self._store.find(CONTENTS, _key(prefix, *signal.content_key))
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
        content_before: ContentRecord | None = None,
        notes_content: bool = False,
    ) -> SignalRecord:
        """Write *record* on top of the version it was read at; returns it with its new one.

        Raises:
            VersionConflict: somebody else wrote it meanwhile.
            StoreError: nothing is known to be written.
        """
        stored = attrs.evolve(record, version=record.version + 1)
        puts = [
            Put(
                collection=COLLECTION,
                key=_key(prefix, record.signal.id),
                value=stored,
                version=record.version,
                is_open=not record.state.is_terminal,
                ended_at_ms=record.ended_at_ms,
            )
        ]
        if notes_content:
            puts.append(_content_put(prefix, record, content_before))
        await self._write(Batch(now_ms=self._clock.now_ms(), puts=tuple(puts), events=events))
        tell(self._listeners, *events)
        return stored

    def tell(self, *events: Event) -> None:
        """Tell the listeners of what changes no record."""
        tell(self._listeners, *events)

    async def _write(self, batch: Batch) -> None:
        await commit_shielded(self._store, batch, timeout_s=self._timeout_s)


def _content_put(prefix: str, record: SignalRecord, before: ContentRecord | None) -> Put:
    version = 0 if before is None else before.version
    return Put(
        collection=CONTENTS,
        key=_key(prefix, *record.signal.content_key),
        value=ContentRecord(at_ms=record.received_at_ms, version=version + 1),
        version=version,
        is_open=False,
        ended_at_ms=record.received_at_ms,
    )


def _key(*parts: str) -> str:
    # As JSON, because ids and symbols may hold any separator themselves.
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def _record(stored: Stored) -> SignalRecord:
    if not isinstance(stored.value, SignalRecord):
        raise StoreCorrupt("a record of another kind was found among the signals", key=stored.key)
    return stored.value
