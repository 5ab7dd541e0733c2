"""Where a Redis store is, and what is asked of its server."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

import attrs

from execsafe.errors import InvalidInput
from execsafe.model.values import shorten
from execsafe.ports import Durability
from execsafe.stores import _options
from execsafe.stores._redis_scripts import KEY_NAMES

TIMEOUT_S_MAX: Final = 600.0
_PORT: Final = 6379
_PORT_MAX: Final = 65_535
_DATABASE_MAX: Final = 65_535
_TLS: Final = frozenset({"rediss", "valkeys"})
# No braces: between them stands what a cluster hashes.
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)


@attrs.frozen(kw_only=True)
class Settings:
    """All of it, checked. Its text and representation hold no password."""

    host: str
    port: int = _PORT
    database: int = 0
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None
    prefix: str = "execsafe"
    require: Durability = Durability.PROCESS
    create: bool = True
    timeout_s: float = 5.0

    def __attrs_post_init__(self) -> None:
        if not self.host or not self.host.isprintable() or any(c in self.host for c in "/@?# "):
            raise InvalidInput("redis needs a host: redis://host:6379/0")
        if not 0 < self.port <= _PORT_MAX:
            raise InvalidInput(f"the port must be 1 to {_PORT_MAX}")
        if not 0 <= self.database <= _DATABASE_MAX:
            raise InvalidInput(f"the database must be a number from 0 to {_DATABASE_MAX}")
        if not _PREFIX.fullmatch(self.prefix):
            raise InvalidInput(f"prefix must be 1 to 64 letters, digits or _.:- , was {shorten(self.prefix)}")
        if not (math.isfinite(self.timeout_s) and 0 < self.timeout_s <= TIMEOUT_S_MAX):
            raise InvalidInput(f"timeout_s must be more than 0 and at most {TIMEOUT_S_MAX:.0f}")
        if self.ca_file is not None and not self.tls:
            raise InvalidInput("ca_file is for rediss:// only")

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.database} ({self.prefix})"

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The store's keys, in the order in which scripts expect them; a cluster keeps them in one place."""
        return tuple(f"{{{self.prefix}}}:{name}".encode() for name in KEY_NAMES)

    @property
    def is_exposed(self) -> bool:
        """Whether passwords and orders cross a network in clear text."""
        if self.tls or self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True


def from_url(scheme: str, location: str, options: Mapping[str, str]) -> Settings:
    """As a URL gives them: ``rediss://user:password@host:6379/0?prefix=bot&require=power&timeout_s=2``.

    Raises:
        InvalidInput: something is malformed. The location is not repeated: it may hold a password.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "prefix": str,
        "require": _options.durability(*Durability),
        "create": _options.flag("create"),
        "timeout_s": _options.seconds("timeout_s"),
        "ca_file": str,
    }
    if not readers.keys() >= options.keys():  # not named: what follows a ? may be the rest of a password
        raise InvalidInput(f"an option is unknown: redis has {', '.join(readers)}")
    try:
        parts = urlsplit(f"//{location}")
        port = _PORT if parts.port is None else parts.port
    except ValueError:
        raise InvalidInput("the host or port of the redis URL cannot be read") from None
    return Settings(
        host=unquote(parts.hostname or ""),
        port=port,
        database=_to_database(parts),
        username=_unquoted(parts.username),
        password=_unquoted(parts.password),
        tls=scheme in _TLS,
        **{name: readers[name](text) for name, text in options.items()},
    )


def _to_database(parts: SplitResult) -> int:
    text = parts.path.removeprefix("/") or "0"
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise InvalidInput("the path of a redis URL is the number of the database")
    return int(text)


def _unquoted(text: str | None) -> str | None:
    return unquote(text) if text else None
