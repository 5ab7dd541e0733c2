"""The part of the lock that works within one process: synchronous, thread-safe, never waiting.

Rules, all under one short critical section per call:

1. A key has at most one claim. A claim belongs to whoever holds the object, not to a task or a thread.
2. Only the current claim of a key can be released; releasing an older one changes nothing.
3. When a claim ends, all who watch it are woken. If it left an outcome, all who came to share it get that.
4. Otherwise the key passes on *within the same step* to exactly one heir: the first of those who came to
   share (their leader gave up), else the first of those who queue for the key. It is never free in between,
   so that no newcomer overtakes.
5. A waiter that leaves (cancelled, timed out) and had been made heir meanwhile passes the key on by rule 4.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import attrs

from execsafe._mutex import let_go
from execsafe.clock import SystemClock, Ticks
from execsafe.errors import AlreadyInFlight, InvalidInput
from execsafe.locks._keys import describe
from execsafe.locks._waiting import Doorbell, Outcome, Purpose
from execsafe.model.values import shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType

    from execsafe.ports import Clock, Lease


@attrs.frozen(kw_only=True)
class LockStatistics:
    """What a lock did since it was made, and how it stands.

    Attributes:
        claimed: claims granted so far.
        rejected: calls told that the key is in flight, so far.
        joined: calls that shared another call's outcome, so far.
        in_flight: keys claimed now.
        waiting: calls waiting now.
        oldest_age_ms: age of the oldest claim now in milliseconds; None without any. One that only grows
            belongs to a caller that hangs.
    """

    claimed: int
    rejected: int
    joined: int
    in_flight: int
    waiting: int
    oldest_age_ms: int | None


class Claim:
    """Exclusive right to work on a key until released; also a context manager that releases itself.

    Attributes:
        key: what was claimed.
        lease: the store's lease, usable as ``Batch.fence``; None for a claim within this process.
    """

    # Most claims never see any of this: what is not set on the object costs nothing.
    lease: Lease | None = None
    _is_lost = False
    _waiters: _Waiters | None = None  # made when the first one comes

    def __init__(
        self, claims: LocalClaims, slot: Hashable, key: Hashable, claimed_at: int, leaves_outcome: bool
    ) -> None:
        self.key = key
        self._claims = claims
        self._slot = slot
        self._claimed_at = claimed_at  # in ticks
        self._leaves_outcome = leaves_outcome
        claims._claimed = self._serial = claims._claimed + 1  # under the mutex of the caller

    @property
    def claimed_at_ms(self) -> int:
        """Since when, in Unix milliseconds."""
        return self._claims._ticks.to_ms(self._claimed_at)

    @property
    def token(self) -> int:
        """The store's fencing token; without a lease a number that grows with every claim of this lock."""
        return self._serial if self.lease is None else self.lease.token

    def is_valid(self, now_ms: int) -> bool:
        """Whether the work may go on at *now_ms* (Unix ms): not released, the lease neither lost nor over."""
        if self._is_lost or not self._claims.is_current(self):
            return False
        return self.lease is None or now_ms < self.lease.expires_at_ms

    def release(self) -> bool:
        """Give the key back; False if this claim had ended before."""
        return self._claims.release(self)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._claims.release(self)

    def __repr__(self) -> str:
        return f"<Claim {shorten(self.key)} token={self.token} since {self.claimed_at_ms} ms>"


@attrs.define(eq=False)
class _Waiters:
    """Who waits for one key, in order of arrival (the dicts are ordered sets, so that leaving is O(1))."""

    watching: dict[Waiter, None] = attrs.Factory(dict)
    sharing: dict[Waiter, None] = attrs.Factory(dict)
    queueing: dict[Waiter, None] = attrs.Factory(dict)

    def by_purpose(self, purpose: Purpose) -> dict[Waiter, None]:
        if purpose is Purpose.WATCH:
            return self.watching
        return self.sharing if purpose is Purpose.SHARE else self.queueing


