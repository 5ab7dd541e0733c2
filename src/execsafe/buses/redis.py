"""A bus on a Redis or Valkey server: its streams, with their consumer groups."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import anyio

from execsafe._redis.line import Line, evaluate
from execsafe._redis.link import Link
from execsafe._redis.replies import meaning_of
from execsafe._redis.script import Script
from execsafe._redis.server import read_server
from execsafe.buses import _redis_scripts as scripts
from execsafe.buses._redis_settings import Settings, from_url
from execsafe.buses._redis_waits import Waits
from execsafe.buses._rules import (
    BusDepth,
    ManagedBus,
    Message,
    check_name,
    dead_letter_fields,
    dead_letter_topic,
    to_fields,
)
from execsafe.errors import BusUnavailable, CapacityExceeded
from execsafe.model.values import check_count, check_seconds, shorten

_log = logging.getLogger("execsafe.buses")
# At least this often a reader that waits looks for messages whose redelivery is due: nothing wakes it for them.
_LOOK_S: Final = 1.0
_LOOK_S_MIN: Final = 0.05
_LIMIT_MAX: Final = 1_000  # more come with the next call
_NUMBER_MAX: Final = 2**64 - 1
_ID: Final = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)


class RedisBus(ManagedBus):
    """A :class:`~execsafe.buses.Bus` for several processes and machines; other programs may write to its topics.

    A topic is the stream ``{prefix}{topic}``, a message one entry of it, with text by name. What other programs append
    with XADD is delivered as well; their own trimming (MAXLEN) may remove what no group has read yet.

    What the server loses, it does not deliver: without ``appendonly yes`` a restart forgets everything, with
    ``everysec`` the last two seconds, and a replica that takes over what it had not received. A group that is gone is
    made again and gets what is kept; whoever executes what it reads recognises what it has executed
    (:class:`~execsafe.signals.SignalGate`).

    A bus works in the event loop in which it was opened. A call that is cancelled, or gets no answer, may have been
    carried out: a message that was read that way is delivered again when its redelivery is due.

    Args:
        settings: the server, and how much is kept.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._line: Line | None = None
        self._waits: Waits | None = None
        self._is_open = False
        self._pid = os.getpid()

    @classmethod
    def from_url(cls, scheme: str, location: str, options: Mapping[str, str]) -> RedisBus:
        """The bus of ``{scheme}://{location}`` with these options.

        Options: ``prefix=execsafe:`` (of the streams' names), ``messages_max=10000`` (kept per topic; when groups
        still need all of them, publishing is refused), ``redeliver_after_s=90`` (how long a message stays with a
        consumer before another gets it: longer than the execution of a signal), ``require=none`` (or ``process``,
        ``power``: what the server must not lose), ``timeout_s=5`` (for each call), ``ca_file=/path`` (authorities to
        trust instead of the system's).

        Raises:
            InvalidInput: something in it is malformed or unknown.
        """
        settings = from_url(scheme, location, options)
        settings.warn_if_exposed(stacklevel=4)
        return cls(settings)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings})"

    async def open(self) -> None:
        """Look at the server; idempotent.

        Raises:
            BusUnavailable: it cannot be reached, is a replica, evicts, or promises less than is required.
        """
        if self._line is not None and self._pid == os.getpid() and not self._line.is_at_home and self._line.is_live:
            raise _elsewhere()
        if self._line is None or self._pid != os.getpid() or not self._line.is_at_home:
            self._line = Line(self._settings, greet=self._greet, failed=self._failed)
            self._waits, self._pid, self._is_open = Waits(self._settings, failed=self._failed), os.getpid(), False
        line = self._line
        if self._is_open:
            return
        try:
            await line.call(_nothing)  # who opens it at the same time shares this connection
        except BaseException:
            if self._line is line and not self._is_open:
                await self.aclose()
            raise
        if self._line is not line:  # closed meanwhile, by whoever opened it at the same time and was cancelled
            raise _closed()
        self._is_open = True

    async def aclose(self) -> None:
        """Let the connections go; idempotent. Later calls raise BusUnavailable, and so do those that wait."""
        line, waits = self._line, self._waits
        self._line = self._waits = None
        self._is_open = False
        if line is None or waits is None or self._pid != os.getpid() or not line.is_at_home:
            return  # another event loop's, or the parent's, to close
        with anyio.CancelScope(shield=True):
            await waits.aclose()
            await line.aclose(_closed())

    def __del__(self) -> None:
        if getattr(self, "_line", None) is not None and self._pid == os.getpid():
            with contextlib.suppress(Exception):
                warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)

    async def publish(self, topic: str, fields: Mapping[str, Any]) -> str:
        """See :meth:`execsafe.buses.Bus.publish`. Without an answer (BusUnavailable) it may have been published."""
        check_name(topic, "topic")
        flat = _flat(to_fields(fields))
        answer = await self._run(scripts.PUBLISH, topic, b"%d" % self._settings.messages_max, *flat)
        if answer[0] == b"full":
            raise self._full(topic)
        return _text(answer[1])

    async def join_group(self, topic: str, group: str) -> None:
        """See :meth:`execsafe.buses.Bus.join_group`."""
        check_name(topic, "topic")
        check_name(group, "group")
        await self._run(scripts.JOIN, topic, group.encode())

    async def read(
        self, topic: str, group: str, consumer: str, *, limit: int = 1, wait_s: float = 1.0
    ) -> Sequence[Message]:
        """See :meth:`execsafe.buses.Bus.read`. The server's clock says when a redelivery is due."""
        limit = min(check_count(limit, "limit"), _LIMIT_MAX)
        check_seconds(wait_s, "wait_s", least=0)
        for name, what in ((topic, "topic"), (group, "group"), (consumer, "consumer")):
            check_name(name, what)
        look_s = min(_LOOK_S, max(_LOOK_S_MIN, self._settings.redeliver_after_s / 2))
        ends_at = anyio.current_time() + wait_s
        while True:
            place, messages = await self._take(topic, group, consumer, limit)
            left_s = ends_at - anyio.current_time()
            if messages or left_s <= 0:
                return messages
            await self._ready()[1].until_after(self._settings.key(topic), place, min(left_s, look_s))

    async def ack(self, topic: str, group: str, message_id: str) -> bool:
        """See :meth:`execsafe.buses.Bus.ack`."""
        check_name(topic, "topic")
        check_name(group, "group")
        if not _is_id(message_id):
            return False
        key = self._settings.key(topic)
        line, _ = self._ready()

        async def work(link: Link) -> Any:
            return await link.ask(b"XACK", key, group.encode(), message_id.encode())

        return bool(await line.call(work))

    async def dead_letter(self, group: str, message: Message, reason: str) -> None:
        """See :meth:`execsafe.buses.Bus.dead_letter`."""
        check_name(message.topic, "topic")
        check_name(group, "group")
        if not _is_id(message.id):
            return
        letters = dead_letter_topic(message.topic)
        flat = _flat(dead_letter_fields(group, message, reason))
        arguments = (group.encode(), message.id.encode(), b"%d" % self._settings.messages_max, *flat)
        answer = await self._run(scripts.DEAD_LETTER, message.topic, *arguments, also=letters)
        if answer[0] == b"full":
            raise self._full(letters)

    async def depth(self, topic: str, group: str) -> BusDepth:
        """See :meth:`execsafe.buses.Bus.depth`."""
        check_name(topic, "topic")
        check_name(group, "group")
        _, waiting, pending, kept = await self._run(scripts.DEPTH, topic, group.encode())
        return BusDepth(waiting=waiting, pending=pending, kept=kept)

    # --- Inside --------------------------------------------------------------------------------------

    async def _take(self, topic: str, group: str, consumer: str, limit: int) -> tuple[bytes, list[Message]]:
        """The group's place in the topic, and what there is for it now."""
        idle_ms = round(self._settings.redeliver_after_s * 1_000)
        most = self._settings.messages_max
        arguments = (group.encode(), consumer.encode(), b"%d" % limit, b"%d" % idle_ms, b"%d" % most)
        _, place, lost, entries = await self._run(scripts.READ, topic, *arguments)
        if lost:
            _log.error(
                "%d messages were removed from topic %s before group %s was done with them, the first is %s",
                len(lost),
                topic,
                group,
                _text(lost[0]),
            )
        return place, [_message(topic, *entry) for entry in entries]

    async def _run(self, script: Script, topic: str, *arguments: bytes, also: str | None = None) -> list[Any]:
        line, _ = self._ready()
        keys = [self._settings.key(name) for name in (topic, also) if name is not None]

        async def work(link: Link) -> object:
            return await evaluate(link, script, len(keys), *keys, *arguments)

        answer = await line.call(work)
        if not isinstance(answer, list) or not answer:
            raise BusUnavailable("the server gave an answer that no script of the bus gives")
        return answer

    def _ready(self) -> tuple[Line, Waits]:
        if self._line is None or self._waits is None or not self._is_open:
            raise _closed()
        if self._pid != os.getpid():
            raise BusUnavailable("the bus was opened before this process was forked: open one of its own here")
        if not self._line.is_at_home:
            raise _elsewhere()
        return self._line, self._waits

    async def _greet(self, link: Link) -> None:
        server = await read_server(link)
        if server.is_loading:
            raise BusUnavailable("the server is still loading its data")
        if server.is_replica:
            raise BusUnavailable("the server is a replica: give the address of the primary")
        if server.eviction is None or server.eviction.startswith("allkeys"):
            raise BusUnavailable(
                f"the server may evict whole topics (maxmemory-policy {server.eviction or 'unknown'}): set"
                " 'maxmemory-policy noeviction'",
                setting="maxmemory-policy",
            )
        if (weakness := server.why_too_weak(self._settings.require)) is not None:
            setting, text = weakness
            raise BusUnavailable(text, setting=setting, durability=str(server.durability))

    def _failed(self, error: Exception | None) -> BusUnavailable:
        if error is not None:
            meaning = meaning_of(error, self._settings.secrets)
            return BusUnavailable(meaning.text, server_error=meaning.code)
        return BusUnavailable(
            f"the server did not answer within {self._settings.timeout_s:g} s: nothing is known of the write, if it was"
            " one"
        )

    def _full(self, topic: str) -> CapacityExceeded:
        most = self._settings.messages_max
        return CapacityExceeded(
            f"topic {shorten(topic)} keeps {most} messages, and groups still need all of them",
            topic=topic,
            messages_max=most,
        )


