"""Many batches in one go: read all that they ask about, decide in memory, write what is left.

Each batch is judged against what the ones before it made of the store, as if they had been applied one by one; a
refused one leaves no trace and disturbs nobody. A handful of statements serves the whole group: what a statement
costs beside its rows is more than what a row costs, and each one lets go of the interpreter's lock.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from sqlite3 import Connection
from typing import Any, Final

import attrs

from execsafe.errors import ExecsafeError, StoreCorrupt
from execsafe.model.event import Event
from execsafe.ports import Batch, Lease, LeaseRequest, Put
from execsafe.stores import _rules, codec

# Names in one question.
_NAMES_MAX: Final = 256
_PUT: Final = (
    "INSERT INTO records (aliases, version, is_open, ended_at_ms, checksum, body, collection, key)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (collection, key) DO UPDATE SET aliases = excluded.aliases,"
    " version = excluded.version, is_open = excluded.is_open, ended_at_ms = excluded.ended_at_ms,"
    " checksum = excluded.checksum, body = excluded.body"
)
_FACTS: Final = "\0".join(["%s"] * 5)
_quote: Final = json.encoder.encode_basestring_ascii
_Name = tuple[str, str]  # a collection, and a key or an alias in it
_Outcome = Lease | ExecsafeError | None


# --- By the caller: all that needs no database ------------------------------------------------------


@attrs.define(eq=False)
class Encoded:
    """A batch, and its values as columns."""

    batch: Batch
    records: tuple[tuple[Any, ...], ...]  # from version to key, as _PUT has them
    events: tuple[tuple[int, int, bytes], ...]


def encode(batch: Batch) -> Encoded:
    """Check and encode *batch*.

    Raises:
        InvalidInput: a malformed batch, or a value that the codec does not know.
    """
    _rules.check_batch(batch)
    return Encoded(batch, tuple([_record(put) for put in batch.puts]), tuple([_event(e) for e in batch.events]))


def _record(put: Put) -> tuple[Any, ...]:
    body = codec.encode(put.value)
    version, is_open = put.version + 1, int(put.is_open)
    checksum = checksum_of(body, put.collection, put.key, version, is_open, put.ended_at_ms)
    return version, is_open, put.ended_at_ms, checksum, body, put.collection, put.key


def _event(event: Event) -> tuple[int, int, bytes]:
    body = codec.encode(event)
    return event.at_ms, zlib.crc32(body), body


def checksum_of(body: bytes, *facts: object) -> int:
    """SQLite checks structure, not content: this finds a flipped bit in what a decision is based on."""
    return zlib.crc32(body, zlib.crc32((_FACTS % facts).encode()))


# --- In the transaction -----------------------------------------------------------------------------


def apply(connection: Connection, group: Sequence[Encoded]) -> list[_Outcome]:
    """Check and write the batches in their order; what became of each: its lease, nothing, or why it was refused."""
    state = _State(connection, [encoded.batch for encoded in group])
    outcomes: list[_Outcome] = []
    for encoded in group:
        try:
            outcomes.append(state.admit(encoded))
        except ExecsafeError as error:
            outcomes.append(error)
    state.write()
    return outcomes


@attrs.define(eq=False)
class _Record:
    """What is known of a record; version 0: there is none."""

    version: int = 0
    stored_aliases: str = "[]"  # until they are needed
    aliases: tuple[str, ...] = ()
    row: tuple[Any, ...] | None = None  # None: unchanged


class _State:
    """The part of the store that a group asks about, and what the group makes of it."""

    def __init__(self, connection: Connection, batches: Sequence[Batch]) -> None:
        self._connection = connection
        puts = [put for batch in batches for put in batch.puts]
        self._records = self._read_records(puts)
        self._owners = self._read_owners(puts)
        self._leases = self._read_leases(batches)
        self._fence: int | None = None  # None: unchanged
        self._claims: list[tuple[str, str, str]] = []
        self._events: list[tuple[int, int, bytes]] = []
        self._changed: dict[str, Lease | None] = {}  # leases; None: released

    # --- reading ------------------------------------------------------------------------------------

    def _read_records(self, puts: Sequence[Put]) -> dict[_Name, _Record]:
        sql = "SELECT key, version, aliases FROM records WHERE collection = ? AND key IN"
        return {
            (collection, key): _Record(version, aliases)
            for collection, keys in _by_collection((put.collection, put.key) for put in puts).items()
            for key, version, aliases in self._select(sql, (collection,), keys)
        }

    def _read_owners(self, puts: Sequence[Put]) -> dict[_Name, str]:
        sql = "SELECT alias, key FROM aliases WHERE collection = ? AND alias IN"
        names = ((put.collection, alias) for put in puts for alias in put.aliases)
        return {
            (collection, alias): key
            for collection, aliases in _by_collection(names).items()
            for alias, key in self._select(sql, (collection,), aliases)
        }

    def _read_leases(self, batches: Sequence[Batch]) -> dict[str, Lease | None]:
        named = [each for b in batches for each in (b.fence, b.acquire, b.release) if each is not None]
        sql = "SELECT name, holder, token, expires_at_ms FROM leases WHERE name IN"
        return {
            name: Lease(name=name, holder=holder, token=token, expires_at_ms=expires_at_ms)
            for name, holder, token, expires_at_ms in self._select(sql, (), list({each.name: 0 for each in named}))
        }

    def _select(self, sql: str, where: tuple[str, ...], names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """The rows of all *names*."""
        for start in range(0, len(names), _NAMES_MAX):
            asked = list(names[start : start + _NAMES_MAX])
            # Few different statements, which all stay prepared: what is asked for twice is found once.
            width = 1 << (len(asked) - 1).bit_length()
            asked += asked[-1:] * (width - len(asked))
            yield from self._connection.execute(f"{sql} ({'?,' * (width - 1)}?)", (*where, *asked)).fetchall()

    # --- deciding -----------------------------------------------------------------------------------

    def admit(self, encoded: Encoded) -> Lease | None:
        """Take the batch in, or raise before anything is changed."""
        batch = encoded.batch
        if batch.fence is not None:
            _rules.check_fence(batch.fence, self._leases.get(batch.fence.name))
        if batch.acquire is not None:
            _rules.check_free(batch.acquire, self._leases.get(batch.acquire.name), batch.now_ms)
        added = [self._check(put) for put in batch.puts]
        for put, row, aliases in zip(batch.puts, encoded.records, added, strict=True):
            record = self._records[put.collection, put.key]
            record.version, record.row = row[0], row
            if aliases:
                record.aliases += aliases
                for alias in aliases:
                    self._owners[put.collection, alias] = put.key
                    self._claims.append((put.collection, alias, put.key))
        self._events += encoded.events
        granted = None if batch.acquire is None else self._acquire(batch.acquire, batch.now_ms)
        if batch.release is not None:
            self._release(batch.release)
        return granted

    def _check(self, put: Put) -> tuple[str, ...]:
        """The aliases that *put* adds."""
        name = put.collection, put.key
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = _Record()
        if record.version != put.version:
            raise _rules.version_conflict(put, record.version)
        if record.stored_aliases != "[]":
            record.aliases, record.stored_aliases = to_aliases(record.stored_aliases), "[]"
        if not put.aliases:
            return ()
        added = tuple([alias for alias in dict.fromkeys(put.aliases) if alias not in record.aliases])
        for alias in added:
            owner = self._owners.get((put.collection, alias), put.key)
            if owner != put.key:
                raise _rules.alias_taken(put, alias, owner)
        return added

    def _acquire(self, request: LeaseRequest, now_ms: int) -> Lease:
        current = self._leases.get(request.name)
        if current is not None and _rules.is_renewal(request, current):
            token = current.token
        else:
            if self._fence is None:
                self._fence = int(self._connection.execute("SELECT fence FROM meta").fetchone()[0])
            token = self._fence = self._fence + 1
        lease = _rules.grant(request, token, now_ms)
        self._leases[lease.name] = self._changed[lease.name] = lease
        return lease

    def _release(self, lease: Lease) -> None:
        current = self._leases.get(lease.name)
        if current is not None and current.token == lease.token:
            self._leases[lease.name] = self._changed[lease.name] = None

    # --- writing ------------------------------------------------------------------------------------

    def write(self) -> None:
        """Write all that was taken in."""
        self._run(_PUT, [(_to_text(r.aliases), *r.row) for r in self._records.values() if r.row is not None])
        self._run("INSERT OR REPLACE INTO aliases (collection, alias, key) VALUES (?, ?, ?)", self._claims)
        self._run("INSERT INTO events (at_ms, checksum, body) VALUES (?, ?, ?)", self._events)
        if self._fence is not None:
            self._run("UPDATE meta SET fence = ?", [(self._fence,)])
        if self._changed:
            sql = "INSERT OR REPLACE INTO leases (name, holder, token, expires_at_ms) VALUES (?, ?, ?, ?)"
            kept = [lease for lease in self._changed.values() if lease is not None]
            self._run(sql, [(lease.name, lease.holder, lease.token, lease.expires_at_ms) for lease in kept])
            released = [(name,) for name, lease in self._changed.items() if lease is None]
            self._run("DELETE FROM leases WHERE name = ?", released)

    def _run(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if len(rows) == 1:
            self._connection.execute(sql, rows[0])
        elif rows:
            self._connection.executemany(sql, rows)


def _by_collection(names: Iterable[_Name]) -> dict[str, list[str]]:
    collections: dict[str, dict[str, None]] = {}
    for collection, name in names:
        collections.setdefault(collection, {})[name] = None
    return {collection: list(each) for collection, each in collections.items()}


def _to_text(aliases: tuple[str, ...]) -> str:
    return f"[{','.join([_quote(alias) for alias in aliases])}]" if aliases else "[]"


def to_aliases(text: str) -> tuple[str, ...]:
    """The aliases of a record.

    Raises:
        StoreCorrupt: not what was written.
    """
    try:
        return tuple(json.loads(text)) if text != "[]" else ()
    except (ValueError, TypeError):
        raise StoreCorrupt("a record's list of aliases is damaged") from None
