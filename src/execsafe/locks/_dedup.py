"""DedupLock: claims with waiting, joining and, with a store, leases."""

from __future__ import annotations

import enum
import logging
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final, TypeVar, cast

import anyio
from anyio.lowlevel import checkpoint

from execsafe.errors import InvalidInput
from execsafe.locks._claims import Claim, LocalClaims, Waiter
from execsafe.locks._keys import canonical, describe
from execsafe.locks._leases import LeaseGuard, Leases
from execsafe.locks._waiting import Outcome, Purpose
from execsafe.model.event import Event, EventType
from execsafe.model.values import check_seconds, shorten

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from types import TracebackType

    from execsafe.ports import Clock, Listener, Store

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_LEASE_TTL_S_MIN: Final = 0.01
_LEASE_TTL_S_MAX: Final = 86_400.0


class OnBusy(enum.StrEnum):
    """What a call does whose key is in flight."""

    FAIL = "fail"  # raise AlreadyInFlight at once
    WAIT = "wait"  # queue for the key, then run
    JOIN = "join"  # share the outcome of the call that runs


_PURPOSES: Final = {OnBusy.FAIL: None, OnBusy.WAIT: Purpose.OWN, OnBusy.JOIN: Purpose.SHARE}


class DedupLock(LocalClaims):
    """Exclusive claims on keys: one caller works, the others are told at once, wait, or join.

    A key is any hashable value that says what must not happen twice at the same time, best a tuple such as
    ``("exit", account, symbol)``. Unrelated keys never wait for each other. Claims end with the work: the
    same key can be claimed again right after (remembering finished work is the registry's matter).

    The synchronous half (:meth:`try_claim`, :meth:`claim`, :meth:`release`) covers this process, from any
    thread. With a *store* :meth:`hold` and :meth:`run` also hold a lease in it, which excludes every process
    and machine that uses the same store.

    Args:
        store: where leases live; None: this process only. Keys must then consist of text, int, bool, None,
            Decimal, enum members and tuples of these.
        holder: name shown to people who look at the leases; default: the host's name. It identifies nobody:
            two locks of the same name exclude each other.
        lease_ttl_s: how long after a crash others keep out, seconds. The lease is renewed at a third of it.
            30 outlives a slow request and its time-out; a shorter one hands over sooner, and loses the lease
            in shorter pauses of the process.
        clock: source of time.
        listener: is told (``call_deduplicated``) of every call that was rejected or joined.

    Raises:
        InvalidInput: *lease_ttl_s* is not between 0.01 and 86,400 seconds.
    """

    def __init__(
        self,
        *,
        store: Store | None = None,
        holder: str | None = None,
        lease_ttl_s: float = 30.0,
        clock: Clock | None = None,
        listener: Listener | None = None,
    ) -> None:
        # With a store, keys exclude each other here exactly when they do there.
        super().__init__(clock=clock, slot_of=None if store is None else canonical)
        check_seconds(lease_ttl_s, "lease_ttl_s", least=_LEASE_TTL_S_MIN, most=_LEASE_TTL_S_MAX)
        ttl_ms = math.ceil(lease_ttl_s * 1_000)
        self._leases = None if store is None else Leases(store, self._now_ms, holder, ttl_ms)
        self._listener = listener

    async def wait_free(self, key: Hashable, timeout_s: float | None = None) -> bool:
        """Return True when the current claim on *key* in this process has ended; at once if there is none.

        Somebody else may have claimed it again by then. False: it had not ended after *timeout_s* seconds.
        """
        deadline = _deadline(timeout_s)
        waiter = self._watch(key)
        if waiter is None:
            await checkpoint()
            return True
        return await self._served(waiter, deadline)

    def hold(self, key: Hashable, *, on_busy: OnBusy = OnBusy.FAIL, timeout_s: float | None = None) -> Hold:
        """``async with lock.hold(key) as claim:`` - claim *key* for the length of the block.

        Args:
            key: what to exclude others from.
            on_busy: ``FAIL`` or ``WAIT`` (first come, first served within a process; across processes
                the store is asked again and again, with growing, jittered pauses of at most a second).
            timeout_s: longest wait in seconds; None: no limit.

        Raises:
            AlreadyInFlight: on entering: the key is taken (``WAIT``: still after *timeout_s*).
            StoreError: on entering: no lease could be had; the block did not run.
            StaleFencingToken: on leaving: the lease was lost, and the block cancelled.
            InvalidInput: *on_busy* is ``JOIN`` (a block has no result to share), or the key is unusable.
        """
        if OnBusy(on_busy) is OnBusy.JOIN:
            raise InvalidInput("a block has no result to share: use run() to join")
        return Hold(self, key, on_busy, timeout_s)

    async def run(
        self,
        key: Hashable,
        fn: Callable[[], Awaitable[_T]],
        *,
        on_busy: OnBusy = OnBusy.FAIL,
        timeout_s: float | None = None,
    ) -> _T:
        """Await ``fn()`` while holding *key*, and return its result.

        With ``JOIN``, calls that come while another :meth:`run` works on the key get its result or exception.
        If that one is cancelled, the first of them runs its own ``fn`` and the others share that. Joining
        works within one process: a key that is held by another one, or by :meth:`hold`, has no result to
        share.

        Args:
            key: what to exclude others from.
            fn: the work; it is called at most once.
            on_busy: what to do if the key is in flight.
            timeout_s: longest wait in seconds, not counting ``fn``; None: no limit.

        Raises:
            AlreadyInFlight: ``fn`` was not called: the key is taken, or the wait took too long.
            StoreError: ``fn`` was not called: no lease could be had.
            StaleFencingToken: the lease was lost, and ``fn`` cancelled.
        """
        deadline = _deadline(timeout_s)
        entry = await self._obtain(key, on_busy, deadline, leaves_outcome=True)
        if isinstance(entry, Outcome):
            self._tell(key, "joined")
            result: _T = entry.unwrap()
            return result
        outcome: Outcome | None = None
        leases = self._leases
        try:
            async with nullcontext() if leases is None else self._guard(leases, entry, on_busy, deadline):
                try:
                    result = await fn()
                    outcome = Outcome(value=result)
                except Exception as error:
                    outcome = Outcome(error=error)
                    raise
            return result
        except Exception as error:
            outcome = Outcome(error=error)  # also a lease that was lost, or not to be had
            raise
        finally:
            # Without an outcome (cancelled before the end) the next one takes over.
            self._finish(entry, outcome)

    # --- Inside ------------------------------------------------------------------------------------------

    def _guard(self, leases: Leases, claim: Claim, on_busy: OnBusy, deadline: float) -> LeaseGuard:
        waits = OnBusy(on_busy) is OnBusy.WAIT
        return LeaseGuard(leases, claim, f"lock:{claim._slot}", waits=waits, deadline=deadline)

    async def _obtain(
        self, key: Hashable, on_busy: OnBusy, deadline: float, *, leaves_outcome: bool
    ) -> Claim | Outcome:
        entry = self._enter(key, _PURPOSES[OnBusy(on_busy)], leaves_outcome=leaves_outcome)
        if isinstance(entry, Claim):
            try:
                # Work without latency would otherwise be over before the next caller could see it in flight.
                await checkpoint()
            except BaseException:
                self._finish(entry, None)
                raise
            return entry
        if entry is None or not await self._served(entry, deadline):
            raise self._reject(key)
        return cast("Claim | Outcome", entry.outcome or entry.claim)

    async def _served(self, waiter: Waiter, deadline: float) -> bool:
        """Wait until *deadline* (event loop time); False: in vain."""
        try:
            with anyio.CancelScope(deadline=deadline):
                await waiter.bell.wait()
        except BaseException:
            if not self._withdraw(waiter) and waiter.claim is not None:
                self._finish(waiter.claim, None)  # rule 5
            raise
        return not self._withdraw(waiter)

    def _tell(self, key: Hashable, how: str) -> None:
        if self._listener is None:
            return
        now_ms = self._now_ms()
        event = Event(type=EventType.CALL_DEDUPLICATED, at_ms=now_ms, subject=describe(key), note=how)
        try:
            self._listener(event)
        except Exception as error:  # noqa: BLE001 - a listener's defect does not stop order flow
            _log.warning("listener failed (%s)", type(error).__name__)


