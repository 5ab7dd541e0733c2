"""A store that lives and dies with the process."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Final

import attrs

from execsafe.errors import StoreUnavailable
from execsafe.model.event import Event
from execsafe.ports import Batch, Durability, Lease, LeaseRequest, Put, Stored, StoredEvent
from execsafe.stores import _rules
from execsafe.stores._rules import ManagedStore

# Ended records are kept in buckets of a minute: a purge touches what it deletes and one bucket more.
_BUCKET_MS: Final = 60_000


@attrs.define(eq=False)
class _Entry:
    key: str
    value: object = None
    version: int = 0
    is_open: bool = True
    ended_at_ms: int | None = None
    aliases: tuple[str, ...] = ()


@attrs.define(eq=False)
class _Table:
    records: dict[str, _Entry] = attrs.Factory(dict)
    aliases: dict[str, str] = attrs.Factory(dict)
    open: dict[str, _Entry] = attrs.Factory(dict)
    ended: dict[int, list[_Entry]] = attrs.Factory(dict)  # may list entries that have moved on


class MemoryStore(ManagedStore):
    """Keeps the frozen values as they are; a commit costs a few µs and never yields to the event loop.

    For tests, simulations and bots that accept losing everything with the process. One store may be shared
    by threads and event loops. Its content outlives :meth:`aclose`: a restart can be played in one process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_open = False
        self._tables: dict[str, _Table] = {}
        self._leases: dict[str, Lease] = {}
        self._fence = 0
        self._events: dict[int, Event] = {}
        self._seq = 0
        self._cursors: dict[str, int] = {}

    @property
    def durability(self) -> Durability:
        """``Durability.NONE``."""
        return Durability.NONE

    @property
    def never_waits(self) -> bool:
        """True: a commit is done before it could yield."""
        return True

    async def open(self) -> None:
        """Make ready; idempotent."""
        self._is_open = True

    async def aclose(self) -> None:
        """Refuse further calls until :meth:`open`; idempotent."""
        self._is_open = False

    async def commit(self, batch: Batch) -> Lease | None:
        """See :meth:`execsafe.ports.Store.commit`; also refuses malformed batches with InvalidInput."""
        _rules.check_batch(batch)
        with self._lock:
            self._require_open()
            if batch.fence is not None:
                _rules.check_fence(batch.fence, self._leases.get(batch.fence.name))
            if batch.acquire is not None:
                _rules.check_free(batch.acquire, self._leases.get(batch.acquire.name), batch.now_ms)
            for put in batch.puts:
                self._check(put)
            for put in batch.puts:
                self._put(put)
            for event in batch.events:
                self._seq += 1
                self._events[self._seq] = event
            lease = None if batch.acquire is None else self._acquire(batch.acquire, batch.now_ms)
            if batch.release is not None:
                self._release(batch.release)
            return lease

    async def find(self, collection: str, key: str) -> Stored | None:
        """The record with that key or alias; a key goes before an alias."""
        with self._lock:
            self._require_open()
            table = self._tables.get(collection)
            if table is None:
                return None
            entry = table.records.get(key)
            if entry is None:
                entry = table.records.get(table.aliases.get(key, ""))
            return None if entry is None else Stored(key=entry.key, value=entry.value, version=entry.version)

    async def scan_open(self, collection: str) -> Sequence[Stored]:
        """All open records, in key order."""
        with self._lock:
            self._require_open()
            table = self._tables.get(collection)
            entries = [] if table is None else [table.open[key] for key in sorted(table.open)]
            return [Stored(key=e.key, value=e.value, version=e.version) for e in entries]

    async def read_events(self, after: int, limit: int = 1_000) -> Sequence[StoredEvent]:
        """Events with ``seq > after``, in order."""
        _rules.check_integer(after, "after")
        _rules.check_integer(limit, "limit")
        with self._lock:
            self._require_open()
            first = next(iter(self._events), self._seq + 1)
            found: list[StoredEvent] = []
            for seq in range(max(after + 1, first), self._seq + 1):
                if len(found) == limit:
                    break
                if (event := self._events.get(seq)) is not None:
                    found.append(StoredEvent(seq=seq, event=event))
            return found

    async def set_cursor(self, name: str, seq: int) -> None:
        """Remember how far a consumer has read; it never goes back."""
        _rules.check_name(name, "cursor name")
        _rules.check_integer(seq, "seq")
        with self._lock:
            self._require_open()
            self._cursors[name] = max(seq, self._cursors.get(name, 0))

    async def get_cursor(self, name: str) -> int:
        """How far the consumer has read; 0 before its first."""
        with self._lock:
            self._require_open()
            return self._cursors.get(name, 0)

    async def delete_cursor(self, name: str) -> None:
        """Forget a consumer; idempotent."""
        _rules.check_name(name, "cursor name")
        with self._lock:
            self._require_open()
            self._cursors.pop(name, None)

    async def purge(self, ended_before_ms: int, limit: int = 10_000) -> int:
        """Delete at most *limit* ended records, and what is old among the *limit* oldest events."""
        _rules.check_integer(ended_before_ms, "ended_before_ms")
        _rules.check_integer(limit, "limit")
        with self._lock:
            self._require_open()
            deleted = 0
            for table in self._tables.values():
                deleted += _purge_table(table, ended_before_ms, limit - deleted)
            passed = min(self._cursors.values(), default=self._seq)
            for seq in list(itertools.islice(self._events, limit)):
                if seq <= passed and self._events[seq].at_ms < ended_before_ms:
                    del self._events[seq]
            for name in [n for n, lease in self._leases.items() if lease.expires_at_ms < ended_before_ms]:
                del self._leases[name]
            return deleted

    # --- under the lock ---------------------------------------------------------------------------

    def _require_open(self) -> None:
        if not self._is_open:
            raise StoreUnavailable("the store is not open: call open() or use 'async with'")

    def _check(self, put: Put) -> None:
        table = self._tables.get(put.collection)
        entry = None if table is None else table.records.get(put.key)
        stored = 0 if entry is None else entry.version
        if stored != put.version:
            raise _rules.version_conflict(put, stored)
        for alias in put.aliases:
            owner = None if table is None else table.aliases.get(alias)
            if owner is not None and owner != put.key:
                raise _rules.alias_taken(put, alias, owner)

    def _put(self, put: Put) -> None:
        table = self._tables.get(put.collection)
        if table is None:
            table = self._tables[put.collection] = _Table()
        entry = table.records.get(put.key)
        if entry is None:
            entry = table.records[put.key] = _Entry(put.key)
        before = None if entry.is_open else entry.ended_at_ms
        entry.value = put.value
        entry.version = put.version + 1
        entry.is_open = put.is_open
        entry.ended_at_ms = put.ended_at_ms
        for alias in put.aliases:
            if table.aliases.setdefault(alias, put.key) == put.key and alias not in entry.aliases:
                entry.aliases += (alias,)
        if put.is_open:
            table.open[put.key] = entry
            return
        table.open.pop(put.key, None)
        if put.ended_at_ms is not None and put.ended_at_ms != before:
            table.ended.setdefault(put.ended_at_ms // _BUCKET_MS, []).append(entry)

    def _acquire(self, request: LeaseRequest, now_ms: int) -> Lease:
        current = self._leases.get(request.name)
        if current is not None and _rules.is_renewal(request, current):
            token = current.token
        else:
            token = self._fence = self._fence + 1
        lease = self._leases[request.name] = _rules.grant(request, token, now_ms)
        return lease

    def _release(self, lease: Lease) -> None:
        current = self._leases.get(lease.name)
        if current is not None and current.token == lease.token:
            del self._leases[lease.name]


def _purge_table(table: _Table, ended_before_ms: int, limit: int) -> int:
    deleted = 0
    for bucket in sorted(b for b in table.ended if b * _BUCKET_MS < ended_before_ms):
        kept: list[_Entry] = []
        for entry in table.ended[bucket]:
            if entry.is_open or entry.ended_at_ms is None or table.records.get(entry.key) is not entry:
                continue  # revived or gone
            if entry.ended_at_ms // _BUCKET_MS != bucket:
                continue  # ended again later: listed there
            if deleted >= limit or entry.ended_at_ms >= ended_before_ms:
                kept.append(entry)
                continue
            del table.records[entry.key]
            for alias in entry.aliases:
                del table.aliases[alias]
            deleted += 1
        if kept:
            table.ended[bucket] = kept
        else:
            del table.ended[bucket]
        if deleted >= limit:
            break
    return deleted
