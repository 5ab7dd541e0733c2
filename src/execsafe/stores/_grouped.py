"""What stores have in common whose engine commits in groups: life cycle, and everything that is written."""

from __future__ import annotations

import abc
import contextlib
import os
import threading
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

import anyio

from execsafe.ports import Batch, Lease
from execsafe.stores import _rules
from execsafe.stores._group import to_commit
from execsafe.stores._jobs import Job, Work, closed, forked
from execsafe.stores._rules import ManagedStore
from execsafe.stores._writer import Engine, Writer

# A purge is cut into transactions of this many records, so that no order waits long behind one.
_PURGE_SLICE: Final = 500
_T = TypeVar("_T")


class Tables(Protocol):
    """The writes of a database besides batches, inside whatever transaction is open; a module offers them."""

    def set_cursor(self, connection: Any, name: str, seq: int, /) -> None:
        """Move a cursor forward."""

    def delete_cursor(self, connection: Any, name: str, /) -> None:
        """Forget a cursor, if there is one."""

    def purge_records(self, connection: Any, ended_before_ms: int, limit: int, /) -> int:
        """Delete the *limit* oldest ended records; returns how many."""

    def purge_events(self, connection: Any, before_ms: int, limit: int, /) -> None:
        """Delete old leases, and those of the *limit* oldest events that are old and passed by every cursor."""


class GroupedStore(ManagedStore):
    """Works with one engine: in a thread of its own, or in the calling thread (*is_inline*).

    Everything that is committed while the thread is busy becomes durable together with its next transaction. A caller
    that is cancelled while it waits has its write carried out.
    """

    def __init__(self, engine: Engine, tables: Tables, *, is_inline: bool = False) -> None:
        self._engine = engine
        self._tables = tables
        self._is_inline = is_inline
        self._lock = threading.Lock()
        self._writer: Writer | None = None
        self._is_open = False
        self._pid = os.getpid()

    @abc.abstractmethod
    def _question(self) -> Job:
        """A reading that only shows whether the store is open."""

    async def _open(self) -> None:
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
            job = self._question()
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
        """Finish what is queued and let go; idempotent. Later calls raise StoreUnavailable."""
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
                warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
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

    async def set_cursor(self, name: str, seq: int) -> None:
        """Remember how far a consumer has read; it never goes back."""
        _rules.check_name(name, "cursor name")
        _rules.check_integer(seq, "seq")
        await self._write(lambda connection: self._tables.set_cursor(connection, name, seq))

    async def delete_cursor(self, name: str) -> None:
        """Forget a consumer; idempotent."""
        _rules.check_name(name, "cursor name")
        await self._write(lambda connection: self._tables.delete_cursor(connection, name))

    async def purge(self, ended_before_ms: int, limit: int = 10_000) -> int:
        """Delete the *limit* oldest ended records, and what is old among the *limit* oldest events."""
        _rules.check_integer(ended_before_ms, "ended_before_ms")
        _rules.check_integer(limit, "limit")
        await self._write(lambda c: self._tables.purge_events(c, ended_before_ms, limit))
        deleted = 0
        while deleted < limit:
            slice_ = min(_PURGE_SLICE, limit - deleted)
            count = await self._write(self._purge_of(ended_before_ms, slice_))
            deleted += count
            if count < slice_:
                break
        return deleted

    def _purge_of(self, ended_before_ms: int, limit: int) -> Callable[[Any], int]:
        return lambda connection: self._tables.purge_records(connection, ended_before_ms, limit)

    async def _write(self, work: Callable[[Any], _T]) -> _T:
        result: _T = await self._finish(Work(work, is_write=True))
        return result

    async def _finish(self, job: Job) -> Any:
        if (done := self._begin(job)) is not None:
            await done
        return job.unwrap()

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
