"""What every store does that commits batches in groups: encode them, and judge each against those before it.

Each batch is judged against what the ones before it made of the store, as if they had been applied one by one; a
refused one leaves no trace and disturbs nobody. Reading what a group asks about, and writing what is left of it, is
each store's own.
"""

from __future__ import annotations

import abc
import json
import zlib
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from execsafe.errors import ExecsafeError, StoreCorrupt
from execsafe.model.event import Event
from execsafe.model.trusted import trusted
from execsafe.model.values import shorten
from execsafe.ports import Batch, Lease, LeaseRequest, Put, Stored, StoredEvent
from execsafe.stores import _rules, codec
from execsafe.stores._jobs import Commit

Name: TypeAlias = tuple[str, str]
"""A collection, and a key or an alias in it."""
Row: TypeAlias = tuple[Any, ...]
"""A record: its aliases as JSON, version, whether it is open, end, checksum, body, collection, key; of one that was
read the first two are enough."""
_FACTS: Final = "\0".join(["%s"] * 5)
_quote: Final = json.encoder.encode_basestring_ascii
_new_stored: Final = trusted(Stored)
_new_stored_event: Final = trusted(StoredEvent)


# --- By the caller: all that needs no database ------------------------------------------------------


def to_commit(batch: Batch) -> Commit:
    """Check and encode *batch*.

    Raises:
        InvalidInput: a malformed batch, or a value that the codec does not know.
    """
    _rules.check_batch(batch)
    return Commit(batch, [_record(put) for put in batch.puts], [_event(event) for event in batch.events])


def _record(put: Put) -> Row:
    """With the aliases of a record that is new."""
    body = codec.encode(put.value)
    collection, key, ended_at_ms = put.collection, put.key, put.ended_at_ms
    version, is_open = put.version + 1, int(put.is_open)
    checksum = checksum_of(body, collection, key, version, is_open, ended_at_ms)
    return to_text(_distinct(put.aliases)), version, is_open, ended_at_ms, checksum, body, collection, key


def _event(event: Event) -> tuple[int, int, bytes]:
    body = codec.encode(event)
    return event.at_ms, zlib.crc32(body), body


def checksum_of(body: bytes, *facts: object) -> int:
    """Databases check structure, not content: this finds a flipped bit in what a decision is based on."""
    return zlib.crc32(body, zlib.crc32((_FACTS % facts).encode()))


# --- In the transaction -----------------------------------------------------------------------------


class Group(abc.ABC):
    """The part of the store that a group of batches asks about, and what the group makes of it."""

    def __init__(self) -> None:
        self.stored: dict[Name, Row] = {}  # records as read
        self.latest: dict[Name, Row] = {}  # the same as they are to be
        self.owners: dict[Name, str] = {}  # of aliases, as read
        self.claims: dict[Name, str] = {}  # of aliases that are added
        self.events: list[tuple[int, int, bytes]] = []
        self.leases: dict[str, Lease | None] = {}  # None: released
        self.changed: dict[str, Lease | None] = {}
        self.fence: int | None = None  # None: not asked for yet

    @abc.abstractmethod
    def read_fence(self) -> int:
        """The fencing counter as it is in the store."""

    def judge(self, commits: Sequence[Commit]) -> None:
        """Take in what may be; each one's lease, or why it was refused, is in the job then."""
        for job in commits:
            job.result = job.error = None
            try:
                job.result = self.admit(job.batch, job.records)
            except ExecsafeError as error:
                job.error = error
            else:
                self.events += job.events

    def admit(self, batch: Batch, rows: Sequence[Row]) -> Lease | None:
        """Take it in, or raise before anything is changed; *rows* are its records."""
        if batch.fence is not None:
            _rules.check_fence(batch.fence, self.leases.get(batch.fence.name))
        if batch.acquire is not None:
            _rules.check_free(batch.acquire, self.leases.get(batch.acquire.name), batch.now_ms)
        checked = self.check(batch.puts)
        for (known, aliases), row in zip(checked, rows, strict=True):
            self._put(row, known, aliases)
        granted = None if batch.acquire is None else self._acquire(batch.acquire, batch.now_ms)
        if batch.release is not None:
            self._release(batch.release)
        return granted

    def check(self, puts: Sequence[Put]) -> list[tuple[Row | None, Sequence[str]]]:
        """What is known of the record of each, and the aliases that it adds."""
        return [self._check(put) for put in puts]

    def _check(self, put: Put) -> tuple[Row | None, Sequence[str]]:
        collection, key, aliases = put.collection, put.key, put.aliases
        known = self.latest.get((collection, key))
        version = 0 if known is None else known[1]
        if version != put.version:
            raise _rules.version_conflict(put, version)
        if aliases:
            already = () if known is None else to_aliases(known[0])
            aliases = tuple([alias for alias in _distinct(aliases) if alias not in already])
        for alias in aliases:
            name = collection, alias
            owner = self.claims.get(name) or self.owners.get(name, key)
            if owner != key:
                raise _rules.alias_taken(put, alias, owner)
        return known, aliases

    def _put(self, row: Row, known: Row | None, aliases: Sequence[str]) -> None:
        collection, key = name = row[-2:]
        if known is not None:
            row = (to_text([*to_aliases(known[0]), *aliases]) if aliases else known[0], *row[1:])
        self.latest[name] = row
        for alias in aliases:
            self.claims[collection, alias] = key

    def _acquire(self, request: LeaseRequest, now_ms: int) -> Lease:
        current = self.leases.get(request.name)
        if current is not None and _rules.is_renewal(request, current):
            token = current.token
        else:
            if self.fence is None:
                self.fence = self.read_fence()
            token = self.fence = self.fence + 1
        lease = _rules.grant(request, token, now_ms)
        self.leases[lease.name] = self.changed[lease.name] = lease
        return lease

    def _release(self, lease: Lease) -> None:
        current = self.leases.get(lease.name)
        if current is not None and current.token == lease.token:
            self.leases[lease.name] = self.changed[lease.name] = None


def _distinct(aliases: tuple[str, ...]) -> tuple[str, ...]:
    return aliases if len(aliases) < 2 else tuple(dict.fromkeys(aliases))  # noqa: PLR2004


def to_text(aliases: Sequence[str]) -> str:
    """The aliases of a record as JSON."""
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


# --- From the database --------------------------------------------------------------------------------


def to_stored(collection: str, row: tuple[Any, ...]) -> Stored:
    """Check and decode one row.

    Raises:
        StoreCorrupt: the row is not what was written.
    """
    key, version, is_open, ended_at_ms, checksum, body = row
    if type(body) is not bytes or checksum_of(body, collection, key, version, is_open, ended_at_ms) != checksum:
        raise StoreCorrupt(f"{collection} {shorten(key)} is damaged: its checksum does not match", key=key)
    return _new_stored(key=key, value=codec.decode(body), version=version)


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
    return _new_stored_event(seq=seq, event=event)
