"""The asynchronous half of the SQLite store: hand work to one thread, and wake whoever waits for it.

The thread takes everything that has queued up since its last transaction: under load one flush of the disk serves
many callers. They may live in several event loops, asyncio and trio; each loop is woken once per transaction. A
caller that is cancelled while it waits has its work done all the same.

An event loop that is busy all the time, but in short pieces, can keep the thread from the interpreter's lock for
seconds: each short release wakes the thread too late, and starts its patience anew. So whoever has waited for some
milliseconds stands still for a moment and lets the thread work.
"""

from __future__ import annotations

import contextlib
import math
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from execsafe.errors import StoreError, StoreUnavailable
from execsafe.stores._sqlite_engine import Engine, Job, closed

if TYPE_CHECKING:
    import asyncio

# Bounds how long one transaction makes its first caller wait.
_GROUP_MAX: Final = 512
# A flush takes less as a rule, and then nobody has to stand still.
_PATIENCE_S: Final = 0.005
_PATIENCE_S_MAX: Final = 0.02
# Bounds what a disk that hangs can take from an event loop: a tenth of its time, and a little more at first.
_STAND_STILL_S: Final = 0.002


class _Ticket(Protocol):
    """A job, and the task that waits for it."""

    job: Job

    @property
    def host(self) -> object: ...

    def post(self, wake: Callable[[list[_Ticket]], object], tickets: list[_Ticket]) -> None:
        """Have *wake* called in the waiting task's event loop, from any thread."""

    def wake(self) -> None: ...

    async def wait(self, stand_still: Callable[[float], object]) -> None:
        """Wait for :meth:`wake`, calling *stand_still* now and then if it takes long."""


class _AsyncioHost:
    """What the waiting tasks of one event loop share: one timer, as one for each would cost more than all the rest.

    Used by that loop's thread only.
    """

    def __init__(self) -> None:
        self._waiting = 0
        self._is_served = False
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, future: asyncio.Future[None], stand_still: Callable[[float], object]) -> None:
        self._waiting += 1
        if self._timer is None:
            self._arm(future.get_loop(), stand_still, _PATIENCE_S)
        try:
            await future
            self._is_served = True
        finally:
            self._waiting -= 1
            if not self._waiting and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop, stand_still: Callable[[float], object], patience_s: float) -> None:
        self._is_served = False
        self._timer = loop.call_later(patience_s, self._help, loop, stand_still, patience_s)

    def _help(self, loop: asyncio.AbstractEventLoop, stand_still: Callable[[float], object], waited_s: float) -> None:
        if self._is_served:  # others were, since the timer was set: the thread gets its turns
            self._arm(loop, stand_still, _PATIENCE_S)
            return
        stand_still(loop.time())
        self._arm(loop, stand_still, min(2 * waited_s, _PATIENCE_S_MAX))


class _AsyncioTicket:
    __slots__ = ("_future", "_host", "_loop", "job")

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop, host: _AsyncioHost) -> None:
        self.job = job
        self._loop = loop
        self._host = host
        self._future: asyncio.Future[None] = loop.create_future()

    @property
    def host(self) -> object:
        return self._loop

    def post(self, wake: Callable[[list[_Ticket]], object], tickets: list[_Ticket]) -> None:
        self._loop.call_soon_threadsafe(wake, tickets)

    def wake(self) -> None:
        if not self._future.done():  # cancelled meanwhile
            self._future.set_result(None)

    async def wait(self, stand_still: Callable[[float], object]) -> None:
        await self._host.wait(self._future, stand_still)


class _TrioTicket:
    __slots__ = ("_done", "_token", "job")

    def __init__(self, job: Job) -> None:
        import trio

        self.job = job
        self._token = trio.lowlevel.current_trio_token()
        self._done = trio.Event()

    @property
    def host(self) -> object:
        return self._token

    def post(self, wake: Callable[[list[_Ticket]], object], tickets: list[_Ticket]) -> None:
        self._token.run_sync_soon(wake, tickets)

    def wake(self) -> None:
        self._done.set()

    async def wait(self, stand_still: Callable[[float], object]) -> None:
        import trio

        patience_s = _PATIENCE_S
        while not self._done.is_set():
            with trio.move_on_after(patience_s):
                await self._done.wait()
                return
            stand_still(trio.current_time())
            patience_s = min(2 * patience_s, _PATIENCE_S_MAX)


def _wake_all(tickets: list[_Ticket]) -> None:
    for ticket in tickets:
        ticket.wake()


class Writer:
    """Owns the thread; one per open store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stopped = False
        self._stood_at_s = -math.inf
        self._served = threading.Event()
        self._hosts: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _AsyncioHost] = weakref.WeakKeyDictionary()
        # A daemon: a program that forgets to close its store must still be able to end. What is committed is
        # durable, and what is not is undone when the file is opened next.
        self._thread = threading.Thread(target=self._run, name="execsafe-store", daemon=True)
        self._thread.start()

    async def submit(self, job: Job) -> None:
        """Have *job* done by the thread; what became of it is in the job.

        Raises:
            StoreUnavailable: the writer is stopped.
        """
        ticket = self._ticket(job)
        with self._lock:
            if self._stopped:
                raise closed()
            self._served.clear()
            self._queue.put(ticket)
        await ticket.wait(self._stand_still)

    def _ticket(self, job: Job) -> _Ticket:
        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_task():  # also tells trio from an asyncio loop that hosts it
            return _TrioTicket(job)
        import asyncio

        loop = asyncio.get_running_loop()
        host = self._hosts.get(loop)
        if host is None:
            with self._lock:
                host = self._hosts[loop] = _AsyncioHost()
        return _AsyncioTicket(job, loop, host)

    def _stand_still(self, now_s: float) -> None:
        """Let the thread have the interpreter; *now_s* is the caller's event loop's time."""
        if abs(now_s - self._stood_at_s) > _PATIENCE_S / 2:  # of many that wait, one is enough
            self._stood_at_s = now_s
            self._served.wait(_STAND_STILL_S)

    def stop(self) -> None:
        """Accept nothing more; what is queued is still done, then the file is closed."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._queue.put(None)

    async def join(self) -> None:
        """Wait until the file is closed."""
        import anyio.to_thread

        await anyio.to_thread.run_sync(self._thread.join)

    # --- in the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._engine.open()
        except StoreError as error:
            self._engine.refuse(error)
        except Exception as error:  # noqa: BLE001 - whoever opens the store must be told, whatever it was
            self._engine.refuse(StoreUnavailable(f"the store cannot be opened ({type(error).__name__})"))
        while self._serve(self._take()):
            pass
        self._engine.close()

    def _take(self) -> list[_Ticket | None]:
        taken = [self._queue.get()]
        with contextlib.suppress(queue.Empty):
            while taken[-1] is not None and len(taken) < _GROUP_MAX:
                taken.append(self._queue.get_nowait())
        return taken

    def _serve(self, taken: list[_Ticket | None]) -> bool:
        tickets = [ticket for ticket in taken if ticket is not None]
        self._engine.serve([ticket.job for ticket in tickets])
        hosts: dict[int, list[_Ticket]] = {}
        for ticket in tickets:
            hosts.setdefault(id(ticket.host), []).append(ticket)
        for waiting in hosts.values():
            with contextlib.suppress(RuntimeError):  # that event loop has ended, and its callers with it
                waiting[0].post(_wake_all, waiting)
        with self._lock:
            if self._queue.empty():
                self._served.set()
        return len(tickets) == len(taken)
