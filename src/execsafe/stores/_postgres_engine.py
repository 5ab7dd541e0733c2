"""The synchronous half of the PostgreSQL store: one connection, one thread at a time, many batches a transaction."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import attrs
import psycopg

from execsafe.errors import ExecsafeError, StoreCorrupt, StoreError, StoreUnavailable, StoreVersionError
from execsafe.ports import Durability
from execsafe.stores import _postgres_schema as schema
from execsafe.stores._jobs import Commit, Job, Work, closed, forked, run_each
from execsafe.stores._postgres_errors import translate
from execsafe.stores._postgres_group import State
from execsafe.stores._postgres_options import Options
from execsafe.stores._postgres_schema import Meta
from execsafe.stores._postgres_script import Connection, Rows, Script
from execsafe.stores._postgres_watch import Watch

_log: Final = logging.getLogger("execsafe.stores")
# Deadlocks, which we cannot have among ourselves, but with an administrator's locks.
_TAKEN_BACK: Final = {"40001", "40P01"}
# Of a transaction with the time that one statement may take; so much more than any needs, as they are few and short.
_PATIENCE: Final = 2
_STRENGTH: Final = {Durability.NONE: 0, Durability.PROCESS: 1, Durability.POWER: 2}


@attrs.define(eq=False)
class Read(Job):
    """A statement with its values; its rows are the result."""

    statement: str
    values: tuple[Any, ...] = ()
    is_write: bool = attrs.field(default=False, init=False)


class PostgresEngine:
    """Connects, runs jobs, connects again, and refuses everything once the server has gone back in time.

    Not thread-safe: the writer thread sees to it that calls come one at a time.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._settings = options.settings
        self._connection: Connection | None = None
        self._is_open = False
        self._refusal: StoreError | None = None
        self._seen: Meta | None = None
        self._last_event: tuple[int, int] | None = None  # of ours: its number and checksum
        self._is_committing = False
        self._warnings: list[str] = []
        self._pid = 0
        self._watch = Watch(_PATIENCE * options.statement_timeout_s)
        self.durability = options.require

    def open(self) -> None:
        """Connect, check the tables or make them; idempotent.

        Raises:
            StoreError: of the kind that fits; nothing is left behind.
        """
        if self._is_open:
            return
        self._refusal = self._seen = self._last_event = None
        self._pid = os.getpid()
        self._watch.start()
        try:
            self._connection = self._connect(may_create=self._options.create)
        except BaseException as error:
            self._watch.stop()
            if isinstance(error, psycopg.Error):
                raise self._translate(error, doing="opening the store") from None
            raise
        self._is_open = True
        self._warn_of_open_text(self._connection)

    def refuse(self, error: StoreError) -> None:
        """Answer every job with *error* until the next :meth:`open` succeeds."""
        self._refusal = error

    def close(self) -> None:
        """Let go of the connection; idempotent."""
        self._is_open = False
        self._drop()
        self._watch.stop()

    def serve(self, jobs: Sequence[Job]) -> None:
        """Run *jobs*: all writes in one transaction, then the reads in another. Errors stay with their job."""
        for run, doing, some in (
            (self._write, "writing", [job for job in jobs if job.is_write]),
            (self._read, "reading", [job for job in jobs if not job.is_write]),
        ):
            if some:
                try:
                    self._attempt(run, some)
                except Exception as error:  # noqa: BLE001 - whatever it was, nobody may wait for ever
                    self._fail(some, error, doing)

    # --- one transaction ----------------------------------------------------------------------------

    def _attempt(self, run: Callable[[Connection, Sequence[Job]], None], jobs: Sequence[Job]) -> None:
        """Once more if nothing can have been committed: the connection was lost before, or the server took it back."""
        connection = self._ready()
        try:
            run(connection, jobs)
            return
        except psycopg.Error as error:
            is_lost = self._connection is None
            if self._is_committing if is_lost else error.sqlstate not in _TAKEN_BACK:
                raise
        run(self._ready(), jobs)

    def _write(self, connection: Connection, jobs: Sequence[Job]) -> None:
        commits = [job for job in jobs if isinstance(job, Commit)]
        others = [job for job in jobs if isinstance(job, Work)]
        with self._transaction(connection):
            script = Script()
            schema.begin(script, self._settings, is_write=True)
            place = script.add(schema.ASK_META)
            state = State(script, [commit.batch for commit in commits])
            answers = script.run(connection)
            meta = self._checked(answers[place])
            state.read(answers, meta)
            state.judge(commits)
            script = Script()
            state.write(script)
            is_changed = bool(script or others)
            if others:
                if script:
                    script.run(connection)
                    script = Script()
                run_each(others, connection)
            if is_changed:
                meta = state.counted()
                schema.write_meta(script, meta)
            script.add("COMMIT")
            self._is_committing = is_changed
            script.run(connection)
        self._check_notices()
        self._seen, self._last_event = meta, state.last_event or self._last_event

    def _read(self, connection: Connection, jobs: Sequence[Job]) -> None:
        reads = [job for job in jobs if isinstance(job, Read)]
        with self._transaction(connection):
            script = Script()
            schema.begin(script, self._settings, is_write=False)
            asked = script.add(schema.ASK_META)
            places = [script.add(read.statement, read.values) for read in reads]
            script.add("COMMIT")
            answers = script.run(connection)
            self._seen = self._checked(answers[asked])
        for read, place in zip(reads, places, strict=True):
            read.result = answers[place]

    @contextlib.contextmanager
    def _transaction(self, connection: Connection) -> Iterator[None]:
        self._is_committing = False
        self._warnings.clear()
        try:
            with self._watch.over(connection):
                yield
        except BaseException:
            self._undo(connection)
            raise

    def _undo(self, connection: Connection) -> None:
        try:
            with self._watch.over(connection):
                connection.execute("ROLLBACK")
        except psycopg.Error:  # lost, which the error itself may not have told
            self._drop()

    def _checked(self, rows: Rows) -> Meta:
        """The store's counters, once it is clear that the server can keep what is promised."""
        durability, setting, meta = schema.to_meta(rows)
        if _STRENGTH[durability] < _STRENGTH[self._options.require]:
            raise StoreUnavailable(
                f"the server runs with {setting}: a power cut could undo what it acknowledges."
                f" Correct that, or accept it with require={durability.value}",
                setting=setting,
            )
        self.durability = durability
        schema.check_continuity(self._seen, meta)
        return meta

    def _check_notices(self) -> None:
        if self._warnings:  # a wait for a standby that was broken off, which the server does not call an error
            raise StoreUnavailable(f"the commit is on the server alone: {'; '.join(self._warnings)}")

    # --- the connection -----------------------------------------------------------------------------

    def _ready(self) -> Connection:
        if self._refusal is not None:
            raise self._refusal
        if not self._is_open:
            raise closed()
        if self._pid != os.getpid():
            raise forked()
        if self._connection is None or self._connection.closed:
            self._drop()
            self._is_committing = False
            self._connection = self._connect(may_create=False)
        return self._connection

    def _connect(self, *, may_create: bool) -> Connection:
        connection: Connection = psycopg.connect(**self._options.parameters)
        try:
            connection.add_notice_handler(self._note)
            if connection.info.parameter_status("standard_conforming_strings") != "on":
                # psycopg writes arrays of bytes for this mode only. Poolers keep this setting of a session.
                connection.execute("SET standard_conforming_strings = on")
            with self._transaction(connection):
                script = Script()
                schema.begin(script, self._settings, is_write=True)
                script.run(connection)
                is_new = schema.make_ready(connection, self._options.schema, may_create=may_create)
                meta = self._checked(connection.execute(schema.ASK_META).fetchall())
                schema.check_event(connection, self._last_event)
                connection.execute("COMMIT" if is_new else "ROLLBACK")
        except BaseException:
            connection.close()
            raise
        self._seen = meta
        return connection

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        if self._is_committing and notice.severity_nonlocalized == "WARNING":
            self._warnings.append(str(notice.message_primary))

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._pid == os.getpid():
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def _warn_of_open_text(self, connection: Connection) -> None:
        mode = connection.info.get_parameters().get("sslmode", "prefer")
        if self._options.is_remote(connection) and mode not in {"require", "verify-ca", "verify-full"}:
            _log.warning(
                "the connection to %s may go without encryption (sslmode=%s): use sslmode=verify-full",
                connection.info.host,
                mode,
            )

    # --- errors -------------------------------------------------------------------------------------

    def _translate(self, error: psycopg.Error, *, doing: str) -> StoreError:
        return translate(error, doing=doing, secrets=self._options.secrets)

    def _fail(self, jobs: Sequence[Job], error: Exception, doing: str) -> None:
        if isinstance(error, psycopg.Error):
            failure: ExecsafeError = self._translate(error, doing=doing)
            if self._is_committing and self._connection is None:
                failure = StoreUnavailable(f"nothing is known of the write: {failure}", **failure.context)
        elif isinstance(error, ExecsafeError):
            failure = error
        else:
            failure = StoreUnavailable(f"the store's work failed ({type(error).__name__})")
        if isinstance(failure, StoreCorrupt | StoreVersionError):
            self._refusal = failure
        for job in jobs:
            # One instance each: a raised exception collects the traceback of whoever raises it.
            job.result, job.error = None, type(failure)(str(failure), **failure.context)