@attrs.define(eq=False, kw_only=True)
class Waiter:
    """One waiting call; ``claim`` is set if it became heir, ``outcome`` if it got one to share."""

    home: dict[Waiter, None]  # where it stands in line; served or gone once it is no longer in there
    leaves_outcome: bool  # whether, as heir, it will leave an outcome for others
    bell: Doorbell = attrs.Factory(Doorbell)
    claim: Claim | None = None
    outcome: Outcome | None = None


def _take_first(waiters: dict[Waiter, None] | None) -> Waiter | None:
    if not waiters:
        return None
    waiter = next(iter(waiters))
    del waiters[waiter]
    return waiter


def _unhashable(key: object) -> InvalidInput:
    return InvalidInput(f"a key must be hashable, was {shorten(key)}")


class LocalClaims:
    """Claims of one process; the synchronous face of :class:`~execsafe.locks.DedupLock`."""

    def __init__(self, *, clock: Clock | None, slot_of: Callable[[Hashable], Hashable] | None) -> None:
        clock = SystemClock() if clock is None else clock
        self._now_ms = clock.now_ms
        self._ticks = Ticks.of(clock)
        self._read = self._ticks.read
        self._slot_of = slot_of  # under what a key is filed, if not itself: equal slots exclude each other
        # Re-entrant, because the garbage collector may close an abandoned waiting coroutine inside of it.
        self._mutex = threading.RLock()
        self._acquire, self._release = self._mutex.acquire, self._mutex.release  # see execsafe._mutex
        self._by_slot: dict[Hashable, Claim] = {}
        self._claimed = self._rejected = self._joined = self._waiting = 0

    # --- For callers ---------------------------------------------------------------------------------

    def try_claim(self, key: Hashable) -> Claim | None:
        """Claim *key* if nobody has it; None if somebody does, be it the same task or thread.

        Raises:
            InvalidInput: *key* is not hashable.
        """
        slot = key if self._slot_of is None else self._slot_of(key)
        claimed_at = self._read()
        claim = None
        try:
            self._acquire()
            if slot not in self._by_slot:
                claim = self._by_slot[slot] = Claim(self, slot, key, claimed_at, False)
        except TypeError:
            let_go(self._mutex)
            raise _unhashable(key) from None
        except BaseException:
            let_go(self._mutex)
            raise
        self._release()
        if claim is None:
            self._count_rejected(key)
        return claim

    def claim(self, key: Hashable) -> Claim:
        """Claim *key*, for use in a ``with`` statement.

        Raises:
            AlreadyInFlight: somebody has it; ``context["key"]`` says which.
            InvalidInput: *key* is not hashable.
        """
        entry = self._enter(key, None, False)
        if isinstance(entry, Claim):
            return entry
        raise self._reject(key)

    def release(self, claim: Claim) -> bool:
        """Give a claim back. False, and nothing happens, if it is not the key's current one (any more)."""
        slot = claim._slot
        is_plain = False
        try:
            self._acquire()
            if claim._waiters is None and self._by_slot.get(slot) is claim:
                del self._by_slot[slot]
                is_plain = True
        except BaseException:
            let_go(self._mutex)
            raise
        self._release()
        return is_plain or self._finish(claim, None)

    def in_flight(self, key: Hashable) -> bool:
        """Whether somebody works on *key* now, in this process."""
        return (key if self._slot_of is None else self._slot_of(key)) in self._by_slot

    def is_current(self, claim: Claim) -> bool:
        """Whether *claim* is the one that now holds its key."""
        return self._by_slot.get(claim._slot) is claim

    def statistics(self) -> LockStatistics:
        """Counters and gauges, consistent with each other."""
        now = self._read()
        with self._mutex:
            # Oldest first: a key that passes to an heir moves to the end.
            oldest = next(iter(self._by_slot.values()), None)
            return LockStatistics(
                claimed=self._claimed,
                rejected=self._rejected,
                joined=self._joined,
                in_flight=len(self._by_slot),
                waiting=self._waiting,
                oldest_age_ms=None if oldest is None else max(0, (now - oldest._claimed_at) // self._ticks.per_ms),
            )

    # --- For the waiting half --------------------------------------------------------------------------

    def _enter(self, key: Hashable, purpose: Purpose | None, leaves_outcome: bool) -> Claim | Waiter | None:
        """Claim *key*, or wait for it if there is a *purpose*; None: taken, and nothing to wait for."""
        slot = key if self._slot_of is None else self._slot_of(key)
        now = self._read()
        with self._mutex:
            try:
                current = self._by_slot.get(slot)
            except TypeError:
                raise _unhashable(key) from None
            if current is None:
                claim = self._by_slot[slot] = Claim(self, slot, key, now, leaves_outcome)
                return claim
            if purpose is Purpose.OWN or (purpose is Purpose.SHARE and current._leaves_outcome):
                return self._queue_up(current, purpose, leaves_outcome)
        return None

    def _count_rejected(self, key: Hashable) -> None:
        with self._mutex:
            self._rejected += 1
        self._tell(key, "rejected")

    def _tell(self, key: Hashable, how: str) -> None:
        """Called outside of the critical section when a caller was rejected or has joined."""

    def _reject(self, key: Hashable) -> AlreadyInFlight:
        """Count a caller that is told that *key* is taken; the error to tell it with."""
        self._count_rejected(key)
        text = describe(key)
        return AlreadyInFlight(f"{shorten(text, 200)} is in flight; nothing was done by this call", key=text)

    def _watch(self, key: Hashable) -> Waiter | None:
        """A waiter for the end of the current claim; None if there is no claim."""
        slot = key if self._slot_of is None else self._slot_of(key)
        with self._mutex:
            current = self._by_slot.get(slot)
            return None if current is None else self._queue_up(current, Purpose.WATCH, leaves_outcome=False)

    def _queue_up(self, current: Claim, purpose: Purpose, leaves_outcome: bool) -> Waiter:
        if current._waiters is None:
            current._waiters = _Waiters()
        home = current._waiters.by_purpose(purpose)
        waiter = Waiter(home=home, leaves_outcome=leaves_outcome)
        home[waiter] = None
        self._waiting += 1
        return waiter

    def _withdraw(self, waiter: Waiter) -> bool:
        """Stop waiting. False: it was served meanwhile."""
        with self._mutex:
            if waiter not in waiter.home:
                return False
            del waiter.home[waiter]
            self._waiting -= 1
            return True

    def _finish(self, claim: Claim, outcome: Outcome | None) -> bool:
        """End *claim* and wake whom that concerns (rules 2 to 4)."""
        with self._mutex:
            if self._by_slot.get(claim._slot) is not claim:
                return False
            del self._by_slot[claim._slot]
            woken = [] if claim._waiters is None else self._pass_on(claim, claim._waiters, outcome)
        while woken:
            deaf = [waiter for waiter in woken if not waiter.bell.ring()]
            # The event loop of a deaf heir is gone: the key goes to the one behind it.
            woken = next((self._bury(waiter.claim) for waiter in deaf if waiter.claim), [])
        return True

    def _bury(self, claim: Claim) -> list[Waiter]:
        """End the claim of an heir that will never know of it; who is to be woken instead."""
        with self._mutex:
            if not self.is_current(claim) or claim._waiters is None:
                return []
            del self._by_slot[claim._slot]
            return self._pass_on(claim, claim._waiters, None)

    def _pass_on(self, claim: Claim, waiters: _Waiters, outcome: Outcome | None) -> list[Waiter]:
        woken = list(waiters.watching)
        waiters.watching.clear()
        if outcome is not None:
            for sharer in waiters.sharing:
                sharer.outcome = outcome
            self._joined += len(waiters.sharing)
            woken += waiters.sharing
            waiters.sharing.clear()
        heir = _take_first(waiters.sharing) or _take_first(waiters.queueing)
        if heir is not None:
            heir.claim = Claim(self, claim._slot, claim.key, self._read(), heir.leaves_outcome)
            heir.claim._waiters = waiters
            self._by_slot[claim._slot] = heir.claim
            woken.append(heir)
        self._waiting -= len(woken)
        return woken