class Hold:
    """A claim for the length of an ``async with`` block; see :meth:`DedupLock.hold`."""

    def __init__(self, lock: DedupLock, key: Hashable, on_busy: OnBusy, timeout_s: float | None) -> None:
        self._lock = lock
        self._key = key
        self._on_busy = on_busy
        self._timeout_s = timeout_s
        self._claim: Claim | None = None
        self._guard: LeaseGuard | None = None

    async def __aenter__(self) -> Claim:
        deadline = _deadline(self._timeout_s)
        entry = await self._lock._obtain(self._key, self._on_busy, deadline, leaves_outcome=False)
        claim = cast("Claim", entry)  # an outcome goes to those who join only
        leases = self._lock._leases
        if leases is not None:
            guard = self._lock._guard(leases, claim, self._on_busy, deadline)
            try:
                await guard.__aenter__()
            except BaseException:
                self._lock._finish(claim, None)
                raise
            self._guard = guard
        self._claim = claim
        return claim

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if self._guard is not None:
                await self._guard.__aexit__(exc_type, exc, tb)
        finally:
            # After the lease: a neighbour that is woken here must find it free.
            if self._claim is not None:
                self._claim.release()


def _deadline(timeout_s: float | None) -> float:
    if timeout_s is None:
        return math.inf
    if not timeout_s >= 0:
        raise InvalidInput(f"timeout_s must not be negative, was {shorten(timeout_s)}")
    return anyio.current_time() + timeout_s
