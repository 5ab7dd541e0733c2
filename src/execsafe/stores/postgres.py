"""The store for several machines: PostgreSQL, group commit, nothing acknowledged before the server has it on disk."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from execsafe.ports import Batch, Durability, Lease, Stored, StoredEvent
from execsafe.stores import _postgres_tables as tables
from execsafe.stores import _rules
from execsafe.stores._group import to_commit, to_stored, to_stored_event
from execsafe.stores._jobs import Job, Work, closed, forked
from execsafe.stores._postgres_engine import PostgresEngine, Read
from execsafe.stores._postgres_options import Options
from execsafe.stores._rules import ManagedStore
from execsafe.stores._writer import Writer

if TYPE_CHECKING:
    from execsafe.stores._postgres_script import Connection, Rows

# A purge is cut into transactions of this many records, so that no order waits long behind one.
_PURGE_SLICE: Final = 500

_T = TypeVar("_T")


class PostgresStore(ManagedStore):
    """A schema of a PostgreSQL database, for any number of processes on any number of machines.

    Everything that is committed while the server is busy becomes durable together with the next transaction; one
    process at a time writes. A caller that is cancelled while it waits has its write carried out. A connection that
    is lost is replaced; a write is repeated by itself only where it cannot have been committed.

    Args:
        url: ``postgresql://user:password@host:port/database``, with libpq's own parameters as a query
            (``sslmode=verify-full``, ``connect_timeout=5``, …) and these:

            * ``schema`` (``execsafe``): where the tables are; made when the store is first opened.
            * ``require`` (``power``): the least that an acknowledged commit must survive, or ``process``. A server
              whose settings promise less is refused.
            * ``create`` (``true``): whether a store that is not there is made.
            * ``lock_timeout_s`` (5): how long a call waits for another process's transaction before it raises
              StoreLocked with nothing done.
            * ``statement_timeout_s`` (10): how long the server may take for one statement.

    Raises:
        InvalidInput: an option is not one of these.
    """

    def __init__(self, url: str) -> None:
        self._options = Options.from_url(url)
        self._engine = PostgresEngine(self._options)
        self._lock = threading.Lock()
        self._writer: Writer | None = None
        self._is_open = False
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"PostgresStore(schema={self._options.schema!r})"

    @property
    def durability(self) -> Durability:
        """What the server promised when it was last asked; what is required, before the first time."""
        return self._engine.durability

    async def open(self) -> None:
        """Connect, check the tables or make them, and start; idempotent.

        Raises:
            StoreCorrupt: tables that are damaged, or somebody else's. Nothing is re-created.
            StoreVersionError: a newer execsafe's.
            StoreReadOnly: a standby, a server that is read-only, or a missing privilege.
            StoreUnavailable: the server cannot be reached, or promises less than is required.
            StoreLocked: another process holds the store's lock.
        """
        self._pid = self._pid if self._is_open else os.getpid()
        self._check_fork()
        with self._lock:
            if self._writer is None:
                # It calls open, serve, refuse and close, which this engine has as well.
                self._writer = Writer(self._engine)
            writer = self._writer
        try:
            job = Read("SELECT")  # only shows whether the store is open
            await writer.submit(job)
            job.unwrap()
        except BaseException:
            if not self._is_open:
                await self._stop(writer)
            raise
        self._is_open = True

    async def _stop(self, writer: Writer) -> None:
        with self._lock:
            if self._writer is writer:
                self._writer = None
        writer.stop()
        with anyio.CancelScope(shield=True):
            await writer.join()

    async def aclose(self) -> None:
        """Finish what is queued and disconnect; idempotent. Later calls raise StoreUnavailable."""
        if self._pid != os.getpid():
            return  # the parent's to close
        self._is_open = False
        if (writer := self._writer) is not None:
            await self._stop(writer)

    def __del__(self) -> None:
        if getattr(self, "_is_open", False) and self._pid == os.getpid():
            with contextlib.suppress(Exception):
                warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            if self._writer is not None:
                self._writer.stop()

    async def commit(self, batch: Batch) -> Lease | None:
        """See :meth:`execsafe.ports.Store.commit`; also refuses malformed batches with InvalidInput."""
        lease: Lease | None = await self._finish(to_commit(batch))
        return lease

    async def find(self, collection: str, key: str) -> Stored | None:
        """The record with that key or alias; a key goes before an alias."""
        _rules.check_name(collection, "collection")
        _rules.check_name(key, "key")
        rows = await self._ask(tables.find(collection, key))
        return to_stored(collection, rows[0]) if rows else None

    async def scan_open(self, collection: str) -> Sequence[Stored]:
        """All open records, in key order."""
        _rules.check_name(collection, "collection")
        return [to_stored(collection, row) for row in await self._ask(tables.scan_open(collection))]

    async def read_events(self, after: int, limit: int = 1_000) -> Sequence[StoredEvent]:
        """Events with ``seq > after``, in order."""
        _rules.check_integer(after, "after")
        _rules.check_integer(limit, "limit")
        return [to_stored_event(row) for row in await self._ask(tables.read_events(after, limit))]

    async def set_cursor(self, name: str, seq: int) -> None:
        """Remember how far a consumer has read; it never goes back."""
        _rules.check_name(name, "cursor name")
        _rules.check_integer(seq, "seq")
        await self._do(lambda connection: tables.set_cursor(connection, name, seq))

    async def get_cursor(self, name: str) -> int:
        """How far the consumer has read; 0 before its first."""
        _rules.check_name(name, "cursor name")
        rows = await self._ask(tables.get_cursor(name))
        return int(rows[0][0]) if rows else 0

    async def purge(self, ended_before_ms: int, limit: int = 10_000) -> int:
        """Delete the *limit* oldest ended records, and what is old among the *limit* oldest events."""
        _rules.check_integer(ended_before_ms, "ended_before_ms")
        _rules.check_integer(limit, "limit")
        await self._do(lambda c: tables.purge_events(c, ended_before_ms, limit))
        deleted = 0
        while deleted < limit:
            slice_ = min(_PURGE_SLICE, limit - deleted)
            count = await self._do(_purge(ended_before_ms, slice_))
            deleted += count
            if count < slice_:
                break
        return deleted

    async def _ask(self, question: tables.Question) -> Rows:
        rows: Rows = await self._finish(Read(*question))
        return rows

    async def _do(self, work: Callable[[Connection], _T]) -> _T:
        result: _T = await self._finish(Work(work, is_write=True))
        return result

    async def _finish(self, job: Job) -> Any:
        self._check_fork()
        if self._writer is None:
            raise closed()
        await self._writer.submit(job)
        return job.unwrap()

    def _check_fork(self) -> None:
        # Before any lock: in a forked child the writer thread does not exist, and a lock may be held for ever.
        if self._pid != os.getpid():
            raise forked()


def _purge(ended_before_ms: int, limit: int) -> Callable[[Connection], int]:
    return lambda connection: tables.purge_records(connection, ended_before_ms, limit)
