"""Many batches in one go: read what they ask about, decide in memory, write what is left.

Each batch is judged against what the ones before it made of the store, as if they had been applied one by one; a
refused one leaves no trace and disturbs nobody. A handful of statements serves the whole group: what a statement
costs beside its rows is more than what a row costs, and each one lets go of the interpreter's lock.

A record that is to be new, and an alias that is to be added, hardly ever exist already. So nothing is read of them at
first; if one does exist, the tables' keys notice it. Then, and where anything about a record makes a batch be refused,
the transaction is begun again, and everything is read before it is decided.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from sqlite3 import Connection, IntegrityError
from typing import Any, Final

from execsafe.errors import ExecsafeError, StoreCorrupt
from execsafe.model.event import Event
from execsafe.model.trusted import trusted
from execsafe.ports import Batch, Lease, LeaseRequest, Put
from execsafe.stores import _rules, codec
from execsafe.stores._sqlite_jobs import Commit

# Names in one question.
_NAMES_MAX: Final = 256
# Rows in one statement: the interpreter's lock is let go and taken again for each statement, or row of executemany().
_ROWS: Final = 16


def _for_one_and_many(head: str, columns: int) -> tuple[str, str]:
    """The statement for one row, and the one for _ROWS of them."""
    row = f"({', '.join('?' * columns)})"
    return f"{head} VALUES {row}", f"{head} VALUES {', '.join([row] * _ROWS)}"


_INSERT: Final = _for_one_and_many(
    "INSERT INTO records (aliases, version, is_open, ended_at_ms, checksum, body, collection, key)", 8
)
_CLAIM: Final = _for_one_and_many("INSERT INTO aliases (collection, alias, key)", 3)
_CLAIM_AGAIN: Final = _for_one_and_many("INSERT OR REPLACE INTO aliases (collection, alias, key)", 3)
_TELL: Final = _for_one_and_many("INSERT INTO events (at_ms, checksum, body)", 3)
_UPDATE: Final = (
    "UPDATE records SET aliases = ?, version = ?, is_open = ?, ended_at_ms = ?, checksum = ?, body = ?"
    " WHERE collection = ? AND key = ?"
)
_FACTS: Final = "\0".join(["%s"] * 5)
_quote: Final = json.encoder.encode_basestring_ascii
_new_lease: Final = trusted(Lease)
_Name = tuple[str, str]  # a collection, and a key or an alias in it
_Row = tuple[Any, ...]


# --- By the caller: all that needs no database ------------------------------------------------------


def to_commit(batch: Batch) -> Commit:
    """Check and encode *batch*.

    Raises:
        InvalidInput: a malformed batch, or a value that the codec does not know.
    """
    _rules.check_batch(batch)
    return Commit(batch, [_record(put) for put in batch.puts], [_event(event) for event in batch.events])


def _record(put: Put) -> _Row:
    """As _INSERT has it, with the aliases of a record that is new."""
    body = codec.encode(put.value)
    collection, key, ended_at_ms = put.collection, put.key, put.ended_at_ms
    version, is_open = put.version + 1, int(put.is_open)
    checksum = checksum_of(body, collection, key, version, is_open, ended_at_ms)
    return _to_text(_distinct(put.aliases)), version, is_open, ended_at_ms, checksum, body, collection, key


def _event(event: Event) -> tuple[int, int, bytes]:
    body = codec.encode(event)
    return event.at_ms, zlib.crc32(body), body


def checksum_of(body: bytes, *facts: object) -> int:
    """SQLite checks structure, not content: this finds a flipped bit in what a decision is based on."""
    return zlib.crc32(body, zlib.crc32((_FACTS % facts).encode()))


# --- In the transaction -----------------------------------------------------------------------------


class NotFresh(Exception):
    """Something may exist that was taken not to: nothing is decided, and the transaction has to be begun again."""


def apply(connection: Connection, group: Sequence[Commit], *, is_fresh: bool) -> None:
    """Check and write the batches in their order; each one's lease, or why it was refused, is in the job then.

    With *is_fresh* it is taken that no record of version 0 and no alias to be added exists.

    Raises:
        NotFresh: see there.
    """
    state = _State(connection, is_fresh=is_fresh)
    state.read([job.batch for job in group])
    for job in group:
        job.result = job.error = None
        try:
            job.result = state.admit(job.batch, job.records)
        except ExecsafeError as error:
            job.error = error
        else:
            state.events += job.events
    try:
        state.write()
    except IntegrityError:
        if is_fresh:
            raise NotFresh from None
        raise


class _State:
    """The part of the store that a group asks about, and what the group makes of it."""

    def __init__(self, connection: Connection, *, is_fresh: bool) -> None:
        self._connection = connection
        self._is_fresh = is_fresh
        self._stored: dict[_Name, _Row] = {}  # the aliases and the version of records, as read
        self._latest: dict[_Name, _Row] = {}  # the same, or a whole row, as it is to be
        self._owners: dict[_Name, str] = {}  # of aliases, as read
        self._claims: dict[_Name, str] = {}  # of aliases that are added
        self.events: list[tuple[int, int, bytes]] = []
        self._leases: dict[str, Lease | None] = {}  # None: released
        self._changed: dict[str, Lease | None] = {}
        self._fence: int | None = None  # None: unchanged

    # --- reading ------------------------------------------------------------------------------------

    def read(self, batches: Sequence[Batch]) -> None:
        """Read what is needed to judge them."""
        if self._is_fresh:
            self._read_records([put for batch in batches for put in batch.puts if put.version])
        else:
            puts = [put for batch in batches for put in batch.puts]
            self._read_records(puts)
            self._read_owners(puts)
        self._read_leases([b for b in batches if b.fence or b.acquire or b.release])

    def _read_records(self, puts: Sequence[Put]) -> None:
        sql = "SELECT key, aliases, version FROM records WHERE collection = ? AND key IN"
        for collection, keys in _by_collection((put.collection, put.key) for put in puts).items():
            for key, *row in self._select(sql, (collection,), keys):
                self._stored[collection, key] = tuple(row)
        self._latest = self._stored.copy()

    def _read_owners(self, puts: Sequence[Put]) -> None:
        sql = "SELECT alias, key FROM aliases WHERE collection = ? AND alias IN"
        names = ((put.collection, alias) for put in puts for alias in put.aliases)
        for collection, aliases in _by_collection(names).items():
            for alias, key in self._select(sql, (collection,), aliases):
                self._owners[collection, alias] = key

    def _read_leases(self, batches: Sequence[Batch]) -> None:
        named = {each.name: 0 for b in batches for each in (b.fence, b.acquire, b.release) if each is not None}
        sql = "SELECT name, holder, token, expires_at_ms FROM leases WHERE name IN"
        for name, holder, token, expires_at_ms in self._select(sql, (), list(named)):
            self._leases[name] = _new_lease(name=name, holder=holder, token=token, expires_at_ms=expires_at_ms)

    def _select(self, sql: str, where: tuple[str, ...], names: Sequence[str]) -> Iterator[_Row]:
        """The rows of all *names*."""
        for start in range(0, len(names), _NAMES_MAX):
            asked = list(names[start : start + _NAMES_MAX])
            # Few different statements, which all stay prepared: what is asked for twice is found once.
            width = 1 << (len(asked) - 1).bit_length()
            asked += asked[-1:] * (width - len(asked))
            yield from self._connection.execute(f"{sql} ({'?,' * (width - 1)}?)", (*where, *asked)).fetchall()

    # --- deciding -----------------------------------------------------------------------------------

    def admit(self, batch: Batch, rows: Sequence[_Row]) -> Lease | None:
        """Take it in, or raise before anything is changed; *rows* are its records."""
        if batch.fence is not None:
            _rules.check_fence(batch.fence, self._leases.get(batch.fence.name))
        if batch.acquire is not None:
            _rules.check_free(batch.acquire, self._leases.get(batch.acquire.name), batch.now_ms)
        try:
            checked = [self._check(put) for put in batch.puts]
        except ExecsafeError:
            if self._is_fresh:  # another put might have been the first to be refused
                raise NotFresh from None
            raise
        for (known, aliases), row in zip(checked, rows, strict=True):
            self._put(row, known, aliases)
        granted = None if batch.acquire is None else self._acquire(batch.acquire, batch.now_ms)
        if batch.release is not None:
            self._release(batch.release)
        return granted

    def _check(self, put: Put) -> tuple[_Row | None, Sequence[str]]:
        """What is known of its record, and the aliases that it adds."""
        collection, key, aliases = put.collection, put.key, put.aliases
        known = self._latest.get((collection, key))
        version = 0 if known is None else known[1]
        if version != put.version:
            raise _rules.version_conflict(put, version)
        if aliases:
            already = () if known is None else to_aliases(known[0])
            aliases = tuple([alias for alias in _distinct(aliases) if alias not in already])
        for alias in aliases:
            name = collection, alias
            owner = self._claims.get(name) or self._owners.get(name, key)
            if owner != key:
                raise _rules.alias_taken(put, alias, owner)
        return known, aliases

    def _put(self, row: _Row, known: _Row | None, aliases: Sequence[str]) -> None:
        collection, key = name = row[-2:]
        if known is not None:
            row = (_to_text([*to_aliases(known[0]), *aliases]) if aliases else known[0], *row[1:])
        self._latest[name] = row
        for alias in aliases:
            self._claims[collection, alias] = key

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
        stored = self._stored
        self._insert(_INSERT, [row for name, row in self._latest.items() if name not in stored])
        self._run(_UPDATE, [row for name, row in self._latest.items() if name in stored and row is not stored[name]])
        claims = [(collection, alias, key) for (collection, alias), key in self._claims.items()]
        self._insert(_CLAIM if self._is_fresh else _CLAIM_AGAIN, claims)
        self._insert(_TELL, self.events)
        if self._fence is not None:
            self._run("UPDATE meta SET fence = ?", [(self._fence,)])
        if self._changed:
            self._write_leases()

    def _write_leases(self) -> None:
        sql = "INSERT OR REPLACE INTO leases (name, holder, token, expires_at_ms) VALUES (?, ?, ?, ?)"
        kept = [lease for lease in self._changed.values() if lease is not None]
        self._run(sql, [(lease.name, lease.holder, lease.token, lease.expires_at_ms) for lease in kept])
        released = [(name,) for name, lease in self._changed.items() if lease is None]
        self._run("DELETE FROM leases WHERE name = ?", released)

    def _insert(self, statements: tuple[str, str], rows: Sequence[_Row]) -> None:
        for_one, for_many = statements
        whole = len(rows) - len(rows) % _ROWS
        for start in range(0, whole, _ROWS):
            self._connection.execute(for_many, list(itertools.chain.from_iterable(rows[start : start + _ROWS])))
        self._run(for_one, rows[whole:])

    def _run(self, sql: str, rows: Sequence[_Row]) -> None:
        if len(rows) == 1:
            self._connection.execute(sql, rows[0])
        elif rows:
            self._connection.executemany(sql, rows)


def _by_collection(names: Iterable[_Name]) -> dict[str, list[str]]:
    collections: dict[str, dict[str, None]] = {}
    for collection, name in names:
        collections.setdefault(collection, {})[name] = None
    return {collection: list(each) for collection, each in collections.items()}


def _distinct(aliases: tuple[str, ...]) -> tuple[str, ...]:
    return aliases if len(aliases) < 2 else tuple(dict.fromkeys(aliases))  # noqa: PLR2004


def _to_text(aliases: Sequence[str]) -> str:
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
