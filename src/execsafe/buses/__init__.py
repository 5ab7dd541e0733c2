"""Streams: signals come in, events and levels go out. :func:`open_bus` picks the bus by URL.

A :class:`Bus` delivers at least once: what was read stays *pending* for its group until it is acknowledged, and is
delivered again after a while. Executing it once is the reader's matter (:class:`execsafe.signals.SignalGate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from execsafe import _urls
from execsafe.buses._rules import Bus, BusDepth, ManagedBus, Message, check_name, dead_letter_topic
from execsafe.core.fields import decode_fields, encode_fields
from execsafe.errors import InvalidInput
from execsafe.model.values import shorten
from execsafe.ports import Clock

__all__ = [
    "Bus",
    "BusDepth",
    "ManagedBus",
    "Message",
    "check_name",
    "dead_letter_topic",
    "decode_fields",
    "encode_fields",
    "open_bus",
]

_KNOWN: Final = "memory:// or redis://host"


def open_bus(url: str, *, clock: Clock | None = None) -> ManagedBus:
    """Pick the bus that *url* names, for ``async with``.

    Args:
        url: ``memory://`` or ``redis://user:password@host:6379/0``, with TLS ``rediss://`` (needs
            ``execsafe[redis]``). Options are a query, such as ``?messages_max=1000&redeliver_after_s=30``; those of
            :meth:`RedisBus.from_url <execsafe.buses.redis.RedisBus.from_url>`.
        clock: for a bus in memory. Elsewhere the server's clock counts.

    Raises:
        InvalidInput: the URL is malformed, or names a bus or an option that does not exist.
    """
    scheme, location, options = _urls.split(url, "bus", _KNOWN)
    if scheme == "memory":
        return _memory(location, options, clock)
    if scheme in _urls.REDIS:
        return _redis(scheme, location, options)
    raise InvalidInput(f"no bus for {shorten(scheme)}; use {_KNOWN}")


def _memory(location: str, options: Mapping[str, str], clock: Clock | None) -> ManagedBus:
    if location.strip("/"):
        raise InvalidInput("memory:// has no name: each one is a bus of its own")
    from execsafe.buses.memory import MemoryBus

    readers = {
        "messages_max": _urls.count("messages_max"),
        "topics_max": _urls.count("topics_max"),
        "redeliver_after_s": _urls.seconds("redeliver_after_s"),
    }
    return MemoryBus(clock=clock, **_urls.read(options, readers, "memory"))


def _redis(scheme: str, location: str, options: Mapping[str, str]) -> ManagedBus:
    try:
        from execsafe.buses.redis import RedisBus
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{scheme}:// needs {error.name}: pip install 'execsafe[redis]'") from None
    return RedisBus.from_url(scheme, location, options)
