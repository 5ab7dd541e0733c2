"""The store for several machines: PostgreSQL, group commit, nothing acknowledged before the server has it on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from execsafe.ports import Durability, Stored, StoredEvent
from execsafe.stores import _postgres_tables as tables
from execsafe.stores import _rules
from execsafe.stores._group import to_stored, to_stored_event
from execsafe.stores._grouped import GroupedStore
from execsafe.stores._jobs import Job
from execsafe.stores._postgres_engine import PostgresEngine, Read
from execsafe.stores._postgres_options import Options

if TYPE_CHECKING:
    from execsafe.stores._postgres_script import Rows


class PostgresStore(GroupedStore):
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
        self._server = PostgresEngine(self._options)
        super().__init__(self._server, tables)

    def __repr__(self) -> str:
        return f"PostgresStore(schema={self._options.schema!r})"

    @property
    def durability(self) -> Durability:
        """What the server promised when it was last asked; what is required, before the first time."""
        return self._server.durability

    async def open(self) -> None:
        """Connect, check the tables or make them, and start; idempotent.

        Raises:
            StoreCorrupt: tables that are damaged, or somebody else's. Nothing is re-created.
            StoreVersionError: a newer execsafe's.
            StoreReadOnly: a standby, a server that is read-only, or a missing privilege.
            StoreUnavailable: the server cannot be reached, or promises less than is required.
            StoreLocked: another process holds the store's lock.
        """
        await self._open()

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

    async def get_cursor(self, name: str) -> int:
        """How far the consumer has read; 0 before its first."""
        _rules.check_name(name, "cursor name")
        rows = await self._ask(tables.get_cursor(name))
        return int(rows[0][0]) if rows else 0

    def _question(self) -> Job:
        return Read("SELECT")

    async def _ask(self, question: tables.Question) -> Rows:
        rows: Rows = await self._finish(Read(*question))
        return rows
