"""Reading and writing the tables of an SQLite store, inside whatever transaction the caller has begun.

Every precondition of a batch is read before its first write. So a refused batch has changed nothing, and the
other batches of the same transaction need no savepoints.
"""

from __future__ import annotations

import json
import zlib
from sqlite3 import Connection
from typing import Any, Final, NamedTuple

import attrs

from execsafe.errors import StoreCorrupt
from execsafe.model.event import Event
from execsafe.model.values import shorten
from execsafe.ports import Batch, Lease, LeaseRequest, Put, Stored, StoredEvent
from execsafe.stores import _rules, codec

_quote: Final = json.encoder.encode_basestring_ascii
_RECORD: Final = "key, version, is_open, ended_at_ms, checksum, body"


@attrs.frozen
class Encoded:
    """A batch with its values encoded: done by the caller, so that the writer only writes."""

    batch: Batch
    bodies: tuple[bytes, ...]
    events: tuple[tuple[int, int, bytes], ...]


def encode(batch: Batch) -> Encoded:
    """Check and encode *batch*.

    Raises:
        InvalidInput: a malformed batch, or a value that the codec does not know.
    """
    _rules.check_batch(batch)
    bodies = tuple([codec.encode(put.value) for put in batch.puts])
    events = tuple([_event_row(event) for event in batch.events])
    return Encoded(batch, bodies, events)


def _event_row(event: Event) -> tuple[int, int, bytes]:
    body = codec.encode(event)
    return event.at_ms, zlib.crc32(body), body


def _checksum(body: bytes, *facts: object) -> int:
    """SQLite checks structure, not content: this finds a flipped bit in what a decision is based on."""
    return zlib.crc32(body, zlib.crc32("\0".join(map(str, facts)).encode()))


# --- Writes -----------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a put goes. A tuple: it is made for every put."""

    row: int | None  # None: new
    aliases: tuple[str, ...]
    added: tuple[str, ...]  # those not yet known


def apply(connection: Connection, encoded: Encoded) -> Lease | None:
    """Check and write one batch."""
    batch = encoded.batch
    if batch.fence is not None:
        _rules.check_fence(batch.fence, _lease(connection, batch.fence.name))
    current = None
    if batch.acquire is not None:
        current = _lease(connection, batch.acquire.name)
        _rules.check_free(batch.acquire, current, batch.now_ms)
    places = [_check(connection, put) for put in batch.puts]
    for put, place, body in zip(batch.puts, places, encoded.bodies, strict=True):
        _put(connection, put, place, body)
    if encoded.events:
        sql = "INSERT INTO events (at_ms, checksum, body) VALUES (?, ?, ?)"
        connection.executemany(sql, encoded.events)
    granted = None
    if batch.acquire is not None:
        granted = _acquire(connection, batch.acquire, current, batch.now_ms)
    if batch.release is not None:
        sql = "DELETE FROM leases WHERE name = ? AND token = ?"
        connection.execute(sql, (batch.release.name, batch.release.token))
    return granted


def _check(connection: Connection, put: Put) -> _Place:
    sql = "SELECT id, version, aliases FROM records WHERE collection = ? AND key = ?"
    found = connection.execute(sql, (put.collection, put.key)).fetchone()
    row, stored, text = (None, 0, "[]") if found is None else found
    if stored != put.version:
        raise _rules.version_conflict(put, stored)
    known = _aliases(text)
    added = tuple([alias for alias in dict.fromkeys(put.aliases) if alias not in known]) if put.aliases else ()
    for alias in added:
        owner = _owner(connection, put.collection, alias)
        if owner is not None and owner != put.key:
            raise _rules.alias_taken(put, alias, owner)
    return _Place(row, known + added, added)


