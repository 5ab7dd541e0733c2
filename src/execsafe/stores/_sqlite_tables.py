"""Reading the tables of an SQLite store, and the writes besides batches, inside whatever transaction is open."""

from __future__ import annotations

from sqlite3 import Connection
from typing import Any, Final

from execsafe.stores._group import to_aliases

_RECORD: Final = "key, version, is_open, ended_at_ms, checksum, body"


# --- Writes -----------------------------------------------------------------------------------------


def set_cursor(connection: Connection, name: str, seq: int) -> None:
    """Move a cursor forward."""
    connection.execute(
        "INSERT INTO cursors VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET seq = max(seq, excluded.seq)",
        (name, seq),
    )


def delete_cursor(connection: Connection, name: str) -> None:
    """Forget a cursor, if there is one."""
    connection.execute("DELETE FROM cursors WHERE name = ?", (name,))


def purge_records(connection: Connection, ended_before_ms: int, limit: int) -> int:
    """Delete the *limit* oldest ended records; returns how many."""
    found = connection.execute(
        "SELECT id, collection, aliases FROM records"
        " WHERE NOT is_open AND ended_at_ms IS NOT NULL AND ended_at_ms < ? ORDER BY ended_at_ms LIMIT ?",
        (ended_before_ms, limit),
    ).fetchall()
    names = [(collection, alias) for _, collection, text in found for alias in to_aliases(text)]
    connection.executemany("DELETE FROM aliases WHERE collection = ? AND alias = ?", names)
    connection.executemany("DELETE FROM records WHERE id = ?", [(row,) for row, _, _ in found])
    return len(found)


def purge_events(connection: Connection, before_ms: int, limit: int) -> None:
    """Delete old leases, and those of the *limit* oldest events that are old and passed by every cursor."""
    connection.execute("DELETE FROM leases WHERE expires_at_ms < ?", (before_ms,))
    connection.execute(
        "DELETE FROM events WHERE seq <= (SELECT coalesce(max(seq), 0) FROM (SELECT seq FROM events"
        " ORDER BY seq LIMIT ?)) AND at_ms < ? AND seq <= coalesce((SELECT min(seq) FROM cursors), seq)",
        (limit, before_ms),
    )


# --- Reads ------------------------------------------------------------------------------------------


def find(connection: Connection, collection: str, key: str) -> tuple[Any, ...] | None:
    """The row with that key or alias, for :func:`to_stored`."""
    sql = f"SELECT {_RECORD} FROM records WHERE collection = ? AND key = ?"  # noqa: S608 - a constant
    row: tuple[Any, ...] | None = connection.execute(sql, (collection, key)).fetchone()
    if row is None:
        owner = _owner(connection, collection, key)
        if owner is not None:
            row = connection.execute(sql, (collection, owner)).fetchone()
    return row


def scan_open(connection: Connection, collection: str) -> list[tuple[Any, ...]]:
    """The open rows in key order, for :func:`to_stored`."""
    sql = f"SELECT {_RECORD} FROM records WHERE is_open AND collection = ? ORDER BY key"  # noqa: S608
    return connection.execute(sql, (collection,)).fetchall()


def read_events(connection: Connection, after: int, limit: int) -> list[tuple[Any, ...]]:
    """Rows for :func:`to_stored_event`."""
    sql = "SELECT seq, at_ms, checksum, body FROM events WHERE seq > ? ORDER BY seq LIMIT ?"
    return connection.execute(sql, (after, limit)).fetchall()


def get_cursor(connection: Connection, name: str) -> int:
    """The cursor's position, 0 if it has none."""
    row = connection.execute("SELECT seq FROM cursors WHERE name = ?", (name,)).fetchone()
    return 0 if row is None else int(row[0])


def _owner(connection: Connection, collection: str, alias: str) -> str | None:
    sql = "SELECT key FROM aliases WHERE collection = ? AND alias = ?"
    row = connection.execute(sql, (collection, alias)).fetchone()
    return None if row is None else row[0]
