"""Where the topics of a Redis bus are, and what is asked of the server."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from execsafe import _urls
from execsafe._redis.address import Address, located
from execsafe.errors import InvalidInput
from execsafe.model.values import check_count, check_seconds, shorten
from execsafe.ports import Durability

_OF_A_STORE: Final = re.compile(r"\{[^{}]*\}:")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:{}-]{0,64}", re.ASCII)


@attrs.frozen(kw_only=True)
class Settings(Address):
    """All of it, checked. Its text and representation hold no password."""

    prefix: str = "execsafe:"
    messages_max: int = 10_000
    redeliver_after_s: float = 90.0
    require: Durability = Durability.NONE

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_count(self.messages_max, "messages_max")
        check_seconds(self.redeliver_after_s, "redeliver_after_s")
        if not _PREFIX.fullmatch(self.prefix):
            raise InvalidInput(f"prefix must be at most 64 letters, digits or _.:{{}}- , was {shorten(self.prefix)}")
        if _OF_A_STORE.fullmatch(self.prefix):
            raise InvalidInput(f"the keys of a store may begin with {self.prefix}: write {self.prefix}bus: instead")

    def __str__(self) -> str:
        return f"{super().__str__()} ({self.prefix})"

    def key(self, topic: str) -> bytes:
        """The stream of a topic."""
        return (self.prefix + topic).encode()


def from_url(scheme: str, location: str, options: Mapping[str, str]) -> Settings:
    """As a URL gives them: ``rediss://user:password@host:6379/0?prefix=bot:stream:&redeliver_after_s=90``.

    Raises:
        InvalidInput: something is malformed. The location is not repeated: it may hold a password.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "prefix": str,
        "messages_max": _urls.count("messages_max"),
        "redeliver_after_s": _urls.seconds("redeliver_after_s"),
        "require": _urls.durability(*Durability),
        "timeout_s": _urls.seconds("timeout_s"),
        "ca_file": str,
    }
    return Settings(**located(scheme, location), **_urls.read(options, readers, "redis"))