def _put(connection: Connection, put: Put, place: _Place, body: bytes) -> None:
    version, is_open = put.version + 1, int(put.is_open)
    checksum = _checksum(body, put.collection, put.key, version, is_open, put.ended_at_ms)
    aliases = f"[{','.join([_quote(alias) for alias in place.aliases])}]"
    values = (version, is_open, put.ended_at_ms, checksum, aliases, body)
    if place.row is None:
        connection.execute(
            "INSERT INTO records (version, is_open, ended_at_ms, checksum, aliases, body, collection, key)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, put.collection, put.key),
        )
    else:
        connection.execute(
            "UPDATE records SET version = ?, is_open = ?, ended_at_ms = ?, checksum = ?, aliases = ?, body = ?"
            " WHERE id = ?",
            (*values, place.row),
        )
    for alias in place.added:
        connection.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?, ?)", (put.collection, alias, put.key))


def _acquire(connection: Connection, request: LeaseRequest, current: Lease | None, now_ms: int) -> Lease:
    if current is not None and _rules.is_renewal(request, current):
        token = current.token
    else:
        connection.execute("UPDATE meta SET fence = fence + 1")
        token = connection.execute("SELECT fence FROM meta").fetchone()[0]
    lease = _rules.grant(request, token, now_ms)
    sql = "INSERT OR REPLACE INTO leases (name, holder, token, expires_at_ms) VALUES (?, ?, ?, ?)"
    connection.execute(sql, (lease.name, lease.holder, lease.token, lease.expires_at_ms))
    return lease


def set_cursor(connection: Connection, name: str, seq: int) -> None:
    """Move a cursor forward."""
    connection.execute(
        "INSERT INTO cursors VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET seq = max(seq, excluded.seq)",
        (name, seq),
    )


def purge_records(connection: Connection, ended_before_ms: int, limit: int) -> int:
    """Delete the *limit* oldest ended records; returns how many."""
    found = connection.execute(
        "SELECT id, collection, aliases FROM records"
        " WHERE NOT is_open AND ended_at_ms IS NOT NULL AND ended_at_ms < ? ORDER BY ended_at_ms LIMIT ?",
        (ended_before_ms, limit),
    ).fetchall()
    names = [(collection, alias) for _, collection, text in found for alias in _aliases(text)]
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


def to_stored(collection: str, row: tuple[Any, ...]) -> Stored:
    """Check and decode one row.

    Raises:
        StoreCorrupt: the row is not what was written.
    """
    key, version, is_open, ended_at_ms, checksum, body = row
    if type(body) is not bytes or _checksum(body, collection, key, version, is_open, ended_at_ms) != checksum:
        raise StoreCorrupt(f"{collection} {shorten(key)} is damaged: its checksum does not match", key=key)
    return Stored(key=key, value=codec.decode(body), version=version)


def to_stored_event(row: tuple[Any, ...]) -> StoredEvent:
    """Check and decode one event.

    Raises:
        StoreCorrupt: the row is not what was written.
    """
    seq, at_ms, checksum, body = row
    if type(body) is not bytes or zlib.crc32(body) != checksum:
        raise StoreCorrupt(f"event {seq} is damaged: its checksum does not match", seq=seq)
    event = codec.decode(body)
    if not isinstance(event, Event) or event.at_ms != at_ms:
        raise StoreCorrupt(f"event {seq} is damaged: it holds something else", seq=seq)
    return StoredEvent(seq=seq, event=event)


def _lease(connection: Connection, name: str) -> Lease | None:
    sql = "SELECT name, holder, token, expires_at_ms FROM leases WHERE name = ?"
    row = connection.execute(sql, (name,)).fetchone()
    return None if row is None else Lease(name=row[0], holder=row[1], token=row[2], expires_at_ms=row[3])


def _owner(connection: Connection, collection: str, alias: str) -> str | None:
    sql = "SELECT key FROM aliases WHERE collection = ? AND alias = ?"
    row = connection.execute(sql, (collection, alias)).fetchone()
    return None if row is None else row[0]


def _aliases(text: str) -> tuple[str, ...]:
    try:
        return tuple(json.loads(text)) if text != "[]" else ()
    except (ValueError, TypeError):
        raise StoreCorrupt("a record's list of aliases is damaged") from None
