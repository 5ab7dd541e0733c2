"""The synchronous half of the SQLite store: one connection, one thread at a time, many batches a transaction."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, cast

from execsafe.errors import (
    ExecsafeError,
    StoreCorrupt,
    StoreError,
    StoreReadOnly,
    StoreUnavailable,
)
from execsafe.stores import _sqlite_files, _sqlite_schema, codec
from execsafe.stores._jobs import Commit, Job, closed, forked, run_each
from execsafe.stores._sqlite_errors import poisoned, poisons, primary_code, translate
from execsafe.stores._sqlite_group import NotFresh, apply

_DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
Connect = Callable[[Path, float], sqlite3.Connection]


class Engine:
    """Opens the file, runs jobs, and refuses everything once it cannot know what is on disk.

    Not thread-safe: the writer thread, or a lock, sees to it that calls come one at a time.
    """

    def __init__(
        self,
        path: Path,
        *,
        busy_timeout_s: float,
        exclusive: bool,
        check: str,
        connect: Connect | None = None,
    ) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._exclusive = exclusive
        self._check = check
        self._connect = connect or _sqlite_schema.connect
        self._connection: sqlite3.Connection | None = None
        self._journal_mode = ""
        self._refusal: StoreError | None = None
        self._pid = 0

    def open(self) -> None:
        """Check the file and make it ready; idempotent.

        Raises:
            StoreError: of the kind that fits; the file is left as it was found.
        """
        if self._connection is not None:
            return
        try:
            _sqlite_files.prepare(self._path, _sqlite_schema.create)
            connection = self._connect(self._path, self._busy_timeout_s)
        except sqlite3.Error as error:
            raise translate(error, doing=f"opening {self._path}") from error
        try:
            self._journal_mode = self._make_ready(connection)
        except sqlite3.Error as error:
            connection.close()
            if primary_code(error) == sqlite3.SQLITE_ERROR:
                raise StoreCorrupt(f"{self._path}: the store's tables are damaged", path=str(self._path)) from error
            raise translate(error, doing=f"opening {self._path}") from error
        except StoreCorrupt as error:
            connection.close()
            raise StoreCorrupt(f"{self._path}: {error}", **{**error.context, "path": str(self._path)}) from error
        except BaseException:
            connection.close()
            raise
        codec.make_ready()
        self._connection = connection
        self._refusal = None
        self._pid = os.getpid()

    def _make_ready(self, connection: sqlite3.Connection) -> str:
        if self._exclusive:
            _sqlite_schema.claim(connection)
        _sqlite_schema.check_identity(connection)
        _sqlite_schema.check_integrity(connection, self._check)
        journal_mode = _sqlite_schema.configure(connection, exclusive=self._exclusive)
        self._probe(connection)
        return journal_mode

    def _probe(self, connection: sqlite3.Connection) -> None:
        """Find out now, not at the first order, whether the file and its journal can be written."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE meta SET fence = fence + 1")
            connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            if primary_code(error) == sqlite3.SQLITE_CANTOPEN:
                raise StoreReadOnly(f"no journal can be written in {self._path.parent}") from error
            raise

    def refuse(self, error: StoreError) -> None:
        """Answer every job with *error* until the next :meth:`open` succeeds."""
        self._refusal = error

    def close(self) -> None:
        """Release the file; idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def serve(self, jobs: Sequence[Job]) -> None:
        """Run *jobs*: all writes in one transaction, then the reads. Errors stay with their job."""
        writes = [job for job in jobs if job.is_write]
        if writes:
            try:
                self._write(writes)
            except Exception as error:  # noqa: BLE001 - whatever it was, nobody may wait for ever
                self._fail(writes, error)
        for job in jobs:
            if not job.is_write:
                self._read(job)

    # --- one transaction ----------------------------------------------------------------------------

    def _write(self, jobs: Sequence[Job]) -> None:
        connection = self._ready()
        try:
            try:
                self._begin(connection, jobs, is_fresh=True)
            except NotFresh:
                connection.execute("ROLLBACK")
                self._begin(connection, jobs, is_fresh=False)
        except BaseException as error:
            self._undo(connection, error)
            raise
        try:
            connection.execute("COMMIT")
        except BaseException as error:
            if isinstance(error, sqlite3.Error) and poisons(error):
                self._refusal = poisoned(error)
            self._undo(connection, error)
            raise

    def _begin(self, connection: sqlite3.Connection, jobs: Sequence[Job], *, is_fresh: bool) -> None:
        """Do everything but commit; :func:`apply` says what *is_fresh* means."""
        connection.execute("BEGIN IMMEDIATE")
        self._check_mode(connection)
        for kind, run in itertools.groupby(jobs, type):
            if kind is Commit:
                apply(connection, cast("list[Commit]", list(run)), is_fresh=is_fresh)
            else:
                run_each(list(run), connection)

    def _undo(self, connection: sqlite3.Connection, error: BaseException) -> None:
        if isinstance(error, sqlite3.Error) and primary_code(error) == sqlite3.SQLITE_IOERR:
            self._refusal = poisoned(error)
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error as second:
            self._refusal = poisoned(second)

    def _check_mode(self, connection: sqlite3.Connection) -> None:
        """A process that owned the file alone may have left it in a mode that this SQLite cannot share."""
        if _sqlite_schema.WAL_IS_SAFE or self._exclusive:
            return
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        if mode != self._journal_mode:
            raise StoreUnavailable(f"another process has put the store into journal mode {mode}: reopen it")

    def _read(self, job: Job) -> None:
        try:
            run_each([job], self._ready())
        except Exception as error:  # noqa: BLE001
            self._fail([job], error)
        else:
            if isinstance(job.error, StoreCorrupt):
                self._refusal = job.error

    def _ready(self) -> sqlite3.Connection:
        if self._refusal is not None:
            raise self._refusal
        if self._connection is None:
            raise closed()
        if self._pid != os.getpid():
            raise forked()
        return self._connection

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        if isinstance(error, sqlite3.Error):
            if primary_code(error) in _DAMAGE:
                self._refusal = translate(error, doing="an earlier call")
            failure: ExecsafeError = translate(error, doing="writing" if jobs[0].is_write else "reading")
            if self._refusal is not None and primary_code(error) == sqlite3.SQLITE_IOERR:
                failure = self._refusal
        elif isinstance(error, ExecsafeError):
            failure = error
        else:
            failure = StoreUnavailable(f"the store's work failed ({type(error).__name__})")
        for job in jobs:
            # One instance each: a raised exception collects the traceback of whoever raises it.
            job.error = type(failure)(str(failure), **failure.context)
            job.error.__cause__ = error if isinstance(error, sqlite3.Error) else None
