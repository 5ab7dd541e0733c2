"""What the REST APIs of Binance (spot, futures) and MEXC spot have in common: signing, routes, listings."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeAlias

import attrs

from execsafe.model.outcome import Operation
from execsafe.model.position import Quote
from execsafe.model.values import plain
from execsafe.model.venue import View
from execsafe.testing._orders import RejectReason, SimFill, SimOrder, VenueReject
from execsafe.testing.faults import Reading, Strikes
from execsafe.testing.http._face import (
    Answer,
    Face,
    Job,
    Refusal,
    WireRequest,
    integer,
    number,
    ordinary,
    reference,
    signed_with,
)
from execsafe.testing.venue import Market, SimVenue

_RECV_WINDOW_MS: Final = 5_000
_RECV_WINDOW_MS_MAX: Final = 60_000
_DEPTH: Final = 100

Handler: TypeAlias = Callable[[Mapping[str, str], int, Strikes], Any]
Refusals: TypeAlias = Mapping[RejectReason, tuple[int, int, str]]
"""HTTP status, code and message by reason."""


@attrs.frozen
class Route:
    """A request: what it is to a fault plan, and who answers it."""

    operation: Operation | None
    handler: Handler
    reading: Reading | None = None


class BinanceLike(Face):
    """A face in which requests are signed queries, and refusals are ``{"code": …, "msg": …}``."""

    prefix: ClassVar[str]
    key_header: ClassVar[str] = "x-mbx-apikey"
    is_linear: ClassVar[bool] = False
    refusals: ClassVar[Refusals]
    bad_signature: ClassVar[tuple[int, int, str]] = (400, -1022, "Signature for this request is not valid.")

    def __init__(self, venue: SimVenue, keys: Mapping[str, str], *, lag_max_ms: int = 2_000) -> None:
        super().__init__(venue, keys, lag_max_ms=lag_max_ms)
        self._public: dict[str, Route] = self.public_routes()
        self._private: dict[str, Route] = self.private_routes()

    # --- what differs -----------------------------------------------------------------------------

    @abc.abstractmethod
    def public_routes(self) -> dict[str, Route]:
        """Routes that need no signature, by method and path."""

    @abc.abstractmethod
    def private_routes(self) -> dict[str, Route]:
        """Signed routes, by method and path."""

    @abc.abstractmethod
    def shown(self, order: SimOrder) -> dict[str, Any]:
        """An order as look-ups show it."""

    @abc.abstractmethod
    def shown_fill(self, order: SimOrder, fill: SimFill) -> dict[str, Any]:
        """An execution."""

    @abc.abstractmethod
    def shown_quote(self, key: str, quote: Quote) -> dict[str, Any]:
        """Best and last prices of a symbol."""

    # --- requests ---------------------------------------------------------------------------------

    def read(self, request: WireRequest) -> Job:
        """Understand a request. Nothing is done yet."""
        params, name = request.params(), f"{request.method} {request.path.removeprefix(self.prefix)}"
        public, route = self._public.get(name), self._private.get(name)
        if public is not None:
            return Job(act=ordinary(self._act(public, params)), operation=public.operation, reading=public.reading)
        if route is None:
            return Job(act=lambda _now_ms, _strikes: Answer.html(404))
        dead_after_ms = integer(params, "timestamp") + window(params)
        act = ordinary(self._act(route, params, request, dead_after_ms))
        return Job(act=act, operation=route.operation, reading=route.reading, dead_after_ms=dead_after_ms)

    def _act(
        self,
        route: Route,
        params: Mapping[str, str],
        request: WireRequest | None = None,
        dead_after_ms: int = 0,
    ) -> Callable[[int, Strikes], Any]:
        def act(now_ms: int, strikes: Strikes) -> Any:
            if request is not None:
                self._check_signature(request)
            self.venue.advance(now_ms)
            if request is not None and route.operation is not Operation.CREATE:
                # The venue itself judges a create, and records its judgement.
                self.venue.check_time(dead_after_ms, integer(params, "timestamp"))
            return route.handler(params, now_ms, strikes)

        return act

    def refuse(self, reject: VenueReject) -> Answer:
        """The venue's own words for a refusal."""
        if isinstance(reject, Refusal):
            return reject.answer
        if reject.reason is RejectReason.MAINTENANCE:
            return Answer.html(503)
        status, code, message = self.refusals.get(reject.reason) or self.refusals[RejectReason.BAD_REQUEST]
        headers = {"Retry-After": "1"} if reject.reason is RejectReason.RATE_LIMITED else {}
        return Answer.of({"code": code, "msg": message}, status, **headers)

    def market(self, params: Mapping[str, str]) -> Market:
        """The market that a request names. Raises VenueReject where there is none."""
        market = self.listed(self.is_linear).get(params.get("symbol", ""))
        if market is None:
            raise VenueReject(RejectReason.BAD_SYMBOL)
        return market

    def _check_signature(self, request: WireRequest) -> None:
        secret = self.keys.get(request.headers.get(self.key_header, ""))
        if secret is None:
            raise VenueReject(RejectReason.BAD_KEY)
        payload, _, signature = (request.query + request.body).rpartition("&signature=")
        if not signed_with(secret, payload, signature):
            raise said(*self.bad_signature)

    # --- orders -----------------------------------------------------------------------------------

    def cancel(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """Cancel one order."""
        market = self.market(params)
        order = self.venue.cancel(
            now_ms, symbol=market.symbol, strikes=strikes, **reference(params, "orderId", "origClientOrderId")
        )
        return self.shown(order)

    def order(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """One order by its id or ours."""
        sought = reference(params, "orderId", "origClientOrderId")
        symbol = self.market(params).symbol
        found = self.look(View.CLIENT_ID, now_ms, strikes, symbol=symbol, **sought)
        if not found or not any(sought.values()):
            raise not_found()
        return self.shown(found[-1])

    def open_orders(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """Open orders of one symbol or of all."""
        symbol = self.market(params).symbol if "symbol" in params else None
        orders = self.look(View.OPEN_ORDERS, now_ms, strikes, symbol=symbol)
        return [self.shown(order) for order in orders if self._is_listed(order)]

    def all_orders(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """Orders of one symbol, open ones included: from a start onwards, or the latest."""
        symbol = self.market(params).symbol
        orders = self.look(View.CLOSED_ORDERS, now_ms, strikes, symbol=symbol)
        ended = {order.venue_order_id for order in orders}
        still_open = self.venue.look(View.OPEN_ORDERS, now_ms, symbol=symbol)
        orders += [order for order in still_open if order.venue_order_id not in ended]
        since_ms, until_ms = integer(params, "startTime"), integer(params, "endTime") or now_ms
        first_id = integer(params, "orderId")
        kept = [o for o in orders if since_ms <= o.created_at_ms <= until_ms and int(o.venue_order_id) >= first_id]
        kept.sort(key=lambda order: int(order.venue_order_id))
        limit = integer(params, "limit", 500)
        return [self.shown(order) for order in (kept[:limit] if since_ms or first_id else kept[-limit:])]

    def my_trades(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """Executions of one symbol: from a start onwards, or the latest."""
        symbol = self.market(params).symbol
        orders = self.look(View.TRADES, now_ms, strikes, symbol=symbol)
        pairs = [(order, fill) for order in orders for fill in order.fills]
        wanted, since_ms = params.get("orderId"), integer(params, "startTime")
        until_ms = integer(params, "endTime") or 1 << 60
        pairs = [(o, f) for o, f in pairs if wanted in {None, o.venue_order_id} and since_ms <= f.at_ms <= until_ms]
        pairs.sort(key=lambda pair: int(pair[1].trade_id))
        limit = min(integer(params, "limit", 500), 1_000)
        kept = pairs[:limit] if since_ms else pairs[-limit:]
        return [self.shown_fill(order, fill) for order, fill in kept]

    def _is_listed(self, order: SimOrder) -> bool:
        return order.symbol in self.venue.markets and self.venue.markets[order.symbol].is_linear is self.is_linear

    # --- prices -----------------------------------------------------------------------------------

    def depth(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """The order book."""
        limit = integer(params, "limit", _DEPTH)
        book = self.venue.order_book(
            self.market(params).symbol, now_ms, depth=limit, strikes=strikes, lag_max_ms=self.lag_max_ms
        )
        bids, asks = (
            [[plain(level.price), plain(level.quantity)] for level in side] for side in (book.bids, book.asks)
        )
        return {"lastUpdateId": 1, "bids": bids, "asks": asks}

    def tickers(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """Prices of one symbol, of some, or of all."""
        keys = self.listed(self.is_linear)
        if "symbol" in params:
            keys = {params["symbol"]: self.market(params)}
        elif "symbols" in params:
            keys = {key: market for key, market in keys.items() if f'"{key}"' in params["symbols"]}
        symbols = [market.symbol for market in keys.values()]
        quotes = self.venue.quotes(symbols, now_ms, strikes=strikes, lag_max_ms=self.lag_max_ms)
        rows = [self.shown_quote(key, quotes[market.symbol]) for key, market in keys.items()]
        return rows[0] if "symbol" in params else rows

    def price_routes(self, names: Sequence[str]) -> dict[str, Route]:
        """Public routes that state prices: the book, and the tickers of *names*."""
        routes = {name: Route(Operation.LOOK_UP, self.tickers, Reading.QUOTES) for name in names}
        return {**routes, "GET /depth": Route(Operation.LOOK_UP, self.depth, Reading.ORDER_BOOK)}


def window(params: Mapping[str, str]) -> int:
    """How long after signing a request is good, in ms."""
    return min(integer(params, "recvWindow", _RECV_WINDOW_MS), _RECV_WINDOW_MS_MAX)


def said(status: int, code: int, message: str) -> Refusal:
    """A refusal in these words."""
    return Refusal(Answer.of({"code": code, "msg": message}, status))


def not_found() -> Refusal:
    """No such order."""
    return said(400, -2013, "Order does not exist.")


def price_or_zero(value: Any, zero: str = "0.00000000") -> str:
    """A price, or how these venues write none."""
    return plain(value) if value else zero


__all__ = [
    "BinanceLike", "Handler", "Refusals", "Route", "not_found", "number", "price_or_zero", "said", "window",
]  # fmt: skip
