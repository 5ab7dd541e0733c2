"""The simulated venue: one synchronous matching core behind every face.

Time is an argument (true Unix milliseconds) and nothing here awaits: the in-process adapter, the HTTP face
and tests all drive the same object. What lies in the future (requests under way, fills to come, price paths)
waits in a queue that every call first works off up to its own instant, so that a late request really lands
late, whoever is still alive to see it.

Unless a test gives a symbol a book (``set_book``), there is one price at which any quantity trades. An order
at or through it fills at it as taker; a resting order that the price reaches fills at its limit as maker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final

import attrs

from execsafe.model.order import OrderStatus, Side
from execsafe.model.values import Number
from execsafe.model.venue import Dedup, View
from execsafe.testing._accounts import Market, SimPosition, btc_usdt, eth_usdt, linear
from execsafe.testing._front import CALM, LOST_MS, Front
from execsafe.testing._matching import triggers
from execsafe.testing._orders import (
    AT_ONCE,
    FillStep,
    NewOrder,
    RejectReason,
    SimFill,
    SimOrder,
    Tracked,
    VenueReject,
    in_own_context,
)
from execsafe.testing.faults import Fault, Strikes
from execsafe.testing.ledger import Happened

__all__ = [
    "AT_ONCE", "FillStep", "Market", "NewOrder", "RejectReason", "SimFill", "SimOrder", "SimPosition",
    "SimVenue", "VenueReject", "btc_usdt", "eth_usdt", "linear",
]  # fmt: skip

RETENTION_MS: Final = 7 * 86_400_000


class SimVenue(Front):
    """Orders, balances and positions of one account, with a hidden ledger of what really happened.

    Args:
        markets: what is traded; None: spot BTC/USDT and ETH/USDT and the perpetual BTC/USDT:USDT.
        prices: starting prices by symbol.
        balances: starting totals by currency; None: more than any test spends.
        dedup: among which orders a client order id must be unique.
        dedup_window_ms: how long an id stays taken with ``Dedup.WINDOW``.
        skew_ms: the venue's clock minus true time.
        read_lag_ms: how old the state is that a view shows: one figure, or one per view.
        rejects_post_only: refuse a post-only order that would take; False: accept it and cancel it at once.
        retention_ms: how long ended orders are kept (the ledger keeps everything).
        account_lag_ms: how old the positions and balances are that are shown.
        spread_bps: between bid and ask of a symbol without a set book; 0: both are the price.
        rejects_passed_stops: refuse a stop whose trigger the price has passed already, as Binance and Bybit do;
            False: it triggers at once.
    """

    def __init__(
        self,
        markets: Iterable[Market] | None = None,
        *,
        prices: Mapping[str, Decimal | str | int | float] | None = None,
        balances: Mapping[str, Decimal | str | int] | None = None,
        dedup: Dedup | str = Dedup.OPEN,
        dedup_window_ms: int = 86_400_000,
        skew_ms: int = 0,
        read_lag_ms: int | Mapping[View, int] = 0,
        rejects_post_only: bool = True,
        retention_ms: int = RETENTION_MS,
        account_lag_ms: int = 0,
        spread_bps: Number = 0,
        rejects_passed_stops: bool = False,
    ) -> None:
        super().__init__(markets, prices, balances, retention_ms, spread_bps)
        self.dedup: Dedup = Dedup(dedup)
        self.dedup_window_ms = dedup_window_ms
        self.skew_ms = skew_ms
        every = dict.fromkeys(View, read_lag_ms) if isinstance(read_lag_ms, int) else dict(read_lag_ms)
        self.read_lag_ms: dict[View, int] = every
        self.account_lag_ms = account_lag_ms
        self.rejects_post_only = rejects_post_only
        self.rejects_passed_stops = rejects_passed_stops

    # --- requests ---------------------------------------------------------------------------------

    @in_own_context
    def submit(self, request: NewOrder, now_ms: int, strikes: Strikes | None = None) -> SimOrder:
        """A create request arrives. Returns the acknowledged state.

        Raises:
            VenueReject: refused; nothing exists.
        """
        self.advance(now_ms)
        self._log(Happened.RECEIVED, request, quantity=request.quantity, price=request.limit_price)
        try:
            self._gate(strikes)
            self.check_time(request.dead_after_ms, request.signed_at_ms)
            tracked = self._admit(request, strikes or CALM)
        except VenueReject as reject:
            self._log(Happened.REJECTED, request, quantity=request.quantity, reason=reject.reason.value)
            raise
        return self._acknowledge(tracked, strikes or CALM)

    @in_own_context
    def cancel(
        self,
        now_ms: int,
        *,
        symbol: str | None = None,
        client_order_id: str | None = None,
        venue_order_id: str | None = None,
        dead_after_ms: int | None = None,
        strikes: Strikes | None = None,
    ) -> SimOrder:
        """A cancel request arrives. Returns the order as the answer states it.

        Raises:
            VenueReject: UNKNOWN_ORDER if there is no such order, or none that is still open.
        """
        self.advance(now_ms)
        strikes = strikes or CALM
        tracked = self._find(symbol, client_order_id, venue_order_id)
        subject = tracked.now.request if tracked else client_order_id
        self._log(Happened.CANCEL_RECEIVED, subject, venue_order_id=venue_order_id)
        try:
            self._gate(strikes)
            self.check_time(dead_after_ms, None)
            if tracked is not None and tracked.now.is_open and strikes.take(Fault.FILL_DURING_CANCEL):
                ratio = strikes.value(Fault.FILL_DURING_CANCEL, 1, 1_000)
                self._fill(tracked, self._part(tracked.now, Decimal(ratio) / 1_000), None)
            if tracked is None or not tracked.now.is_open:
                raise VenueReject(RejectReason.UNKNOWN_ORDER)
        except VenueReject as reject:
            self._log(Happened.CANCEL_REJECTED, subject, reason=reject.reason.value)
            raise
        if strikes.take(Fault.CANCEL_OK_STILL_LIVE):
            return self._pretend_canceled(tracked, strikes.value(Fault.CANCEL_OK_STILL_LIVE, 100, 3_000))
        return self._end(tracked, OrderStatus.CANCELED)

    @in_own_context
    def amend(
        self,
        now_ms: int,
        *,
        symbol: str | None = None,
        client_order_id: str | None = None,
        venue_order_id: str | None = None,
        quantity: Decimal | None = None,
        limit_price: Decimal | None = None,
    ) -> SimOrder:
        """Change an open order in place; *quantity* is the new total.

        Raises:
            VenueReject: no open order, a total below what has filled, outside the filters, or beyond the funds.
        """
        self.advance(now_ms)
        tracked = self._find(symbol, client_order_id, venue_order_id)
        if tracked is None or not tracked.now.is_open:
            raise VenueReject(RejectReason.UNKNOWN_ORDER)
        order = tracked.now
        total, price = quantity or order.quantity, limit_price or order.limit_price
        if total <= order.filled_quantity:
            raise VenueReject(RejectReason.LOT_SIZE, "the new quantity is not above what has filled")
        self._check_filters(attrs.evolve(order.request, quantity=total, limit_price=price))
        wanted = attrs.evolve(order, quantity=total, limit_price=price)
        self.account.check_funds(wanted, self.prices[order.symbol], tracked.reserved)
        tracked.change(self._now_ms, quantity=total, limit_price=price)
        self.account.reserve(tracked, self.prices[order.symbol])
        self._log(Happened.AMENDED, order.request, order=order, quantity=total, price=price)
        self._match(tracked, is_maker=False)
        return tracked.now

    # --- admission --------------------------------------------------------------------------------

    def _admit(self, request: NewOrder, strikes: Strikes) -> Tracked:
        if request.symbol not in self.markets:
            raise VenueReject(RejectReason.BAD_SYMBOL)
        if strikes.take(Fault.REJECT_FILTER):
            raise VenueReject(RejectReason.LOT_SIZE)
        self._check_filters(request)
        if self._is_duplicate(request.client_order_id, strikes):
            raise VenueReject(RejectReason.DUPLICATE_ID)
        order = SimOrder(
            venue_order_id=str(self._last_id + 1),
            request=request,
            quantity=request.quantity,
            limit_price=request.limit_price,
            created_at_ms=self._now_ms,
            updated_at_ms=self._now_ms,
            triggered=request.trigger_price is None,
        )
        if request.reduce_only and self.markets[request.symbol].is_linear and not self.account.reducible(order):
            raise VenueReject(RejectReason.REDUCE_ONLY)
        if request.post_only and self.rejects_post_only and self._would_take(order):
            raise VenueReject(RejectReason.POST_ONLY)
        if request.trigger_price is not None:
            self._check_trigger(request, strikes)
        if strikes.take(Fault.REJECT_FUNDS):
            raise VenueReject(RejectReason.INSUFFICIENT_FUNDS)
        self.account.check_funds(order, self.books.worst(order.symbol, order.side, order.quantity))
        tracked = self._register(order)
        tracked.pruned = strikes.take(Fault.PRUNED_AFTER_END)
        if request.trigger_price is not None and strikes.take(Fault.STOP_LOST):
            self.at(self._now_ms + strikes.value(Fault.STOP_LOST, *LOST_MS), lambda _: self._lose(tracked))
        return tracked

    def _check_trigger(self, request: NewOrder, strikes: Strikes) -> None:
        is_passed = self.rejects_passed_stops and triggers(request, self.prices[request.symbol])
        if strikes.take(Fault.STOP_REJECTED) or is_passed:
            raise VenueReject(RejectReason.STOP_WOULD_TRIGGER)

    def _lose(self, tracked: Tracked) -> None:
        """An order is gone, unless it has been set off before."""
        if tracked.now.is_open and not tracked.now.triggered:
            self._end(tracked, OrderStatus.CANCELED, reason="lost")

    def _check_filters(self, request: NewOrder) -> None:
        instrument = self.markets[request.symbol].instrument
        quantity, price = request.quantity, request.limit_price
        too_small = instrument.min_quantity is not None and quantity < instrument.min_quantity
        too_large = instrument.max_quantity is not None and quantity > instrument.max_quantity
        if quantity <= 0 or too_small or too_large or instrument.floor_quantity(quantity) != quantity:
            raise VenueReject(RejectReason.LOT_SIZE)
        is_limit = request.type.endswith("limit")
        if is_limit and (price is None or price <= 0 or instrument.safe_limit_price(price, request.side) != price):
            raise VenueReject(RejectReason.PRICE_FILTER)
        trigger = request.trigger_price
        if trigger is not None and (trigger <= 0 or instrument.safe_limit_price(trigger, Side.BUY) != trigger):
            raise VenueReject(RejectReason.PRICE_FILTER, "the trigger price is off the tick")
        notional = instrument.notional(quantity, price or trigger or self.prices[request.symbol])
        is_exempt = request.reduce_only and self.markets[request.symbol].is_linear  # spot knows no reduce-only
        if instrument.min_notional is not None and notional < instrument.min_notional and not is_exempt:
            raise VenueReject(RejectReason.NOTIONAL)

    def _is_duplicate(self, client_order_id: str | None, strikes: Strikes) -> bool:
        known = [] if client_order_id is None else self._by_client.get(client_order_id, [])
        if known and not any(t.now.is_open for t in known) and strikes.take(Fault.DUPLICATE_ID_THOUGH_DEAD):
            return True
        known = [tracked for tracked in known if tracked.indexed]
        if self.dedup is Dedup.WINDOW:
            return any(t.now.created_at_ms + self.dedup_window_ms > self._now_ms for t in known)
        if self.dedup is Dedup.OPEN:
            return any(t.now.is_open for t in known)
        return self.dedup is Dedup.FOREVER and bool(known)

    def _acknowledge(self, tracked: Tracked, strikes: Strikes) -> SimOrder:
        acknowledged = tracked.now
        if acknowledged.request.post_only and self._would_take(acknowledged):
            tracked.change(self._now_ms, reason=RejectReason.POST_ONLY)
            self._end(tracked, OrderStatus.CANCELED)
            return acknowledged
        schedule = self._schedules.get(acknowledged.symbol, AT_ONCE)
        if strikes.take(Fault.PARTIAL_FILL):
            schedule = _in_parts(strikes)
        self._match(tracked, is_maker=False, schedule=schedule)
        order = tracked.now
        if order.is_open and order.request.time_in_force in {"IOC", "FOK"} and order.triggered:
            return self._end(tracked, OrderStatus.EXPIRED)
        rests = order.is_open and order.triggered and not order.filled_quantity
        if rests and order.limit_price is not None and strikes.take(Fault.FILL_BEFORE_ACK):
            self._fill(tracked, order.leaves_quantity, None, is_maker=True)
            return acknowledged
        return tracked.now

    def _pretend_canceled(self, tracked: Tracked, after_ms: int) -> SimOrder:
        if after_ms >= 0:
            self.at(self._now_ms + after_ms, lambda _: self._cancel_if_open(tracked))
        return attrs.evolve(tracked.now, status=OrderStatus.CANCELED)

    def _cancel_if_open(self, tracked: Tracked) -> None:
        if tracked.now.is_open:
            self._end(tracked, OrderStatus.CANCELED)


def _in_parts(strikes: Strikes) -> tuple[FillStep, ...]:
    """A part at once, and a rest that comes later, in two steps, or never."""
    first = Decimal(strikes.value(Fault.PARTIAL_FILL, 1, 999)) / 1_000
    rest = 1 - first
    kind = strikes.random.randrange(3)
    if kind == 0:
        return (FillStep(0, first),)
    if kind == 1:
        return (FillStep(0, first), FillStep(strikes.random.randint(50, 20_000), rest))
    soon = strikes.random.randint(50, 5_000)
    return (FillStep(0, first), FillStep(soon, rest / 2), FillStep(2 * soon, rest))
