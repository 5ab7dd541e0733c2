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
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from execsafe.errors import StoreError, StoreUnavailable
from execsafe.stores._sqlite_engine import Engine, Job, closed

if TYPE_CHECKING:
    import asyncio

    import trio

# Bounds how long one transaction makes its first caller wait.
_GROUP_MAX: Final = 512
# A flush takes less as a rule, and then nobody has to stand still.
_PATIENCE_S: Final = 0.005
_PATIENCE_S_MAX: Final = 0.02
# Bounds what a disk that hangs can take from an event loop: a tenth of its time, and a little more at first.
_STAND_STILL_S: Final = 0.002


class _Host(Protocol):
    """What the waiting tasks of one event loop share; used by that loop's thread only, but for :meth:`post`."""

    def prepare(self) -> Any:
        """Something that one task can wait for."""

    async def wait(self, waiter: Any, stand_still: Callable[[float], object]) -> None:
        """Wait until it is posted, calling *stand_still* now and then if that takes long."""

    def post(self, waiters: list[Any]) -> None:
        """Wake the tasks that wait, from any thread."""


class _AsyncioHost:
    """One timer for all, as one for each would cost more than all the rest."""

    def __init__(self) -> None:
        self._waiting = 0
        self._is_served = False
        self._timer: asyncio.TimerHandle | None = None

    def prepare(self) -> asyncio.Future[None]:
        import asyncio

        return asyncio.get_running_loop().create_future()

    async def wait(self, waiter: asyncio.Future[None], stand_still: Callable[[float], object]) -> None:
        self._waiting += 1
        if self._timer is None:
            self._arm(waiter.get_loop(), stand_still, _PATIENCE_S)
        try:
            await waiter
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

    def post(self, waiters: list[asyncio.Future[None]]) -> None:
        waiters[0].get_loop().call_soon_threadsafe(_resolve, waiters)


def _resolve(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():  # cancelled meanwhile
            waiter.set_result(None)


class _TrioHost:
    """A deadline for each: trio has no cheaper timer."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = weakref.ref(token)

    def prepare(self) -> trio.Event:
        import trio

        return trio.Event()

    async def wait(self, waiter: trio.Event, stand_still: Callable[[float], object]) -> None:
        import trio

        patience_s = _PATIENCE_S
        while not waiter.is_set():
            with trio.move_on_after(patience_s):
                await waiter.wait()
                return
            stand_still(trio.current_time())
            patience_s = min(2 * patience_s, _PATIENCE_S_MAX)

    def post(self, waiters: list[trio.Event]) -> None:
        if (token := self._token()) is not None:
            token.run_sync_soon(_set_all, waiters)


def _set_all(waiters: list[trio.Event]) -> None:
    for waiter in waiters:
        waiter.set()


class Writer:
    """Owns the thread; one per open store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: queue.SimpleQueue[tuple[Job, _Host, Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stopped = False
        self._stood_at_s = -math.inf
        self._served = threading.Event()
        self._hosts: weakref.WeakKeyDictionary[object, _Host] = weakref.WeakKeyDictionary()
        self._latest: tuple[Callable[[], object], _Host] | None = None
        # A daemon: a program that forgets to close its store must still be able to end. What is committed is
        # durable, and what is not is undone when the file is opened next.
        self._thread = threading.Thread(target=self._run, name="execsafe-store", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Awaitable[None]:
        """Have *job* done by the thread; once that is awaited, what became of it is in the job.

        Raises:
            StoreUnavailable: the writer is stopped.
        """
        host = self._host()
        waiter = host.prepare()
        with self._lock:
            if self._stopped:
                raise closed()
            self._served.clear()
            self._queue.put((job, host, waiter))
        return host.wait(waiter, self._stand_still)

    def _host(self) -> _Host:
        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_task():  # also tells trio from an asyncio loop that hosts it
            loop = trio.lowlevel.current_trio_token()
            return self._host_of(loop, lambda: _TrioHost(loop))
        import asyncio

        return self._host_of(asyncio.get_running_loop(), _AsyncioHost)

    def _host_of(self, loop: object, make: Callable[[], _Host]) -> _Host:
        if (latest := self._latest) is not None and latest[0]() is loop:  # mostly: a weak dictionary is slow
            return latest[1]
        with self._lock:
            host = self._hosts.get(loop)
            if host is None:
                host = self._hosts[loop] = make()
            self._latest = weakref.ref(loop), host
        return host

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

    def _take(self) -> list[tuple[Job, _Host, Any] | None]:
        taken = [self._queue.get()]
        with contextlib.suppress(queue.Empty):
            while taken[-1] is not None and len(taken) < _GROUP_MAX:
                taken.append(self._queue.get_nowait())
        return taken

    def _serve(self, taken: list[tuple[Job, _Host, Any] | None]) -> bool:
        entries = [entry for entry in taken if entry is not None]
        self._engine.serve([job for job, _, _ in entries])
        hosts: dict[_Host, list[Any]] = {}
        for _, host, waiter in entries:
            hosts.setdefault(host, []).append(waiter)
        for host, waiters in hosts.items():
            with contextlib.suppress(RuntimeError):  # that event loop has ended, and its callers with it
                host.post(waiters)
        with self._lock:
            if self._queue.empty():
                self._served.set()
        return len(entries) == len(taken)
