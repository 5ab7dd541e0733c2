"""The engine of the simulated venue: time, prices, matching, and what is kept. Faults are not known here."""

from __future__ import annotations

import functools
import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final

from execsafe.model.order import ZERO, OrderStatus, Side
from execsafe.model.values import Number, to_positive
from execsafe.testing._accounts import Account, Market, btc_usdt, eth_usdt, linear
from execsafe.testing._books import Books, Levels
from execsafe.testing._orders import AT_ONCE, FillStep, NewOrder, SimFill, SimOrder, Tracked, in_own_context
from execsafe.testing.ledger import Entry, Happened, Ledger

_DEFAULT_PRICES: Final = {"BTC": Decimal(60_000), "ETH": Decimal(3_000)}


class Engine:
    """What needs no judgement: each method does what it says at the instant it is given."""

    def __init__(
        self,
        markets: Iterable[Market] | None,
        prices: Mapping[str, Decimal | str | int | float] | None,
        balances: Mapping[str, Decimal | str | int] | None,
        retention_ms: int,
        spread_bps: Number = 0,
    ) -> None:
        listed = (btc_usdt(), eth_usdt(), linear()) if markets is None else markets
        self.markets: dict[str, Market] = {market.symbol: market for market in listed}
        self.prices: dict[str, Decimal] = {
            symbol: _DEFAULT_PRICES.get(market.instrument.base, Decimal(100)) for symbol, market in self.markets.items()
        }
        self.prices.update({symbol: to_positive(price, "price") for symbol, price in (prices or {}).items()})
        instruments = {symbol: market.instrument for symbol, market in self.markets.items()}
        self.books: Books = Books(instruments, self.prices, spread_bps)
        self._now_ms = 0
        self.account: Account = Account(self.markets, balances, lambda: self._now_ms)
        self.retention_ms = retention_ms
        self.ledger: Ledger = Ledger(lambda: self._now_ms)
        self._queue: list[tuple[int, int, Callable[[int], object]]] = []
        self._queued = 0
        self._orders: dict[str, Tracked] = {}
        self._by_client: dict[str, list[Tracked]] = {}
        self._open: dict[str, dict[str, Tracked]] = {symbol: {} for symbol in self.markets}
        self._ended: deque[Tracked] = deque()
        self._schedules: dict[str, Sequence[FillStep]] = {}
        self._last_id = self._last_trade = 0

    # --- time -------------------------------------------------------------------------------------

    def advance(self, now_ms: int) -> None:
        """Let everything happen that is due by *now_ms*, each at its own instant."""
        if self._queue and self._queue[0][0] <= now_ms:
            self._work_off(now_ms)
        self._now_ms = max(self._now_ms, now_ms)
        self._forget()

    @in_own_context
    def _work_off(self, until_ms: int) -> None:
        while self._queue and self._queue[0][0] <= until_ms:
            at_ms, _, event = heapq.heappop(self._queue)
            self._now_ms = max(self._now_ms, at_ms)
            event(self._now_ms)

    def at(self, at_ms: int, event: Callable[[int], object]) -> None:
        """Have *event* called with its instant when time gets there."""
        self._queued += 1
        heapq.heappush(self._queue, (at_ms, self._queued, event))

    @property
    def now_ms(self) -> int:
        """True time up to which everything has happened."""
        return self._now_ms

    @property
    def next_event_ms(self) -> int | None:
        """When the next thing happens by itself; None: never."""
        return self._queue[0][0] if self._queue else None

    # --- what tests arrange -----------------------------------------------------------------------

    @in_own_context
    def set_price(self, symbol: str, price: Decimal | str | int | float, now_ms: int) -> None:
        """Move the price; resting orders that it reaches fill, stops that it reaches trigger."""
        self.advance(now_ms)
        self.books.move(symbol, to_positive(price, "price"), self._now_ms)
        self._moved(symbol)

    def set_path(self, symbol: str, path: Iterable[tuple[int, Decimal | str | int | float]]) -> None:
        """Queue prices: pairs of instant (Unix ms) and price."""
        for at_ms, price in path:
            self.at(at_ms, functools.partial(self.set_price, symbol, price))

    @in_own_context
    def set_book(self, symbol: str, bids: Levels, asks: Levels, now_ms: int | None = None) -> None:
        """Give *symbol* a finite book of other people's orders: pairs of price and quantity.

        Who takes eats into it, level by level, until the next book is set; who finds nobody to trade with rests
        (limit orders) or expires (market, IOC and FOK orders). Resting orders that it reaches fill at their limit.
        The last price, which sets stops off, stays: move it with :meth:`set_price`, which does not touch the book.

        Args:
            symbol: which.
            bids: empty: nobody buys.
            asks: empty: nobody sells.
            now_ms: when; None: the instant up to which everything has happened.

        Raises:
            InvalidInput: prices or quantities that are not above 0, or the best bid is not below the best ask.
        """
        self.advance(self._now_ms if now_ms is None else now_ms)
        self.books.put(symbol, bids, asks, self._now_ms)
        for tracked in list(self._open[symbol].values()):
            self._meet(tracked)

    @in_own_context
    def clear_book(self, symbol: str, now_ms: int | None = None) -> None:
        """Back to one deep level on either side of the price."""
        self.advance(self._now_ms if now_ms is None else now_ms)
        self.books.clear(symbol, self._now_ms)
        self._moved(symbol)

    def schedule_fills(self, symbol: str, schedule: Sequence[FillStep] | None) -> None:
        """How orders in *symbol* fill from now on; None: all at once. What no step covers never fills."""
        self._schedules[symbol] = schedule or AT_ONCE

    @in_own_context
    def fill(
        self, venue_order_id: str, now_ms: int, quantity: Decimal | None = None, price: Decimal | None = None
    ) -> SimOrder:
        """Fill an open order by hand: at most what is left, at *price* (None: its own)."""
        self.advance(now_ms)
        tracked = self._orders[venue_order_id]
        self._fill(tracked, min(quantity or tracked.now.leaves_quantity, tracked.now.leaves_quantity), price)
        return tracked.now

    def order(self, venue_order_id: str) -> SimOrder:
        """The true state of an order, without lag."""
        return self._orders[venue_order_id].now

    def open_orders(self, symbol: str | None = None) -> list[SimOrder]:
        """The truly open orders, without lag."""
        symbols = self._open if symbol is None else [symbol]
        return [tracked.now for name in symbols for tracked in self._open[name].values()]

    # --- matching ---------------------------------------------------------------------------------

    def _register(self, order: SimOrder) -> Tracked:
        self._last_id += 1
        tracked = Tracked(order)
        self._orders[order.venue_order_id] = tracked
        self._open[order.symbol][order.venue_order_id] = tracked
        if order.client_order_id is not None:
            self._by_client.setdefault(order.client_order_id, []).append(tracked)
        self.account.reserve(tracked, self.prices[order.symbol])
        self._log(Happened.ACCEPTED, order.request, order=order, quantity=order.quantity, price=order.limit_price)
        return tracked

    def _moved(self, symbol: str) -> None:
        """The price of *symbol* has moved."""
        for tracked in list(self._open[symbol].values()):
            self._match(tracked, is_maker=True)

    def _match(self, tracked: Tracked, *, is_maker: bool, schedule: Sequence[FillStep] | None = None) -> None:
        """Trigger and fill as the current price allows."""
        order, price = tracked.now, self.prices[tracked.now.symbol]
        if not order.is_open:
            return
        if not order.triggered and triggers(order.request, price):
            order = tracked.change(self._now_ms, triggered=True)
            self._log(Happened.TRIGGERED, order.request, order=order, quantity=order.leaves_quantity, price=price)
            self._trade(tracked, schedule, is_maker=False)
            if tracked.now.is_open and order.request.time_in_force in {"IOC", "FOK"}:
                self._end(tracked, OrderStatus.EXPIRED)
        elif order.triggered:
            self._trade(tracked, schedule, is_maker=is_maker)

    def _trade(self, tracked: Tracked, schedule: Sequence[FillStep] | None, *, is_maker: bool) -> None:
        """Fill an active order as the current price or the book allows."""
        order = tracked.now
        if tracked.matching:
            return
        if not self._is_met(order, is_maker):
            if order.limit_price is None:  # nobody to trade with
                self._end(tracked, OrderStatus.EXPIRED)
            return
        steps = schedule or self._schedules.get(order.symbol, AT_ONCE)
        if order.request.time_in_force == "FOK" and (steps[0] != AT_ONCE[0] or not self._is_met_in_full(order)):
            return
        tracked.matching = True
        for step in steps:
            last = step is steps[-1]
            if step.after_ms <= 0:
                self._step(tracked, step, last, is_maker)
            else:
                later = functools.partial(self._step, tracked, step, last, is_maker)
                self.at(self._now_ms + step.after_ms, later)

    def _step(self, tracked: Tracked, step: FillStep, last: bool, is_maker: bool, _now_ms: int = 0) -> None:
        if tracked.now.is_open:
            self._execute(tracked, self._part(tracked.now, step.ratio), is_maker=is_maker)
        if last and tracked.now.is_open and tracked.now.limit_price is None:
            self._end(tracked, OrderStatus.EXPIRED)
        elif last and self.books.is_set(tracked.now.symbol):
            tracked.matching = False  # what the book could not fill rests, for the next one

    def _execute(self, tracked: Tracked, quantity: Decimal, *, is_maker: bool) -> None:
        """Fill *quantity* at one price, or level by level where a taker meets a set book."""
        order = tracked.now
        if is_maker or self._is_spent(order) or not self.books.is_set(order.symbol):
            self._fill(tracked, quantity, None, is_maker=is_maker)
            return
        if self._only_reduces(order):
            quantity = min(quantity, self.account.reducible(order))
        for price, part in self.books.take(order.symbol, order.side, quantity, order.limit_price, self._now_ms):
            self._fill(tracked, part, price)

    def _meet(self, tracked: Tracked) -> None:
        """A new book: it fills a resting order that it reaches, at the order's limit."""
        order = tracked.now
        if not order.is_open or not order.triggered or tracked.matching or not self._is_met(order, is_maker=False):
            return
        if self._is_spent(order):
            self._end(tracked, OrderStatus.CANCELED)
            return
        wanted = order.leaves_quantity
        if self._only_reduces(order):
            wanted = min(wanted, self.account.reducible(order))
        taken = self.books.take(order.symbol, order.side, wanted, order.limit_price, self._now_ms)
        self._fill(tracked, sum((part for _, part in taken), ZERO), order.limit_price, is_maker=True)

    def _is_met(self, order: SimOrder, is_maker: bool) -> bool:
        """Whether somebody would trade with an active order: who rests is also met by the price that passes."""
        if is_maker and self.books.is_set(order.symbol):
            return crosses(order, self.prices[order.symbol])
        touch = self.books.touch(order.symbol, order.side)
        return touch is not None and crosses(order, touch)

    def _would_take(self, order: SimOrder) -> bool:
        """Whether an order would trade on arrival."""
        return self._is_met(order, is_maker=False)

    def _is_met_in_full(self, order: SimOrder) -> bool:
        if not self.books.is_set(order.symbol):
            return True
        return self.books.available(order.symbol, order.side, order.limit_price) >= order.leaves_quantity

    def _part(self, order: SimOrder, ratio: Decimal) -> Decimal:
        """That ratio of the order on the step: never more than is left, and at least one step."""
        instrument = self.markets[order.symbol].instrument
        part = instrument.floor_quantity(order.quantity * ratio)
        return min(max(part, instrument.step_size or part), order.leaves_quantity)

    def _fill(self, tracked: Tracked, quantity: Decimal, price: Decimal | None, *, is_maker: bool = False) -> None:
        order = tracked.now
        current = self.books.touch(order.symbol, order.side) or self.prices[order.symbol]
        if self._is_spent(order):
            self._end(tracked, OrderStatus.CANCELED)
            return
        if self._only_reduces(order):
            quantity = min(quantity, self.account.reducible(order))
        if price is None:
            at_limit = order.limit_price is not None and (is_maker or not crosses(order, current))
            price = order.limit_price if at_limit else current
        assert price is not None
        self._last_trade += 1
        fee, currency = self.account.fee(order, quantity, price, is_maker)
        fill = SimFill(
            trade_id=str(self._last_trade), venue_order_id=order.venue_order_id, quantity=quantity,
            price=price, fee=fee, fee_currency=currency, at_ms=self._now_ms, is_maker=is_maker,
        )  # fmt: skip
        filled = order.filled_quantity + quantity
        changed = tracked.change(
            self._now_ms,
            filled_quantity=filled,
            cost=order.cost + quantity * price,
            fills=(*order.fills, fill),
        )
        held = self.account.positions.get(order.symbol)
        self.account.settle(order, fill)
        self._log(
            Happened.FILLED, order.request, order=order, quantity=quantity, price=price, fee=fee,
            fee_currency=currency, trade_id=fill.trade_id,
        )  # fmt: skip
        if held is not None and held.stop_price is not None:
            self._note_stop_end(order.symbol)
        if filled == changed.quantity:
            self._end(tracked, OrderStatus.CLOSED)
        elif self._is_spent(changed):
            self._end(tracked, OrderStatus.CANCELED)
        else:
            self.account.reserve(tracked, self.prices[order.symbol])

    def _note_stop_end(self, symbol: str) -> None:
        """A position that had a stop has changed: the stop ends with it."""
        if self.account.positions[symbol].stop_price is None:
            self._note(Happened.STOP_REMOVED, symbol, reason="flat")

    def _only_reduces(self, order: SimOrder) -> bool:
        return order.request.reduce_only and self.markets[order.symbol].is_linear

    def _is_spent(self, order: SimOrder) -> bool:
        return self._only_reduces(order) and self.account.reducible(order) <= 0

    def _end(self, tracked: Tracked, status: OrderStatus, *, reason: str | None = None) -> SimOrder:
        left = tracked.now.leaves_quantity
        order = tracked.change(self._now_ms, status=status)
        self.account.reserve(tracked, self.prices[order.symbol])
        self._open[order.symbol].pop(order.venue_order_id, None)
        self._ended.append(tracked)
        if status is not OrderStatus.CLOSED:
            what = Happened.EXPIRED if status is OrderStatus.EXPIRED else Happened.CANCELED
            self._log(what, order.request, order=order, quantity=left, reason=reason)
        return order

    # --- finding and forgetting -------------------------------------------------------------------

    def _find(self, symbol: str | None, client_id: str | None, venue_id: str | None) -> Tracked | None:
        """An open order before an ended one, the latest before an older one."""
        found = [t for t in self._candidates(symbol, client_id, venue_id) if venue_id is not None or t.indexed]
        return max(found, key=lambda t: (t.now.is_open, int(t.now.venue_order_id)), default=None)

    def _candidates(self, symbol: str | None, client_id: str | None, venue_id: str | None) -> Iterable[Tracked]:
        if venue_id is not None:
            found: Iterable[Tracked] = [self._orders[venue_id]] if venue_id in self._orders else []
        else:
            found = self._orders.values() if client_id is None else self._by_client.get(client_id, [])
        return [tracked for tracked in found if symbol is None or tracked.now.symbol == symbol]

    def _forget(self) -> None:
        while self._ended and self._ended[0].now.updated_at_ms + self.retention_ms < self._now_ms:
            order = self._ended.popleft().now
            del self._orders[order.venue_order_id]
            if order.client_order_id is not None:
                known = self._by_client[order.client_order_id]
                known[:] = [t for t in known if t.now.venue_order_id != order.venue_order_id]
                if not known:
                    del self._by_client[order.client_order_id]

    def _log(
        self, what: Happened, request: NewOrder | str | None, *, order: SimOrder | None = None,
        venue_order_id: str | None = None, quantity: Decimal = ZERO, price: Decimal | None = None,
        trade_id: str | None = None, fee: Decimal = ZERO, fee_currency: str | None = None,
        reason: str | None = None,
    ) -> None:  # fmt: skip
        known = request if isinstance(request, NewOrder) else None
        self.ledger.append(
            Entry(
                seq=len(self.ledger) + 1, at_ms=self._now_ms, what=what, symbol=known.symbol if known else "",
                client_order_id=known.client_order_id if known else request,  # type: ignore[arg-type]
                venue_order_id=order.venue_order_id if order else venue_order_id,
                side=known.side if known else None, quantity=quantity, price=price, trade_id=trade_id,
                fee=fee, fee_currency=fee_currency, reason=reason,
                reduce_only=known.reduce_only if known else False,
                trigger_price=known.trigger_price if known else None, is_stop=known.is_stop if known else False,
            )
        )  # fmt: skip

    def _note(
        self, what: Happened, symbol: str, *, side: Side | None = None, quantity: Decimal = ZERO,
        trigger_price: Decimal | None = None, price: Decimal | None = None, reason: str | None = None,
    ) -> None:  # fmt: skip
        """Log what is about a symbol, not about an order."""
        self.ledger.append(
            Entry(
                seq=len(self.ledger) + 1, at_ms=self._now_ms, what=what, symbol=symbol, side=side, quantity=quantity,
                trigger_price=trigger_price, price=price, reason=reason,
            )
        )  # fmt: skip


def crosses(order: SimOrder, price: Decimal) -> bool:
    """Whether the order could trade at *price*."""
    if order.limit_price is None or not order.triggered:
        return order.triggered
    return price <= order.limit_price if order.side is Side.BUY else price >= order.limit_price


def triggers(request: NewOrder, price: Decimal) -> bool:
    """Whether *price* sets the order off; one without a trigger always is."""
    if request.trigger_price is None:
        return True
    above = request.side is Side.BUY if request.trigger_above is None else request.trigger_above
    return price >= request.trigger_price if above else price <= request.trigger_price
