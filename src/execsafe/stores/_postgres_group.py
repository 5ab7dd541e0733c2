"""Many batches in one PostgreSQL transaction: ask for what they are about, decide in memory, write what is left.

All questions are one message, all writes another: a group costs two round trips to the server, however large it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import attrs

from execsafe.ports import Batch, Lease
from execsafe.stores._group import Group, Name, Row
from execsafe.stores._postgres_schema import Meta, digest
from execsafe.stores._postgres_script import Rows, Script

_PUT: Final = (
    "INSERT INTO records (id, collection, key, version, is_open, ended_at_ms, checksum, aliases, body)"
    " SELECT * FROM unnest(%s::bytea[], %s::text[], %s::text[], %s::bigint[], %s::boolean[], %s::bigint[],"
    " %s::bigint[], %s::text[], %s::bytea[])"
    " ON CONFLICT (id) DO UPDATE SET version = excluded.version, is_open = excluded.is_open,"
    " ended_at_ms = excluded.ended_at_ms, checksum = excluded.checksum, aliases = excluded.aliases,"
    " body = excluded.body"
)
_CLAIM: Final = (
    "INSERT INTO aliases (id, collection, alias, key, record_id)"
    " SELECT * FROM unnest(%s::bytea[], %s::text[], %s::text[], %s::text[], %s::bytea[])"
    " ON CONFLICT (id) DO UPDATE SET key = excluded.key, record_id = excluded.record_id"
)
_TELL: Final = (
    "INSERT INTO events (seq, at_ms, checksum, body)"
    " SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bytea[])"
)
_LEND: Final = (
    "INSERT INTO leases (id, name, holder, token, expires_at_ms)"
    " SELECT * FROM unnest(%s::bytea[], %s::text[], %s::text[], %s::bigint[], %s::bigint[])"
    " ON CONFLICT (id) DO UPDATE SET holder = excluded.holder, token = excluded.token,"
    " expires_at_ms = excluded.expires_at_ms"
)


class State(Group):
    """A group and its transaction."""

    def __init__(self, script: Script, batches: Sequence[Batch]) -> None:
        """Put the questions into *script*; :meth:`read` has to follow before anything is decided."""
        super().__init__()
        puts = [put for batch in batches for put in batch.puts]
        self._keys = _by_digest((put.collection, put.key) for put in puts)
        self._names = _by_digest((put.collection, alias) for put in puts for alias in put.aliases)
        named = [each.name for b in batches for each in (b.fence, b.acquire, b.release) if each is not None]
        self._places = [
            _ask(script, "SELECT id, version, aliases FROM records WHERE id =", self._keys),
            _ask(script, "SELECT id, key FROM aliases WHERE id =", self._names),
            _ask(script, "SELECT name, holder, token, expires_at_ms FROM leases WHERE id =", map(digest, set(named))),
        ]
        self._meta: Meta | None = None

    def read(self, answers: Sequence[Rows], meta: Meta) -> None:
        """Take in the script's answers, and the store's counters."""
        self._meta = meta
        records, owners, leases = [answers[place] if place is not None else [] for place in self._places]
        for id_, version, aliases in records:
            self.stored[self._keys[id_]] = aliases, version
        self.latest = self.stored.copy()
        for id_, key in owners:
            self.owners[self._names[id_]] = key
        for name, holder, token, expires_at_ms in leases:
            self.leases[name] = Lease(name=name, holder=holder, token=token, expires_at_ms=expires_at_ms)

    def read_fence(self) -> int:
        return self._read.fence

    @property
    def _read(self) -> Meta:
        if self._meta is None:
            raise RuntimeError("nothing was read yet")
        return self._meta

    def write(self, script: Script) -> None:
        """Have *script* write all that was taken in, but for the counters; nothing if that is nothing."""
        _fill(script, _PUT, [_columns(row) for name, row in self.latest.items() if row is not self.stored.get(name)])
        _fill(script, _CLAIM, [_claim(*name, key) for name, key in self.claims.items()])
        _fill(script, _TELL, [(seq, *event) for seq, event in enumerate(self.events, self._read.seq + 1)])
        kept = [lease for lease in self.changed.values() if lease is not None]
        _fill(script, _LEND, [(digest(lease.name), *attrs.astuple(lease)) for lease in kept])
        released = [digest(name) for name, lease in self.changed.items() if lease is None]
        if released:
            script.add("DELETE FROM leases WHERE id = ANY(%s)", (released,))

    @property
    def last_event(self) -> tuple[int, int] | None:
        """Number and checksum of the last event that was taken in."""
        return (self._read.seq + len(self.events), self.events[-1][1]) if self.events else None

    def counted(self) -> Meta:
        """The counters as they are to be after :meth:`write`."""
        meta = self._read
        fence = meta.fence if self.fence is None else self.fence
        return attrs.evolve(meta, fence=fence, seq=meta.seq + len(self.events), commits=meta.commits + 1)


def _ask(script: Script, sql: str, ids: Iterable[bytes]) -> int | None:
    asked = list(ids)
    return script.add(f"{sql} ANY(%s)", (asked,)) if asked else None


def _fill(script: Script, sql: str, rows: Sequence[Row]) -> None:
    """One statement for all rows, each column as an array."""
    if rows:
        script.add(sql, [list(column) for column in zip(*rows, strict=True)])


def _columns(row: Row) -> tuple[Any, ...]:
    """As :data:`_PUT` has them."""
    aliases, version, is_open, ended_at_ms, checksum, body, collection, key = row
    return digest(collection, key), collection, key, version, bool(is_open), ended_at_ms, checksum, aliases, body


def _claim(collection: str, alias: str, key: str) -> tuple[Any, ...]:
    """One row as :data:`_CLAIM` has it."""
    return digest(collection, alias), collection, alias, key, digest(collection, key)


def _by_digest(names: Iterable[Name]) -> dict[bytes, Name]:
    return {digest(*name): name for name in names}
