"""A batch as a script's arguments, and what scripts answer as records and events."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

from execsafe.errors import StoreCorrupt
from execsafe.model.event import Event
from execsafe.model.values import shorten
from execsafe.ports import Batch, Lease, Put, Stored, StoredEvent
from execsafe.stores import _rules, codec

# version, is_open, ended_at_ms, length of the aliases, checksum; the aliases and the body follow. Scripts read the
# head, replace it as a whole, and add to the aliases.
_HEAD: Final = re.compile(rb"([0-9]{1,19}) ([01]) ([0-9]{19})? ([0-9]{1,9}) ([0-9a-f]{8})\n")
_SEQ: Final = re.compile(rb"([0-9]{1,19})-0")
_EVENT_FIELDS: Final = 6  # three names, three values


def padded(number: int) -> bytes:
    """*number* such that texts compare as the numbers do."""
    return b"%019d" % number


# --- Arguments --------------------------------------------------------------------------------------


def to_arguments(batch: Batch) -> list[bytes]:
    """What the script COMMIT takes.

    Raises:
        InvalidInput: a malformed batch, or a value that the codec does not know.
    """
    _rules.check_batch(batch)
    return [
        padded(batch.now_ms),
        *_named(batch.fence),
        *_wish(batch),
        *_named(batch.release),
        b"%d" % len(batch.puts),
        *(argument for put in batch.puts for argument in _put(put)),
        b"%d" % len(batch.events),
        *(argument for event in batch.events for argument in _event(event)),
    ]


def _named(lease: Lease | None) -> tuple[bytes, ...]:
    # Not checked by anybody: a name that no lease can have meets none.
    return (b"0", b"", b"") if lease is None else (b"1", _text(lease.name), _text(str(lease.token)))


def _wish(batch: Batch) -> tuple[bytes, ...]:
    wish = batch.acquire
    if wish is None:
        return b"0", b"", b"", b""
    return b"1", wish.name.encode(), wish.holder.encode(), padded(batch.now_ms + wish.ttl_ms)


def _put(put: Put) -> Iterator[bytes]:
    body = codec.encode(put.value)
    version, is_open = put.version + 1, b"1" if put.is_open else b"0"
    ended_at = b"" if put.ended_at_ms is None else padded(put.ended_at_ms)
    yield from (put.collection.encode(), put.key.encode(), b"%d" % put.version, b"%d" % version, is_open, ended_at)
    yield b"%08x" % _checksum(body, put.collection.encode(), put.key.encode(), b"%d" % version, is_open, ended_at)
    yield from (body, b"%d" % len(put.aliases), *(alias.encode() for alias in put.aliases))


def _event(event: Event) -> tuple[bytes, bytes, bytes]:
    body = codec.encode(event)
    return padded(event.at_ms), b"%08x" % zlib.crc32(body), body


def _checksum(body: bytes, *facts: bytes) -> int:
    """Finds a flipped bit in what a decision is based on, and a row under another record's name."""
    return zlib.crc32(body, zlib.crc32(b"\0".join(facts)))


def _text(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


# --- Answers ----------------------------------------------------------------------------------------


def raise_refusal(batch: Batch, kind: bytes, facts: Sequence[bytes]) -> NoReturn:
    """Raise what the rules of all stores have for a batch that COMMIT refused; nothing was written."""
    if kind == b"stale" and batch.fence is not None:
        current = _lease(batch.fence.name, "-", facts[0], b"0") if facts[0] else None
        _rules.check_fence(batch.fence, current)
    elif kind == b"held" and batch.acquire is not None:
        current = _lease(batch.acquire.name, facts[1].decode(), b"0", facts[0])
        _rules.check_free(batch.acquire, current, batch.now_ms)
    elif kind == b"version":
        raise _rules.version_conflict(batch.puts[int(facts[0]) - 1], int(facts[1]))
    elif kind == b"alias":
        raise _rules.alias_taken(batch.puts[int(facts[0]) - 1], facts[1].decode(), facts[2].decode())
    raise StoreCorrupt("the server refused a batch for a reason that does not hold")


def _lease(name: str, holder: str, token: bytes, expires_at_ms: bytes) -> Lease:
    return Lease(name=name, holder=holder, token=int(token), expires_at_ms=int(expires_at_ms))


def to_stored(collection: str, asked: str | None, key: bytes, row: bytes) -> Stored:
    """Check and decode one row; *asked* is the key or alias by which it was found.

    Raises:
        StoreCorrupt: the row is not what was written.
    """
    name = key.decode("utf-8", "replace")
    match = _HEAD.match(row)
    if match is None:
        raise StoreCorrupt(f"{collection} {shorten(name)} is damaged: it has no head", key=name)
    version, is_open, ended_at, length, checksum = match.groups()
    start = match.end() + int(length)
    names, body = row[match.end() : start], row[start:]
    if _checksum(body, collection.encode(), key, version, is_open, ended_at or b"") != int(checksum, 16):
        raise StoreCorrupt(f"{collection} {shorten(name)} is damaged: its checksum does not match", key=name)
    if asked is not None and asked != name and asked.encode() not in names.split(b"\0"):
        raise StoreCorrupt(f"{collection} {shorten(asked)} is damaged: it leads to another record", key=asked)
    return Stored(key=name, value=codec.decode(body), version=int(version))


def to_stored_event(entry: Any) -> StoredEvent:
    """Check and decode one event.

    Raises:
        StoreCorrupt: the entry is not what was written.
    """
    number, fields = entry
    match = _SEQ.fullmatch(number)
    if match is None or len(fields) != _EVENT_FIELDS or fields[::2] != [b"at", b"sum", b"body"]:
        raise StoreCorrupt("an event is damaged: it holds something else")
    seq = int(match[1])
    at_ms, checksum, body = fields[1::2]
    if b"%08x" % zlib.crc32(body) != checksum:
        raise StoreCorrupt(f"event {seq} is damaged: its checksum does not match", seq=seq)
    event = codec.decode(body)
    if not isinstance(event, Event) or padded(event.at_ms) != at_ms:
        raise StoreCorrupt(f"event {seq} is damaged: it holds something else", seq=seq)
    return StoredEvent(seq=seq, event=event)
