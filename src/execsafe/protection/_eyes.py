"""What can be seen of a position and its protecting orders, for one decision."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import anyio
import attrs

from execsafe.core.dust import has_minimum_value
from execsafe.core.ghosts import Sighting
from execsafe.core.protection.record import Leg, LegView, Observation, Protection, ProtectionState, Purpose, Seen
from execsafe.core.rejects import reject_class
from execsafe.errors import VenueUnavailable
from execsafe.gateway import OrderGateway
from execsafe.ghosts import order_ref
from execsafe.model.instrument import Instrument, is_contract
from execsafe.model.intent import Attempt, IntentRecord, IntentState
from execsafe.model.order import ZERO, OrderReport, Side
from execsafe.model.position import Position, Snapshot, StopKind, Unavailable, VenuePosition
from execsafe.model.values import left_of, total
from execsafe.positions import PositionBook
from execsafe.views import VenueReader


class Eyes:
    """Reads; decides nothing. A reading that fails leaves what the journal says."""

    def __init__(self, gateway: OrderGateway, book: PositionBook, reader: VenueReader, *, timeout_s: float) -> None:
        self._gateway = gateway
        self._registry = gateway.registry
        self._book = book
        self._reader = reader
        self._timeout_s = timeout_s
        profile = gateway.adapter.profile
        self._lag_ms = round((profile.read_lag_s + profile.clock_skew_s) * 1000)

    async def observe(self, protection: Protection) -> Observation:
        """The position and its legs as they can be seen now.

        Raises:
            VenueUnavailable: the instrument is not known, and cannot be asked for.
            StoreError: the journal cannot be read.
        """
        instrument = await self.instrument(protection.symbol)
        views = await self._legs(protection)
        attached, readable = None, True
        if protection.kind is StopKind.ATTACHED:
            attached, readable = await self.attached_price(protection)
        # Before the book: what an order that has ended by now has filled is in it.
        closing_elsewhere = await self._may_close_elsewhere(protection)
        await self._book.catch_up()
        position = self._book.position(protection.account, protection.symbol)
        refused = any(view.leg.purpose is Purpose.CLOSE and view.error is not None for view in views)
        if refused and position is not None and not any(_may_have_filled(view) for view in views):
            # Nothing to close, says the venue, and no order of ours can explain it: somebody else has closed it.
            await self._book_what_is_missing(position)
            position = self._book.position(protection.account, protection.symbol)
        if position is not None and position.position_id != protection.position_id:
            position = None
        price = None
        if position is not None and any(view.error is not None for view in views):
            price = await self._closing_price(position, instrument)
        return Observation(
            position=position,
            instrument=instrument,
            legs=views,
            readable=readable,
            attached_price=attached,
            overlaps=is_contract(protection.symbol),
            price=price,
            closing_elsewhere=closing_elsewhere,
        )

    def held(self, protection: Protection, seen: Observation | None) -> Decimal:
        """How much is held: as *seen*, or, where nobody could look, as the book knows."""
        position = self._book.find(protection.position_id) if seen is None else seen.position
        return ZERO if position is None else position.quantity

    async def instrument(self, symbol: str) -> Instrument:
        """The instrument, prepared if need be.

        Raises:
            VenueUnavailable: the venue could not be asked.
        """
        adapter = self._gateway.adapter
        try:
            return adapter.prepared(symbol) or await adapter.prepare(symbol)
        except Exception as error:
            raise VenueUnavailable(f"{symbol}: the instrument could not be read ({type(error).__name__})") from error

    async def _may_close_elsewhere(self, protection: Protection) -> bool:
        if protection.state is not ProtectionState.RELEASED or is_contract(protection.symbol):
            return False
        wanted = (protection.symbol, protection.side.closing, True)
        return any(
            (r.intent.symbol, r.intent.side, r.intent.reduce_only) == wanted and r.intent.key != protection.intent_key
            for r in await self._registry.open_records(protection.account)
            if self._gateway.is_at_home(r)
        )

    async def _closing_price(self, position: Position, instrument: Instrument) -> Decimal | None:
        """The best price at which it could be closed; None: it is not known, or there is no minimum to judge by it."""
        if instrument.min_notional is None or not has_minimum_value(instrument):
            return None
        reading = await self._reader.quotes([position.symbol])
        quote = reading.value.get(position.symbol) if isinstance(reading, Snapshot) else None
        if quote is None:
            return None
        best = quote.bid if position.side.closing is Side.SELL else quote.ask
        return best if best is not None else quote.last

    # --- orders ----------------------------------------------------------------------------------

    async def _legs(self, protection: Protection) -> tuple[LegView, ...]:
        key, account = protection.intent_key, protection.account
        records = [(leg, await self._registry.find(key, account=account, leg=leg.name)) for leg in protection.legs]
        if not any(record is not None and not record.state.is_terminal for _, record in records):
            return tuple([await self._view(leg, record, None) for leg, record in records])
        listing = await self._reader.open_orders(protection.symbol)
        return tuple([await self._view(leg, record, listing) for leg, record in records])

    async def _view(
        self, leg: Leg, record: IntentRecord | None, listing: Snapshot[Sequence[OrderReport]] | Unavailable | None
    ) -> LegView:
        if record is None:
            return LegView(leg=leg, seen=Seen.UNSENT)
        attempt = _open_attempt(record)
        if record.state.is_terminal or attempt is None:
            return _ended(leg, record)
        shown = None if not isinstance(listing, Snapshot) else _find(listing.value, attempt)
        if shown is not None:
            return await self._shown(leg, record, attempt, shown)
        if record.state is not IntentState.LIVE:
            return await self._doubtful(leg, record)
        # Not in the list: look for it alone. It may have triggered, or the list may not show such orders.
        look = None
        with anyio.move_on_after(self._timeout_s):
            look = await self._gateway.resolver.look(order_ref(record.intent, attempt))
        if look is None:
            return LegView(leg=leg, seen=Seen.ACKNOWLEDGED, leaves=record.leaves_quantity)
        if look.report is not None:
            return await self._shown(leg, record, attempt, look.report)
        late = isinstance(listing, Snapshot) and listing.taken_at_ms >= record.updated_at_ms + self._lag_ms
        nowhere = bool(look.seen) and all(seen is Sighting.ABSENT for seen in look.seen.values())
        seen = Seen.MISSING if late and nowhere else Seen.ACKNOWLEDGED
        return LegView(leg=leg, seen=seen, leaves=record.leaves_quantity)

    async def _doubtful(self, leg: Leg, record: IntentRecord) -> LegView:
        """One look for it alone: what has filled or ended is in no list of open orders."""
        with anyio.move_on_after(self._timeout_s):
            record = await self._gateway.refresh(record)
        if record.state.is_terminal:
            return _ended(leg, record)
        seen = Seen.LIVE if record.state is IntentState.LIVE else Seen.IN_DOUBT
        return LegView(leg=leg, seen=seen, leaves=record.leaves_quantity)

    async def _shown(self, leg: Leg, record: IntentRecord, attempt: Attempt, report: OrderReport) -> LegView:
        mine = attrs.evolve(report, client_order_id=attempt.client_order_id)
        venue = self._gateway.adapter.venue_name
        found = await self._registry.observe(mine, account=record.intent.account, venue=venue)
        record = found if found is not None else await self._registry.reload(record)
        if record.state.is_terminal:
            return _ended(leg, record)
        leaves = record.leaves_quantity
        if report.quantity is not None:
            leaves = min(leaves, left_of(report.quantity, report.filled_quantity or record.filled_quantity))
        if leg.purpose is Purpose.STOP and report.trigger_price not in {None, leg.price}:
            leg = attrs.evolve(leg, price=report.trigger_price)  # what rests there, not what was asked for
        return LegView(leg=leg, seen=Seen.LIVE, leaves=leaves)

    # --- attached stops --------------------------------------------------------------------------

    async def attached_price(self, protection: Protection) -> tuple[Decimal | None, bool]:
        """The stop attached to the position, and whether the position could be read.

        A venue closes a position at its attached stop by an order that is none of ours: when it shows less than the
        book, the fills since the position was opened are read and booked.
        """
        reading = await self._reader.positions()
        if isinstance(reading, Unavailable):
            return None, False
        shown = next((p for p in reading.value if _is_of(p, protection)), None)
        await self._book.catch_up()
        position = self._book.position(protection.account, protection.symbol)
        if position is not None and (shown is None or shown.quantity < position.quantity):
            await self._book_foreign_fills(position)
        # Not shown at all: it may be too new to be shown, or a reading that is wrong. Nothing can be said of its stop.
        return (None, False) if shown is None else (shown.stop_price, True)

    async def _book_what_is_missing(self, position: Position) -> None:
        """Book fills that are not ours, but never more than the venue holds less than the book.

        A venue may state the trade of a stop under an order id of its own (Binance USD-M does): such a trade looks
        foreign, although the stop's record has counted it.
        """
        reading = await self._reader.positions()
        fills = await self._reader.executions(position.symbol, since_ms=position.opened_at_ms)
        if not isinstance(reading, Snapshot) or not isinstance(fills, Snapshot):
            return
        side, symbol = position.side, position.symbol
        held = total(p.quantity for p in reading.value if (p.symbol, p.side) == (symbol, side))
        known: Position | None = position
        for execution in fills.value:
            missing = ZERO if known is None else left_of(known.quantity, held)
            if execution.side is side.closing and execution.quantity <= missing:
                known = await self._book.apply_execution(execution, position.account)

    async def _book_foreign_fills(self, position: Position) -> None:
        fills = await self._reader.executions(position.symbol, since_ms=position.opened_at_ms)
        if isinstance(fills, Snapshot):
            for execution in fills.value:
                await self._book.apply_execution(execution, position.account)


def _may_have_filled(view: LegView) -> bool:
    """Whether an order of ours may have filled without our knowing: then nothing that filled is called foreign."""
    return view.leg.purpose is not Purpose.CLOSE and view.seen not in {Seen.GONE, Seen.UNSENT}


def _is_of(shown: VenuePosition, protection: Protection) -> bool:
    return (shown.symbol, shown.side) == (protection.symbol, protection.side)


def _open_attempt(record: IntentRecord) -> Attempt | None:
    return next((a for a in reversed(record.attempts) if a.state.may_still_fill), None)


def _find(listed: Sequence[OrderReport], attempt: Attempt) -> OrderReport | None:
    """Ours by id only, never by likeness: a stop that looks the same may belong to an older position."""
    for report in listed:
        if report.client_order_id is not None and report.client_order_id == attempt.client_order_id:
            return report
        if report.venue_order_id is not None and report.venue_order_id == attempt.venue_order_id:
            return report
    return None


def _ended(leg: Leg, record: IntentRecord) -> LegView:
    error = None if record.last is None else record.last.error
    if error is None or record.state is not IntentState.REJECTED:
        return LegView(leg=leg, seen=Seen.GONE)
    return LegView(leg=leg, seen=Seen.GONE, error=error.kind, refusal=reject_class(error))
