"""Reading what an exit decides on: the book, caught up; what the venue holds; the best price."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import anyio
import attrs

from execsafe._calls import within
from execsafe.core.exits import ExitRecord, Holding, Sight, holding_that_counts
from execsafe.errors import VenueUnavailable
from execsafe.model.instrument import Instrument, is_contract
from execsafe.model.order import ZERO, Side
from execsafe.model.position import Position, PositionSide, Snapshot
from execsafe.model.values import total
from execsafe.ports import ExchangeAdapter, PositionSource
from execsafe.views import VenueReader

_BOOK_DEPTH = 5
_PREPARE_TIMEOUTS = 3  # loading a venue's markets takes several requests


@attrs.define
class _Read:
    holding: Holding | None = None
    taken_at_ms: int = 0
    reference: Decimal | None = None


class Eyes:
    """Looks, and never guesses: what could not be read is missing from the sight."""

    def __init__(self, adapter: ExchangeAdapter, reader: VenueReader, positions: PositionSource) -> None:
        self._adapter = adapter
        self._reader = reader
        self._positions = positions
        self._lag_ms = round(adapter.profile.read_lag_s * 1000)

    async def instrument(self, symbol: str, *, timeout_s: float) -> Instrument:
        """The symbol's trading rules.

        Raises:
            VenueUnavailable: they are not known, and could not be read.
            InvalidInput: the venue does not list it.
        """
        known = self._adapter.prepared(symbol)
        if known is not None:
            return known
        with within(timeout_s * _PREPARE_TIMEOUTS):
            return await self._adapter.prepare(symbol)
        raise VenueUnavailable(f"the trading rules of {symbol} could not be read in time")

    async def look(
        self, record: ExitRecord, instrument: Instrument, *, grown_at_ms: Callable[[Position], int]
    ) -> Sight:
        """One look. *grown_at_ms* says when what is free at the venue last grew: readings may lag behind that.

        Raises:
            StoreError: the book could not be caught up.
        """
        await self._positions.catch_up()
        position = self._positions.position(record.account, record.symbol)
        if position is None or position.side is not record.side:
            return Sight(position=None)
        read = _Read()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read_holding, record, instrument, read)
            tasks.start_soon(self._read_reference, record, read)
        holding = holding_that_counts(
            read.holding,
            taken_at_ms=read.taken_at_ms,
            changed_at_ms=grown_at_ms(position),
            lag_ms=self._lag_ms,
            trusts_venue=record.trusts_venue,
        )
        return Sight(position=position, holding=holding, reference=read.reference)

    async def _read_holding(self, record: ExitRecord, instrument: Instrument, read: _Read) -> None:
        if is_contract(record.symbol):
            positions = await self._reader.positions()
            if isinstance(positions, Snapshot):
                mine = (p.quantity for p in positions.value if p.symbol == record.symbol and p.side is record.side)
                held = total(mine)
                read.holding, read.taken_at_ms = Holding(free=held, total=held), positions.taken_at_ms
        elif record.side is PositionSide.LONG:
            balances = await self._reader.balances()
            if isinstance(balances, Snapshot):
                balance = balances.value.get(instrument.base or record.symbol.partition("/")[0])
                free, held = (ZERO, ZERO) if balance is None else (balance.free, balance.total)
                read.holding, read.taken_at_ms = Holding(free=free, total=held), balances.taken_at_ms

    async def _read_reference(self, record: ExitRecord, read: _Read) -> None:
        read.reference = await self.best_price(record)

    async def best_price(self, record: ExitRecord) -> Decimal | None:
        """Best price on the side that the exit takes. Never the last price, which nobody may offer any more."""
        takes = record.side.closing
        quotes = await self._reader.quotes([record.symbol])
        if isinstance(quotes, Snapshot) and (quote := quotes.value.get(record.symbol)) is not None:
            best = quote.bid if takes is Side.SELL else quote.ask
            if best is not None:
                return best
        book = await self._reader.order_book(record.symbol, depth=_BOOK_DEPTH)
        levels = book.value.levels(takes) if isinstance(book, Snapshot) else ()
        return levels[0].price if levels else None
