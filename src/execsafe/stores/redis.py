"""A store on a Redis or Valkey server, for several machines: every commit is one script."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

from execsafe._redis.script import Script
from execsafe.errors import StoreUnavailable
from execsafe.ports import Batch, Durability, Lease, Stored, StoredEvent
from execsafe.stores import _redis_rows as rows
from execsafe.stores import _redis_scripts as scripts
from execsafe.stores import _rules
from execsafe.stores._redis_client import Client, Seen
from execsafe.stores._redis_errors import closed
from execsafe.stores._redis_rows import padded
from execsafe.stores._redis_settings import Settings, from_url
from execsafe.stores._rules import ManagedStore

# A purge is cut into steps of this many, as the server does nothing else during one.
_PURGE_SLICE: Final = 500


class RedisStore(ManagedStore):
    """Records on one server, safe for any number of processes and machines.

    What an acknowledged commit survives is the server's to say, and is read whenever a connection is made:
    a power cut with ``appendonly yes`` and ``appendfsync always``, a kill with ``appendonly yes``, nothing without.
    Replication is asynchronous: a replica that takes over may lack the last commits. A server that is behind what this
    process has seen of it is refused (StoreCorrupt), until the store is opened again and it no longer is.

    A store works in the event loop in which it was opened. A caller that is cancelled while it waits may have had its
    write carried out; the store goes on. Nothing is sent twice.

    Args:
        settings: the server, and what is required of it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen = Seen(durability=settings.require)
        self._client: Client | None = None
        self._is_open = False
        self._pid = os.getpid()

    @classmethod
    def from_url(cls, scheme: str, location: str, options: Mapping[str, str]) -> RedisStore:
        """The store of ``{scheme}://{location}`` with these options.

        Options: ``prefix=execsafe`` (the stores of a server are told apart by it), ``require=process`` (or ``power``,
        ``none``), ``create=true`` (whether a store that is not there is made), ``timeout_s=5`` (for each call),
        ``ca_file=/path`` (authorities to trust instead of the system's).

        Raises:
            InvalidInput: something in it is malformed or unknown.
        """
        settings = from_url(scheme, location, options)
        settings.warn_if_exposed(stacklevel=4)
        return cls(settings)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings})"

    @property
    def durability(self) -> Durability:
        """What the server promises, as of the last connection; before the first, what is required of it."""
        return self._seen.durability

    async def open(self) -> None:
        """Look at the server and the store on it, or make one, and write to it; idempotent.

        Raises:
            StoreUnavailable: it cannot be reached, or promises less than is required; the message names the setting.
            StoreReadOnly: it is a replica.
            StoreCorrupt: the store is damaged, or was lost since this object saw it. Nothing is re-created.
            StoreVersionError: a newer execsafe's store.
        """
        if self._pid != os.getpid():
            if self._is_open:
                raise _forked()
            self._pid, self._client = os.getpid(), None
            self._seen.become_another()
        client = self._client
        if client is None or not client.is_at_home:
            if client is not None and client.is_live:
                raise _elsewhere()
            client = self._client = Client(self._settings, self._seen)
        elif self._is_open:
            return
        try:
            await client.open()
        except BaseException:
            await client.aclose()
            raise
        self._is_open = True

    async def aclose(self) -> None:
        """Let the connection go; idempotent. Later calls raise StoreUnavailable.

        Raises:
            StoreUnavailable: it was opened in another event loop, which still runs.
        """
        if self._pid != os.getpid():
            return  # the parent's to close
        client = self._client
        if client is not None:
            if client.is_at_home:
                await client.aclose()
            elif client.is_live:
                raise _elsewhere()
        self._is_open, self._client = False, None

    def __del__(self) -> None:
        if getattr(self, "_is_open", False) and self._pid == os.getpid():
            with contextlib.suppress(Exception):
                warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)

    async def commit(self, batch: Batch) -> Lease | None:
        """See :meth:`execsafe.ports.Store.commit`; also refuses malformed batches with InvalidInput."""
        arguments = rows.to_arguments(batch)
        kind, facts = await self._ready().run(scripts.COMMIT, *arguments)
        if kind != b"ok":
            rows.raise_refusal(batch, kind, facts)
        return None if batch.acquire is None else _rules.grant(batch.acquire, int(facts[0]), batch.now_ms)

    async def find(self, collection: str, key: str) -> Stored | None:
        """The record with that key or alias; a key goes before an alias."""
        _rules.check_name(collection, "collection")
        _rules.check_name(key, "key")
        found = await self._run(scripts.FIND, collection.encode(), key.encode())
        return rows.to_stored(collection, key, found[0], found[1]) if found else None

    async def scan_open(self, collection: str) -> Sequence[Stored]:
        """All open records, in key order, as of one moment."""
        _rules.check_name(collection, "collection")
        found = await self._run(scripts.SCAN_OPEN, collection.encode())
        return [rows.to_stored(collection, None, *row) for row in zip(found[::2], found[1::2], strict=True)]

    async def read_events(self, after: int, limit: int = 1_000) -> Sequence[StoredEvent]:
        """Events with ``seq > after``, in order."""
        _rules.check_integer(after, "after")
        _rules.check_integer(limit, "limit")
        if limit == 0:
            self._ready()
            return []
        [entries] = await self._run(scripts.READ_EVENTS, b"%d" % (after + 1), b"%d" % limit)
        return [rows.to_stored_event(entry) for entry in entries]

    async def set_cursor(self, name: str, seq: int) -> None:
        """Remember how far a consumer has read; it never goes back."""
        _rules.check_name(name, "cursor name")
        _rules.check_integer(seq, "seq")
        await self._run(scripts.SET_CURSOR, name.encode(), padded(seq))

    async def get_cursor(self, name: str) -> int:
        """How far the consumer has read; 0 before its first."""
        _rules.check_name(name, "cursor name")
        [seq] = await self._run(scripts.GET_CURSOR, name.encode())
        return int(seq)

    async def delete_cursor(self, name: str) -> None:
        """Forget a consumer; idempotent."""
        _rules.check_name(name, "cursor name")
        await self._run(scripts.DELETE_CURSOR, name.encode())

    async def purge(self, ended_before_ms: int, limit: int = 10_000) -> int:
        """Delete the *limit* oldest ended records, and what is old among the *limit* oldest events."""
        _rules.check_integer(ended_before_ms, "ended_before_ms")
        _rules.check_integer(limit, "limit")
        before = padded(ended_before_ms)
        await self._purge_events(before, limit)
        await self._purge_slices(scripts.PURGE_LEASES, before, limit)
        await self._run(scripts.PURGE_WITNESSES, b"%d" % scripts.WITNESSED)
        return await self._purge_slices(scripts.PURGE_RECORDS, before, limit)

    async def _purge_slices(self, script: Script, before: bytes, limit: int) -> int:
        deleted = 0
        while deleted < limit:
            slice_ = min(_PURGE_SLICE, limit - deleted)
            [count] = await self._run(script, before, b"%d" % slice_)
            deleted += count
            if count < slice_:
                break
        return deleted

    async def _purge_events(self, before: bytes, limit: int) -> None:
        seen, start = 0, 0
        while seen < limit:
            slice_ = min(_PURGE_SLICE, limit - seen)
            count, last = await self._run(scripts.PURGE_EVENTS, b"%d" % start, before, b"%d" % slice_)
            seen += count
            if count < slice_ or not last:
                break
            start = int(last) + 1

    async def _run(self, script: Script, *arguments: bytes) -> list[Any]:
        _, facts = await self._ready().run(script, *arguments)
        return facts

    def _ready(self) -> Client:
        if self._pid != os.getpid():
            raise _forked()
        if self._client is None or not self._is_open:
            raise closed()
        if not self._client.is_at_home:
            raise _elsewhere()
        return self._client


def _forked() -> StoreUnavailable:
    return StoreUnavailable("the store was opened before this process was forked: open one of its own here")


def _elsewhere() -> StoreUnavailable:
    return StoreUnavailable("the store was opened in another event loop: open one for each")
