"""What SQLite's error codes mean for a caller."""

from __future__ import annotations

import sqlite3
from typing import Final

from execsafe.errors import (
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    StorePoisoned,
    StoreReadOnly,
    StoreUnavailable,
)

_MEANINGS: Final[dict[int, tuple[type[StoreError], str]]] = {
    sqlite3.SQLITE_BUSY: (StoreLocked, "another process holds the store's lock"),
    sqlite3.SQLITE_LOCKED: (StoreLocked, "another connection holds the store's lock"),
    sqlite3.SQLITE_READONLY: (StoreReadOnly, "the store cannot be written"),
    sqlite3.SQLITE_PERM: (StoreReadOnly, "the store cannot be written"),
    sqlite3.SQLITE_CORRUPT: (StoreCorrupt, "the store's file is damaged"),
    sqlite3.SQLITE_NOTADB: (StoreCorrupt, "the file is not an SQLite database, or its beginning is damaged"),
    sqlite3.SQLITE_FULL: (StoreFull, "no space is left for the store"),
    sqlite3.SQLITE_CANTOPEN: (StoreUnavailable, "the store's file or journal cannot be opened"),
    sqlite3.SQLITE_IOERR: (StoreUnavailable, "the disk did not do what was asked"),
}


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 where the error did not come from SQLite itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def translate(error: sqlite3.Error, *, doing: str) -> StoreError:
    """The typed error for *error*; its message names SQLite's own code, and never a bound value."""
    kind, meaning = _MEANINGS.get(primary_code(error), (StoreUnavailable, "SQLite refused"))
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return kind(f"{meaning} ({name} while {doing})", sqlite_error=name, doing=doing)


def poisons(error: sqlite3.Error) -> bool:
    """Whether, after *error* in a write, nobody knows what is on disk.

    After a failed fsync the system may drop the pages it could not write and report success next time, so
    nothing may be written on top before everything has been read again.
    """
    return primary_code(error) in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL}


def poisoned(error: sqlite3.Error) -> StorePoisoned:
    """The error of a write that failed half way."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return StorePoisoned(f"a durable write failed half way ({name}): reopen the store", sqlite_error=name)
