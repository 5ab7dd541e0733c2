"""The readings of one pass: side by side, within the look budget; what failed is read again, and nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias, TypeVar

import anyio

from execsafe.core.findings import ReconcilePolicy, is_not_offered
from execsafe.model.position import Snapshot, Unavailable

K = TypeVar("K")
T = TypeVar("T")

Read: TypeAlias = Callable[[], Awaitable[Snapshot[T] | Unavailable]]


class Reads:
    """Asks a venue as often, and as much at once, as the policy allows. One for all passes of a reconciler.

    It goes by the time of the event loop, which never jumps: a wall clock that is set back makes nothing wait.
    """

    def __init__(self, policy: ReconcilePolicy) -> None:
        self._policy = policy
        self._began_at = 0.0
        self._next_at = 0.0
        self._is_hurried = False

    def begin(self, *, hurried: bool) -> None:
        """A pass begins: from here on it is counted how long a view may be read again; if *hurried*, none is."""
        self._began_at = anyio.current_time()
        self._is_hurried = hurried

    def hurry(self) -> None:
        """Somebody waits for this pass to end: from here on no view is read again."""
        self._is_hurried = True

    async def all(self, wanted: Mapping[K, Read[T]]) -> dict[K, Snapshot[T] | Unavailable]:
        """Every reading by its key, in the order of *wanted*. Those that failed to the end are ``Unavailable``."""
        limiter = anyio.CapacityLimiter(self._policy.reads_at_once)
        found: dict[K, Snapshot[T] | Unavailable] = {}

        async def one(key: K, read: Read[T]) -> None:
            found[key] = await self._again_and_again(read, limiter)

        async with anyio.create_task_group() as tasks:
            for key, read in wanted.items():
                tasks.start_soon(one, key, read)
        return {key: found[key] for key in wanted}

    async def one(self, read: Read[T]) -> Snapshot[T] | Unavailable:
        """A single reading, by the same rules."""
        return (await self.all({"": read}))[""]

    async def _again_and_again(self, read: Read[T], limiter: anyio.CapacityLimiter) -> Snapshot[T] | Unavailable:
        attempt = 0
        while True:
            attempt += 1
            async with limiter:
                await self._await_turn()
                reading = await read()
            if isinstance(reading, Snapshot) or is_not_offered(reading) or self._is_hurried:
                return reading
            elapsed_ms = round((anyio.current_time() - self._began_at) * 1000)
            pause_ms = self._policy.reads.delay_ms(attempt, 0.0, elapsed_ms=elapsed_ms)
            if pause_ms is None:
                return reading
            await anyio.sleep(pause_ms / 1000)

    async def _await_turn(self) -> None:
        now = anyio.current_time()
        turn_at = max(now, self._next_at)
        self._next_at = turn_at + self._policy.read_spacing_s
        await anyio.sleep(turn_at - now)
