"""What all buses have in common."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Protocol, Self

import attrs

from execsafe.core.fields import encode_fields
from execsafe.errors import InvalidInput
from execsafe.model.values import shorten

_NAME_LENGTH_MAX: Final = 256
_FIELDS_MAX: Final = 1_000  # far above any payload, far below what a script takes


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
            InvalidInput: no field at all, more than 1,000, or one that is not plain JSON.
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

        Until it is acknowledged, no other consumer of the group gets a message before its redelivery is due. A group
        that does not exist is made.
        """
        ...

    async def ack(self, topic: str, group: str, message_id: str) -> bool:
        """The group is done with it; False if it was not pending. Idempotent."""
        ...

    async def dead_letter(self, group: str, message: Message, reason: str) -> None:
        """Move it to the dead letters (:func:`dead_letter_topic`), with the reason, and acknowledge it, in one step.

        Idempotent: a message that is not pending is left alone.
        """
        ...

    async def depth(self, topic: str, group: str) -> BusDepth:
        """How the group stands."""
        ...


class ManagedBus(abc.ABC):
    """A :class:`Bus` that ``async with`` opens and closes."""

    @abc.abstractmethod
    async def open(self) -> None:
        """Make ready; idempotent."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Release resources; idempotent."""

    @abc.abstractmethod
    async def publish(self, topic: str, fields: Mapping[str, Any]) -> str: ...

    @abc.abstractmethod
    async def join_group(self, topic: str, group: str) -> None: ...

    @abc.abstractmethod
    async def read(
        self, topic: str, group: str, consumer: str, *, limit: int = 1, wait_s: float = 1.0
    ) -> Sequence[Message]: ...

    @abc.abstractmethod
    async def ack(self, topic: str, group: str, message_id: str) -> bool: ...

    @abc.abstractmethod
    async def dead_letter(self, group: str, message: Message, reason: str) -> None: ...

    @abc.abstractmethod
    async def depth(self, topic: str, group: str) -> BusDepth: ...

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def dead_letter_topic(topic: str) -> str:
    """Where a topic's dead letters go. They are messages like any others, with the fields ``dead_letter_reason``,
    ``dead_letter_group`` and ``dead_letter_of`` (the id) added.
    """  # noqa: D205 - one sentence
    return f"{topic}:dead"


def dead_letter_fields(group: str, message: Message, reason: str) -> dict[str, str]:
    """What a dead letter says."""
    facts = {"dead_letter_reason": reason, "dead_letter_group": group, "dead_letter_of": message.id}
    kept = dict(itertools.islice(message.fields.items(), _FIELDS_MAX))
    if len(kept) < len(message.fields):
        facts["dead_letter_left_out"] = f"{len(message.fields) - len(kept)} fields"
    return {**kept, **encode_fields(facts)}


def to_fields(payload: Mapping[str, Any]) -> dict[str, str]:
    """A message's fields: at least one, all of them text.

    Raises:
        InvalidInput: there is none, there are too many, or one cannot be written.
    """
    if not isinstance(payload, Mapping):
        raise InvalidInput(f"a message is a mapping of fields, was {shorten(type(payload).__name__)}")
    fields = encode_fields(payload)
    if not 0 < len(fields) <= _FIELDS_MAX:
        raise InvalidInput(f"a message has 1 to {_FIELDS_MAX} fields, this one {len(fields)}")
    for name in fields:
        if not _is_text(name):
            raise InvalidInput(f"a field's name cannot be written: {shorten(name)}")
    return fields


def check_name(name: object, what: str) -> None:
    """Refuse names of topics, groups and consumers that are empty, too long or not printable."""
    if not isinstance(name, str) or not 0 < len(name) <= _NAME_LENGTH_MAX or not name.isprintable():
        raise InvalidInput(f"{what} must be printable text of 1 to {_NAME_LENGTH_MAX} characters, was {shorten(name)}")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True