def _is_id(text: object) -> bool:
    match = _ID.fullmatch(text) if isinstance(text, str) else None
    return match is not None and max(int(match[1]), int(match[2])) <= _NUMBER_MAX


async def _nothing(link: Link) -> None:
    """The greeting alone."""


def _closed() -> BusUnavailable:
    return BusUnavailable("the bus is not open: call open() or use 'async with'")


def _elsewhere() -> BusUnavailable:
    return BusUnavailable("the bus was opened in another event loop: open one for each")


def _flat(fields: Mapping[str, str]) -> list[bytes]:
    return [text.encode() for pair in fields.items() for text in pair]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _message(topic: str, raw_id: bytes, deliveries: int, pairs: Sequence[bytes]) -> Message:
    message_id = _text(raw_id)
    return Message(
        topic=topic,
        id=message_id,
        fields=_fields(pairs),
        published_at_ms=int(message_id.partition("-")[0]),
        deliveries=deliveries,
    )


def _fields(pairs: Sequence[bytes]) -> dict[str, str]:
    """Text by name. A stream may hold a name twice: then all of its texts, as a list that is none of them."""
    found: dict[str, list[str]] = {}
    for name, text in zip(pairs[::2], pairs[1::2], strict=True):
        found.setdefault(_text(name), []).append(_text(text))
    return {name: texts[0] if len(texts) == 1 else json.dumps(texts) for name, texts in found.items()}
