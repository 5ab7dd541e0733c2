"""What errors of the server and of the connection mean for a caller of the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from execsafe._redis.replies import meaning_of
from execsafe.errors import StoreCorrupt, StoreError, StoreReadOnly, StoreUnavailable, StoreVersionError

_KINDS: Final[dict[str, type[StoreError]]] = {"READONLY": StoreReadOnly, "WRONGTYPE": StoreCorrupt}


def translate(error: Exception, secrets: Sequence[str]) -> StoreError:
    """The typed error for what the client raised; its message never holds one of *secrets*."""
    meaning = meaning_of(error, secrets)
    return _KINDS.get(meaning.code, StoreUnavailable)(meaning.text, server_error=meaning.code)


def refusal(kind: bytes, facts: Sequence[bytes]) -> StoreError | None:
    """The error for what a script found wrong with the whole store; None for refusals of a single call."""
    said = [fact.decode("utf-8", "replace") for fact in facts]
    if kind == b"newer":
        return StoreVersionError(f"the store was written by a newer execsafe (schema {said[0]})", version=said[0])
    if kind == b"damaged":
        return StoreCorrupt(f"the store is damaged: {said[0]}")
    if kind == b"missing":
        return StoreCorrupt(
            "the server has no such store, and create=false: its data is lost, or it is another server", is_missing=True
        )
    if kind == b"absent":
        return StoreCorrupt("the server has lost the store: it was there before, and is not created again")
    if kind == b"other":
        return StoreCorrupt("another store stands where this one was: the server has lost its data")
    if kind == b"behind":
        return StoreCorrupt(
            f"the server went back in time: it is at revision {int(said[0])}, {int(said[1])} was seen before."
            " Writes that it had acknowledged are lost",
            revision=int(said[0]),
            seen=int(said[1]),
        )
    return None


def closed() -> StoreUnavailable:
    """The error of a store that is not open."""
    return StoreUnavailable("the store is not open: call open() or use 'async with'")
