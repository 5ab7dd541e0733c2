"""Records of one kind in the store, with their versions and events; and the same in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

from execsafe.buses.telling import tell
from execsafe.errors import StoreCorrupt
from execsafe.model.event import Event
from execsafe.ports import Batch, Clock, Listener, Put, Store
from execsafe.stores.commits import commit_shielded

_log = logging.getLogger("execsafe.protection")
_STORE_TIMEOUT_S: Final = 10.0
R = TypeVar("R")


class Shelf(Generic[R]):
    """The open records of one collection. Writes are conditional, shielded, and carry their events."""

    def __init__(
        self, store: Store, collection: str, kind: type[R], *, clock: Clock, listeners: Sequence[Listener]
    ) -> None:
        self._store = store
        self._collection = collection
        self._kind = kind
        self._clock = clock
        self._listeners = tuple(listeners)
        self._versions: dict[str, int] = {}
        self.records: dict[str, R] = {}

    async def load(self) -> None:
        """Read all open records."""
        for stored in await self._store.scan_open(self._collection):
            self._keep(stored.key, self._checked(stored.value, stored.key), stored.version)

    async def reload(self, key: str) -> R | None:
        """The newest version of one record, open or ended; None if there is none."""
        stored = await self._store.find(self._collection, key)
        if stored is None:
            self.drop(key)
            return None
        self._keep(key, self._checked(stored.value, key), stored.version)
        return self.records[key]

    async def save(
        self, key: str, record: R, events: Sequence[Event] = (), *, is_open: bool = True, also: Sequence[Put] = ()
    ) -> None:
        """Write one record with what is to be told of it.

        Raises:
            VersionConflict: another process changed it; :meth:`reload`, and decide again.
            StoreError: nothing is known to be written.
        """
        now_ms = self._clock.now_ms()
        version = self._versions.get(key, 0)
        put = Put(
            collection=self._collection,
            key=key,
            value=record,
            version=version,
            is_open=is_open,
            ended_at_ms=None if is_open else now_ms,
        )
        await self._commit(Batch(now_ms=now_ms, puts=(put, *also), events=tuple(events)))
        self._keep(key, record, version + 1)
        self.tell(events)

    def drop(self, key: str) -> None:
        """Forget a record in memory; the store keeps it for its retention."""
        self.records.pop(key, None)
        self._versions.pop(key, None)

    def tell(self, events: Sequence[Event]) -> None:
        """Tell the listeners; one that raises disturbs nothing."""
        tell(self._listeners, *events)

    def _keep(self, key: str, record: R, version: int) -> None:
        self.records[key] = record
        self._versions[key] = version

    def _checked(self, value: object, key: str) -> R:
        if not isinstance(value, self._kind):
            raise StoreCorrupt(f"a record of another kind was found in {self._collection}", key=key)
        return value

    async def _commit(self, batch: Batch) -> None:
        await commit_shielded(self._store, batch, timeout_s=_STORE_TIMEOUT_S)
