"""The wire format of Bybit v5 (linear and spot): requests, answers and return codes as its REST API has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, TypeAlias
from urllib.parse import unquote

from execsafe.model.order import ZERO, Side
from execsafe.model.outcome import Operation
from execsafe.model.position import PositionSide, VenuePosition
from execsafe.model.values import plain
from execsafe.model.venue import View
from execsafe.testing._orders import NewOrder, RejectReason, SimOrder, VenueReject
from execsafe.testing.faults import Reading, Strikes
from execsafe.testing.http._bybit_shapes import envelope, linear_info, page, shown, shown_fill, spot_info
from execsafe.testing.http._face import (
    Answer,
    Face,
    Job,
    Refusal,
    WireRequest,
    integer,
    number,
    reference,
    signed_with,
)
from execsafe.testing.venue import Market

_RECV_WINDOW_MS: Final = 5_000
_WEEK_MS: Final = 7 * 86_400_000
_MODES: Final = {"ISOLATED_MARGIN": "isolated", "REGULAR_MARGIN": "cross"}
_TIME_IN_FORCE: Final = {"GTC": "GTC", "IOC": "IOC", "FOK": "FOK", "PostOnly": "GTC"}

# linear code, spot code, message
_REFUSALS: Final[Mapping[RejectReason, tuple[int, int, str]]] = {
    RejectReason.INSUFFICIENT_FUNDS: (110007, 170131, "ab not enough for new order"),
    RejectReason.LOT_SIZE: (10001, 170137, "Qty invalid"),
    RejectReason.PRICE_FILTER: (10001, 170134, "params error: price invalid"),
    RejectReason.NOTIONAL: (110094, 170140, "Order does not meet minimum order value 5USDT"),
    RejectReason.POST_ONLY: (110092, 170218, "The order would be executed immediately"),
    RejectReason.REDUCE_ONLY: (110017, 110017, "current position is zero, cannot fix reduce-only order qty"),
    RejectReason.DUPLICATE_ID: (110072, 170141, "OrderLinkedID is duplicate"),
    RejectReason.UNKNOWN_ORDER: (110001, 170213, "order not exists or too late to cancel"),
    RejectReason.BAD_SYMBOL: (10001, 170121, "Not supported symbols"),
    RejectReason.BAD_REQUEST: (10001, 10001, "params error"),
    RejectReason.EXPIRED_REQUEST: (10002, 10002, "invalid request, please check your server timestamp or recv_window "
                                   "param. req_timestamp[0],server_timestamp[0],recv_window[0]"),
    RejectReason.TIMESTAMP_AHEAD: (10002, 10002, "invalid request, please check your server timestamp or recv_window "
                                   "param. req_timestamp[0],server_timestamp[0],recv_window[0]"),
    RejectReason.RATE_LIMITED: (10006, 10006, "Too many visits. Exceeded the API Rate Limit."),
    RejectReason.BAD_KEY: (10003, 10003, "API key is invalid."),
    RejectReason.LEVERAGE_UNCHANGED: (110043, 110043, "leverage not modified"),
    RejectReason.MARGIN_MODE_UNCHANGED: (110026, 110026, "Cross/isolated margin mode is not modified"),
    RejectReason.MARGIN_MODE_LOCKED: (110024, 110024, "You have an existing position, so margin mode is locked"),
    RejectReason.STOP_UNCHANGED: (34040, 34040, "not modified"),
    RejectReason.NO_POSITION: (10001, 10001, "can not set tp/sl/ts for zero position"),
    RejectReason.STOP_WOULD_TRIGGER: (10001, 170193, "the stop is beyond the base price already"),
}  # fmt: skip

Handler: TypeAlias = Callable[[Mapping[str, str], int, Strikes], Any]
_Route: TypeAlias = tuple[Operation | None, Reading | None, Handler]


class BybitFace(Face):
    """Bybit v5 as ``api.bybit.com`` serves it. Create answers are acknowledgements: an id and nothing else."""

    name: ClassVar[str] = "bybit"
    hosts: ClassVar[tuple[str, ...]] = ("api.bybit.com", "api.bytick.com")

    def read(self, request: WireRequest) -> Job:
        params = {"category": "linear", **request.params()}
        route = f"{request.method} {request.path.removeprefix('/v5')}"
        public, private = self._public().get(route), self._private().get(route)
        if public is not None:
            return self._job(public, params, None)
        if private is None:
            return Job(act=lambda _now_ms, _strikes: Answer.html(404))
        return self._job(private, params, request)

    def refuse(self, reject: VenueReject) -> Answer:
        if isinstance(reject, Refusal):
            return reject.answer
        if reject.reason is RejectReason.MAINTENANCE:
            return Answer.html(503)
        linear, _, message = _REFUSALS[reject.reason]
        return envelope({}, self.venue.now_ms, linear, message)

    def _public(self) -> dict[str, _Route]:
        look = Operation.LOOK_UP
        return {
            "GET /market/time": (None, None, self._time),
            "GET /market/instruments-info": (None, None, self._instruments),
            "GET /market/tickers": (look, Reading.QUOTES, self._tickers),
            "GET /market/orderbook": (look, Reading.ORDER_BOOK, self._order_book),
        }

    def _private(self) -> dict[str, _Route]:
        look = Operation.LOOK_UP
        return {
            "GET /user/query-api": (
                None, None, lambda *_: {"uta": 1, "unified": 0, "isMaster": True, "readOnly": 0}),
            "GET /account/info": (
                None, None,
                lambda *_: {"unifiedMarginStatus": 6, "marginMode": "REGULAR_MARGIN", "dcpStatus": "OFF"}),
            "POST /order/create": (Operation.CREATE, None, self._create),
            "POST /order/amend": (Operation.CREATE, None, self._amend),
            "POST /order/cancel": (Operation.CANCEL, None, self._cancel),
            "GET /order/realtime": (look, Reading.OPEN_ORDERS, self._realtime),
            "GET /order/history": (look, Reading.ORDER, self._history),
            "GET /execution/list": (look, Reading.EXECUTIONS, self._executions),
            "GET /position/list": (look, Reading.POSITIONS, self._positions),
            "GET /account/wallet-balance": (look, Reading.BALANCES, self._wallet),
            "POST /position/set-leverage": (Operation.SET_LEVERAGE, None, self._set_leverage),
            "POST /position/switch-isolated": (Operation.SET_MARGIN_MODE, None, self._switch_isolated),
            "POST /account/set-margin-mode": (Operation.SET_MARGIN_MODE, None, self._set_margin_mode),
            "POST /position/trading-stop": (Operation.SET_STOP, None, self._trading_stop),
        }  # fmt: skip

    def _job(self, route: _Route, params: Mapping[str, str], request: WireRequest | None) -> Job:
        operation, reading, handler = route
        headers = request.headers if request else {}
        signed_at_ms = integer(headers, "x-bapi-timestamp")
        window_ms = integer(headers, "x-bapi-recv-window", _RECV_WINDOW_MS)
        dead_after_ms = signed_at_ms + window_ms
        params = {**params, "timestamp": str(signed_at_ms), "window": str(window_ms)}

        def act(now_ms: int, strikes: Strikes) -> Answer:
            self.venue.advance(now_ms)
            if request is not None:
                self._check_signature(request)
                if handler != self._create:  # the venue itself judges a create, and records its judgement
                    self.venue.check_time(dead_after_ms, signed_at_ms)
            try:
                return envelope(handler(params, now_ms, strikes), now_ms)
            except VenueReject as reject:
                if params["category"] == "spot" and reject.reason in _REFUSALS:
                    _, code, message = _REFUSALS[reject.reason]
                    raise Refusal(envelope({}, now_ms, code, message), reject.reason) from None
                raise

        return Job(act=act, operation=operation, reading=reading, dead_after_ms=dead_after_ms if request else None)

    def _check_signature(self, request: WireRequest) -> None:
        headers = request.headers
        key = headers.get("x-bapi-api-key", "")
        if key not in self.keys:
            raise VenueReject(RejectReason.BAD_KEY)
        payload = request.body if request.method == "POST" else unquote(request.query)
        prefix = headers.get("x-bapi-timestamp", "") + key + headers.get("x-bapi-recv-window", "")
        if not signed_with(self.keys[key], prefix + payload, headers.get("x-bapi-sign", "")):
            message = "error sign! origin_string[...]"
            raise Refusal(envelope({}, self.venue.now_ms, 10004, message), RejectReason.BAD_KEY)

    # --- public -----------------------------------------------------------------------------------

    def _time(self, _params: Mapping[str, str], now_ms: int, _strikes: Strikes) -> Any:
        venue_ms = now_ms + self.venue.skew_ms
        return {"timeSecond": str(venue_ms // 1000), "timeNano": str(venue_ms * 1_000_000)}

    def _instruments(self, params: Mapping[str, str], _now_ms: int, _strikes: Strikes) -> Any:
        category = params["category"]
        markets = self._listed(params).values()
        rows = [linear_info(m) if category == "linear" else spot_info(m) for m in markets]
        return {"category": category, "list": rows, "nextPageCursor": ""}

    def _tickers(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        listed = self._listed(params)
        keys = {key: market.symbol for key, market in listed.items() if params.get("symbol", key) == key}
        quotes = self.venue.quotes(keys.values(), now_ms, strikes=strikes, lag_max_ms=self.lag_max_ms)
        rows = []
        for key, symbol in keys.items():
            quote = quotes[symbol]
            bid, ask, last = (plain(price) if price else "" for price in (quote.bid, quote.ask, quote.last))
            more = {"openInterest": "1000", "openInterestValue": "60000000"} if params["category"] == "linear" else {}
            rows.append({
                "symbol": key, **dict.fromkeys(("lastPrice", "markPrice", "indexPrice", "prevPrice24h"), last),
                "bid1Price": bid, "ask1Price": ask, "bid1Size": "1000" if bid else "",
                "ask1Size": "1000" if ask else "", **more,
            })  # fmt: skip
        return {"category": params["category"], "list": rows}

    def _order_book(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        book = self.venue.order_book(
            self._market(params).symbol,
            now_ms,
            depth=integer(params, "limit", 25),
            strikes=strikes,
            lag_max_ms=self.lag_max_ms,
        )
        bids, asks = (
            [[plain(level.price), plain(level.quantity)] for level in side] for side in (book.bids, book.asks)
        )
        return {"s": params["symbol"], "b": bids, "a": asks, "ts": now_ms, "u": 1, "seq": 1, "cts": now_ms}

    # --- orders -----------------------------------------------------------------------------------

    def _create(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        order = self.venue.submit(self._new_order(params), now_ms, strikes)
        return {"orderId": order.venue_order_id, "orderLinkId": order.client_order_id or ""}

    def _amend(self, params: Mapping[str, str], now_ms: int, _strikes: Strikes) -> Any:
        order = self.venue.amend(
            now_ms,
            symbol=self._market(params).symbol,
            quantity=number(params, "qty"),
            limit_price=number(params, "price"),
            **reference(params, "orderId", "orderLinkId"),
        )
        return {"orderId": order.venue_order_id, "orderLinkId": order.client_order_id or ""}

    def _cancel(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        symbol = self._market(params).symbol
        order = self.venue.cancel(now_ms, symbol=symbol, strikes=strikes, **reference(params, "orderId", "orderLinkId"))
        return {"orderId": order.venue_order_id, "orderLinkId": order.client_order_id or ""}

    def _realtime(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """Open orders, or with ``openOnly=1`` the recently ended ones."""
        ended = params.get("openOnly", "0") == "1"
        view = View.CLOSED_ORDERS if ended else View.OPEN_ORDERS
        if any(reference(params, "orderId", "orderLinkId").values()):
            view = View.CLIENT_ID
        found = [order for order in self._shown(view, params, now_ms, strikes) if order.is_open is not ended]
        if params.get("orderFilter") in {"StopOrder", "tpslOrder"}:
            found = [order for order in found if order.request.trigger_price is not None]
        return page(params, [shown(order) for order in found], 20)

    def _history(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        found = self._shown(View.CLOSED_ORDERS, params, now_ms, strikes)
        return page(params, [shown(order) for order in found if not order.is_open], 20)

    def _executions(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """Newest first, of at most seven days."""
        found = self._shown(View.TRADES, {**params, "startTime": ""}, now_ms, strikes)
        since_ms = integer(params, "startTime")
        until_ms = integer(params, "endTime") or (since_ms + _WEEK_MS if since_ms else now_ms)
        pairs = [(o, fill) for o in found for fill in o.fills if since_ms <= fill.at_ms <= until_ms]
        pairs.sort(key=lambda pair: int(pair[1].trade_id))
        return page(params, [shown_fill(order, fill) for order, fill in pairs], 50)

    def _shown(self, view: View, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> list[SimOrder]:
        symbol = self._market(params).symbol if "symbol" in params else None
        orders = self.look(view, now_ms, strikes, symbol=symbol, **reference(params, "orderId", "orderLinkId"))
        symbols = {market.symbol for market in self._listed(params).values()}
        since_ms = integer(params, "startTime")
        return [order for order in orders if order.symbol in symbols and order.created_at_ms >= since_ms]

    # --- account ----------------------------------------------------------------------------------

    def _positions(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """Positions; a symbol that is asked for by name is shown although it is flat."""
        held = self.venue.fetch_positions(now_ms, strikes=strikes, lag_max_ms=self.lag_max_ms)
        by_symbol = {position.symbol: position for position in held}
        settle, wanted = params.get("settleCoin"), params.get("symbol")
        rows = [
            self._position(key, market, by_symbol.get(market.symbol), now_ms)
            for key, market in self.listed(is_linear=True).items()
            if (wanted == key if wanted else settle == market.instrument.quote and market.symbol in by_symbol)
        ]
        return {"category": "linear", "list": rows, "nextPageCursor": ""}

    def _position(self, key: str, market: Market, held: VenuePosition | None, now_ms: int) -> dict[str, Any]:
        quantity = held.quantity if held else ZERO
        entry, liquidation, stop = (
            (held.entry_price or ZERO, held.liquidation_price, held.stop_price) if held else (ZERO, None, None)
        )
        price = (held.mark_price if held else None) or self.venue.prices[market.symbol]
        signed = quantity * (held.side.sign if held else 1)
        side = "" if held is None else "Buy" if held.side is PositionSide.LONG else "Sell"
        return {
            "positionIdx": 0, "riskId": 1, "tradeMode": 0, "symbol": key, "side": side, "size": plain(quantity),
            "avgPrice": plain(entry), "leverage": plain(self.venue.account.leverage(market.symbol)),
            "positionValue": plain(market.instrument.notional(quantity, entry)), "markPrice": plain(price),
            "unrealisedPnl": plain(market.instrument.notional(signed, price - entry)), "cumRealisedPnl": "0",
            "liqPrice": plain(liquidation) if liquidation else "", "stopLoss": plain(stop) if stop else "",
            "takeProfit": "", "tpslMode": "Full", "positionStatus": "Normal", "createdTime": str(now_ms),
            "updatedTime": str(now_ms),
        }  # fmt: skip

    def _wallet(self, _params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        balances = self.venue.fetch_balances(now_ms, strikes=strikes, lag_max_ms=self.lag_max_ms)
        coins = [
            {"coin": currency, "walletBalance": plain(balance.total), "equity": plain(balance.total),
             "locked": plain(balance.used), "usdValue": plain(balance.total)}
            for currency, balance in sorted(balances.items())
        ]  # fmt: skip
        return {"list": [{"accountType": "UNIFIED", "coin": coins}]}

    def _set_leverage(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        leverage = number(params, "buyLeverage")
        if leverage is None or leverage != number(params, "sellLeverage"):
            raise VenueReject(RejectReason.BAD_REQUEST)
        self.venue.set_leverage(self._market(params).symbol, leverage, now_ms, strikes)
        return {}

    def _switch_isolated(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        mode = "isolated" if params.get("tradeMode") == "1" else "cross"
        self.venue.set_margin_mode(self._market(params).symbol, mode, now_ms, strikes)
        return {}

    def _set_margin_mode(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """The margin mode of a unified account: that of all its symbols."""
        mode, symbols = _MODES.get(params.get("setMarginMode", "")), self.listed(is_linear=True).values()
        if mode is None:
            raise VenueReject(RejectReason.BAD_REQUEST)
        changed = [market for market in symbols if self.venue.account.margin_mode(market.symbol) != mode]
        if not changed:
            raise VenueReject(RejectReason.MARGIN_MODE_UNCHANGED)
        for market in changed:
            self.venue.set_margin_mode(market.symbol, mode, now_ms, strikes)
        return {"reasons": []}

    def _trading_stop(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        if params["category"] != "linear" or "stopLoss" not in params:
            raise VenueReject(RejectReason.BAD_REQUEST)
        symbol, stop = self._market(params).symbol, number(params, "stopLoss")
        self.venue.set_attached_stop(symbol, stop, now_ms, strikes=strikes)
        return {}

    # --- reading requests -------------------------------------------------------------------------

    def _new_order(self, params: Mapping[str, str]) -> NewOrder:
        market, kind = self._market(params), params.get("orderType", "")
        quantity, price, trigger = (number(params, name) for name in ("qty", "price", "triggerPrice"))
        in_force = params.get("timeInForce", "IOC" if kind == "Market" else "GTC")
        if kind not in {"Limit", "Market"} or quantity is None or in_force not in _TIME_IN_FORCE:
            raise VenueReject(RejectReason.BAD_REQUEST)
        if kind == "Limit" and price is None:
            raise VenueReject(RejectReason.PRICE_FILTER)
        if trigger is not None and market.is_linear and params.get("triggerDirection") not in {"1", "2"}:
            raise VenueReject(RejectReason.BAD_REQUEST, "TriggerDirection invalid")
        is_spot_market_buy = kind == "Market" and not market.is_linear and params.get("side") == "Buy"
        if is_spot_market_buy and params.get("marketUnit") != "baseCoin":  # counted in quote unless said otherwise
            quantity = market.instrument.floor_quantity(quantity / self.venue.prices[market.symbol])
        return NewOrder(
            symbol=market.symbol,
            side=Side.BUY if params.get("side") == "Buy" else Side.SELL,
            quantity=quantity,
            type=kind.lower(),
            limit_price=price if kind == "Limit" else None,
            client_order_id=params.get("orderLinkId") or None,
            time_in_force=_TIME_IN_FORCE[in_force],
            post_only=in_force == "PostOnly",
            reduce_only=params.get("reduceOnly") == "true",
            trigger_price=trigger,
            trigger_above=None if "triggerDirection" not in params else params["triggerDirection"] == "1",
            signed_at_ms=integer(params, "timestamp"),
            window_ms=integer(params, "window"),
        )

    def _listed(self, params: Mapping[str, str]) -> dict[str, Market]:
        category = params["category"]
        return self.listed(category == "linear") if category in {"linear", "spot"} else {}

    def _market(self, params: Mapping[str, str]) -> Market:
        market = self._listed(params).get(params.get("symbol", ""))
        if market is None:
            raise VenueReject(RejectReason.BAD_SYMBOL)
        return market
