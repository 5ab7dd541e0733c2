"""Many batches in one SQLite transaction: read what they ask about, decide in memory, write what is left.

A handful of statements serves the whole group: what a statement costs beside its rows is more than what a row costs,
and each one lets go of the interpreter's lock.

A record that is to be new, and an alias that is to be added, hardly ever exist already. So nothing is read of them at
first; if one does exist, the tables' keys notice it. Then, and where anything about a record makes a batch be refused,
the transaction is begun again, and everything is read before it is decided.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from sqlite3 import Connection, IntegrityError
from typing import Final

from execsafe.errors import ExecsafeError
from execsafe.model.trusted import trusted
from execsafe.ports import Batch, Lease, Put
from execsafe.stores._group import Group, Name, Row
from execsafe.stores._jobs import Commit

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
_new_lease: Final = trusted(Lease)


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
    state.judge(group)
    try:
        state.write()
    except IntegrityError:
        if is_fresh:
            raise NotFresh from None
        raise


class _State(Group):
    """A group and its transaction."""

    def __init__(self, connection: Connection, *, is_fresh: bool) -> None:
        super().__init__()
        self._connection = connection
        self._is_fresh = is_fresh

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
                self.stored[collection, key] = tuple(row)
        self.latest = self.stored.copy()

    def _read_owners(self, puts: Sequence[Put]) -> None:
        sql = "SELECT alias, key FROM aliases WHERE collection = ? AND alias IN"
        names = ((put.collection, alias) for put in puts for alias in put.aliases)
        for collection, aliases in _by_collection(names).items():
            for alias, key in self._select(sql, (collection,), aliases):
                self.owners[collection, alias] = key

    def _read_leases(self, batches: Sequence[Batch]) -> None:
        named = {each.name: 0 for b in batches for each in (b.fence, b.acquire, b.release) if each is not None}
        sql = "SELECT name, holder, token, expires_at_ms FROM leases WHERE name IN"
        for name, holder, token, expires_at_ms in self._select(sql, (), list(named)):
            self.leases[name] = _new_lease(name=name, holder=holder, token=token, expires_at_ms=expires_at_ms)

    def _select(self, sql: str, where: tuple[str, ...], names: Sequence[str]) -> Iterator[Row]:
        """The rows of all *names*."""
        for start in range(0, len(names), _NAMES_MAX):
            asked = list(names[start : start + _NAMES_MAX])
            # Few different statements, which all stay prepared: what is asked for twice is found once.
            width = 1 << (len(asked) - 1).bit_length()
            asked += asked[-1:] * (width - len(asked))
            yield from self._connection.execute(f"{sql} ({'?,' * (width - 1)}?)", (*where, *asked)).fetchall()

    def read_fence(self) -> int:
        return int(self._connection.execute("SELECT fence FROM meta").fetchone()[0])

    # --- deciding -----------------------------------------------------------------------------------

    def check(self, puts: Sequence[Put]) -> list[tuple[Row | None, Sequence[str]]]:
        """As any store, but that a refusal counts only when everything was read: another put might be the first."""
        try:
            return super().check(puts)
        except ExecsafeError:
            if self._is_fresh:
                raise NotFresh from None
            raise

    # --- writing ------------------------------------------------------------------------------------

    def write(self) -> None:
        """Write all that was taken in."""
        stored = self.stored
        self._insert(_INSERT, [row for name, row in self.latest.items() if name not in stored])
        self._run(_UPDATE, [row for name, row in self.latest.items() if name in stored and row is not stored[name]])
        claims = [(collection, alias, key) for (collection, alias), key in self.claims.items()]
        self._insert(_CLAIM if self._is_fresh else _CLAIM_AGAIN, claims)
        self._insert(_TELL, self.events)
        if self.fence is not None:
            self._run("UPDATE meta SET fence = ?", [(self.fence,)])
        if self.changed:
            self._write_leases()

    def _write_leases(self) -> None:
        sql = "INSERT OR REPLACE INTO leases (name, holder, token, expires_at_ms) VALUES (?, ?, ?, ?)"
        kept = [lease for lease in self.changed.values() if lease is not None]
        self._run(sql, [(lease.name, lease.holder, lease.token, lease.expires_at_ms) for lease in kept])
        released = [(name,) for name, lease in self.changed.items() if lease is None]
        self._run("DELETE FROM leases WHERE name = ?", released)

    def _insert(self, statements: tuple[str, str], rows: Sequence[Row]) -> None:
        for_one, for_many = statements
        whole = len(rows) - len(rows) % _ROWS
        for start in range(0, whole, _ROWS):
            self._connection.execute(for_many, list(itertools.chain.from_iterable(rows[start : start + _ROWS])))
        self._run(for_one, rows[whole:])

    def _run(self, sql: str, rows: Sequence[Row]) -> None:
        if len(rows) == 1:
            self._connection.execute(sql, rows[0])
        elif rows:
            self._connection.executemany(sql, rows)


def _by_collection(names: Iterable[Name]) -> dict[str, list[str]]:
    collections: dict[str, dict[str, None]] = {}
    for collection, name in names:
        collections.setdefault(collection, {})[name] = None
    return {collection: list(each) for collection, each in collections.items()}
