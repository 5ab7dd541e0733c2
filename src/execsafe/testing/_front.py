"""The front of the simulated venue: who is let in, what is shown, what belongs to positions. Here faults strike."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final

from execsafe.model.order import Side
from execsafe.model.position import Balance, Execution, OrderBook, PositionSide, Quote, VenuePosition
from execsafe.model.values import EXACT, Number
from execsafe.model.venue import View
from execsafe.testing._accounts import Market, SimPosition
from execsafe.testing._orders import RejectReason, SimOrder, VenueReject, fees_of, in_own_context
from execsafe.testing._stops import Positions
from execsafe.testing.faults import Fault, Strikes

FORWARD_SLACK_MS: Final = 1_000  # how far ahead a timestamp may be, as on Binance
LOST_MS: Final = (100, 10_000)  # how long a stop lives that STOP_LOST takes away
CALM: Final = Strikes({}, random.Random(0), Counter())
"""No fault at all."""


class Front(Positions):
    """Everything but orders: readings, and what is set for a symbol or a position.

    Every method takes the instant at which the request arrives, and the faults that strike it. All may raise
    ``VenueReject`` with MAINTENANCE, RATE_LIMITED or EXPIRED_REQUEST where such a fault does, with BAD_SYMBOL for
    a symbol that is not listed, and with the reasons that each names.
    """

    def __init__(
        self,
        markets: Iterable[Market] | None,
        prices: Mapping[str, Decimal | str | int | float] | None,
        balances: Mapping[str, Decimal | str | int] | None,
        retention_ms: int,
        spread_bps: Number,
    ) -> None:
        super().__init__(markets, prices, balances, retention_ms, spread_bps)
        self.skew_ms = 0
        self.read_lag_ms: dict[View, int] = {}
        self.account_lag_ms = 0
        self._maintenance_until_ms = 0

    # --- who is let in ----------------------------------------------------------------------------

    def set_maintenance(self, until_ms: int) -> None:
        """Refuse every request until then."""
        self._maintenance_until_ms = until_ms

    def check_time(self, dead_after_ms: int | None, signed_at_ms: int | None) -> None:
        """Judge a request's instants by the venue's own clock, as of the last :meth:`advance`.

        Raises:
            VenueReject: too late, or signed too far in the future.
        """
        venue_ms = self._now_ms + self.skew_ms
        if dead_after_ms is not None and venue_ms > dead_after_ms:
            raise VenueReject(RejectReason.EXPIRED_REQUEST)
        if signed_at_ms is not None and signed_at_ms > venue_ms + FORWARD_SLACK_MS:
            raise VenueReject(RejectReason.TIMESTAMP_AHEAD)

    def _gate(self, strikes: Strikes | None) -> None:
        """Refusals at the front door, before anything is looked at."""
        strikes = strikes or CALM
        if strikes.take(Fault.MAINTENANCE):
            self.set_maintenance(self._now_ms + strikes.value(Fault.MAINTENANCE, 500, 5_000))
        if self._now_ms < self._maintenance_until_ms:
            raise VenueReject(RejectReason.MAINTENANCE)
        if strikes.take(Fault.RATE_LIMITED):
            raise VenueReject(RejectReason.RATE_LIMITED)
        if strikes.take(Fault.TIMESTAMP_REJECT):
            raise VenueReject(RejectReason.EXPIRED_REQUEST)

    def _enter(self, now_ms: int, strikes: Strikes | None, symbol: str | None = None) -> Strikes:
        self.advance(now_ms)
        self._gate(strikes)
        if symbol is not None and symbol not in self.markets:
            raise VenueReject(RejectReason.BAD_SYMBOL)
        return strikes or CALM

    # --- orders -----------------------------------------------------------------------------------

    def look(
        self,
        view: View,
        now_ms: int,
        *,
        symbol: str | None = None,
        client_order_id: str | None = None,
        venue_order_id: str | None = None,
        strikes: Strikes | None = None,
        lag_max_ms: int = 0,
    ) -> list[SimOrder]:
        """What a view shows, oldest order first. TRADES shows orders that have fills.

        *lag_max_ms* is how old LOOKUP_LAG may make the answer.
        """
        strikes = self._enter(now_ms, strikes, symbol)
        lag_ms = _lag_ms(self.read_lag_ms.get(view, 0), strikes, lag_max_ms, Fault.LOOKUP_LAG)
        if strikes.take(Fault.ID_INDEX_LOST):
            self.lose_id_index()
        by_id = view is View.CLIENT_ID
        misses_closed = by_id and strikes.take(Fault.LOOKUP_MISSES_CLOSED)
        shown = []
        for tracked in self._candidates(symbol, client_order_id, venue_order_id):
            order = tracked.as_of(self._now_ms - lag_ms)
            if order is None or (by_id and venue_order_id is None and not tracked.indexed):
                continue
            hidden = (tracked.pruned and view is not View.TRADES) or misses_closed
            if _shows(view, order) and (order.is_open or not hidden):
                shown.append(order)
        return shown[-1:] if by_id else shown

    def lose_id_index(self) -> None:
        """Forget all client order ids so far: they are found no more and may be used again."""
        for tracked in self._orders.values():
            tracked.indexed = False

    def executions(
        self, symbol: str, now_ms: int, *, since_ms: int = 0, strikes: Strikes | None = None, lag_max_ms: int = 0
    ) -> list[Execution]:
        """Every fill of *symbol* at or after *since_ms*, oldest first; orders past their retention are left out."""
        strikes = self._enter(now_ms, strikes, symbol)
        lag_ms = _lag_ms(self.read_lag_ms.get(View.TRADES, 0), strikes, lag_max_ms, Fault.LOOKUP_LAG)
        states = [tracked.as_of(self._now_ms - lag_ms) for tracked in self._candidates(symbol, None, None)]
        fills = [(order, fill) for order in states if order is not None for fill in order.fills]
        return [
            Execution(
                trade_id=fill.trade_id, symbol=symbol, side=order.side, quantity=fill.quantity, price=fill.price,
                venue_order_id=order.venue_order_id, client_order_id=order.client_order_id, fees=fees_of(fill),
                at_ms=fill.at_ms,
            )
            for order, fill in sorted(fills, key=lambda pair: int(pair[1].trade_id))
            if fill.at_ms >= since_ms
        ]  # fmt: skip

    # --- the account ------------------------------------------------------------------------------

    def fetch_positions(
        self, now_ms: int, *, strikes: Strikes | None = None, lag_max_ms: int = 0
    ) -> list[VenuePosition]:
        """Linear positions that are not flat, with mark and liquidation price, leverage and attached stop.

        The liquidation price is that of isolated margin, entry × (1 ∓ 1/leverage ± maintenance ratio); the venue
        never liquidates. *lag_max_ms* is how old LOOKUP_LAG and POSITIONS_LAG may make the answer.
        """
        strikes = self._enter(now_ms, strikes)
        lag_ms = _lag_ms(self.account_lag_ms, strikes, lag_max_ms, Fault.LOOKUP_LAG, Fault.POSITIONS_LAG)
        if strikes.take(Fault.POSITIONS_EMPTY):
            return []
        at_ms = self._now_ms - lag_ms
        held = self.account.positions_as_of(at_ms)
        return [self._shown_position(symbol, position, at_ms) for symbol, position in held.items()]

    def fetch_balances(self, now_ms: int, *, strikes: Strikes | None = None, lag_max_ms: int = 0) -> dict[str, Balance]:
        """Balances by currency; what is neither owned nor owed is left out."""
        strikes = self._enter(now_ms, strikes)
        lag_ms = _lag_ms(self.account_lag_ms, strikes, lag_max_ms, Fault.LOOKUP_LAG)
        return self.account.balances_as_of(self._now_ms - lag_ms)

    def _shown_position(self, symbol: str, position: SimPosition, at_ms: int) -> VenuePosition:
        side = PositionSide.LONG if position.quantity > 0 else PositionSide.SHORT
        return VenuePosition(
            symbol=symbol,
            side=side,
            quantity=abs(position.quantity),
            entry_price=position.entry_price,
            mark_price=self.books.price_as_of(symbol, at_ms),
            liquidation_price=self._liquidation_price(symbol, position.entry_price, side),
            leverage=self.account.leverage(symbol),
            stop_price=position.stop_price,
        )

    def _liquidation_price(self, symbol: str, entry_price: Decimal, side: PositionSide) -> Decimal | None:
        market = self.markets[symbol]
        distance = EXACT.subtract(EXACT.divide(1, self.account.leverage(symbol)), market.maintenance_ratio)
        factor = EXACT.subtract(1, EXACT.multiply(distance, side.sign))
        price = market.instrument.safe_limit_price(EXACT.multiply(entry_price, factor), Side.BUY)
        return price if price > 0 else None

    # --- prices -----------------------------------------------------------------------------------

    def order_book(
        self,
        symbol: str,
        now_ms: int,
        *,
        depth: int = 20,
        strikes: Strikes | None = None,
        lag_max_ms: int = 0,
    ) -> OrderBook:
        """The best *depth* levels of both sides; BOOK_EMPTY hides the bids."""
        strikes = self._enter(now_ms, strikes, symbol)
        lag_ms = _lag_ms(0, strikes, lag_max_ms, Fault.LOOKUP_LAG)
        book = self.books.book_as_of(symbol, self._now_ms - lag_ms, depth)
        return OrderBook(symbol=symbol, asks=book.asks, at_ms=book.at_ms) if strikes.take(Fault.BOOK_EMPTY) else book

    def quotes(
        self, symbols: Iterable[str], now_ms: int, *, strikes: Strikes | None = None, lag_max_ms: int = 0
    ) -> dict[str, Quote]:
        """Best and last prices by symbol; a symbol that is not listed is left out."""
        strikes = self._enter(now_ms, strikes)
        at_ms = self._now_ms - _lag_ms(0, strikes, lag_max_ms, Fault.LOOKUP_LAG)
        return {symbol: self.books.quote_as_of(symbol, at_ms) for symbol in symbols if symbol in self.markets}

    # --- settings ---------------------------------------------------------------------------------

    @in_own_context
    def set_leverage(self, symbol: str, leverage: Decimal, now_ms: int, strikes: Strikes | None = None) -> None:
        """A request to set the leverage arrives.

        Raises:
            VenueReject: LEVERAGE_UNCHANGED, BAD_REQUEST (not offered), INSUFFICIENT_FUNDS (for the margin).
        """
        self._enter(now_ms, strikes, symbol)
        self.change_leverage(symbol, leverage)

    def set_margin_mode(self, symbol: str, mode: str, now_ms: int, strikes: Strikes | None = None) -> None:
        """A request to set the margin mode, "cross" or "isolated", arrives.

        Raises:
            VenueReject: MARGIN_MODE_UNCHANGED, BAD_REQUEST, MARGIN_MODE_LOCKED (a position or order is open).
        """
        self._enter(now_ms, strikes, symbol)
        self.change_margin_mode(symbol, mode)

    @in_own_context
    def set_attached_stop(
        self,
        symbol: str,
        stop_price: Decimal | None,
        now_ms: int,
        *,
        side: PositionSide | None = None,
        strikes: Strikes | None = None,
    ) -> None:
        """A request to attach a stop to the whole position, or to remove it (None), arrives.

        Raises:
            VenueReject: STOP_UNCHANGED, NO_POSITION (on that *side*), PRICE_FILTER, STOP_WOULD_TRIGGER.
        """
        strikes = self._enter(now_ms, strikes, symbol)
        if stop_price is not None and strikes.take(Fault.STOP_REJECTED):
            raise VenueReject(RejectReason.STOP_WOULD_TRIGGER)
        self.attach_stop(symbol, side, stop_price)
        if stop_price is not None and strikes.take(Fault.STOP_LOST):
            until_ms = self._now_ms + strikes.value(Fault.STOP_LOST, *LOST_MS)
            self.at(until_ms, lambda _: self.lose_stop(symbol, stop_price))


def _lag_ms(usual_ms: int, strikes: Strikes, lag_max_ms: int, *faults: Fault) -> int:
    lags_ms = [strikes.value(fault, min(1, lag_max_ms), lag_max_ms) for fault in faults if strikes.take(fault)]
    return max([usual_ms, *lags_ms])


def _shows(view: View, order: SimOrder) -> bool:
    if view is View.TRADES:
        return bool(order.fills)
    if view is View.OPEN_ORDERS:
        return order.is_open
    return view is View.CLIENT_ID or not order.is_open
