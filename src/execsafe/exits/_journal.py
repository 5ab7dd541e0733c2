"""The stored side of exits: one record per position, written conditionally, with its events."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Final

import attrs

from execsafe.buses.telling import tell
from execsafe.core.exits import ExitRecord
from execsafe.errors import StoreCorrupt
from execsafe.model.event import Event
from execsafe.model.position import PositionKey
from execsafe.ports import Batch, Clock, Lease, Listener, Put, Store, Stored
from execsafe.stores.codec import register
from execsafe.stores.commits import commit_shielded

_log = logging.getLogger("execsafe.exits")
COLLECTION: Final = "exits"

register(ExitRecord, "ExitRecord")


def record_key(key: PositionKey) -> str:
    """Key of a position's exit in the store."""
    # As JSON, because accounts and symbols may hold any separator themselves.
    return json.dumps([key.account, key.symbol, key.side.value], ensure_ascii=False, separators=(",", ":"))


class ExitJournal:
    """Reads and writes exit records, tells the listeners, and remembers the open ones for statistics."""

    def __init__(self, store: Store, *, clock: Clock, listeners: Sequence[Listener], timeout_s: float) -> None:
        self.store = store
        self.open: dict[PositionKey, ExitRecord] = {}
        self._clock = clock
        self._listeners = tuple(listeners)
        self._timeout_s = timeout_s

    async def find(self, key: PositionKey) -> ExitRecord | None:
        """The latest exit of a position, None if there never was one (or it is past its retention)."""
        stored = await self.store.find(COLLECTION, record_key(key))
        return None if stored is None else _record(stored)

    async def open_records(self) -> list[ExitRecord]:
        """All exits that have not ended."""
        return [_record(stored) for stored in await self.store.scan_open(COLLECTION)]

    async def write(
        self, record: ExitRecord, events: Sequence[Event] = (), *, fence: Lease | None = None
    ) -> ExitRecord:
        """Write *record* over the version that it carries, with its events in the same transaction.

        Raises:
            VersionConflict: somebody else changed it first.
            StaleFencingToken: *fence* passed to another holder.
            StoreError: nothing is known to be written.
        """
        stored = attrs.evolve(record, version=record.version + 1)
        put = Put(
            collection=COLLECTION,
            key=record_key(record.key),
            value=stored,
            version=record.version,
            is_open=not record.state.is_terminal,
            ended_at_ms=record.ended_at_ms,
        )
        await self._commit(Batch(now_ms=self._clock.now_ms(), puts=(put,), events=tuple(events), fence=fence))
        self._remember(stored)
        self.tell(*events)
        return stored

    async def _commit(self, batch: Batch) -> None:
        await commit_shielded(self.store, batch, timeout_s=self._timeout_s)

    def _remember(self, record: ExitRecord) -> None:
        if record.state.is_terminal:
            self.open.pop(record.key, None)
        else:
            self.open[record.key] = record

    def tell(self, *events: Event) -> None:
        """Tell the listeners; one that raises never disturbs an exit."""
        tell(self._listeners, *events)


def _record(stored: Stored) -> ExitRecord:
    if not isinstance(stored.value, ExitRecord):
        raise StoreCorrupt("a record of another kind was found among the exits", key=stored.key)
    # The stored version decides: a codec may leave out what is its default.
    return attrs.evolve(stored.value, version=stored.version)
