"""Where a Redis store is, and what is asked of its server."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from execsafe import _urls
from execsafe._redis.address import Address, located
from execsafe.errors import InvalidInput
from execsafe.model.values import shorten
from execsafe.ports import Durability
from execsafe.stores._redis_scripts import KEY_NAMES

# No braces: between them stands what a cluster hashes.
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)


@attrs.frozen(kw_only=True)
class Settings(Address):
    """All of it, checked. Its text and representation hold no password."""

    prefix: str = "execsafe"
    require: Durability = Durability.PROCESS
    create: bool = True

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not _PREFIX.fullmatch(self.prefix):
            raise InvalidInput(f"prefix must be 1 to 64 letters, digits or _.:- , was {shorten(self.prefix)}")

    def __str__(self) -> str:
        return f"{super().__str__()} ({self.prefix})"

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The store's keys, in the order in which scripts expect them; a cluster keeps them in one place."""
        return tuple(f"{{{self.prefix}}}:{name}".encode() for name in KEY_NAMES)


def from_url(scheme: str, location: str, options: Mapping[str, str]) -> Settings:
    """As a URL gives them: ``rediss://user:password@host:6379/0?prefix=bot&require=power&timeout_s=2``.

    Raises:
        InvalidInput: something is malformed. The location is not repeated: it may hold a password.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "prefix": str,
        "require": _urls.durability(*Durability),
        "create": _urls.flag("create"),
        "timeout_s": _urls.seconds("timeout_s"),
        "ca_file": str,
    }
    return Settings(**located(scheme, location), **_urls.read(options, readers, "redis"))
