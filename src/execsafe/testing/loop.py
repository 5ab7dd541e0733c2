"""Virtual time: an asyncio loop that never waits, shuffles fairly, and can be killed at any step.

    anyio.run(main, backend_options={"loop_factory": lambda: SimLoop(seed)})

The same seed gives the same order of steps in every process: the order depends neither on addresses nor
on ``PYTHONHASHSEED``. Nothing here touches sockets or threads: a call into a thread runs inline.
This is the one module of execsafe that imports asyncio outside the HTTP face; :func:`run_simulated_trio`
gives the same code a second, independent scheduler.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import inspect
import math
import random
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Final, TypeVar

import anyio
from typing_extensions import TypeVarTuple, Unpack

from execsafe.testing.clock import note_start

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# How many killed runs keep their frozen coroutines: closing one runs its ``finally`` blocks, which a killed
# process never does, so they are closed only when nobody can still be looking at their world.
_BURIED_MAX: Final = 64
_CLOSE_TRIES_MAX: Final = 100
_buried: deque[list[asyncio.Task[Any]]] = deque()


class SimDeadlock(RuntimeError):
    """Nothing is ready and no timer is set: every task waits for something that cannot happen."""


class ProcessKilled(BaseException):
    """The simulated process died (as by kill -9): no ``finally`` block and no handler has run."""


class SimTask(asyncio.Task[Any]):
    """A task that knows its number in the order of creation, so that a batch can be ordered by it."""

    number: int = 0


def _task_number(handle: asyncio.Handle) -> int:
    owner = getattr(getattr(handle, "_callback", None), "__self__", None)
    return owner.number if isinstance(owner, SimTask) else 0


class SimLoop(asyncio.BaseEventLoop):
    """Event loop in virtual time. Ready callbacks of one instant run in an order drawn from *seed*.

    ``steps`` counts callbacks run; ``main_steps`` stays at how many it took until the first task had ended.

    Args:
        seed: of the shuffle; None keeps asyncio's first-in-first-out order.
        on_step: called before each step with its number (from 1). Whatever it raises leaves the loop; raise
            :class:`ProcessKilled` through :meth:`kill` for a death without clean-up.
    """

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _stopping: bool
    _timer_cancelled_count: int

    def __init__(self, seed: int | None = 0, *, on_step: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self._now_s = 0.0
        self._random = None if seed is None else random.Random(seed)
        self._on_step = on_step
        self._tasks_made = 0
        self._killed = False
        self._crc = 0
        self.steps: int = 0
        self.main_steps: int = 0
        self.main_task: asyncio.Task[Any] | None = None
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    @property
    def fingerprint(self) -> str:
        """Digest of which task ran when; equal for equal seeds."""
        return f"{self.steps}-{self._crc:08x}"

    def kill(self) -> None:
        """Die now. Call it from *on_step*.

        Raises:
            ProcessKilled: always; no task gets another step, not even to clean up.
        """
        self._killed = True
        tasks = list(asyncio.all_tasks(self))
        for task in tasks:
            # Unknown to asyncio, they are neither cancelled at shutdown nor reported as destroyed.
            asyncio.tasks._unregister_task(task)
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        _buried.append(tasks)
        raise ProcessKilled(f"killed before step {self.steps}")

    def run_until_complete(self, future: Any) -> Any:
        """As asyncio's; a killed loop runs nothing any more."""
        if not self._killed:
            return super().run_until_complete(future)
        if asyncio.iscoroutine(future):
            future.close()
        return None

    def run_in_executor(
        self, _executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run *func* at once, in this thread: threads would make the order depend on the machine."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it is the caller's, whatever it is
            future.set_exception(error)
        return future

    def _make_task(self, loop: Any, coro: Coroutine[Any, Any, Any], **kwargs: Any) -> asyncio.Task[Any]:
        task = SimTask(coro, loop=loop, **kwargs)
        self._tasks_made += 1
        task.number = self._tasks_made
        if self.main_task is None:
            self.main_task = task
        return task

    def _write_to_self(self) -> None:
        """A wake-up is not needed: the loop never sleeps."""

    def _process_events(self, event_list: object) -> None:
        """There are no I/O events."""

    def _run_once(self) -> None:
        self._advance()
        batch = [handle for handle in self._ready if not handle.cancelled()]
        self._ready.clear()
        if self._random is not None:
            # Sorted first: the order in which a set of tasks was cancelled depends on addresses.
            batch.sort(key=_task_number)
            self._random.shuffle(batch)
        pending = deque(batch)
        try:
            while pending:
                handle = pending.popleft()
                if not handle.cancelled():
                    self._step(handle)
        finally:
            self._ready.extendleft(reversed(pending))

    def _advance(self) -> None:
        """Move what is due to the ready queue, jumping in time when nothing else is to be done."""
        timers = self._scheduled
        while timers and timers[0].cancelled():
            self._timer_cancelled_count -= 1
            self._unschedule()
        if not self._ready and not self._stopping:
            if not timers or timers[0].when() == math.inf:
                raise SimDeadlock(
                    f"deadlock at step {self.steps}: nothing is ready and no timer is set"
                    " (work in a thread cannot be waited for in virtual time)"
                )
            self._now_s = max(self._now_s, timers[0].when())
        while timers and timers[0].when() <= self._now_s:
            self._ready.append(self._unschedule())

    def _unschedule(self) -> asyncio.TimerHandle:
        handle = heapq.heappop(self._scheduled)
        handle._scheduled = False  # type: ignore[attr-defined]
        return handle

    def _step(self, handle: asyncio.Handle) -> None:
        self.steps += 1
        self._crc = zlib.crc32(b"%d %.9f" % (_task_number(handle), self._now_s), self._crc)
        if self._on_step is not None:
            self._on_step(self.steps)
        handle._run()
        if not self.main_steps and self.main_task is not None and self.main_task.done():
            self.main_steps = self.steps


def run_simulated(
    fn: Callable[[Unpack[Ts]], Awaitable[T]],
    *args: *Ts,
    seed: int | None = 0,
    crash_at: int | None = None,
    cancel_at: int | None = None,
    on_step: Callable[[int], None] | None = None,
    on_loop: Callable[[SimLoop], None] | None = None,
) -> T:
    """Run ``fn(*args)`` on asyncio in virtual time.

    Args:
        fn: the coroutine function to run.
        *args: its arguments.
        seed: of the order of steps.
        crash_at: kill the process before that step (from 1).
        cancel_at: cancel the main task before that step.
        on_step: called before every step.
        on_loop: is given the loop before it runs, e.g. to read ``steps`` afterwards.

    Raises:
        ProcessKilled: the run reached *crash_at*.
        SimDeadlock: every task waits for something that cannot happen.
        asyncio.CancelledError: *cancel_at* ended the run.
    """
    _rebury()
    made: list[SimLoop] = []

    def step(number: int) -> None:
        if number == crash_at:
            made[0].kill()
        if number == cancel_at and made[0].main_task is not None:
            made[0].main_task.cancel()
        if on_step is not None:
            on_step(number)

    def factory() -> SimLoop:
        made.append(SimLoop(seed, on_step=step))
        if on_loop is not None:
            on_loop(made[0])
        return made[0]

    return anyio.run(_begin, fn, args, backend="asyncio", backend_options={"loop_factory": factory})


def count_steps(fn: Callable[[Unpack[Ts]], Awaitable[object]], *args: *Ts, seed: int | None = 0) -> int:
    """How many steps ``fn(*args)`` takes undisturbed: the range of *crash_at* for an exhaustive test."""
    loops: list[SimLoop] = []
    run_simulated(fn, *args, seed=seed, on_loop=loops.append)
    return loops[0].main_steps


def run_simulated_trio(fn: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts, seed: int = 0) -> T:
    """Run ``fn(*args)`` on trio in virtual time, the order of tasks drawn from *seed*.

    A deadlock is not detected here. Needs trio.
    """
    import trio.testing
    from trio._core import _run as scheduler  # trio has no public way to seed its scheduler

    state = scheduler._r.getstate()
    allowed = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._r.seed(seed)
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    try:
        clock = trio.testing.MockClock(autojump_threshold=0)
        return anyio.run(_begin, fn, args, backend="trio", backend_options={"clock": clock})
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # type: ignore[misc]
        scheduler._r.setstate(state)


def virtual_backends(seed: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Both backends in virtual time, as values for the ``anyio_backend`` fixture of anyio's pytest plugin.

    Make new ones for each module: a trio clock serves one run. Needs trio.
    """
    import trio.testing

    return [
        ("asyncio", {"loop_factory": functools.partial(SimLoop, seed)}),
        ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}),
    ]


async def _begin(fn: Callable[[*Ts], Awaitable[T]], args: tuple[*Ts]) -> T:
    note_start()
    return await fn(*args)


def _rebury() -> None:
    """Close the coroutines of runs killed long ago, where their clean-up can disturb nobody."""
    while len(_buried) > _BURIED_MAX:
        for task in _buried.popleft():
            _close(task.get_coro())


def _close(coroutine: Any) -> None:
    if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
        # anyio wraps a task's coroutine, directly or in a handle; the inner one would complain of not being awaited.
        for value in coroutine.cr_frame.f_locals.values():
            inner = getattr(value, "_coro", value)
            if inspect.iscoroutine(inner):
                inner.close()
    for _ in range(_CLOSE_TRIES_MAX):
        # A ``finally`` block that awaits refuses to close; each try gets it one await further.
        with contextlib.suppress(BaseException):
            coroutine.close()
            break
