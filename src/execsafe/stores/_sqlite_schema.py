"""Tables and settings of an SQLite store, and the checks before one is trusted."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from execsafe.errors import StoreCorrupt, StoreLocked, StoreUnavailable, StoreVersionError

APPLICATION_ID: Final = 0x45585346  # "EXSF"
SCHEMA_VERSION: Final = 1
# Before this release two connections could lose each other's commits when a write-ahead log was reset.
WAL_IS_SAFE: Final = sqlite3.sqlite_version_info >= (3, 51, 3)
_HAS_JSON: Final = sqlite3.sqlite_version_info >= (3, 38)
_FULL: Final = 2
_LOST_ALIAS: Final = """
SELECT EXISTS (
    SELECT 1 FROM records AS r JOIN json_each(r.aliases) AS j
    LEFT JOIN aliases AS a ON a.collection = r.collection AND a.alias = j.value
    WHERE a.key IS NOT r.key
)
"""

SCHEMA: Final = """
CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), fence INTEGER NOT NULL);
INSERT INTO meta VALUES (1, 0);
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    collection TEXT NOT NULL,
    key TEXT NOT NULL,
    version INTEGER NOT NULL,
    is_open INTEGER NOT NULL,
    ended_at_ms INTEGER,
    checksum INTEGER NOT NULL,
    aliases TEXT NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (collection, key)
);
CREATE INDEX records_open ON records (collection, key) WHERE is_open;
CREATE INDEX records_ended ON records (ended_at_ms) WHERE NOT is_open AND ended_at_ms IS NOT NULL;
CREATE TABLE aliases (
    collection TEXT NOT NULL,
    alias TEXT NOT NULL,
    key TEXT NOT NULL,
    PRIMARY KEY (collection, alias)
) WITHOUT ROWID;
CREATE TABLE leases (
    name TEXT PRIMARY KEY, holder TEXT NOT NULL, token INTEGER NOT NULL, expires_at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE TABLE cursors (name TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
"""
_SANE_FENCE: Final = "SELECT fence >= (SELECT coalesce(max(token), 0) FROM leases) FROM meta"


def connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """Connect to an existing file; transactions are begun and ended by hand."""
    uri = f"file:{quote(str(path.absolute()))}?mode=rw"
    return sqlite3.connect(
        uri,
        uri=True,
        timeout=busy_timeout_s,
        isolation_level=None,
        check_same_thread=False,  # one thread at a time, not always the same: see _sqlite_engine
        cached_statements=64,
    )


def create(path: Path) -> None:
    """Write the tables into the empty file at *path* and make them durable."""
    connection = connect(path, 0)
    try:
        _set_synchronous(connection)
        # Without a write-ahead log: what it holds would be moved into the file by close(), which reports nothing.
        connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        for statement in filter(str.strip, SCHEMA.split(";")):
            connection.execute(statement)
        connection.execute("COMMIT")
        # The mode is written into the file: whoever opens it later keeps it, so that no connection finds
        # itself switched to a write-ahead log that its own SQLite cannot share.
        if WAL_IS_SAFE:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
    finally:
        connection.close()


def claim(connection: sqlite3.Connection) -> None:
    """Keep all others out. Before anything is read: then the write-ahead log needs no shared memory."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchone()


def check_identity(connection: sqlite3.Connection) -> None:
    """Refuse files that are not ours, or newer than we are.

    Raises:
        StoreVersionError: another application's database, or a newer schema.
    """
    application = _value(connection, "PRAGMA application_id")
    if application != APPLICATION_ID:
        raise StoreVersionError("this SQLite file is not an execsafe store", application_id=application)
    version = _value(connection, "PRAGMA user_version")
    if version > SCHEMA_VERSION:
        raise StoreVersionError(
            f"the store was written by a newer execsafe (schema {version}, known: {SCHEMA_VERSION})",
            version=version,
        )
    if version != SCHEMA_VERSION:
        raise StoreCorrupt(f"the store claims schema {version}, which never existed", version=version)


def check_integrity(connection: sqlite3.Connection, thoroughness: str) -> None:
    """Read the whole file (``quick``), comparing each key with its other copy as well (``full``).

    A damaged key or alias would otherwise look like one that was never stored.

    Raises:
        StoreCorrupt: the first finding is in the message.
    """
    is_full = thoroughness == "full"
    finding = _value(connection, f"PRAGMA {'integrity_check' if is_full else 'quick_check'}(1)")
    if finding != "ok":
        raise StoreCorrupt(f"the store's file is damaged: {str(finding)[:200]}")
    if is_full and _HAS_JSON and _value(connection, _LOST_ALIAS):
        raise StoreCorrupt("the store's file is damaged: an alias does not lead to its record")
    if not _value(connection, _SANE_FENCE):
        raise StoreCorrupt("the store's file is damaged: a lease has a token that was never given")


def configure(connection: sqlite3.Connection, *, exclusive: bool) -> str:
    """Set what durability rests on and read it back; returns the journal mode in force.

    PERSIST and not DELETE or TRUNCATE where there is no write-ahead log: a commit ends by overwriting the
    journal's header, which is flushed like any data. Removing the journal instead would have to flush the directory
    as well, and until then a power cut could roll an acknowledged commit back. It is also several times faster.

    Raises:
        StoreLocked: other processes use the store in a way that this one cannot join.
        StoreUnavailable: SQLite did not accept a setting.
    """
    _set_synchronous(connection)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    if exclusive:
        wanted = "wal"
    else:
        found = _value(connection, "PRAGMA journal_mode")
        wanted = "wal" if found == "wal" and WAL_IS_SAFE else "persist"
    effective = _value(connection, f"PRAGMA journal_mode = {wanted}")
    if effective != wanted:
        raise StoreLocked(f"the store is in use in journal mode {effective}; {wanted} is needed here")
    settings = {
        "synchronous": _FULL,
        "locking_mode": "exclusive" if exclusive else "normal",
    }
    for name, expected in settings.items():
        if (actual := _value(connection, f"PRAGMA {name}")) != expected:
            raise StoreUnavailable(f"SQLite runs with {name} = {actual}, needed is {expected}")
    return wanted


def _set_synchronous(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA synchronous = FULL")
    # Only macOS knows these: there a plain fsync does not reach the disk.
    connection.execute("PRAGMA fullfsync = ON")
    connection.execute("PRAGMA checkpoint_fullfsync = ON")


def _value(connection: sqlite3.Connection, sql: str) -> Any:
    row = connection.execute(sql).fetchone()
    return None if row is None else row[0]
