"""``ProtectionManager``: every open position has a verified stop, or is being closed, or raises an alarm."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import anyio

from execsafe.buses.surviving import survived
from execsafe.core.protection.record import (
    Protection,
    ProtectionPolicy,
    ProtectionState,
    StopRule,
    enter,
    given_up,
    resumed,
    tightened,
)
from execsafe.errors import VenueUnavailable
from execsafe.gateway import OrderGateway
from execsafe.model.position import Position, PositionKey, Snapshot
from execsafe.model.values import Number, to_positive
from execsafe.ports import Clock, Listener, NotReleased, Released
from execsafe.positions import PositionBook
from execsafe.protection._eyes import Eyes
from execsafe.protection._keeper import Keeper, RuleSource, ruled, wanted_take
from execsafe.protection._shelf import Shelf
from execsafe.stores.codec import register
from execsafe.views import VenueReader

_log = logging.getLogger("execsafe.protection")
COLLECTION: Final = "protections"

register(Protection)


class ProtectionManager:
    """Keeps a verified stop on every open position of one account.

    Each pass compares the book with what the venue shows, and acts until both agree: stops are placed, resized, moved
    and replaced through the gateway (or attached to the position, where the venue keeps them so), read back, and
    counted only when they were seen or acknowledged. What cannot be covered in time is closed with a reduce-only
    order. The decisions are in ``execsafe.core.protection.plan``.

    Args:
        gateway: through which all orders go.
        book: what is held.
        policy: deadlines, tries, the default distance of stops.
        reader: readings of the venue; by default of the gateway's adapter, each given the time of one try.
        clock: the registry's by default.
        listeners: told of every event after it is durable. One that raises is logged and ignored.
        account: whose positions are kept.
    """

    def __init__(
        self,
        gateway: OrderGateway,
        book: PositionBook,
        *,
        policy: ProtectionPolicy | None = None,
        reader: VenueReader | None = None,
        clock: Clock | None = None,
        listeners: Sequence[Listener] = (),
        account: str = "default",
    ) -> None:
        self.gateway = gateway
        self.book = book
        self.policy: ProtectionPolicy = policy if policy is not None else ProtectionPolicy()
        self.clock: Clock = clock if clock is not None else gateway.registry.clock
        # A reading that hangs must not use up the time that there is for a stop.
        try_s = self.policy.try_timeout_s
        default = VenueReader(gateway.adapter, clock=self.clock, request_timeout_s=try_s)
        self.reader: VenueReader = reader if reader is not None else default
        self.account = account
        self._eyes = Eyes(gateway, book, self.reader, timeout_s=try_s)
        store = gateway.registry.store
        self._shelf = Shelf(store, COLLECTION, Protection, clock=self.clock, listeners=listeners)
        self._keeper = Keeper(gateway, self._eyes, self._shelf, self.policy, clock=self.clock)
        self._is_open = False

    # --- reading ---------------------------------------------------------------------------------

    def protection(self, position_id: str) -> Protection | None:
        """The record of a position; None if there is none, or the position is closed and nothing is left of it."""
        return self._shelf.records.get(position_id)

    def protections(self) -> tuple[Protection, ...]:
        """All records of this account that are not closed, in order of their position ids."""
        records = (self._shelf.records[key] for key in sorted(self._shelf.records))
        return tuple(record for record in records if record.account == self.account)

    def add_rules(self, source: RuleSource) -> None:
        """Ask *source* where the stop of a new position belongs, before the default distance is taken."""
        self._keeper.rules.append(source)

    # --- passes ----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Load what an earlier process left. Idempotent; everything else does it first.

        Raises:
            StoreError: the records could not be read.
        """
        if self._is_open:
            return
        await self.book.open()
        await self._shelf.load()
        for key, known in list(self._shelf.records.items()):
            self._shelf.records[key] = resumed(known)
        self._is_open = True

    async def recover(self) -> tuple[Protection, ...]:
        """Take up what an earlier process left, and bring it to where it belongs; as :meth:`check`."""
        return await self.check()

    async def check(self) -> tuple[Protection, ...]:
        """One pass over all positions; the records afterwards.

        Raises:
            Exception: at least one position could not be looked after (all others were).
        """
        await self.open()
        await self.book.catch_up()
        failures: list[Exception] = []
        for position in self.book.open_positions(self.account):
            with _collecting(failures):
                await self._keeper.known(position)
        with _collecting(failures):
            await self._follow_prices()

        async def tend(position_id: str) -> None:
            with _collecting(failures):
                await self._keeper.tend(position_id)

        async with anyio.create_task_group() as tasks:
            for record in self.protections():
                tasks.start_soon(tend, record.position_id)
        if failures:
            raise failures[0]
        return self.protections()

    async def settle(self) -> None:
        """Resolve what is in doubt about the orders of all positions, as long as the gateway's patience goes.

        Apart from the passes, because it may take long: they only give each request the time of one try.
        """
        await self.open()
        async with anyio.create_task_group() as tasks:
            for record in self.protections():
                tasks.start_soon(self._keeper.settle, record.position_id)

    async def run(self) -> None:
        """Pass after pass, until cancelled. What fails is logged and tried again in the next pass."""

        async def again(step: Callable[[], Awaitable[object]]) -> None:
            while True:
                await survived(step, "a pass over the protections", log=_log)
                await anyio.sleep(self.policy.interval_s)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(again, self.check)
            tasks.start_soon(again, self.settle)

    async def _follow_prices(self) -> None:
        trailing = sorted({record.symbol for record in self.protections() if record.trailing is not None})
        if not trailing:
            return
        reading = await self.reader.quotes(trailing)
        if not isinstance(reading, Snapshot):
            return
        for symbol, quote in sorted(reading.value.items()):
            price = quote.last if quote.last is not None else quote.mid
            if price is not None:
                await self.on_price(symbol, price)

    # --- wishes ----------------------------------------------------------------------------------

    async def protect(
        self, position: Position, rule: StopRule | None = None, *, take_profit_price: Number | None = None
    ) -> Protection | None:
        """Say where the stop of *position* belongs (it never loosens), and bring it there. None: it is closed.

        With *take_profit_price* a take-profit order rests instead of a stop until :meth:`switch_to_stop`: on spot
        one order locks all there is, and two cannot rest.

        Raises:
            InvalidInput: no such price or distance.
            VenueUnavailable: the instrument is not known and could not be asked for.
            StoreError: the wish could not be written down.
        """
        await self.open()
        instrument = await self._eyes.instrument(position.symbol)
        await self._keeper.known(position, rule)

        def wish(known: Protection) -> Protection:
            wanted = known if rule is None else ruled(known, position, rule, instrument)
            return wanted if take_profit_price is None else wanted_take(wanted, take_profit_price, instrument)

        await self._keeper.change(position.position_id, wish)
        return await self._keeper.tend(position.position_id)

    async def tend(self, position_id: str) -> Protection | None:
        """Look after one position now; its record afterwards, None if it is closed."""
        await self.open()
        return await self._keeper.tend(position_id)

    async def move_stop(self, position_id: str, stop_price: Number) -> Protection | None:
        """Move a stop closer to the price; farther away is not done. None: the position is closed."""
        await self.open()
        known = self.protection(position_id)
        if known is None:
            return None
        instrument = await self._eyes.instrument(known.symbol)
        wanted = instrument.safe_limit_price(to_positive(stop_price, "stop_price"), known.side.closing)
        await self._keeper.change(position_id, lambda p: tightened(p, wanted))
        return await self._keeper.tend(position_id)

    async def switch_to_stop(self, position_id: str) -> Protection | None:
        """Take the take-profit away and put the stop in its place. None: the position is closed.

        What the take-profit fills meanwhile is counted, and the stop covers what is really left. If the stop cannot
        be placed the position is unprotected and says so: there is no way back to an order that may be gone.
        """
        await self.open()

        def switch(known: Protection) -> Protection:
            if known.state is not ProtectionState.TAKE_PROFIT:
                return known
            return enter(known, ProtectionState.SWITCHING_TO_STOP, exposed_since_ms=self.clock.now_ms())

        await self._keeper.change(position_id, switch)
        return await self._keeper.tend(position_id)

    async def close(self, position_id: str) -> Protection | None:
        """Close a position with reduce-only orders. None: it is closed."""
        await self.open()
        position = self.book.find(position_id)
        if position is not None and position.is_open:
            await self._keeper.known(position)

        def give_up(known: Protection) -> Protection:
            return known if known.state is ProtectionState.CLOSING else given_up(known)

        await self._keeper.change(position_id, give_up)
        return await self._keeper.tend(position_id)

    async def on_price(self, symbol: str, price: Number) -> None:
        """Let the trailing stops of *symbol* follow a price, the one that triggers stops at the venue."""
        for record in self.protections():
            if record.symbol == symbol and record.trailing is not None:
                await self._keeper.trail(record.position_id, price)

    # --- exits -----------------------------------------------------------------------------------

    async def release(self, key: PositionKey) -> Released | NotReleased:
        """Cancel all that protects this position, and say whether it is provably gone; what filled is in the book.

        One that the manager itself is closing is not released. A released position is left to its exit for
        ``release_s``. Then, or after :meth:`resume`, what is still open
        of it is protected again; what could not be released is so at once.
        """
        await self.open()
        await self.book.catch_up()
        position = self.book.position(key.account, key.symbol)
        if position is not None and position.side is key.side:
            with contextlib.suppress(VenueUnavailable):  # without a record nothing of ours is there
                await self._keeper.known(position)  # so that no pass protects it while it is being left
        left = [await self._keeper.release(record.position_id) for record in self._of(key)]
        await self.book.catch_up()
        reasons = [reason for reason in left if reason]
        return NotReleased(reason="; ".join(reasons)) if reasons else Released()

    async def resume(self, key: PositionKey) -> None:
        """The exit is over: protect what is left."""
        await self.open()
        for record in self._of(key):
            await self._keeper.change(record.position_id, self._keeper.taken_back)
            await self._keeper.tend(record.position_id)

    def _of(self, key: PositionKey) -> tuple[Protection, ...]:
        return tuple(p for p in self.protections() if PositionKey(
            account=p.account, symbol=p.symbol, side=p.side
        ) == key)  # fmt: skip


@contextlib.contextmanager
def _collecting(failures: list[Exception]) -> Iterator[None]:
    """One position that cannot be looked after now keeps no other from it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised once all others were looked after
        failures.append(error)
