"""Waiting for a message, on connections of its own: whoever waits on a connection keeps all others from it.

Waiting takes nothing: a message that came is read by a script afterwards. So a wait that is cancelled, or whose answer
is lost, loses no message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
from coredis.exceptions import RedisError

from execsafe._redis.address import Address
from execsafe._redis.link import Link
from execsafe.errors import ExecsafeError

_LEAST_MS: Final = 1  # 0 is for ever


class Waits:
    """As many connections as wait at the same time; they are kept for the next wait.

    Args:
        address: where the server is.
        failed: the error to raise for what the network, the client or the server raised; None: no answer in time.
    """

    def __init__(self, address: Address, *, failed: Callable[[Exception | None], ExecsafeError]) -> None:
        self._address = address
        self._failed = failed
        self._idle: list[Link] = []
        self._busy: set[Link] = set()
        self._is_closed = False

    async def until_after(self, stream: bytes, place: bytes, longest_s: float) -> None:
        """Return once there is a message behind *place*, or after *longest_s* seconds.

        Raises:
            ExecsafeError: of the kind that *failed* makes.
        """
        failure: Exception | None = None
        try:
            with anyio.move_on_after(longest_s + self._address.timeout_s):
                return await self._wait(stream, place, max(_LEAST_MS, round(longest_s * 1_000)))
        except (RedisError, OSError) as error:
            failure = error
        raise self._failed(failure)  # out here, without what led to it: what a server says may repeat a password

    async def aclose(self) -> None:
        """Give all connections up. Who waits is told that nothing will come."""
        self._is_closed = True
        links = [*self._idle, *self._busy]
        self._idle.clear()
        for link in links:
            link.close()
        for link in links:
            await link.aclose()

    async def _wait(self, stream: bytes, place: bytes, longest_ms: int) -> None:
        link = await self._take()
        self._busy.add(link)
        is_answered = False
        try:
            await link.ask(b"XREAD", b"COUNT", 1, b"BLOCK", longest_ms, b"STREAMS", stream, place)
            is_answered = True
        finally:
            self._busy.discard(link)
            if is_answered and link.is_usable and not self._is_closed:
                self._idle.append(link)
            else:
                link.close()  # the server still waits on it

    async def _take(self) -> Link:
        while self._idle:
            link = self._idle.pop()
            if link.is_usable:
                return link
        link = await Link.dial(self._address)
        if self._is_closed:  # meanwhile
            link.close()
            raise ConnectionError("the bus was closed")
        return link
