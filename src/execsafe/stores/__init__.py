"""Where records, leases and events are kept. :func:`open_store` picks the store by URL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar, overload
from urllib.parse import unquote

from execsafe import _urls
from execsafe.errors import InvalidInput
from execsafe.model.values import shorten
from execsafe.ports import Clock, Store
from execsafe.stores._rules import ManagedStore
from execsafe.stores.codec import register
from execsafe.stores.commits import commit_shielded

__all__ = ["ManagedStore", "commit_shielded", "open_store", "register"]

_POSTGRES: Final = frozenset({"postgresql", "postgres"})
_KNOWN: Final = (
    "memory://, sqlite:///relative.db, sqlite:////absolute/path.db, postgresql://host/database or redis://host"
)

_S = TypeVar("_S", bound=Store)


@overload
def open_store(url: str, *, clock: Clock | None = None) -> ManagedStore: ...


@overload
def open_store(url: _S, *, clock: Clock | None = None) -> _S: ...


def open_store(url: str | Store, *, clock: Clock | None = None) -> Store:  # noqa: ARG001
    """Pick the store that *url* names.

    Use it with ``async with open_store(url) as store``, or call its ``open()`` and ``aclose()``. Nothing is
    touched before it is opened.

    Args:
        url: ``memory://``, ``sqlite:///relative.db`` or ``sqlite:////absolute/path.db``;
            ``postgresql://user:password@host/database`` (needs ``execsafe[postgres]``);
            ``redis://user:password@host:6379/0``, with TLS ``rediss://`` (needs ``execsafe[redis]``). Percent-encode
            ``?``, ``#`` and ``%`` in a path or password. Options are a query, such as
            ``?busy_timeout_s=10&commit=inline``: those of :class:`~execsafe.stores.sqlite.SqliteStore`,
            :class:`~execsafe.stores.postgres.PostgresStore` and :meth:`RedisStore.from_url
            <execsafe.stores.redis.RedisStore.from_url>`. A store is returned as it is.
        clock: for stores that need the time between commits. The embedded ones take it from each batch.

    Raises:
        InvalidInput: the URL is malformed, or names a store or an option that does not exist.
    """
    if not isinstance(url, str):
        if hasattr(url, "commit"):
            return url
        raise InvalidInput(f"a store is a URL or a Store, was {shorten(type(url).__name__)}")
    scheme, location, options = _urls.split(url, "store", _KNOWN)
    if scheme == "memory":
        return _memory(location, options)
    if scheme == "sqlite":
        return _sqlite(location, options)
    if scheme in _POSTGRES:
        return _postgres(url)
    if scheme in _urls.REDIS:
        return _redis(scheme, location, options)
    raise InvalidInput(f"no store for {shorten(scheme)}; use {_KNOWN}")


def _memory(location: str, options: Mapping[str, str]) -> Store:
    if location.strip("/") or options:
        raise InvalidInput("memory:// takes neither a name nor options: each one is a store of its own")
    from execsafe.stores.memory import MemoryStore

    return MemoryStore()


def _sqlite(location: str, options: Mapping[str, str]) -> Store:
    if not location.startswith("/"):
        raise InvalidInput("sqlite has no host: write sqlite:///relative.db or sqlite:////absolute/path.db")
    from execsafe.stores.sqlite import SqliteStore  # sqlite3 is loaded only where it is used

    return SqliteStore.from_options(unquote(location[1:]), options)


def _postgres(url: str) -> Store:
    try:
        from execsafe.stores.postgres import PostgresStore
    except ImportError as error:  # also where libpq, which psycopg wraps, is missing
        if (error.name or "psycopg").partition(".")[0] != "psycopg":
            raise
        raise InvalidInput("a PostgreSQL store needs psycopg: pip install 'execsafe[postgres]'") from None
    return PostgresStore(url)


def _redis(scheme: str, location: str, options: Mapping[str, str]) -> Store:
    try:
        from execsafe.stores.redis import RedisStore
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{scheme}:// needs {error.name}: pip install 'execsafe[redis]'") from None
    return RedisStore.from_url(scheme, location, options)
