"""One store, one desk: a lease in the store says which one works on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import anyio

import execsafe
from execsafe.locks import Leases
from execsafe.ports import Lease

_NAME: Final = "desk"
_holders: Final[dict[int, str]] = {}
"""Who has the lease that was taken through a store object of this process, by the object's id."""


class DeskLease:
    """The right to work on a store: taken at the start, renewed while the desk runs, given back at its end.

    Every part of a desk goes on with every open record of its store, so that a second desk would act on the first
    one's orders. The lease is also a pre-trade check: no entry passes while it is not held.

    A lease that could not be renewed in time is not lost. As long as nobody else has it, nothing else happened than
    that the loop stood still, the clock jumped or the store was away: no entry passes, positions are looked after, and
    it is renewed as soon as that is possible.

    Args:
        store: whose lease.
        ttl_s: its life without being renewed.
        clock: source of time.
        on_lost: called when another desk has it.
    """

    def __init__(
        self, store: execsafe.Store, *, ttl_s: float, clock: execsafe.Clock, on_lost: Callable[[], None]
    ) -> None:
        self._store = store
        self._clock = clock
        self._on_lost = on_lost
        self._leases = Leases(store, clock.now_ms, None, round(ttl_s * 1_000))
        self._lease: Lease | None = None
        self._is_lost = False
        self._poison: execsafe.StorePoisoned | None = None
        self._scope: anyio.CancelScope = anyio.CancelScope()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold it for the length of the block, which is cancelled if another desk takes it over.

        So it is if the store fails half way through a durable write: nothing can be done before it is opened anew.

        Raises:
            LeaseHeld: on entering: another desk works on the store. One that was killed is waited for: its lease ends
                by itself.
            StoreError: on entering: the store did not say yes.
            StaleFencingToken: on leaving: another desk has taken over.
            StorePoisoned: on leaving: the store has to be opened anew.
        """
        self._is_lost, self._poison = False, None
        self._lease = await self._take()
        _holders[id(self._store)] = self._lease.holder
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                tasks.start_soon(self._keep)
                try:
                    yield
                except Exception as error:  # noqa: BLE001 - raised below, without the group around it
                    failure = error
                tasks.cancel_scope.cancel()
        except ExceptionGroup as error:  # it came together with a cancellation
            failure = error
        finally:
            lease, self._lease = self._lease, None
            if _holders.get(id(self._store)) == lease.holder:
                del _holders[id(self._store)]
            await self._leases.release(lease)
        if self._is_lost:
            raise _lost() from failure
        if self._poison is not None:
            raise self._poison from failure
        if failure is not None:
            raise failure

    def require(self) -> None:
        """Return unless it is lost.

        Raises:
            StaleFencingToken: another desk has taken over.
        """
        if self._is_lost:
            raise _lost()

    @property
    def is_store_in_use(self) -> bool:
        """Whether another desk works through the very store object that this one was given, and so needs it open."""
        return id(self._store) in _holders

    async def check(self, intent: execsafe.Intent, instrument: execsafe.Instrument) -> None:  # noqa: ARG002 - a port's
        """Refuse an entry, for now, while it is not known that the lease is held.

        Raises:
            TradingDenied: with the reason ``"state_unknown"``.
        """
        if not self.is_held:
            await self._renew()  # the loop may have stood still: then this is all that is missing
        if not self.is_held:
            raise execsafe.TradingDenied(
                "the desk does not hold the lease of its store now",
                intent_key=intent.key,
                reason=execsafe.DenyReason.STATE_UNKNOWN,
            )

    @property
    def is_held(self) -> bool:
        """Whether no other desk can have it now."""
        return self._lease is not None and not self._is_lost and self._clock.now_ms() < self._lease.expires_at_ms

    async def _take(self) -> Lease:
        deadline = anyio.current_time() + self._leases.ttl_ms / 1_000
        try:
            return await self._leases.acquire(_NAME, waits=True, deadline=deadline)
        except execsafe.LeaseHeld as held:
            holder = held.context["holder"]
            raise execsafe.LeaseHeld(
                f"another desk works on this store ({holder}): stop it first, or give this one a store of its own",
                **held.context,
            ) from None

    async def _keep(self) -> None:
        pause_ms = self._leases.renew_ms
        while True:
            await anyio.sleep(pause_ms / 1_000)
            pause_ms = await self._renew()

    async def _renew(self) -> float:
        """Try once; after how many milliseconds to try again. When another desk has it, all that runs here ends."""
        before = self._lease
        if before is None:
            return self._leases.renew_ms
        renewed, pause_ms = await self._leases.try_renew(before, self._leases.answer_ms)
        if renewed is None:
            self._is_lost = True
            self._on_lost()
            self._scope.cancel()
        elif self._lease is before:  # neither given back nor renewed by another call meanwhile
            self._lease = renewed
        if renewed is before and (poison := await self._poisoned()) is not None:
            self._poison = poison
            self._on_lost()
            self._scope.cancel()
        return pause_ms

    async def _poisoned(self) -> execsafe.StorePoisoned | None:
        try:
            with anyio.move_on_after(self._leases.answer_ms / 1_000):
                await self._store.get_cursor(_NAME)
        except execsafe.StorePoisoned as error:
            return error
        except Exception:  # noqa: BLE001 - whatever else ails it passes by itself
            return None
        return None


def _lost() -> execsafe.StaleFencingToken:
    return execsafe.StaleFencingToken(
        "another desk has taken this store over: this one has stopped, and what it left is the other's", lease=_NAME
    )
