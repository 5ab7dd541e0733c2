"""The file behind an SQLite store: who may own it, how it is made, and what is refused."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from execsafe.errors import StoreCorrupt, StoreError, StoreInsecure, StoreReadOnly, StoreUnavailable

COMPANIONS: Final = ("-journal", "-wal", "-shm")
_HAS_OWNERS: Final = hasattr(os, "geteuid")
_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100
_NOFOLLOW: Final[int] = getattr(os, "O_NOFOLLOW", 0)


def prepare(path: Path, create: Callable[[Path], None]) -> None:
    """Leave a checked, non-empty file at *path*; *create* fills a fresh one.

    A new store is made under another name and linked into place when it is whole and durable. So two processes
    may start at once, and an empty file is never the trace of an interrupted start: it is damage.

    Raises:
        StoreInsecure: a symbolic link, somebody else's file, one open to others, or a directory that anyone
            may write to.
        StoreCorrupt: the file is empty.
        StoreError: there is no such directory, or the file cannot be made.
    """
    _check_directory(path.parent)
    if not _exists(path):
        _make(path, create)
    for suffix in ("", *COMPANIONS):
        _check_file(path.with_name(path.name + suffix))
    _check_header(path)


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        orphans = [s for s in COMPANIONS if path.with_name(path.name + s).exists()]
        if "-wal" in orphans:
            # The write-ahead log of a store that has gone: a new store would silently forget everything.
            raise StoreCorrupt(f"{path} is missing, but its -wal is there: restore it", path=str(path)) from None
        return False
    except OSError as error:
        raise _unavailable(path, error) from None
    return True


def _check_directory(directory: Path) -> None:
    try:
        mode = directory.stat().st_mode
    except FileNotFoundError:
        raise StoreError(f"there is no directory {directory}: create it first", path=str(directory)) from None
    except OSError as error:
        raise _unavailable(directory, error) from None
    if not stat.S_ISDIR(mode):
        raise StoreError(f"{directory} is not a directory", path=str(directory))
    if _HAS_OWNERS and mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise StoreInsecure(
            f"anyone may replace files in {directory}: remove its write permission for others",
            path=str(directory),
        )


def _check_file(path: Path) -> None:
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unavailable(path, error) from None
    if stat.S_ISLNK(info.st_mode):
        raise StoreInsecure(f"{path} is a symbolic link: name the file itself", path=str(path))
    if not stat.S_ISREG(info.st_mode):
        raise StoreInsecure(f"{path} is not a regular file", path=str(path))
    if not _HAS_OWNERS:
        return
    if info.st_uid != os.geteuid():
        raise StoreInsecure(f"{path} belongs to user {info.st_uid}, not to us", path=str(path))
    if info.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StoreInsecure(f"{path} is open to others: chmod 600 it", path=str(path))


def _check_header(path: Path) -> None:
    # SQLite takes an empty or very short file for a new database.
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        raise _unavailable(path, error) from None
    if not header:
        raise StoreCorrupt(f"{path} is empty: restore it, or remove it if it is meant to be new", path=str(path))
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise StoreCorrupt(f"{path} is not an SQLite database, or its beginning is damaged", path=str(path))


def _make(path: Path, create: Callable[[Path], None]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.new")
    try:
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW, 0o600)
        try:
            if _HAS_OWNERS:
                os.fchmod(descriptor, 0o600)  # a strange umask may have taken our own rights away
        finally:
            os.close(descriptor)
        try:
            create(draft)
            with contextlib.suppress(FileExistsError):  # another process was first: its file is as good
                _publish(draft, path)
        finally:
            for suffix in ("", *COMPANIONS):
                with contextlib.suppress(OSError):
                    draft.with_name(draft.name + suffix).unlink()
    except PermissionError as error:
        raise StoreReadOnly(f"{path} cannot be made: {error.strerror}", path=str(path)) from None
    except OSError as error:
        raise _unavailable(path, error) from None


def _publish(draft: Path, path: Path) -> None:
    """Give the finished file its name, never replacing one, and make the name itself durable."""
    os.link(draft, path)
    if os.name == "posix":
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _unavailable(path: Path, error: OSError) -> StoreError:
    kind = StoreReadOnly if isinstance(error, PermissionError) else StoreUnavailable
    return kind(f"{path}: {error.strerror}", path=str(path))
