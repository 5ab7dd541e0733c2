"""What a URL says of a PostgreSQL store: our own options, and everything else for libpq."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

import attrs
import psycopg
from psycopg.conninfo import conninfo_to_dict

from execsafe import _urls
from execsafe.errors import InvalidInput
from execsafe.model.values import shorten
from execsafe.ports import Durability
from execsafe.stores._postgres_schema import Settings
from execsafe.stores._postgres_script import Connection

_SCHEMA: Final = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}", re.ASCII)
_SECONDS_MAX: Final = 600.0
_SECONDS_MIN: Final = 0.01
# Unless the URL says otherwise. A server that vanished without a word is given up after some 10 s.
_DEFAULTS: Final[dict[str, Any]] = {
    "application_name": "execsafe",
    "connect_timeout": "5",
    "tcp_user_timeout": "10000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}


@attrs.frozen(kw_only=True)
class Options:
    """How to reach a store and what to ask of it. Its text shows no password."""

    conninfo: dict[str, Any] = attrs.field(repr=False)
    schema: str = "execsafe"
    require: Durability = Durability.POWER
    create: bool = True
    lock_timeout_s: float = 5.0
    statement_timeout_s: float = 10.0

    def __attrs_post_init__(self) -> None:
        if not _SCHEMA.fullmatch(self.schema):
            raise InvalidInput(f"schema must be small letters, digits and _, and not pg_…, was {shorten(self.schema)}")
        if self.require is Durability.NONE:
            raise InvalidInput("require must be 'power' or 'process'")
        for name in ("lock_timeout_s", "statement_timeout_s"):
            if not _SECONDS_MIN <= getattr(self, name) <= _SECONDS_MAX:
                raise InvalidInput(f"{name} must be {_SECONDS_MIN:g} to {_SECONDS_MAX:g}")
        if self.statement_timeout_s <= self.lock_timeout_s:
            raise InvalidInput("statement_timeout_s must be longer than lock_timeout_s, which it includes")

    @classmethod
    def from_url(cls, url: str) -> Options:
        """Take *url* apart.

        Raises:
            InvalidInput: an option that neither execsafe nor libpq knows, or a value that it does not take.
        """
        base, _, query = url.partition("?")
        own: dict[str, Any] = {}
        others = []
        for pair in filter(None, query.split("&")):
            name, _, text = pair.partition("=")
            if name in _READERS:
                own[name] = _READERS[name](unquote(text))
            else:
                others.append(pair)
        return cls(conninfo=_parse(f"{base}?{'&'.join(others)}" if others else base), **own)

    @property
    def parameters(self) -> dict[str, Any]:
        """For :func:`psycopg.connect`."""
        several = "," in str(self.conninfo.get("host", "")) + str(self.conninfo.get("hostaddr", ""))
        return {
            **_DEFAULTS,
            # Of several servers, the one that can be written.
            **({"target_session_attrs": "read-write"} if several else {}),
            **self.conninfo,
            "client_encoding": "utf8",
            "autocommit": True,
            # A pooler may give each transaction to another session, which does not know what was prepared.
            "prepare_threshold": None,
        }

    @property
    def settings(self) -> Settings:
        """What every transaction begins with."""
        return Settings(
            schema=self.schema, lock_timeout_s=self.lock_timeout_s, statement_timeout_s=self.statement_timeout_s
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may repeat."""
        return tuple(str(text) for name, text in self.conninfo.items() if "password" in name and text)

    def is_remote(self, connection: Connection) -> bool:
        """Whether a network lies between here and the server."""
        host = connection.info.host
        if not host or host.startswith(("/", "@")) or host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(connection.info.hostaddr or host).is_loopback
        except ValueError:
            return True


def _parse(url: str) -> dict[str, Any]:
    try:
        return dict(conninfo_to_dict(url))
    except psycopg.Error:
        # Neither the cause nor the text is shown: both may hold a password.
        raise InvalidInput(
            "the PostgreSQL URL cannot be read, or has an option that is neither execsafe's"
            f" ({', '.join(_READERS)}) nor libpq's"
        ) from None


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "schema": str,
    "require": _urls.durability(Durability.POWER, Durability.PROCESS),
    "create": _urls.flag("create"),
    "lock_timeout_s": _urls.seconds("lock_timeout_s"),
    "statement_timeout_s": _urls.seconds("statement_timeout_s"),
}
