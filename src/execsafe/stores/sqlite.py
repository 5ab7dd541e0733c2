"""The embedded durable store: one SQLite file, group commit, nothing acknowledged before it is on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Final, Literal, TypeVar

from execsafe import _urls
from execsafe.errors import InvalidInput
from execsafe.model.values import shorten
from execsafe.ports import Durability, Stored, StoredEvent
from execsafe.stores import _rules
from execsafe.stores import _sqlite_tables as tables
from execsafe.stores._group import to_stored, to_stored_event
from execsafe.stores._grouped import GroupedStore
from execsafe.stores._jobs import Job, Work
from execsafe.stores._sqlite_engine import Connect, Engine

BUSY_TIMEOUT_S_MAX: Final = 600.0
_T = TypeVar("_T")


class SqliteStore(GroupedStore):
    """One file, safe for several processes; survives kill -9 and power cuts.

    Everything that is committed while the disk is busy becomes durable together with the next flush. A caller
    that is cancelled while it waits has its write carried out.

    Args:
        path: the file; made with mode 0600 if missing. Its directory must exist.
        busy_timeout_s: how long a call waits for another process's transaction (5: far longer than any of
            ours takes) before it raises StoreLocked with nothing done.
        commit: ``"thread"`` writes in a thread of its own, and the event loop goes on; ``"inline"`` writes in
            the calling thread: for virtual time, for a lone caller in a hurry, and for event loops so busy
            that they starve other threads. It blocks the event loop for the length of a disk flush.
        exclusive: keep all other processes out for as long as the store is open. Commits need one flush instead
            of three, on any version of SQLite.
        check: how the file is examined when opened: ``"full"`` compares every key and alias with its second
            copy (0.3 s for 100,000 records), ``"quick"`` reads the structure only, five times faster.

    Raises:
        InvalidInput: an option is not one of these.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy_timeout_s: float = 5.0,
        commit: Literal["thread", "inline"] = "thread",
        exclusive: bool = False,
        check: Literal["full", "quick"] = "full",
        _connect: Connect | None = None,
    ) -> None:
        if not 0 <= busy_timeout_s <= BUSY_TIMEOUT_S_MAX:
            raise InvalidInput(f"busy_timeout_s must be 0 to {BUSY_TIMEOUT_S_MAX:.0f}")
        if commit not in {"thread", "inline"}:
            raise InvalidInput(f"commit must be 'thread' or 'inline', was {shorten(commit)}")
        if check not in {"quick", "full"}:
            raise InvalidInput(f"check must be 'quick' or 'full', was {shorten(check)}")
        self._path = _to_path(path)
        engine = Engine(self._path, busy_timeout_s=busy_timeout_s, exclusive=exclusive, check=check, connect=_connect)
        super().__init__(engine, tables, is_inline=commit == "inline")

    def __repr__(self) -> str:
        return f"SqliteStore({str(self._path)!r})"

    @classmethod
    def from_options(cls, path: str, options: Mapping[str, str]) -> SqliteStore:
        """As the URL gives them: ``busy_timeout_s=5``, ``commit=inline``, ``exclusive=true``, ``check=quick``.

        Raises:
            InvalidInput: an unknown option, or a value that it does not take.
        """
        readers: dict[str, Callable[[str], Any]] = {
            "busy_timeout_s": _urls.seconds("busy_timeout_s"),
            "commit": str,
            "exclusive": _urls.flag("exclusive"),
            "check": str,
        }
        for name in options:
            if name not in readers:
                raise InvalidInput(f"sqlite has no option {shorten(name)}; it has {', '.join(readers)}")
        return cls(path, **{name: readers[name](text) for name, text in options.items()})

    @property
    def durability(self) -> Durability:
        """``Durability.POWER``."""
        return Durability.POWER

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    async def open(self) -> None:
        """Check the file, or make it, and start; idempotent.

        Raises:
            StoreInsecure: a symbolic link, a foreign owner, permissions for others.
            StoreCorrupt: damaged, empty or not a database. Nothing is re-created.
            StoreVersionError: another application's file, or a newer execsafe's.
            StoreReadOnly, StoreLocked, StoreUnavailable: as they say.
        """
        await self._open()

    async def find(self, collection: str, key: str) -> Stored | None:
        """The record with that key or alias; a key goes before an alias."""
        _rules.check_name(collection, "collection")
        _rules.check_name(key, "key")
        row = await self._read(lambda connection: tables.find(connection, collection, key))
        return None if row is None else to_stored(collection, row)

    async def scan_open(self, collection: str) -> Sequence[Stored]:
        """All open records, in key order."""
        _rules.check_name(collection, "collection")
        rows = await self._read(lambda connection: tables.scan_open(connection, collection))
        return [to_stored(collection, row) for row in rows]

    async def read_events(self, after: int, limit: int = 1_000) -> Sequence[StoredEvent]:
        """Events with ``seq > after``, in order."""
        _rules.check_integer(after, "after")
        _rules.check_integer(limit, "limit")
        rows = await self._read(lambda connection: tables.read_events(connection, after, limit))
        return [to_stored_event(row) for row in rows]

    async def get_cursor(self, name: str) -> int:
        """How far the consumer has read; 0 before its first."""
        _rules.check_name(name, "cursor name")
        return await self._read(lambda connection: tables.get_cursor(connection, name))

    async def _read(self, work: Callable[[Connection], _T]) -> _T:
        result: _T = await self._finish(Work(work, is_write=False))
        return result

    def _question(self) -> Job:
        return Work(_nothing, is_write=False)


def _nothing(_connection: Connection) -> None:
    """Work that only shows whether the store is open."""


def _to_path(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if not text or not text.isprintable():
        raise InvalidInput("the path of a store must be printable text")
    if text.startswith(":memory:"):
        raise InvalidInput("an SQLite store needs a file; memory:// keeps everything in memory")
    if text.endswith("/") or Path(text).name in {"", ".", ".."}:
        raise InvalidInput(f"{shorten(text)} names a directory, not a file")
    return Path(text)
