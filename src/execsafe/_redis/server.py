"""What a server says of itself: whether it can be written, and what its acknowledgements are worth."""

from __future__ import annotations

from typing import Final

import attrs
from coredis.exceptions import ResponseError

from execsafe._redis.link import Link
from execsafe.ports import Durability

_SECTIONS: Final = (b"persistence", b"replication", b"memory")
_SETTINGS: Final = (b"appendfsync", b"no-appendfsync-on-rewrite")
_ORDER: Final = (Durability.NONE, Durability.PROCESS, Durability.POWER)


@attrs.frozen(kw_only=True)
class Server:
    """The part of INFO and CONFIG that matters here. None: the server did not tell."""

    is_loading: bool
    is_replica: bool
    has_aof: bool | None
    appendfsync: str | None
    skips_fsync: bool  # while it rewrites its file
    eviction: str | None

    @property
    def durability(self) -> Durability:
        """What survives of an acknowledged write."""
        if not self.has_aof:
            return Durability.NONE
        is_flushed = self.appendfsync == "always" and not self.skips_fsync
        return Durability.POWER if is_flushed else Durability.PROCESS

    def why_too_weak(self, require: Durability) -> tuple[str, str] | None:
        """The setting that stands in the way of *require*, and a sentence about it; None if nothing does."""
        if _ORDER.index(self.durability) >= _ORDER.index(require):
            return None
        setting, remedy = self._remedy()
        return setting, (
            f"what the server acknowledges survives {_what(self.durability)}, required is {_what(require)}: {remedy},"
            f" or accept it with ?require={self.durability}"
        )

    def _remedy(self) -> tuple[str, str]:
        if self.has_aof is None:
            return "appendonly", "let the user run INFO, so that it can be known"
        if not self.has_aof:
            return "appendonly", "set 'appendonly yes'"
        if self.appendfsync is None:
            return "appendfsync", "let the user run CONFIG GET, so that appendfsync can be known"
        if self.appendfsync != "always":
            return "appendfsync", "set 'appendfsync always'"
        return "no-appendfsync-on-rewrite", "set 'no-appendfsync-on-rewrite no'"


def _what(durability: Durability) -> str:
    return {Durability.NONE: "nothing", Durability.PROCESS: "a kill", Durability.POWER: "a power cut"}[durability]


async def read_server(link: Link) -> Server:
    """Ask the server about itself."""
    info: dict[str, str] = {}
    for section in _SECTIONS:
        info |= _lines(await _told(link, b"INFO", section))
    settings: dict[str, str] = {}
    for name in _SETTINGS:
        settings |= _pairs(await _told(link, b"CONFIG GET", name))
    has_aof = info.get("aof_enabled")
    return Server(
        is_loading=info.get("loading") == "1",
        is_replica=info.get("role") == "slave",
        has_aof=None if has_aof is None else has_aof == "1",
        appendfsync=settings.get("appendfsync"),
        skips_fsync=settings.get("no-appendfsync-on-rewrite", "yes") == "yes",
        eviction=info.get("maxmemory_policy"),
    )


async def _told(link: Link, command: bytes, argument: bytes) -> object:
    """The answer; None where the user may not ask, or the server does not know the command."""
    try:
        return await link.ask(command, argument)
    except ResponseError as error:
        if "Authentication" in type(error).__name__:
            raise
        return None


def _lines(answer: object) -> dict[str, str]:
    if not isinstance(answer, bytes):
        return {}
    lines = (line.partition(":") for line in answer.decode("utf-8", "replace").splitlines())
    return {name: text for name, found, text in lines if found}


def _pairs(answer: object) -> dict[str, str]:
    """A map, or a list of names and values, depending on the protocol."""
    if isinstance(answer, list):
        answer = dict(zip(answer[::2], answer[1::2], strict=False))
    if not isinstance(answer, dict):
        return {}
    return {_text(name): _text(text) for name, text in answer.items()}


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
