"""The part of the lock that reaches across processes: a lease in the store, kept alive while it is used."""

from __future__ import annotations

import itertools
import logging
import os
import random
import socket
from typing import TYPE_CHECKING, Final

import anyio

from execsafe.buses.surviving import Trouble
from execsafe.core.backoff import Backoff
from execsafe.errors import LeaseHeld, StaleFencingToken, StoreUnavailable
from execsafe.ports import Batch, Lease, LeaseRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from anyio.abc import TaskGroup

    from execsafe.locks._claims import Claim
    from execsafe.ports import Store

_log = logging.getLogger(__name__)

# As parts of the lease's life: renewed after a third; an attempt that does not answer is given up after a
# tenth and repeated after a thirtieth, so that four more are made before the end.
_RENEW: Final = 1 / 3
_ANSWER: Final = 1 / 10
_AGAIN: Final = 1 / 30


class Leases:
    """Leases of one store under one holder name.

    Each acquisition gets a holder id of its own (name, process, nonce, number): neither another lock with the
    same name, nor this one after a restart or a fork, takes the lease of a predecessor for its own.
    """

    def __init__(self, store: Store, now_ms: Callable[[], int], holder: str | None, ttl_ms: int) -> None:
        self.store = store
        self.now_ms = now_ms
        self.ttl_ms = ttl_ms
        self.renew_ms: float = ttl_ms * _RENEW
        self.answer_ms: float = ttl_ms * _ANSWER
        self._holder = f"{holder or socket.gethostname()}#{os.urandom(6).hex()}"
        self._numbers = itertools.count(1)
        self._random = random.Random(self._holder)  # noqa: S311 - spreads polls, guards nothing
        self._trouble = Trouble()
        self._poll = Backoff(base_s=0.05, cap_s=min(1.0, ttl_ms / 3_000), max_attempts=None)

    async def acquire(self, name: str, *, waits: bool, deadline: float) -> Lease:
        """The lease, at once or, if *waits*, until *deadline* (event loop time).

        Raises:
            LeaseHeld: another holder has it (still).
            StoreError: the store did not say yes in time; it may have, then the lease lapses unused.
        """
        request = LeaseRequest(
            name=name, holder=f"{self._holder}.{os.getpid()}.{next(self._numbers)}", ttl_ms=self.ttl_ms
        )
        for attempt in itertools.count(1):
            try:
                return await self._ask(request)
            except LeaseHeld as held:
                if not waits or anyio.current_time() >= deadline:
                    raise
                pause_s = self._pause_s(attempt, held)
            await anyio.sleep(min(pause_s, max(0.0, deadline - anyio.current_time())))
        raise AssertionError  # the loop above does not end

    async def _ask(self, request: LeaseRequest) -> Lease:
        answer: list[Lease | None] = []
        try:
            # Bounded: after its own life time a lease is worth nothing.
            await self._see_through(Batch(now_ms=self.now_ms(), acquire=request), self.ttl_ms, answer)
        except BaseException:
            for granted in filter(None, answer):  # but nobody is there any more who wants it
                await self.release(granted)
            raise
        lease = answer[0] if answer else None
        if lease is None or self.now_ms() >= lease.expires_at_ms:
            raise StoreUnavailable(f"no lease {request.name} from the store in time", lease=request.name)
        return lease

    async def _see_through(self, batch: Batch, limit_ms: float, answer: list[Lease | None]) -> None:
        """Commit, wait at most *limit_ms* for the answer and note it, whatever is cancelled meanwhile."""
        errors: list[Exception] = []

        async def commit() -> None:
            with anyio.move_on_after(limit_ms / 1_000, shield=True):
                try:
                    answer.append(await self.store.commit(batch))
                except Exception as error:  # noqa: BLE001 - raised below, without the group around it
                    errors.append(error)

        # In a task of its own, because no shield holds off asyncio's own Task.cancel().
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(commit)
        if errors:
            raise errors[0]

    def _pause_s(self, attempt: int, held: LeaseHeld) -> float:
        pause_ms = self._poll.delay_ms(attempt, self._random.random()) or 0
        expires_at_ms = held.context.get("expires_at_ms")
        if isinstance(expires_at_ms, int):
            pause_ms = min(pause_ms, max(1, expires_at_ms - self.now_ms()))
        return max(1, pause_ms) / 1_000

    async def renew(self, lease: Lease) -> Lease | None:
        """The lease with a later end; None: refused, it is lost. Other errors propagate."""
        now_ms = self.now_ms()
        request = LeaseRequest(name=lease.name, holder=lease.holder, ttl_ms=self.ttl_ms)
        try:
            # With the fence: a lease that lapsed and passed through other hands is not simply taken anew.
            return await self.store.commit(Batch(now_ms=now_ms, fence=lease, acquire=request))
        except (StaleFencingToken, LeaseHeld):
            return None

    async def try_renew(self, lease: Lease, within_ms: float) -> tuple[Lease | None, float]:
        """One attempt to renew that ends in time; never raises.

        Returns:
            The lease as it is now, None if it is lost; and after how many milliseconds to try again.
        """
        with anyio.move_on_after(within_ms / 1_000) as scope:
            try:
                renewed = await self.renew(lease)
            except Exception as error:  # noqa: BLE001 - whatever ails the store: try again until the end
                self._tell_failure(type(error).__name__)
            else:
                self._tell_answer(renewed)
                return renewed, self.renew_ms
        if scope.cancelled_caught:
            self._tell_failure("no answer in time")
        return lease, self.ttl_ms * _AGAIN

    def _tell_failure(self, why: str) -> None:
        now_s = anyio.current_time()
        self._trouble.failed(now_s)
        if self._trouble.is_news(why, now_s):
            _log.warning("lease not renewed (%s)%s", why, self._trouble.so_far(now_s))

    def _tell_answer(self, renewed: Lease | None) -> None:
        length = self._trouble.ended(anyio.current_time())
        if length and renewed is not None:
            _log.info("lease renewed again after %s", length)

    async def release(self, lease: Lease) -> None:
        """Give the lease back, whatever is being cancelled. If that fails it lapses by itself."""
        answer: list[Lease | None] = []
        try:
            batch = Batch(now_ms=self.now_ms(), release=lease)
            await self._see_through(batch, self.answer_ms, answer)
        except Exception as error:  # noqa: BLE001 - the work is done: its result matters more than this
            _log.warning("lease not released (%s); it lapses by itself", type(error).__name__)
        else:
            if not answer:
                _log.warning("lease not released in time; it lapses by itself")


