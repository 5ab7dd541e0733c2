"""Reading the tables of a PostgreSQL store, and the writes besides batches, inside whatever transaction is open."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from execsafe.stores._group import to_aliases
from execsafe.stores._postgres_schema import digest
from execsafe.stores._postgres_script import Connection

Question: TypeAlias = tuple[str, tuple[Any, ...]]
# As _group.to_stored() takes it.
_RECORD: Final = "key, version, is_open::integer, ended_at_ms, checksum, body"


# --- Writes -----------------------------------------------------------------------------------------


def set_cursor(connection: Connection, name: str, seq: int) -> None:
    """Move a cursor forward."""
    connection.execute(
        "INSERT INTO cursors AS c VALUES (%s, %s, %s)"
        " ON CONFLICT (id) DO UPDATE SET seq = greatest(c.seq, excluded.seq)",
        (digest(name), name, seq),
    )


def delete_cursor(connection: Connection, name: str) -> None:
    """Forget a cursor, if there is one."""
    connection.execute("DELETE FROM cursors WHERE id = %s", (digest(name),))


def purge_records(connection: Connection, ended_before_ms: int, limit: int) -> int:
    """Delete the *limit* oldest ended records; returns how many."""
    found = connection.execute(
        "SELECT id, collection, aliases FROM records"
        " WHERE NOT is_open AND ended_at_ms IS NOT NULL AND ended_at_ms < %s ORDER BY ended_at_ms LIMIT %s",
        (ended_before_ms, limit),
    ).fetchall()
    aliases = [digest(collection, alias) for _, collection, text in found for alias in to_aliases(text)]
    connection.execute("DELETE FROM aliases WHERE id = ANY(%s)", (aliases,))
    connection.execute("DELETE FROM records WHERE id = ANY(%s)", ([id_ for id_, _, _ in found],))
    return len(found)


def purge_events(connection: Connection, before_ms: int, limit: int) -> None:
    """Delete old leases, and those of the *limit* oldest events that are old and passed by every cursor."""
    connection.execute("DELETE FROM leases WHERE expires_at_ms < %s", (before_ms,))
    connection.execute(
        "DELETE FROM events WHERE seq <= (SELECT coalesce(max(seq), 0) FROM (SELECT seq FROM events"
        " ORDER BY seq LIMIT %s) AS oldest) AND at_ms < %s AND seq <= coalesce((SELECT min(seq) FROM cursors), seq)",
        (limit, before_ms),
    )


# --- Reads: a statement and its values --------------------------------------------------------------


def find(collection: str, key: str) -> Question:
    """The row with that key or alias, for ``to_stored``; none or one."""
    id_ = digest(collection, key)  # of a record, and of an alias, of that name
    sql = (
        f"SELECT {_RECORD} FROM records WHERE id IN (%s, (SELECT record_id FROM aliases WHERE id = %s))"  # noqa: S608
        " ORDER BY id <> %s LIMIT 1"
    )
    return sql, (id_, id_, id_)


def scan_open(collection: str) -> Question:
    """The open rows in key order, for ``to_stored``."""
    where = "is_open AND left(collection, 100) = left(%s, 100) AND collection = %s"
    return f"SELECT {_RECORD} FROM records WHERE {where} ORDER BY key", (collection, collection)  # noqa: S608


def read_events(after: int, limit: int) -> Question:
    """Rows for ``to_stored_event``."""
    return "SELECT seq, at_ms, checksum, body FROM events WHERE seq > %s ORDER BY seq LIMIT %s", (after, limit)


def get_cursor(name: str) -> Question:
    """The cursor's position; none before its first."""
    return "SELECT seq FROM cursors WHERE id = %s", (digest(name),)
