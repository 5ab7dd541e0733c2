"""Streams: signals come in, events and levels go out.

A :class:`Bus` delivers at least once: what was read stays *pending* for its group until it is acknowledged, and is
delivered again after a while. Executing it once is the reader's matter (:class:`execsafe.signals.SignalGate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs

from execsafe.core.fields import decode_fields, encode_fields

__all__ = ["Bus", "BusDepth", "Message", "dead_letter_topic", "decode_fields", "encode_fields"]


@attrs.frozen(kw_only=True)
class Message:
    """One delivery.

    Attributes:
        topic: where it was published.
        id: the bus's own identity of it; a redelivery has the same one.
        fields: text by name, as :func:`encode_fields` or a foreign producer wrote it.
        published_at_ms: when the bus took it, by the bus's clock, Unix ms.
        deliveries: how often it was delivered to this group, this time included.
    """

    topic: str
    id: str
    fields: Mapping[str, str]
    published_at_ms: int
    deliveries: int = 1


@attrs.frozen(kw_only=True)
class BusDepth:
    """How a group stands: messages not yet delivered, delivered but not acknowledged, and kept in all."""

    waiting: int
    pending: int
    kept: int


class Bus(Protocol):
    """A stream with consumer groups. Every method may raise; what was not confirmed may have happened."""

    async def publish(self, topic: str, fields: Mapping[str, Any]) -> str:
        """Append a message; its id. *fields* are encoded by :func:`encode_fields`.

        Raises:
            CapacityExceeded: no room, and nothing that every group is done with.
        """
        ...

    async def join_group(self, topic: str, group: str) -> None:
        """Make the group, if it does not exist; it gets what is kept and what comes. Idempotent."""
        ...

    async def read(
        self, topic: str, group: str, consumer: str, *, limit: int = 1, wait_s: float = 1.0
    ) -> Sequence[Message]:
        """At most *limit* messages: those due for redelivery first, then new ones; empty after *wait_s* seconds.

        Until it is acknowledged, no other consumer of the group gets a message before its redelivery is due.
        """
        ...

    async def ack(self, topic: str, group: str, message_id: str) -> bool:
        """The group is done with it; False if it was not pending. Idempotent."""
        ...

    async def dead_letter(self, group: str, message: Message, reason: str) -> None:
        """Move it to the dead letters (:func:`dead_letter_topic`), with the reason, and acknowledge it, in one step."""
        ...

    async def depth(self, topic: str, group: str) -> BusDepth:
        """How the group stands."""
        ...


def dead_letter_topic(topic: str) -> str:
    """Where a topic's dead letters go. They are messages like any others, with the fields ``dead_letter_reason``,
    ``dead_letter_group`` and ``dead_letter_of`` (the id) added.
    """  # noqa: D205 - one sentence
    return f"{topic}:dead"
