"""The asynchronous half of a store with one thread: hand work to one thread, and wake whoever waits for it.

The thread takes everything that has queued up since its last transaction: under load one flush of the disk serves
many callers. They may live in several event loops, asyncio and trio; each loop is woken once per transaction. A
caller that is cancelled while it waits has its work done all the same.

An event loop that is busy all the time, but in short pieces, can keep the thread from the interpreter's lock for
seconds: each short release wakes the thread too late, and starts its patience anew. So where somebody has waited for
some milliseconds, and the event loop was busy meanwhile, it stands still for a moment and lets the thread work.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from execsafe.errors import StoreError, StoreUnavailable
from execsafe.stores._jobs import Job, closed

if TYPE_CHECKING:
    import trio

# Bounds how long one transaction makes its first caller wait.
_GROUP_MAX: Final = 512
# A flush takes less as a rule, and then nobody has to stand still. Doubled each time that was of no use.
_PATIENCE_S: Final = 0.002
_PATIENCE_S_MAX: Final = 0.02
# Bounds what a disk that hangs can take from a busy event loop: a tenth of its time, and a little more at first.
_STAND_STILL_S: Final = 0.002
# An event loop that computes for less of its time leaves the thread enough. (One that is kept from computing by other
# processes is busy as well, so that this is no more than a quarter.)
_BUSY: Final = 0.25


class Engine(Protocol):
    """What the thread works with; nobody else does, so it need not be thread-safe."""

    def open(self) -> None:
        """Make ready; raises StoreError."""

    def serve(self, jobs: Sequence[Job]) -> None:
        """Do them. Whatever goes wrong is in the jobs afterwards."""

    def refuse(self, error: StoreError) -> None:
        """Answer every job with *error* until the next :meth:`open` succeeds."""

    def close(self) -> None:
        """Let go of everything; idempotent."""


class _Host(Protocol):
    """What the waiting tasks of one event loop share; used by that loop's thread only, but for :meth:`post`."""

    def prepare(self, loop: Any) -> Any:
        """Something that one task of *loop*, this event loop, can wait for."""

    def wait(self, waiter: Any, writer: Writer) -> Awaitable[None]:
        """Done once it is posted; now and then it has the event loop stand still, if that takes long."""

    def post(self, waiters: list[Any]) -> None:
        """Wake the tasks that wait, from any thread."""


