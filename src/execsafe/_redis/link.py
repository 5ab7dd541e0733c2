"""One connection to the server, and the task that keeps it.

The client's connection lives in a task group, which begins and ends in one task; a store or a bus is opened and closed
by whoever comes first. So each connection has a task of its own, outside of all scopes of those who use it.

Calls share the connection. Each is sent at once, and the answers come back in order; whoever does not wait for its
answer any more disturbs nobody.
"""

from __future__ import annotations

import asyncio
import contextvars
import ssl
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio
from anyio.abc import ByteStream
from coredis.connection import BaseConnection, TCPLocation
from coredis.exceptions import ConnectionError  # noqa: A004

from execsafe._redis.address import Address
from execsafe._redis.replies import BadAuthorities

_CLOSING_S: Final = 1.0


class _Connection(BaseConnection):
    """The client's connection, over a stream that is there already: one that cannot be had leaves nothing behind."""

    def __init__(self, address: Address, stream: ByteStream) -> None:
        super().__init__(
            TCPLocation(address.host, address.port),
            username=address.username,
            password=address.password,
            db=address.database,
        )
        self._address = address
        self._given = stream

    async def _connect(self) -> ByteStream:
        return self._given

    def describe(self) -> str:
        return f"{type(self).__name__}({self._address})"


class Link:
    """A connection; :meth:`dial` makes one."""

    def __init__(self, connection: BaseConnection) -> None:
        self._connection = connection
        self._scope = anyio.CancelScope()
        self._is_settled = anyio.Event()
        self._is_over = anyio.Event()
        self._error: Exception | None = None
        self._task: object = None

    @classmethod
    async def dial(cls, address: Address) -> Link:
        """Connect and authenticate.

        Raises:
            Exception: the network's error, the client's or the server's.
        """
        link = cls(_Connection(address, await _stream(address)))
        await link._run()
        return link

    async def _run(self) -> None:
        self._task = _spawn(self._host)
        try:
            await self._is_settled.wait()
        except BaseException:
            self.close()
            raise
        if self._error is not None:
            raise self._error

    async def _host(self) -> None:
        try:
            with self._scope:
                await self._connection.run(task_status=self)
        except Exception as error:  # noqa: BLE001 - told to whoever dialled
            self._error = error
        finally:
            self._is_settled.set()
            self._is_over.set()

    def started(self, value: None = None) -> None:  # noqa: ARG002
        """Called by the connection once it can be used."""
        self._is_settled.set()

    @property
    def is_usable(self) -> bool:
        """Whether it is connected, as far as is known."""
        return self._connection.usable and not self._scope.cancel_called

    @property
    def is_over(self) -> bool:
        """Whether its task has ended."""
        return self._is_over.is_set()

    async def ask(self, command: bytes, *arguments: bytes | int) -> Any:
        """Send one command and wait for its answer. Cancelled: it is carried out all the same, or not at all.

        Raises:
            Exception: the server's error, or the connection's.
        """
        try:
            request = self._connection.create_request(command, *arguments, decode=False)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):  # it is just about to end
            raise ConnectionError("the connection has ended") from None
        return await request

    def close(self) -> None:
        """Give the connection up at once. Who waits for an answer is told that none will come."""
        self._scope.cancel()

    async def aclose(self) -> None:
        """Give it up and wait until it is gone."""
        self.close()
        with anyio.move_on_after(_CLOSING_S, shield=True):
            await self._is_over.wait()


async def _stream(address: Address) -> ByteStream:
    if not address.tls:
        return await anyio.connect_tcp(address.host, address.port)
    return await anyio.connect_tcp(
        address.host, address.port, ssl_context=_context(address.ca_file), tls_standard_compatible=False
    )


def _context(ca_file: str | None) -> ssl.SSLContext:
    """Certificates and host names are checked; *ca_file* is trusted instead of the system's authorities."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise BadAuthorities(f"ca_file cannot be read ({type(error).__name__})") from None


def _spawn(work: Callable[[], Coroutine[Any, Any, None]]) -> object:
    """Run *work* in this event loop, in no scope and no context of its caller; the result must be kept."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return trio.lowlevel.spawn_system_task(work)
    return asyncio.get_running_loop().create_task(work(), context=contextvars.Context())
