"""Where a server is, and how it is spoken to."""

from __future__ import annotations

import ipaddress
import math
import re
import warnings
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

import attrs

from execsafe.errors import InvalidInput

TIMEOUT_S_MAX: Final = 600.0
_PORT: Final = 6379
_PORT_MAX: Final = 65_535
_DATABASE_MAX: Final = 65_535
_TLS: Final = frozenset({"rediss", "valkeys"})


@attrs.frozen(kw_only=True)
class Address:
    """All of it, checked. Its text and representation hold no password."""

    host: str
    port: int = _PORT
    database: int = 0
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None
    timeout_s: float = 5.0

    def __attrs_post_init__(self) -> None:
        if not self.host or not self.host.isprintable() or any(c in self.host for c in "/@?# "):
            raise InvalidInput("redis needs a host: redis://host:6379/0")
        if not 0 < self.port <= _PORT_MAX:
            raise InvalidInput(f"the port must be 1 to {_PORT_MAX}")
        if not 0 <= self.database <= _DATABASE_MAX:
            raise InvalidInput(f"the database must be a number from 0 to {_DATABASE_MAX}")
        if not (math.isfinite(self.timeout_s) and 0 < self.timeout_s <= TIMEOUT_S_MAX):
            raise InvalidInput(f"timeout_s must be more than 0 and at most {TIMEOUT_S_MAX:.0f}")
        if self.ca_file is not None and not self.tls:
            raise InvalidInput("ca_file is for rediss:// only")

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.database}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may hold."""
        return tuple(text for text in (self.password, self.username) if text)

    @property
    def is_exposed(self) -> bool:
        """Whether passwords and orders cross a network in clear text."""
        if self.tls or self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True

    def warn_if_exposed(self, *, stacklevel: int) -> None:
        """Warn whoever is *stacklevel* calls above."""
        if self.is_exposed:
            warnings.warn(
                f"orders and the password cross the network to {self.host} in clear text: use rediss://",
                UserWarning,
                stacklevel=stacklevel + 1,
            )


def located(scheme: str, location: str) -> dict[str, Any]:
    """The fields of an :class:`Address` that a URL's *scheme* and ``user:password@host:port/database`` give.

    Raises:
        InvalidInput: something is malformed. The location is not repeated: it may hold a password.
    """
    parts = _parts(location)
    if parts is None:  # said out here: what led to it repeats the text
        raise InvalidInput("the host or port of the redis URL cannot be read")
    return {
        "host": unquote(parts.hostname or ""),
        "port": _PORT if parts.port is None else parts.port,
        "database": _to_database(parts),
        "username": _unquoted(parts.username),
        "password": _unquoted(parts.password),
        "tls": scheme in _TLS,
    }


def _parts(location: str) -> SplitResult | None:
    try:
        parts = urlsplit(f"//{location}")
        return parts if parts.port is None or parts.port >= 0 else None
    except ValueError:
        return None


def _to_database(parts: SplitResult) -> int:
    text = parts.path.removeprefix("/") or "0"
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise InvalidInput("the path of a redis URL is the number of the database")
    return int(text)


def _unquoted(text: str | None) -> str | None:
    return unquote(text) if text else None
