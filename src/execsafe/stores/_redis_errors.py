"""What errors of the server and of the connection mean for a caller."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from execsafe.core.redaction import redact
from execsafe.errors import StoreCorrupt, StoreError, StoreReadOnly, StoreUnavailable, StoreVersionError

_UNKNOWN: Final = "nothing is known of the write, if it was one"
# By the code with which the server begins its error, wherever it stands: older servers put it behind their own words.
_CODES: Final[dict[str, tuple[type[StoreError], str]]] = {
    "READONLY": (StoreReadOnly, "the server is a replica: give the address of the primary"),
    "WRONGTYPE": (StoreCorrupt, "something else is kept under the store's prefix"),
    "OOM": (StoreUnavailable, "the server's memory is full: raise maxmemory, or purge"),
    "MISCONF": (StoreUnavailable, "the server cannot write to its disk"),
    "NOREPLICAS": (StoreUnavailable, "the server has fewer replicas than it was told to have"),
    "MASTERDOWN": (StoreUnavailable, "the server is a replica without a primary"),
    "LOADING": (StoreUnavailable, "the server is still loading its data"),
    "BUSY": (StoreUnavailable, "the server is busy with somebody's script"),
    "NOAUTH": (StoreUnavailable, "the server wants a password"),
    "WRONGPASS": (StoreUnavailable, "the server does not accept the user or password"),
    "NOPERM": (StoreUnavailable, "the user may not do what the store needs"),
    "MOVED": (StoreUnavailable, "another node of the cluster has the store's slot: give that node's address"),
    "CLUSTERDOWN": (StoreUnavailable, "the cluster is down"),
}
# The client takes the code out of the text of these, and puts it into the name of their class.
_CLASSES: Final = {
    "ReadOnlyError": "READONLY",
    "WrongTypeError": "WRONGTYPE",
    "BusyLoadingError": "LOADING",
    "AuthenticationRequiredError": "NOAUTH",
    "AuthenticationFailureError": "WRONGPASS",
    "AuthorizationError": "NOPERM",
    "MovedError": "MOVED",
    "AskError": "MOVED",
    "ClusterDownError": "CLUSTERDOWN",
}
_CODE: Final = re.compile(rf"\b({'|'.join(_CODES)})\b")


def translate(error: Exception, secrets: Sequence[str]) -> StoreError:
    """The typed error for what the client raised; its message never holds one of *secrets*."""
    name = type(error).__name__
    code = _CLASSES.get(name)
    if code is None and (match := _CODE.search(str(error))):
        code = match[1]
    if code is not None:
        kind, meaning = _CODES[code]
        return kind(meaning, server_error=code)
    if isinstance(error, OSError):  # only while connecting: later, the client has errors of its own
        name = type(error.__cause__ if isinstance(error.__cause__, OSError) else error).__name__
        return StoreUnavailable(f"the server cannot be reached ({name}): nothing was sent", server_error=name)
    if "Connection" in name or name == "ProtocolError":
        return StoreUnavailable(f"the connection to the server failed ({name}): {_UNKNOWN}", server_error=name)
    said = redact(str(error), secrets)[:200]
    return StoreUnavailable(f"the server refused ({name}): {said}", server_error=name)


def refusal(kind: bytes, facts: Sequence[bytes]) -> StoreError | None:
    """The error for what a script found wrong with the whole store; None for refusals of a single call."""
    said = [fact.decode("utf-8", "replace") for fact in facts]
    if kind == b"newer":
        return StoreVersionError(f"the store was written by a newer execsafe (schema {said[0]})", version=said[0])
    if kind == b"damaged":
        return StoreCorrupt(f"the store is damaged: {said[0]}")
    if kind == b"missing":
        return StoreCorrupt("the server has no such store, and create=false: its data is lost, or it is another server")
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