class LeaseGuard:
    """Holds a claim's lease for the length of an ``async with`` block and cancels the block if it is lost."""

    def __init__(self, leases: Leases, claim: Claim, name: str, *, waits: bool, deadline: float) -> None:
        self._leases = leases
        self._claim = claim
        self._name = name
        self._waits = waits
        self._deadline = deadline
        self._tasks: TaskGroup

    async def __aenter__(self) -> None:
        try:
            lease = await self._leases.acquire(self._name, waits=self._waits, deadline=self._deadline)
        except LeaseHeld as held:
            raise self._claim._claims._reject(self._claim.key) from held
        self._claim.lease = lease
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()  # suspends nowhere: nothing can come between lease and block
        self._tasks.start_soon(self._keep, lease)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        is_cancelled = _is_cancelled(exc)
        try:
            if is_cancelled:
                await self._tasks.__aexit__(exc_type, exc, tb)
            else:
                # The block's own error bypasses the task group, which would wrap it.
                self._tasks.cancel_scope.cancel()
                await self._tasks.__aexit__(None, None, None)
        finally:
            if self._claim.lease is not None:
                await self._leases.release(self._claim.lease)
        if self._claim._is_lost and (exc is None or is_cancelled):
            raise StaleFencingToken(f"the lease {self._name} was lost while in use", lease=self._name)

    async def _keep(self, lease: Lease) -> None:
        """Renew the lease for as long as it can be renewed; then cancel the block. Never raises."""
        now_ms, pause_ms = self._leases.now_ms, self._leases.renew_ms
        while (left_ms := lease.expires_at_ms - now_ms()) > 0:
            await anyio.sleep(min(pause_ms, left_ms) / 1_000)
            within_ms = min(self._leases.answer_ms, max(0, lease.expires_at_ms - now_ms()))
            renewed, pause_ms = await self._leases.try_renew(lease, within_ms)
            if renewed is None:
                break
            lease = self._claim.lease = renewed
        self._claim._is_lost = True
        self._tasks.cancel_scope.cancel()


def _is_cancelled(exc: BaseException | None) -> bool:
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(exc, BaseExceptionGroup):
        return exc.subgroup(cancelled) is not None
    return isinstance(exc, cancelled)
