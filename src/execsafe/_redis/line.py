"""A line to one server: it connects when needed, greets the server first, and bounds every call in time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from anyio.lowlevel import EventLoopToken, current_token
from coredis.exceptions import NoScriptError, RedisError

from execsafe._redis.address import Address
from execsafe._redis.link import Link
from execsafe._redis.replies import is_over
from execsafe._redis.script import Script
from execsafe.errors import ExecsafeError

_T = TypeVar("_T")


class Line:
    """All callers share one connection, in the event loop in which it was made.

    Args:
        address: where the server is.
        greet: asked about each new connection before anything else; if it raises, the connection is not used.
        failed: the error to raise for what the network, the client or the server raised; None: no answer in time.
    """

    def __init__(
        self,
        address: Address,
        *,
        greet: Callable[[Link], Awaitable[object]],
        failed: Callable[[Exception | None], ExecsafeError],
    ) -> None:
        self._address = address
        self._greet = greet
        self._failed = failed
        self._refusal: ExecsafeError | None = None
        self._loop: EventLoopToken = current_token()
        self._lock = anyio.Lock()
        self._link: Link | None = None
        self._pending = 0
        self._is_idle = anyio.Event()

    @property
    def is_at_home(self) -> bool:
        """Whether this is the event loop in which it was made."""
        return current_token() == self._loop

    @property
    def is_live(self) -> bool:
        """Whether a connection is left, which only its own event loop can close."""
        return self._link is not None and not self._link.is_over

    def refuse(self, error: ExecsafeError | None) -> None:
        """Raise *error* for every call from now on; None: no longer."""
        self._refusal = error

    def check(self) -> None:
        """Raise what is raised for every call, if there is something."""
        if self._refusal is not None:
            # One instance each: a raised exception collects the traceback of whoever raises it.
            raise type(self._refusal)(str(self._refusal), **self._refusal.context)

    async def call(self, work: Callable[[Link], Awaitable[_T]]) -> _T:
        """Do *work* with a connection, within the address's time-out.

        Raises:
            ExecsafeError: what *failed* makes of the failure, or what *work* itself raises of this kind.
        """
        link: Link | None = None
        failure: Exception | None = None
        self._pending += 1
        try:
            with anyio.move_on_after(self._address.timeout_s):
                link = await self._connected()
                return await work(link)
            if link is not None:
                link.close()  # as silent for everybody else
        except (RedisError, OSError) as error:
            failure = error
            if link is not None and is_over(error):
                link.close()
        finally:
            self._pending -= 1
            if not self._pending:
                self._is_idle.set()
        raise self._failed(failure)  # out here, without what led to it: what a server says may repeat a password

    async def aclose(self, closed: ExecsafeError) -> None:
        """Let what is under way end, and the connection go; later calls raise *closed*."""
        self.refuse(closed)
        with anyio.CancelScope(shield=True):
            while self._pending:  # each of them is bounded in time
                self._is_idle = anyio.Event()
                await self._is_idle.wait()
            link, self._link = self._link, None
            if link is not None:
                await link.aclose()

    async def _connected(self) -> Link:
        link = self._link
        if link is not None and link.is_usable:
            return link
        async with self._lock:
            link = self._link
            if link is not None and link.is_usable:
                return link
            self.check()
            link = await Link.dial(self._address)
            try:
                await self._greet(link)
            except BaseException:
                link.close()
                raise
            self._link = link
            return link


async def evaluate(link: Link, script: Script, count: int, *arguments: bytes) -> object:
    """Run *script*; the first *count* arguments are keys."""
    try:
        return await link.ask(b"EVALSHA", script.sha, count, *arguments)
    except NoScriptError:  # a server that was restarted, or told to forget
        return await link.ask(b"EVAL", script.text, count, *arguments)
