"""What PostgreSQL's errors mean for a caller. No message repeats a bound value, or how the server is reached."""

from __future__ import annotations

from typing import Final

import psycopg

from execsafe.core.redaction import redact
from execsafe.errors import (
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreUnavailable,
)

_TEXT_MAX: Final = 300
_LOCKED: Final = (StoreLocked, "another process holds the store's lock")
_READ_ONLY: Final = (StoreReadOnly, "the store cannot be written")
_DAMAGED: Final = (StoreCorrupt, "the store's tables are damaged")
# By SQLSTATE, or its first two characters: its class.
_MEANINGS: Final[dict[str, tuple[type[StoreError], str]]] = {
    "08": (StoreUnavailable, "the connection was lost"),
    "25006": (StoreReadOnly, "the server, or a transaction by default, is read-only"),
    "25P03": (StoreUnavailable, "this process stood still for too long within a transaction"),
    "28": (StoreUnavailable, "the server does not let this user in"),
    "3D000": (StoreUnavailable, "there is no such database"),
    "3F000": _DAMAGED,
    "40": (StoreUnavailable, "the server took the transaction back"),
    "42501": (StoreReadOnly, "this user lacks a privilege"),
    "42P01": _DAMAGED,
    "42703": _DAMAGED,
    "53": (StoreUnavailable, "the server is out of resources"),
    "53100": (StoreFull, "no space is left on the server"),
    "53300": (StoreUnavailable, "the server has too many connections"),
    "55P03": _LOCKED,
    "57": (StoreUnavailable, "the server shuts down, starts up, or ended the connection"),
    "57014": (StoreUnavailable, "the server took longer than the time-out allows"),
    "58": (StoreUnavailable, "the server's disk did not do what was asked"),
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
}


def translate(error: psycopg.Error, *, doing: str, secrets: tuple[str, ...] = ()) -> StoreError:
    """The typed error for *error*, which a server or the way to it caused."""
    state = error.sqlstate
    if state is None:  # not the server's own words, as a rule: that it cannot be reached, and why
        text = redact(" ".join(str(error).split()), secrets)[:_TEXT_MAX]
        return StoreUnavailable(f"the server cannot be reached ({text}; while {doing})", doing=doing)
    kind, meaning = _MEANINGS.get(state) or _MEANINGS.get(state[:2]) or (StoreUnavailable, "the server refused")
    name = type(error).__name__
    return kind(f"{meaning} ({name}, SQLSTATE {state}, while {doing})", sqlstate=state, doing=doing)
