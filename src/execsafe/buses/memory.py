"""A bus that lives and dies with the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import anyio
import attrs
from anyio.lowlevel import checkpoint

from execsafe.buses._rules import (
    BusDepth,
    ManagedBus,
    Message,
    check_name,
    dead_letter_fields,
    dead_letter_topic,
    to_fields,
)
from execsafe.clock import SystemClock
from execsafe.errors import CapacityExceeded
from execsafe.model.values import check_count, check_seconds, shorten
from execsafe.ports import Clock

_SEQ_DIGITS_MAX: Final = 18


@attrs.define
class _Delivery:
    at_ms: int
    count: int


@attrs.define(eq=False)
class _Group:
    read_to: int  # the last message delivered
    pending: dict[int, _Delivery] = attrs.Factory(dict)  # in order of sequence number


@attrs.define(eq=False)
class _Topic:
    messages: dict[int, Message] = attrs.Factory(dict)
    groups: dict[str, _Group] = attrs.Factory(dict)
    seq: int = 0
    arrived: anyio.Event = attrs.Factory(anyio.Event)


class MemoryBus(ManagedBus):
    """The reference :class:`~execsafe.buses.Bus`: within one process and one event loop.

    A message is kept until every group is done with it. A topic without groups keeps its latest ones, for groups
    that come later.

    Args:
        messages_max: how many one topic keeps. When all of them are still needed, publishing is refused. 10,000.
        topics_max: how many topics there may be. 1,000.
        redeliver_after_s: how long a delivered message stays with its consumer before another gets it, seconds.
            90 outlives the execution of a signal (60); what is delivered twice all the same is executed once.
        clock: source of Unix milliseconds.
    """

    def __init__(
        self,
        *,
        messages_max: int = 10_000,
        topics_max: int = 1_000,
        redeliver_after_s: float = 90.0,
        clock: Clock | None = None,
    ) -> None:
        self._messages_max = check_count(messages_max, "messages_max")
        self._topics_max = check_count(topics_max, "topics_max")
        self._redeliver_ms = round(check_seconds(redeliver_after_s, "redeliver_after_s") * 1_000)
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._topics: dict[str, _Topic] = {}

    async def open(self) -> None:
        """There is nothing to do."""

    async def aclose(self) -> None:
        """There is nothing to do: what it keeps goes with the object."""

    async def publish(self, topic: str, fields: Mapping[str, Any]) -> str:
        """See :meth:`execsafe.buses.Bus.publish`."""
        check_name(topic, "topic")
        flat = to_fields(fields)
        await checkpoint()
        return self._append(topic, flat)

    async def join_group(self, topic: str, group: str) -> None:
        """See :meth:`execsafe.buses.Bus.join_group`."""
        check_name(topic, "topic")
        check_name(group, "group")
        await checkpoint()
        self._group(topic, group)

    async def read(
        self, topic: str, group: str, consumer: str, *, limit: int = 1, wait_s: float = 1.0
    ) -> Sequence[Message]:
        """See :meth:`execsafe.buses.Bus.read`."""
        check_count(limit, "limit")
        check_seconds(wait_s, "wait_s", least=0)
        for name, what in ((topic, "topic"), (group, "group"), (consumer, "consumer")):
            check_name(name, what)
        await checkpoint()
        self._group(topic, group)
        ends_at = anyio.current_time() + wait_s
        while True:
            taken = self._take(topic, group, limit)
            left_s = ends_at - anyio.current_time()
            if taken or left_s <= 0:
                return taken
            with anyio.move_on_after(min(left_s, self._until_redelivery_s(topic, group))):
                await self._topics[topic].arrived.wait()

    async def ack(self, topic: str, group: str, message_id: str) -> bool:
        """See :meth:`execsafe.buses.Bus.ack`."""
        check_name(topic, "topic")
        check_name(group, "group")
        await checkpoint()
        return self._done_with(topic, group, message_id)

    async def dead_letter(self, group: str, message: Message, reason: str) -> None:
        """See :meth:`execsafe.buses.Bus.dead_letter`."""
        check_name(message.topic, "topic")
        check_name(group, "group")
        await checkpoint()
        if self._is_pending(message.topic, group, message.id):
            self._append(dead_letter_topic(message.topic), dead_letter_fields(group, message, reason))
            self._done_with(message.topic, group, message.id)

    async def depth(self, topic: str, group: str) -> BusDepth:
        """See :meth:`execsafe.buses.Bus.depth`."""
        check_name(topic, "topic")
        check_name(group, "group")
        await checkpoint()
        known = self._topics.get(topic, _Topic())
        mine = known.groups.get(group, _Group(read_to=0))
        waiting = sum(1 for seq in known.messages if seq > mine.read_to)
        return BusDepth(waiting=waiting, pending=len(mine.pending), kept=len(known.messages))

    # --- Inside: nothing here waits, so nothing interleaves ---------------------------------------------

    def _topic(self, name: str) -> _Topic:
        found = self._topics.get(name)
        if found is None:
            if len(self._topics) >= self._topics_max:
                raise CapacityExceeded(f"there are {self._topics_max} topics already", topic=name)
            found = self._topics[name] = _Topic()
        return found

    def _group(self, topic: str, group: str) -> _Group:
        known = self._topic(topic)
        if group not in known.groups:
            known.groups[group] = _Group(read_to=next(iter(known.messages), known.seq + 1) - 1)
        return known.groups[group]

    def _append(self, name: str, fields: Mapping[str, str]) -> str:
        topic = self._topic(name)
        if len(topic.messages) >= self._messages_max:
            _forget(topic)
        if len(topic.messages) >= self._messages_max:
            raise CapacityExceeded(
                f"topic {shorten(name)} keeps {len(topic.messages)} messages, and groups still need all of them",
                topic=name,
                messages_max=self._messages_max,
            )
        topic.seq += 1
        now_ms = self._clock.now_ms()
        message = Message(topic=name, id=f"{now_ms}-{topic.seq}", fields=dict(fields), published_at_ms=now_ms)
        topic.messages[topic.seq] = message
        topic.arrived.set()
        topic.arrived = anyio.Event()
        return message.id

    def _take(self, name: str, group: str, limit: int) -> list[Message]:
        topic, mine, now_ms = self._topics[name], self._topics[name].groups[group], self._clock.now_ms()
        due = [seq for seq, d in mine.pending.items() if now_ms - d.at_ms >= self._redeliver_ms][:limit]
        for seq in due:
            mine.pending[seq] = _Delivery(now_ms, mine.pending[seq].count + 1)
        while len(due) < limit and mine.read_to < topic.seq:
            mine.read_to += 1
            if mine.read_to in topic.messages:
                mine.pending[mine.read_to] = _Delivery(now_ms, 1)
                due.append(mine.read_to)
        return [attrs.evolve(topic.messages[seq], deliveries=mine.pending[seq].count) for seq in due]

    def _until_redelivery_s(self, name: str, group: str) -> float:
        pending = self._topics[name].groups[group].pending.values()
        first_ms = min((delivery.at_ms for delivery in pending), default=None)
        if first_ms is None:
            return float("inf")
        return max(0, first_ms + self._redeliver_ms - self._clock.now_ms()) / 1_000 + 0.001

    def _is_pending(self, name: str, group: str, message_id: str) -> bool:
        topic = self._topics.get(name)
        return topic is not None and group in topic.groups and _seq_of(message_id) in topic.groups[group].pending

    def _done_with(self, name: str, group: str, message_id: str) -> bool:
        if not self._is_pending(name, group, message_id):
            return False
        topic, seq = self._topics[name], _seq_of(message_id)
        del topic.groups[group].pending[seq]
        if all(_is_done(other, seq) for other in topic.groups.values()):
            topic.messages.pop(seq, None)
        return True


def _seq_of(message_id: object) -> int:
    tail = message_id.rpartition("-")[2] if isinstance(message_id, str) else ""
    return int(tail) if tail.isdecimal() and len(tail) <= _SEQ_DIGITS_MAX else 0


def _is_done(group: _Group, seq: int) -> bool:
    return seq <= group.read_to and seq not in group.pending


def _forget(topic: _Topic) -> None:
    """Make room for one: the oldest message that every group is done with, or any where there are no groups."""
    for seq in topic.messages:
        if all(_is_done(group, seq) for group in topic.groups.values()):
            del topic.messages[seq]
            return
