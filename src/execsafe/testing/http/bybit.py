"""The wire format of Bybit v5 (linear and spot): requests, answers and return codes as its REST API has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final
from urllib.parse import unquote

from execsafe.model.order import OrderStatus, Side
from execsafe.model.outcome import Operation
from execsafe.model.values import plain
from execsafe.model.venue import View
from execsafe.testing._orders import NewOrder, RejectReason, SimFill, SimOrder, VenueReject
from execsafe.testing.faults import Strikes
from execsafe.testing.http._face import (
    Answer,
    Face,
    Job,
    Refusal,
    WireRequest,
    integer,
    market_id,
    number,
    reference,
    signed_with,
)
from execsafe.testing.venue import Market

_RECV_WINDOW_MS: Final = 5_000
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
}  # fmt: skip

Handler = Callable[[Mapping[str, str], int, Strikes], Any]


class BybitFace(Face):
    """Bybit v5 as ``api.bybit.com`` serves it. Create answers are acknowledgements: an id and nothing else."""

    name: ClassVar[str] = "bybit"
    hosts: ClassVar[tuple[str, ...]] = ("api.bybit.com", "api.bytick.com")

    def read(self, request: WireRequest) -> Job:
        params = {"category": "linear", **request.params()}
        route = f"{request.method} {request.path.removeprefix('/v5')}"
        public = self._public().get(route)
        if public is not None:
            return self._job(public, params, None, None)
        operation, handler = self._private().get(route, (None, None))
        if handler is None:
            return Job(act=lambda _now_ms, _strikes: Answer.html(404))
        return self._job(handler, params, operation, request)

    def refuse(self, reject: VenueReject) -> Answer:
        if isinstance(reject, Refusal):
            return reject.answer
        if reject.reason is RejectReason.MAINTENANCE:
            return Answer.html(503)
        linear, _, message = _REFUSALS[reject.reason]
        return _envelope({}, self.venue.now_ms, linear, message)

    def _public(self) -> dict[str, Handler]:
        return {
            "GET /market/time": self._time,
            "GET /market/instruments-info": self._instruments,
            "GET /market/tickers": self._tickers,
        }

    def _private(self) -> dict[str, tuple[Operation | None, Handler]]:
        return {
            "GET /user/query-api": (None, lambda *_: {"uta": 1, "unified": 0, "isMaster": True, "readOnly": 0}),
            "GET /account/info": (
                None, lambda *_: {"unifiedMarginStatus": 6, "marginMode": "REGULAR_MARGIN", "dcpStatus": "OFF"}),
            "POST /order/create": (Operation.CREATE, self._create),
            "POST /order/amend": (Operation.CREATE, self._amend),
            "POST /order/cancel": (Operation.CANCEL, self._cancel),
            "GET /order/realtime": (Operation.LOOK_UP, self._realtime),
            "GET /order/history": (Operation.LOOK_UP, self._history),
            "GET /execution/list": (Operation.LOOK_UP, self._executions),
            "GET /position/list": (None, self._positions),
            "GET /account/wallet-balance": (None, self._wallet),
        }  # fmt: skip

    def _job(
        self,
        handler: Handler,
        params: Mapping[str, str],
        operation: Operation | None,
        request: WireRequest | None,
    ) -> Job:
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
                return _envelope(handler(params, now_ms, strikes), now_ms)
            except VenueReject as reject:
                if params["category"] == "spot" and reject.reason in _REFUSALS:
                    _, code, message = _REFUSALS[reject.reason]
                    raise Refusal(_envelope({}, now_ms, code, message), reject.reason) from None
                raise

        return Job(act=act, operation=operation, dead_after_ms=dead_after_ms if request else None)

    def _check_signature(self, request: WireRequest) -> None:
        headers = request.headers
        key = headers.get("x-bapi-api-key", "")
        if key not in self.keys:
            raise VenueReject(RejectReason.BAD_KEY)
        payload = request.body if request.method == "POST" else unquote(request.query)
        prefix = headers.get("x-bapi-timestamp", "") + key + headers.get("x-bapi-recv-window", "")
        if not signed_with(self.keys[key], prefix + payload, headers.get("x-bapi-sign", "")):
            message = "error sign! origin_string[...]"
            raise Refusal(_envelope({}, self.venue.now_ms, 10004, message), RejectReason.BAD_KEY)

    # --- public -----------------------------------------------------------------------------------

    def _time(self, _params: Mapping[str, str], now_ms: int, _strikes: Strikes) -> Any:
        venue_ms = now_ms + self.venue.skew_ms
        return {"timeSecond": str(venue_ms // 1000), "timeNano": str(venue_ms * 1_000_000)}

    def _instruments(self, params: Mapping[str, str], _now_ms: int, _strikes: Strikes) -> Any:
        category = params["category"]
        markets = self._listed(params).values()
        rows = [_linear_info(m) if category == "linear" else _spot_info(m) for m in markets]
        return {"category": category, "list": rows, "nextPageCursor": ""}

    def _tickers(self, params: Mapping[str, str], _now_ms: int, _strikes: Strikes) -> Any:
        rows = []
        for key, market in self._listed(params).items():
            if params.get("symbol", key) == key:
                price = plain(self.venue.prices[market.symbol])
                names = ("lastPrice", "markPrice", "indexPrice", "bid1Price", "ask1Price", "prevPrice24h")
                rows.append({"symbol": key, **dict.fromkeys(names, price), "bid1Size": "1000", "ask1Size": "1000"})
        return {"category": params["category"], "list": rows}

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
        shown = [order for order in self._shown(view, params, now_ms, strikes) if order.is_open is not ended]
        if params.get("orderFilter") == "StopOrder":
            shown = [order for order in shown if order.request.trigger_price is not None]
        return _page(params, [_order(order) for order in shown], 20)

    def _history(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        shown = self._shown(View.CLOSED_ORDERS, params, now_ms, strikes)
        return _page(params, [_order(order) for order in shown if not order.is_open], 20)

    def _executions(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        shown = self._shown(View.TRADES, params, now_ms, strikes)
        return _page(params, [_execution(order, fill) for order in shown for fill in order.fills], 50)

    def _shown(self, view: View, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> list[SimOrder]:
        symbol = self._market(params).symbol if "symbol" in params else None
        orders = self.look(view, now_ms, strikes, symbol=symbol, **reference(params, "orderId", "orderLinkId"))
        symbols = {market.symbol for market in self._listed(params).values()}
        since_ms = integer(params, "startTime")
        return [order for order in orders if order.symbol in symbols and order.created_at_ms >= since_ms]

    # --- account ----------------------------------------------------------------------------------

    def _positions(self, params: Mapping[str, str], now_ms: int, _strikes: Strikes) -> Any:
        rows = [
            self._position(key, market, now_ms)
            for key, market in self.listed(is_linear=True).items()
            if params.get("symbol", key) == key
        ]
        return {"category": "linear", "list": rows, "nextPageCursor": ""}

    def _position(self, key: str, market: Market, now_ms: int) -> dict[str, Any]:
        position = self.venue.account.positions.get(market.symbol)
        quantity = position.quantity if position else 0 * market.leverage
        entry = position.entry_price if position else quantity
        price = self.venue.prices[market.symbol]
        side = "Buy" if quantity > 0 else "Sell" if quantity < 0 else ""
        return {
            "positionIdx": 0, "riskId": 1, "tradeMode": 0, "symbol": key, "side": side,
            "size": plain(abs(quantity)), "avgPrice": plain(entry), "leverage": plain(market.leverage),
            "positionValue": plain(market.instrument.notional(abs(quantity), entry)), "markPrice": plain(price),
            "unrealisedPnl": plain(market.instrument.notional(quantity, price - entry)),
            "cumRealisedPnl": "0", "liqPrice": "", "stopLoss": "", "takeProfit": "", "positionStatus": "Normal",
            "createdTime": str(now_ms), "updatedTime": str(now_ms),
        }  # fmt: skip

    def _wallet(self, _params: Mapping[str, str], _now_ms: int, _strikes: Strikes) -> Any:
        account = self.venue.account
        coins = [
            {"coin": c, "walletBalance": plain(account.balances[c]), "equity": plain(account.balances[c]),
             "locked": plain(account.balances[c] - account.free(c)), "usdValue": plain(account.balances[c])}
            for c in sorted(account.balances)
        ]  # fmt: skip
        return {"list": [{"accountType": "UNIFIED", "coin": coins}]}

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


def _envelope(result: Any, now_ms: int, code: int = 0, message: str = "OK") -> Answer:
    body = {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": now_ms}
    return Answer.of(body)


def _page(params: Mapping[str, str], rows: list[dict[str, Any]], default: int) -> dict[str, Any]:
    """The newest first, a page at a time; the cursor is how many were shown."""
    start, limit = integer(params, "cursor"), integer(params, "limit", default)
    newest = rows[::-1][start : start + limit]
    more = str(start + limit) if start + limit < len(rows) else ""
    return {"category": params["category"], "list": newest, "nextPageCursor": more}


def _status(order: SimOrder) -> str:
    if order.status is OrderStatus.CLOSED:
        return "Filled"
    if order.is_open:
        return "Untriggered" if not order.triggered else "PartiallyFilled" if order.filled_quantity else "New"
    if order.status is OrderStatus.REJECTED:
        return "Rejected"
    if not order.triggered:
        return "Deactivated"
    return "PartiallyFilledCanceled" if order.filled_quantity else "Cancelled"


def _order(order: SimOrder) -> dict[str, Any]:
    request = order.request
    fees = sum((fill.fee for fill in order.fills), start=0 * order.quantity)
    refused = order.reason is RejectReason.POST_ONLY
    return {
        "symbol": order.symbol.split(":")[0].replace("/", ""),
        "orderId": order.venue_order_id,
        "orderLinkId": order.client_order_id or "",
        "orderType": request.type.capitalize(),
        "side": order.side.value.capitalize(),
        "price": plain(order.limit_price) if order.limit_price else "0",
        "qty": plain(order.quantity),
        "leavesQty": plain(order.leaves_quantity),
        "cumExecQty": plain(order.filled_quantity),
        "cumExecValue": plain(order.cost),
        "cumExecFee": plain(fees),
        "avgPrice": plain(order.average_price) if order.average_price else "",
        "orderStatus": _status(order),
        "timeInForce": "PostOnly" if request.post_only else request.time_in_force,
        "reduceOnly": request.reduce_only,
        "closeOnTrigger": False,
        "triggerPrice": plain(request.trigger_price) if request.trigger_price else "",
        "triggerDirection": 0 if request.trigger_above is None else 1 if request.trigger_above else 2,
        "stopOrderType": "Stop" if request.trigger_price else "",
        "rejectReason": "EC_PostOnlyWillTakeLiquidity" if refused else "EC_NoError",
        "cancelType": "UNKNOWN",
        "positionIdx": 0,
        "createdTime": str(order.created_at_ms),
        "updatedTime": str(order.updated_at_ms),
    }


def _execution(order: SimOrder, fill: SimFill) -> dict[str, Any]:
    body = _order(order)
    return {
        **{key: body[key] for key in ("symbol", "orderId", "orderLinkId", "side", "orderType")},
        "orderPrice": body["price"],
        "orderQty": body["qty"],
        "leavesQty": body["leavesQty"],
        "execId": fill.trade_id,
        "execPrice": plain(fill.price),
        "execQty": plain(fill.quantity),
        "execValue": plain(fill.quantity * fill.price),
        "execFee": plain(fill.fee),
        "feeCurrency": fill.fee_currency,
        "execType": "Trade",
        "execTime": str(fill.at_ms),
        "isMaker": fill.is_maker,
    }


def _text(value: Any, default: str) -> str:
    return default if value is None else plain(value)


def _linear_info(market: Market) -> dict[str, Any]:
    instrument = market.instrument
    largest = _text(instrument.max_quantity, "1000")
    return {
        "symbol": market_id(market), "contractType": "LinearPerpetual", "status": "Trading",
        "baseCoin": instrument.base, "quoteCoin": instrument.quote, "settleCoin": instrument.quote,
        "launchTime": "1585526400000", "deliveryTime": "0", "deliveryFeeRate": "", "priceScale": "2",
        "leverageFilter": {"minLeverage": "1", "maxLeverage": "100.00", "leverageStep": "0.01"},
        "priceFilter": {"minPrice": _text(instrument.min_price, "0.1"),
                        "maxPrice": _text(instrument.max_price, "1999999.8"),
                        "tickSize": _text(instrument.tick_size, "0.1")},
        "lotSizeFilter": {"maxOrderQty": largest, "maxMktOrderQty": largest, "postOnlyMaxOrderQty": largest,
                          "minOrderQty": _text(instrument.min_quantity, "0.001"),
                          "qtyStep": _text(instrument.step_size, "0.001"),
                          "minNotionalValue": _text(instrument.min_notional, "5")},
        "unifiedMarginTrade": True, "fundingInterval": 480, "copyTrading": "none",
    }  # fmt: skip


def _spot_info(market: Market) -> dict[str, Any]:
    instrument = market.instrument
    return {
        "symbol": market_id(market), "baseCoin": instrument.base, "quoteCoin": instrument.quote,
        "innovation": "0", "status": "Trading", "marginTrading": "none",
        "lotSizeFilter": {"basePrecision": _text(instrument.step_size, "0.000001"), "quotePrecision": "0.00000001",
                          "minOrderQty": _text(instrument.min_quantity, "0.00001"),
                          "maxOrderQty": _text(instrument.max_quantity, "100"),
                          "minOrderAmt": _text(instrument.min_notional, "5"), "maxOrderAmt": "8000000"},
        "priceFilter": {"tickSize": _text(instrument.tick_size, "0.01")},
    }  # fmt: skip
