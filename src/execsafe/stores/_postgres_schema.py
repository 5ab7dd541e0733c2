"""Tables of a PostgreSQL store, what a transaction begins with, and the checks before a store is trusted.

Each table is keyed by the digest of a name, as an index takes no entry above 2.7 kB. Names are kept besides, ordered as
Python orders them (collation "C"). Events are numbered by a counter in ``meta``, not by a sequence: a sequence is not
part of a logical copy of the tables, so that a server which took over would give numbers a second time.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import attrs
from psycopg import Cursor, sql

from execsafe.errors import StoreCorrupt, StoreReadOnly, StoreUnavailable, StoreVersionError
from execsafe.ports import Durability
from execsafe.stores._postgres_script import Connection, Rows, Script

SCHEMA_VERSION: Final = 1
_APPLICATION: Final = "execsafe"
_TABLES: Final = ("meta", "records", "aliases", "leases", "events", "cursors")
_CREATE: Final = """
CREATE TABLE meta (
    id smallint PRIMARY KEY CHECK (id = 1),
    application text NOT NULL,
    version integer NOT NULL,
    store_id uuid NOT NULL,
    fence bigint NOT NULL,
    seq bigint NOT NULL,
    commits bigint NOT NULL
) WITH (fillfactor = 10);
CREATE TABLE records (
    id bytea PRIMARY KEY,
    collection text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    is_open boolean NOT NULL,
    ended_at_ms bigint,
    checksum bigint NOT NULL,
    aliases text NOT NULL,
    body bytea NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX records_open ON records (left(collection, 100)) WHERE is_open;
CREATE INDEX records_ended ON records (ended_at_ms) WHERE NOT is_open AND ended_at_ms IS NOT NULL;
CREATE TABLE aliases (
    id bytea PRIMARY KEY,
    collection text COLLATE "C" NOT NULL,
    alias text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    record_id bytea NOT NULL
);
CREATE TABLE leases (
    id bytea PRIMARY KEY,
    name text NOT NULL,
    holder text NOT NULL,
    token bigint NOT NULL,
    expires_at_ms bigint NOT NULL
);
CREATE TABLE events (
    seq bigint PRIMARY KEY,
    at_ms bigint NOT NULL,
    checksum bigint NOT NULL,
    body bytea NOT NULL
);
CREATE TABLE cursors (id bytea PRIMARY KEY, name text NOT NULL, seq bigint NOT NULL);
"""
# The last one keeps what is found, so that no reload of the server's configuration comes between check and commit.
_SETTINGS: Final = (
    "SELECT set_config('search_path', %s, true), set_config('statement_timeout', %s, true),"
    " set_config('lock_timeout', %s, true), set_config('idle_in_transaction_session_timeout', %s, true),"
    " set_config('synchronous_commit', current_setting('synchronous_commit'), true)"
)
# For to_meta().
ASK_META: Final = (
    "SELECT current_setting('fsync'), current_setting('synchronous_commit'),"
    " store_id::text, fence, seq, commits FROM meta"
)
_ACCESS: Final = (
    "SELECT has_schema_privilege(oid, 'USAGE'), has_schema_privilege(oid, 'CREATE') FROM pg_namespace"
    " WHERE nspname = %s"
)
# Ours by name, and whether each one survives a crash of the server: unlogged and temporary ones do not.
_FIND: Final = (
    "SELECT c.relname, c.relpersistence = 'p' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname = %s AND c.relname = ANY(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
)
_SANE: Final = (
    "SELECT fence >= (SELECT coalesce(max(token), 0) FROM leases),"
    " seq >= (SELECT coalesce(max(seq), 0) FROM events) FROM meta"
)


@attrs.frozen(kw_only=True)
class Settings:
    """What every transaction begins with."""

    schema: str
    lock_timeout_s: float
    statement_timeout_s: float

    @property
    def lock(self) -> int:
        """The key of the lock that lets one writer in at a time; per database."""
        return int.from_bytes(digest(_APPLICATION, self.schema)[:8], "big", signed=True)

    @property
    def values(self) -> tuple[str, ...]:
        """Of the session for the length of a transaction: a pooler may give the next one to somebody else.

        Whoever stands still while it holds the lock loses it before those who wait give up.
        """
        idle_s = self.lock_timeout_s * 0.8
        times = [_to_ms(each) for each in (self.statement_timeout_s, self.lock_timeout_s, idle_s)]
        return (f"{self.schema}, pg_temp", *times)  # last, so that no temporary table stands for one of ours


@attrs.frozen
class Meta:
    """How far the store has come. Nothing in it ever goes back."""

    store_id: str
    fence: int
    seq: int
    commits: int


def digest(*names: str) -> bytes:
    """The key of a row."""
    # No name holds a NUL. One that no database could keep is never found.
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass")).digest()


# --- Transactions -----------------------------------------------------------------------------------


def begin(script: Script, settings: Settings, *, is_write: bool) -> None:
    """Begin a transaction.

    The lock is the transaction's own, never the session's, which a pooler may share. Whatever is read once it is held
    was committed by everyone who had it before.
    """
    script.add(f"BEGIN ISOLATION LEVEL READ COMMITTED{'' if is_write else ' READ ONLY'}")
    script.add(_SETTINGS, settings.values)
    if is_write:
        script.add("SELECT pg_advisory_xact_lock(%s::bigint)", (settings.lock,))


def to_meta(rows: Rows) -> tuple[Durability, str, Meta]:
    """What a commit survives with the server's present settings, the setting that forbids more, and the counters.

    Raises:
        StoreCorrupt: the counters are not there.
    """
    if len(rows) != 1:
        raise StoreCorrupt("the store's tables are damaged: its counters are missing")
    fsync, synchronous_commit, *counters = rows[0]
    meta = Meta(*counters)
    if fsync != "on":
        return Durability.PROCESS, f"fsync = {fsync}", meta
    if synchronous_commit == "off":
        return Durability.PROCESS, f"synchronous_commit = {synchronous_commit}", meta
    return Durability.POWER, "", meta


def write_meta(script: Script, meta: Meta) -> None:
    """Store the counters."""
    script.add("UPDATE meta SET fence = %s, seq = %s, commits = %s", (meta.fence, meta.seq, meta.commits))


def check_continuity(seen: Meta | None, meta: Meta) -> None:
    """Refuse a server that lacks what this process knows to be committed.

    Raises:
        StoreCorrupt: a standby without the last commits took over, a backup was restored, or it is another store.
    """
    if seen is None or (
        meta.store_id == seen.store_id
        and meta.fence >= seen.fence
        and meta.seq >= seen.seq
        and meta.commits >= seen.commits
    ):
        return
    raise StoreCorrupt(
        "the server has gone back in time: it lacks what it had acknowledged, or holds another store."
        " Look at the venue for what is open before you reopen it",
        seen=attrs.asdict(seen),
        found=attrs.asdict(meta),
    )


def check_event(connection: Connection, event: tuple[int, int] | None) -> None:
    """Refuse a server on which the number of *event*, ours, stands for another one: others have gone on without it.

    Raises:
        StoreCorrupt: as :func:`check_continuity`.
    """
    if event is None:
        return
    seq, checksum = event
    row = connection.execute("SELECT checksum FROM events WHERE seq = %s", (seq,)).fetchone()
    if row is not None and row[0] != checksum:  # None: purged
        raise StoreCorrupt(f"the server has gone back in time: event {seq} is another one", seq=seq)


# --- Opening ----------------------------------------------------------------------------------------


def make_ready(connection: Connection, schema: str, *, may_create: bool) -> bool:
    """Check the tables, or make them; returns whether they were made. Within a transaction that holds the lock.

    Raises:
        StoreUnavailable: a database whose encoding cannot hold every name.
        StoreReadOnly: a privilege is missing.
        StoreCorrupt: tables of somebody else, or only some of ours.
        StoreVersionError: a newer execsafe's.
    """
    encoding = _one(connection.execute("SHOW server_encoding"))[0]
    if encoding != "UTF8":
        raise StoreUnavailable(f"the database's encoding is {encoding}; UTF8 is needed", encoding=encoding)
    access = connection.execute(_ACCESS, (schema,)).fetchone()  # None: there is no such schema
    found: dict[str, bool] = dict(connection.execute(_FIND, (schema, list(_TABLES))).fetchall())
    is_new = not found and may_create
    if access is not None and not access[is_new]:
        raise StoreReadOnly(f"this user lacks the privilege {'CREATE' if is_new else 'USAGE'} on schema {schema}")
    if is_new:
        _create(connection, schema, has_schema=access is not None)
    elif not found:
        raise StoreCorrupt(
            f"schema {schema} holds no store: it was never made there, or its tables are gone", is_missing=True
        )
    else:
        _check_tables(connection, schema, found)
    # Find out now, not at the first order, whether it can be written.
    connection.execute("UPDATE meta SET commits = commits")
    return is_new


def _create(connection: Connection, schema: str, *, has_schema: bool) -> None:
    if not has_schema:  # otherwise an administrator has made it for us, who may not
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    for statement in filter(str.strip, _CREATE.split(";")):
        connection.execute(statement)
    connection.execute(
        "INSERT INTO meta VALUES (1, %s, %s, gen_random_uuid(), 0, 0, 0)", (_APPLICATION, SCHEMA_VERSION)
    )


def _check_tables(connection: Connection, schema: str, found: dict[str, bool]) -> None:
    names = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('meta') AND attnum > 0"
    ).fetchall()
    if not {("application",), ("version",)} <= set(names):
        raise StoreCorrupt(f"schema {schema} holds tables that are not execsafe's, or lacks some: use another schema")
    rows = connection.execute("SELECT application, version FROM meta").fetchall()
    if len(rows) != 1 or rows[0][0] != _APPLICATION:
        raise StoreCorrupt(f"schema {schema} holds tables that are not execsafe's: use another schema")
    version = rows[0][1]
    if version > SCHEMA_VERSION:
        raise StoreVersionError(
            f"the store was written by a newer execsafe (schema {version}, known: {SCHEMA_VERSION})", version=version
        )
    if version != SCHEMA_VERSION:
        raise StoreCorrupt(f"the store claims schema {version}, which never existed", version=version)
    for name in _TABLES:
        if not found.get(name, False):
            state = "does not survive a crash of the server" if name in found else "is missing"
            raise StoreCorrupt(f"the store's tables are damaged: {name} {state}", table=name)
    if _one(connection.execute(_SANE)) != (True, True):
        raise StoreCorrupt("the store's tables are damaged: a number is in use that was never given")


def _one(cursor: Cursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    row = cursor.fetchone()
    if row is None:
        raise StoreUnavailable("the server answered nothing")
    return row


def _to_ms(seconds: float) -> str:
    return str(max(1, round(seconds * 1_000)))  # 0 would mean: for ever
