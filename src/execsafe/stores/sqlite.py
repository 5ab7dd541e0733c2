"""The embedded durable store: one SQLite file, group commit, nothing acknowledged before it is on disk."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Final, Literal, TypeVar

import anyio

from execsafe.errors import InvalidInput
from execsafe.model.values import shorten
from execsafe.ports import Batch, Durability, Lease, Stored, StoredEvent
from execsafe.stores import _rules
from execsafe.stores import _sqlite_tables as tables
from execsafe.stores._group import to_commit, to_stored, to_stored_event
from execsafe.stores._jobs import Job, Work, closed, forked
from execsafe.stores._rules import ManagedStore
from execsafe.stores._sqlite_engine import Connect, Engine
from execsafe.stores._writer import Writer

BUSY_TIMEOUT_S_MAX: Final = 600.0
# A purge is cut into transactions of this many records, so that no order waits long behind one.
_PURGE_SLICE: Final = 500

_T = TypeVar("_T")


class SqliteStore(ManagedStore):
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
        self._engine = Engine(
            self._path, busy_timeout_s=busy_timeout_s, exclusive=exclusive, check=check, connect=_connect
        )
        self._is_inline = commit == "inline"
        self._lock = threading.Lock()
        self._writer: Writer | None = None
        self._is_open = False
        self._pid = os.getpid()

    @classmethod
    def from_options(cls, path: str, options: Mapping[str, str]) -> SqliteStore:
        """As the URL gives them: ``busy_timeout_s=5``, ``commit=inline``, ``exclusive=true``, ``check=quick``.

        Raises:
            InvalidInput: an unknown option, or a value that it does not take.
        """
        readers: dict[str, Callable[[str], Any]] = {
            "busy_timeout_s": _to_seconds,
            "commit": str,
            "exclusive": _to_flag,
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
        self._pid = self._pid if self._is_open else os.getpid()
        self._check_fork()
        if self._is_inline:
            with self._lock:
                self._engine.open()
        else:
            await self._start()
        self._is_open = True

    async def _start(self) -> None:
        with self._lock:
            if self._writer is None:
                self._writer = Writer(self._engine)
            writer = self._writer
        try:
            job = Work(_nothing, is_write=False)
            await writer.submit(job)
            job.unwrap()
        except BaseException:
            if not self._is_open:
                await self._stop(writer)
            raise

    async def _stop(self, writer: Writer) -> None:
        with self._lock:
            if self._writer is writer:
                self._writer = None
        writer.stop()
        with anyio.CancelScope(shield=True):
            await writer.join()

    async def aclose(self) -> None:
        """Finish what is queued and release the file; idempotent. Later calls raise StoreUnavailable."""
        if self._pid != os.getpid():
            return  # the parent's to close
        self._is_open = False
        if (writer := self._writer) is not None:
            await self._stop(writer)
        elif self._is_inline:
            with self._lock:
                self._engine.close()

    def __del__(self) -> None:
        if getattr(self, "_is_open", False) and self._pid == os.getpid():
            with contextlib.suppress(Exception):
                warnings.warn(f"{self._path} was not closed", ResourceWarning, source=self, stacklevel=2)
            if self._writer is not None:
                self._writer.stop()
            else:
                self._engine.close()

    async def commit(self, batch: Batch) -> Lease | None:
        """See :meth:`execsafe.ports.Store.commit`; also refuses malformed batches with InvalidInput."""
        job = to_commit(batch)
        if (done := self._begin(job)) is not None:
            await done
        lease: Lease | None = job.unwrap()
        return lease

    async def find(self, collection: str, key: str) -> Stored | None:
        """The record with that key or alias; a key goes before an alias."""
        _rules.check_name(collection, "collection")
        _rules.check_name(key, "key")
        row = await self._do(lambda connection: tables.find(connection, collection, key))
        return None if row is None else to_stored(collection, row)

    async def scan_open(self, collection: str) -> Sequence[Stored]:
        """All open records, in key order."""
        _rules.check_name(collection, "collection")
        rows = await self._do(lambda connection: tables.scan_open(connection, collection))
        return [to_stored(collection, row) for row in rows]

    async def read_events(self, after: int, limit: int = 1_000) -> Sequence[StoredEvent]:
        """Events with ``seq > after``, in order."""
        _rules.check_integer(after, "after")
        _rules.check_integer(limit, "limit")
        rows = await self._do(lambda connection: tables.read_events(connection, after, limit))
        return [to_stored_event(row) for row in rows]

    async def set_cursor(self, name: str, seq: int) -> None:
        """Remember how far a consumer has read; it never goes back."""
        _rules.check_name(name, "cursor name")
        _rules.check_integer(seq, "seq")
        await self._do(lambda connection: tables.set_cursor(connection, name, seq), is_write=True)

    async def get_cursor(self, name: str) -> int:
        """How far the consumer has read; 0 before its first."""
        _rules.check_name(name, "cursor name")
        return await self._do(lambda connection: tables.get_cursor(connection, name))

    async def purge(self, ended_before_ms: int, limit: int = 10_000) -> int:
        """Delete the *limit* oldest ended records, and what is old among the *limit* oldest events."""
        _rules.check_integer(ended_before_ms, "ended_before_ms")
        _rules.check_integer(limit, "limit")
        await self._do(lambda c: tables.purge_events(c, ended_before_ms, limit), is_write=True)
        deleted = 0
        while deleted < limit:
            slice_ = min(_PURGE_SLICE, limit - deleted)
            count = await self._do(_purge(ended_before_ms, slice_), is_write=True)
            deleted += count
            if count < slice_:
                break
        return deleted

    async def _do(self, work: Callable[[Connection], _T], *, is_write: bool = False) -> _T:
        job = Work(work, is_write=is_write)
        if (done := self._begin(job)) is not None:
            await done
        result: _T = job.unwrap()
        return result

    def _begin(self, job: Job) -> Awaitable[None] | None:
        """Have *job* done: when what is returned is done, or now (None)."""
        self._check_fork()
        if self._is_inline:
            with self._lock:
                self._engine.serve([job])
            return None
        if self._writer is None:
            raise closed()
        return self._writer.submit(job)

    def _check_fork(self) -> None:
        # Before any lock: in a forked child the writer thread does not exist, and a lock may be held for ever.
        if self._pid != os.getpid():
            raise forked()


def _nothing(_connection: Connection) -> None:
    """Work that only shows whether the store is open."""


def _purge(ended_before_ms: int, limit: int) -> Callable[[Connection], int]:
    return lambda connection: tables.purge_records(connection, ended_before_ms, limit)


def _to_path(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if not text or not text.isprintable():
        raise InvalidInput("the path of a store must be printable text")
    if text.startswith(":memory:"):
        raise InvalidInput("an SQLite store needs a file; memory:// keeps everything in memory")
    if text.endswith("/") or Path(text).name in {"", ".", ".."}:
        raise InvalidInput(f"{shorten(text)} names a directory, not a file")
    return Path(text)


def _to_seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"busy_timeout_s must be a number of seconds, was {shorten(text)}") from None


def _to_flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise InvalidInput(f"exclusive must be 'true' or 'false', was {shorten(text)}")
    return text == "true"