class _AsyncioHost:
    """One timer for all, as one for each would cost more than all the rest."""

    def __init__(self, _loop: object) -> None:
        self._waited_for = 0  # what is not served yet, whether or not its caller still waits
        self._is_served = False
        self._timer: asyncio.TimerHandle | None = None

    def prepare(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        return loop.create_future()

    def wait(self, waiter: asyncio.Future[None], writer: Writer) -> asyncio.Future[None]:
        self._waited_for += 1
        if self._timer is None:
            self._arm(waiter.get_loop(), writer)
        return waiter

    def _arm(self, loop: asyncio.AbstractEventLoop, writer: Writer) -> None:
        self._is_served = False
        since = loop.time(), time.thread_time()
        self._timer = loop.call_later(writer.patience_s, self._help, loop, writer, since)

    def _help(self, loop: asyncio.AbstractEventLoop, writer: Writer, since: tuple[float, float]) -> None:
        if not self._is_served and _was_busy(since, loop.time()):  # otherwise the thread gets its turns
            writer.stand_still(loop.time())
        self._arm(loop, writer)

    def post(self, waiters: list[asyncio.Future[None]]) -> None:
        waiters[0].get_loop().call_soon_threadsafe(self._resolve, waiters)

    def _resolve(self, waiters: list[asyncio.Future[None]]) -> None:
        self._is_served = True
        self._waited_for -= len(waiters)
        if not self._waited_for and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter in waiters:
            if not waiter.done():  # cancelled meanwhile
                waiter.set_result(None)


class _TrioHost:
    """A deadline for each: trio has no cheaper timer."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = weakref.ref(token)

    def prepare(self, loop: trio.lowlevel.TrioToken) -> trio.Event:  # noqa: ARG002
        import trio

        return trio.Event()

    async def wait(self, waiter: trio.Event, writer: Writer) -> None:
        import trio

        while not waiter.is_set():
            since = trio.current_time(), time.thread_time()
            with trio.move_on_after(writer.patience_s):
                await waiter.wait()
                return
            if _was_busy(since, now_s := trio.current_time()):
                writer.stand_still(now_s)

    def post(self, waiters: list[trio.Event]) -> None:
        if (token := self._token()) is not None:
            token.run_sync_soon(_set_all, waiters)


def _set_all(waiters: list[trio.Event]) -> None:
    for waiter in waiters:
        waiter.set()


def _was_busy(since: tuple[float, float], now_s: float) -> bool:
    """Whether this thread has computed since then (by the event loop's time, and its own), as good as all the time."""
    began_s, computed_s = since
    return time.thread_time() - computed_s > _BUSY * (now_s - began_s)


class Writer:
    """One thread around an engine. Start it, submit jobs, stop it; it ends once all that was queued is done."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # It may be entered again by the one thread that has it: garbage is collected at any time, a forgotten store
        # is garbage, and stops its writer.
        self._lock = threading.RLock()
        self._queue: list[Job] = []
        self._is_stopped = False
        # The thread waits for the bell, which is a lock, when all is done. Whoever then queues something rings it.
        self._bell = threading.Lock()
        self._bell.acquire()
        self._is_asleep = False
        self._stander: threading.Event | None = None
        self._stood_at_s = -math.inf
        self.patience_s = _PATIENCE_S
        self._hosts: weakref.WeakKeyDictionary[object, _Host] = weakref.WeakKeyDictionary()
        self._latest: tuple[weakref.ref[object], _Host] | None = None
        # A daemon: what it has acknowledged is durable, and what is not is undone when the file is opened next.
        self._thread = threading.Thread(target=self._run, name="execsafe-store", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Awaitable[None]:
        """Have *job* done by the thread; once that is awaited, what became of it is in the job.

        Raises:
            StoreUnavailable: the writer is stopped.
        """
        trio = sys.modules.get("trio")
        loop: Any
        make: Callable[[Any], _Host]
        if trio is not None and trio.lowlevel.in_trio_task():  # also tells trio from an asyncio loop that hosts it
            loop, make = trio.lowlevel.current_trio_token(), _TrioHost
        else:
            loop, make = asyncio.get_running_loop(), _AsyncioHost
        latest = self._latest  # mostly the one: a weak dictionary is slow
        host = job.host = latest[1] if latest is not None and latest[0]() is loop else self._host_of(loop, make)
        waiter = job.waiter = host.prepare(loop)
        with self._lock:
            if self._is_stopped:
                raise closed()
            self._queue.append(job)
            is_asleep, self._is_asleep = self._is_asleep, False
        if is_asleep:
            self._bell.release()
        return host.wait(waiter, self)

    def _host_of(self, loop: Any, make: Callable[[Any], _Host]) -> _Host:
        with self._lock:
            host = self._hosts.get(loop)
            if host is None:
                host = self._hosts[loop] = make(loop)
            self._latest = weakref.ref(loop), host
        return host

    def stand_still(self, now_s: float) -> None:
        """Let the thread have the interpreter for a moment; *now_s* is the caller's event loop's time."""
        if abs(now_s - self._stood_at_s) <= _PATIENCE_S / 2:  # of many that wait, one is enough
            return
        self._stood_at_s = now_s
        with self._lock:
            if self._is_asleep:  # all is done, and the event loop is about to be told
                return
            stander = self._stander = threading.Event()
        is_done = stander.wait(_STAND_STILL_S)
        self.patience_s = _PATIENCE_S if is_done else min(2 * self.patience_s, _PATIENCE_S_MAX)

    def stop(self) -> None:
        """Accept nothing more; what is queued is still done, then the file is closed."""
        with self._lock:
            self._is_stopped = True
            is_asleep, self._is_asleep = self._is_asleep, False
        if is_asleep:
            self._bell.release()

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
        while self._serve(self._take()):  # keeping nothing of the last group while it waits for the next
            pass
        self._engine.close()

    def _take(self) -> list[Job]:
        """What is queued, waiting for it; nothing once the writer is stopped and all is done."""
        while True:
            with self._lock:
                if self._queue:
                    jobs, self._queue = self._queue[:_GROUP_MAX], self._queue[_GROUP_MAX:]
                    return jobs
                if self._stander is not None:  # nothing is left to be let through
                    self._stander.set()
                    self._stander = None
                self._is_asleep = True  # before the question, which the answer may follow at any time
                if self._is_stopped:
                    return []
            self._bell.acquire()

    def _serve(self, jobs: Sequence[Job]) -> bool:
        self._engine.serve(jobs)
        for host in {job.host: None for job in jobs}:
            with contextlib.suppress(RuntimeError):  # that event loop has ended, and its callers with it
                host.post([job.waiter for job in jobs if job.host is host])
        return bool(jobs)
