"""The wire format of Binance spot: requests, answers and error codes as its REST API has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

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
    ordinary,
    reference,
    signed_with,
)
from execsafe.testing.venue import Market

_RECV_WINDOW_MS: Final = 5_000
_RECV_WINDOW_MS_MAX: Final = 60_000
_TYPES: Final = ("LIMIT", "LIMIT_MAKER", "MARKET", "STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT",
                 "TAKE_PROFIT_LIMIT")  # fmt: skip

_REFUSALS: Final[Mapping[RejectReason, tuple[int, int, str]]] = {
    RejectReason.INSUFFICIENT_FUNDS: (400, -2010, "Account has insufficient balance for requested action."),
    RejectReason.LOT_SIZE: (400, -1013, "Filter failure: LOT_SIZE"),
    RejectReason.PRICE_FILTER: (400, -1013, "Filter failure: PRICE_FILTER"),
    RejectReason.NOTIONAL: (400, -1013, "Filter failure: NOTIONAL"),
    RejectReason.POST_ONLY: (400, -2010, "Order would immediately match and take."),
    RejectReason.REDUCE_ONLY: (400, -1106, "Parameter 'reduceOnly' sent when not required."),
    RejectReason.DUPLICATE_ID: (400, -2010, "Duplicate order sent."),
    RejectReason.UNKNOWN_ORDER: (400, -2011, "Unknown order sent."),
    RejectReason.BAD_SYMBOL: (400, -1121, "Invalid symbol."),
    RejectReason.BAD_REQUEST: (400, -1102, "Mandatory parameter was not sent, was empty/null, or malformed."),
    RejectReason.EXPIRED_REQUEST: (400, -1021, "Timestamp for this request is outside of the recvWindow."),
    RejectReason.TIMESTAMP_AHEAD: (
        400, -1021, "Timestamp for this request was 1000ms ahead of the server's time."),
    RejectReason.RATE_LIMITED: (
        429, -1003, "Too much request weight used; current limit is 6000 request weight per 1 MINUTE."),
    RejectReason.BAD_KEY: (401, -2015, "Invalid API-key, IP, or permissions for action."),
}  # fmt: skip
_STATUS: Final = {
    OrderStatus.CLOSED: "FILLED",
    OrderStatus.CANCELED: "CANCELED",
    OrderStatus.EXPIRED: "EXPIRED",
    OrderStatus.REJECTED: "REJECTED",
}


class BinanceFace(Face):
    """Binance spot as ``api.binance.com`` serves it."""

    name: ClassVar[str] = "binance"
    hosts: ClassVar[tuple[str, ...]] = ("api.binance.com", "api1.binance.com", "api-gcp.binance.com")

    def read(self, request: WireRequest) -> Job:
        params, route = request.params(), f"{request.method} {request.path.removeprefix('/api/v3')}"
        public = self._public(route, params)
        if public is not None:
            return public
        routes = {
            "POST /order": (Operation.CREATE, self._create),
            "POST /order/cancelReplace": (Operation.CREATE, self._cancel_replace),
            "DELETE /order": (Operation.CANCEL, self._cancel),
            "GET /order": (Operation.LOOK_UP, self._order),
            "GET /openOrders": (Operation.LOOK_UP, self._open_orders),
            "GET /allOrders": (Operation.LOOK_UP, self._all_orders),
            "GET /myTrades": (Operation.LOOK_UP, self._my_trades),
            "GET /account": (None, self._account),
        }
        if route not in routes:
            return Job(act=lambda _now_ms, _strikes: Answer.html(404))
        operation, handler = routes[route]
        signed_at_ms = integer(params, "timestamp")
        window_ms = _window(params)

        def act(now_ms: int, strikes: Strikes) -> Any:
            self._check_signature(request)
            self.venue.advance(now_ms)
            if operation is not Operation.CREATE:  # the venue itself judges a create, and records its judgement
                self.venue.check_time(signed_at_ms + window_ms, signed_at_ms)
            return handler(params, now_ms, strikes)

        return Job(act=ordinary(act), operation=operation, dead_after_ms=signed_at_ms + window_ms)

    def refuse(self, reject: VenueReject) -> Answer:
        if isinstance(reject, Refusal):
            return reject.answer
        if reject.reason is RejectReason.MAINTENANCE:
            return Answer.html(503)
        status, code, message = _REFUSALS[reject.reason]
        headers = {"Retry-After": "1"} if reject.reason is RejectReason.RATE_LIMITED else {}
        return Answer.of({"code": code, "msg": message}, status, **headers)

    # --- public -----------------------------------------------------------------------------------

    def _public(self, route: str, params: Mapping[str, str]) -> Job | None:
        handlers: dict[str, Callable[[int], Any]] = {
            "GET /ping": lambda _now_ms: {},
            "GET /time": lambda now_ms: {"serverTime": now_ms + self.venue.skew_ms},
            "GET /exchangeInfo": self._exchange_info,
            "GET /ticker/price": lambda _now_ms: self._tickers(params, "price"),
            "GET /ticker/bookTicker": lambda _now_ms: self._tickers(params, "bidPrice", "askPrice"),
            "GET /ticker/24hr": lambda _now_ms: self._tickers(params, "lastPrice", "bidPrice", "askPrice"),
            "GET /depth": lambda _now_ms: self._depth(params),
        }
        handler = handlers.get(route)
        if handler is None:
            return None

        def act(now_ms: int, _strikes: Strikes) -> Any:
            self.venue.advance(now_ms)
            return handler(now_ms)

        return Job(act=ordinary(act))

    def _exchange_info(self, now_ms: int) -> Any:
        symbols = [_symbol_info(market) for market in self.listed(is_linear=False).values()]
        return {"timezone": "UTC", "serverTime": now_ms, "rateLimits": [], "exchangeFilters": [],
                "symbols": symbols}  # fmt: skip

    def _tickers(self, params: Mapping[str, str], *names: str) -> Any:
        rows = [
            {"symbol": key, **dict.fromkeys(names, plain(self.venue.prices[market.symbol]))}
            for key, market in self.listed(is_linear=False).items()
            if params.get("symbol", key) == key
        ]
        return rows[0] if "symbol" in params and rows else rows

    def _depth(self, params: Mapping[str, str]) -> Any:
        market = self._market(params)
        level = [plain(self.venue.prices[market.symbol]), "1000"]
        return {"lastUpdateId": 1, "bids": [level], "asks": [level]}

    # --- orders -----------------------------------------------------------------------------------

    def _create(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        order = self.venue.submit(self._new_order(params), now_ms, strikes)
        return _created(order, params.get("newOrderRespType", "FULL"))

    def _cancel(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        market = self._market(params)
        order = self.venue.cancel(
            now_ms, symbol=market.symbol, strikes=strikes, **reference(params, "orderId", "origClientOrderId")
        )
        given = {"clientOrderId": params.get("newClientOrderId", f"c{order.venue_order_id}")}
        return {**_order(order), "origClientOrderId": order.client_order_id, "transactTime": now_ms, **given}

    def _cancel_replace(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """Cancel, then create; not atomic, exactly as in the original."""
        signed_at_ms = integer(params, "timestamp")
        self.venue.check_time(signed_at_ms + _window(params), signed_at_ms)
        old = {"origClientOrderId": params.get("cancelOrigClientOrderId", ""),
               "orderId": params.get("cancelOrderId", ""), "symbol": params.get("symbol", "")}  # fmt: skip
        result = {"cancelResult": "SUCCESS", "newOrderResult": "NOT_ATTEMPTED", "cancelResponse": None,
                  "newOrderResponse": None}  # fmt: skip
        try:
            result["cancelResponse"] = self._cancel(old, now_ms, strikes)
        except VenueReject as reject:
            result.update(cancelResult="FAILURE", cancelResponse=_error(self.refuse(reject)))
            if params.get("cancelReplaceMode") != "ALLOW_FAILURE":
                raise _replace_failed(400, -2022, "Order cancel-replace failed.", result) from None
        try:
            created = self._create(params, now_ms, strikes)
        except VenueReject as reject:
            result.update(newOrderResult="FAILURE", newOrderResponse=_error(self.refuse(reject)))
            if result["cancelResult"] == "FAILURE":
                raise _replace_failed(400, -2022, "Order cancel-replace failed.", result) from None
            raise _replace_failed(409, -2021, "Order cancel-replace partially failed.", result) from None
        result.update(newOrderResult="SUCCESS", newOrderResponse=created)
        if result["cancelResult"] == "FAILURE":
            raise _replace_failed(409, -2021, "Order cancel-replace partially failed.", result)
        return result

    def _order(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        sought = reference(params, "orderId", "origClientOrderId")
        symbol = self._market(params).symbol
        shown = self.look(View.CLIENT_ID, now_ms, strikes, symbol=symbol, **sought)
        if not shown or not any(sought.values()):
            raise Refusal(Answer.of({"code": -2013, "msg": "Order does not exist."}, 400))
        return _order(shown[-1])

    def _open_orders(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        symbol = self._market(params).symbol if "symbol" in params else None
        return [_order(order) for order in self.look(View.OPEN_ORDERS, now_ms, strikes, symbol=symbol)]

    def _all_orders(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        symbol = self._market(params).symbol
        shown = self.look(View.CLOSED_ORDERS, now_ms, strikes, symbol=symbol)
        ended = {order.venue_order_id for order in shown}
        still_open = self.venue.look(View.OPEN_ORDERS, now_ms, symbol=symbol)
        shown += [order for order in still_open if order.venue_order_id not in ended]
        since_ms, first_id = integer(params, "startTime"), integer(params, "orderId")
        shown = [o for o in shown if o.created_at_ms >= since_ms and int(o.venue_order_id) >= first_id]
        shown.sort(key=lambda order: int(order.venue_order_id))
        limit = integer(params, "limit", 500)
        return [_order(order) for order in (shown[:limit] if since_ms or first_id else shown[-limit:])]

    def _my_trades(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        symbol = self._market(params).symbol
        orders = self.look(View.TRADES, now_ms, strikes, symbol=symbol)
        pairs = [(order, fill) for order in orders for fill in order.fills]
        wanted, since_ms = params.get("orderId"), integer(params, "startTime")
        pairs = [(o, f) for o, f in pairs if wanted in {None, o.venue_order_id} and f.at_ms >= since_ms]
        pairs.sort(key=lambda pair: int(pair[1].trade_id))
        return [_trade(order, fill) for order, fill in pairs[-integer(params, "limit", 500) :]]

    def _account(self, _params: Mapping[str, str], now_ms: int, _strikes: Strikes) -> Any:
        account = self.venue.account
        rows = [
            {"asset": c, "free": plain(account.free(c)), "locked": plain(account.balances[c] - account.free(c))}
            for c in sorted(account.balances)
        ]
        return {"makerCommission": 10, "takerCommission": 10, "canTrade": True, "canWithdraw": False,
                "updateTime": now_ms, "accountType": "SPOT", "balances": rows, "permissions": ["SPOT"]}  # fmt: skip

    # --- reading requests -------------------------------------------------------------------------

    def _new_order(self, params: Mapping[str, str]) -> NewOrder:
        kind, market = params.get("type", ""), self._market(params)
        price, trigger = number(params, "price"), number(params, "stopPrice")
        quantity, quote = number(params, "quantity"), number(params, "quoteOrderQty")
        if quantity is None and quote is not None:
            quantity = market.instrument.floor_quantity(quote / self.venue.prices[market.symbol])
        has_limit = kind.startswith("LIMIT") or kind.endswith("_LIMIT")
        if kind not in _TYPES or quantity is None or (has_limit and price is None):
            raise VenueReject(RejectReason.BAD_REQUEST)
        if kind in {"LIMIT", "STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT"} and "timeInForce" not in params:
            raise VenueReject(RejectReason.BAD_REQUEST)
        if kind.startswith(("STOP", "TAKE")) and trigger is None:
            raise VenueReject(RejectReason.BAD_REQUEST)
        is_buy = params.get("side") == "BUY"
        return NewOrder(
            symbol=market.symbol,
            side=Side.BUY if is_buy else Side.SELL,
            quantity=quantity,
            type="limit" if has_limit else "market",
            limit_price=price if has_limit else None,
            client_order_id=params.get("newClientOrderId"),
            time_in_force=params.get("timeInForce", "GTC"),
            post_only=kind == "LIMIT_MAKER",
            trigger_price=trigger,
            trigger_above=None if trigger is None else is_buy != kind.startswith("TAKE"),
            signed_at_ms=integer(params, "timestamp"),
            window_ms=_window(params),
        )

    def _market(self, params: Mapping[str, str]) -> Market:
        market = self.listed(is_linear=False).get(params.get("symbol", ""))
        if market is None:
            raise VenueReject(RejectReason.BAD_SYMBOL)
        return market

    def _check_signature(self, request: WireRequest) -> None:
        secret = self.keys.get(request.headers.get("x-mbx-apikey", ""))
        if secret is None:
            raise VenueReject(RejectReason.BAD_KEY)
        payload, _, signature = (request.query + request.body).rpartition("&signature=")
        if not signed_with(secret, payload, signature):
            raise Refusal(Answer.of({"code": -1022, "msg": "Signature for this request is not valid."}, 400))


def _window(params: Mapping[str, str]) -> int:
    return min(integer(params, "recvWindow", _RECV_WINDOW_MS), _RECV_WINDOW_MS_MAX)


def _replace_failed(status: int, code: int, message: str, result: dict[str, Any]) -> Refusal:
    return Refusal(Answer.of({"code": code, "msg": message, "data": result}, status))


def _error(answer: Answer) -> Any:
    return json.loads(answer.body) if answer.body.startswith("{") else None


def _type(request: NewOrder) -> str:
    if request.trigger_price is None:
        return "LIMIT_MAKER" if request.post_only else request.type.upper()
    takes_profit = request.trigger_above is (request.side is Side.SELL)
    return ("TAKE_PROFIT" if takes_profit else "STOP_LOSS") + ("_LIMIT" if request.limit_price else "")


def _order(order: SimOrder) -> dict[str, Any]:
    request = order.request
    live = "PARTIALLY_FILLED" if order.filled_quantity else "NEW"
    return {
        "symbol": order.symbol.replace("/", ""),
        "orderId": int(order.venue_order_id),
        "orderListId": -1,
        "clientOrderId": order.client_order_id or f"web_{order.venue_order_id}",
        "price": plain(order.limit_price) if order.limit_price else "0.00000000",
        "origQty": plain(order.quantity),
        "executedQty": plain(order.filled_quantity),
        "origQuoteOrderQty": "0.000000",
        "cummulativeQuoteQty": plain(order.cost),
        "status": _STATUS.get(order.status, live),
        "timeInForce": request.time_in_force,
        "type": _type(request),
        "side": order.side.value.upper(),
        "stopPrice": plain(request.trigger_price) if request.trigger_price else "0.00000000",
        "icebergQty": "0.00000000",
        "time": order.created_at_ms,
        "updateTime": order.updated_at_ms,
        "isWorking": order.triggered,
        "workingTime": order.created_at_ms,
        "selfTradePreventionMode": "NONE",
    }


def _created(order: SimOrder, detail: str) -> dict[str, Any]:
    body = _order(order)
    head = {key: body[key] for key in ("symbol", "orderId", "orderListId", "clientOrderId")}
    head["transactTime"] = order.created_at_ms
    if detail == "ACK":
        return head
    hidden = {"icebergQty", "time", "updateTime", "isWorking"}
    if order.request.trigger_price is None:
        hidden.add("stopPrice")
    result = {**head, **{key: value for key, value in body.items() if key not in hidden}}
    if detail == "FULL":
        result["fills"] = [
            {
                "price": plain(fill.price),
                "qty": plain(fill.quantity),
                "commission": plain(fill.fee),
                "commissionAsset": fill.fee_currency,
                "tradeId": int(fill.trade_id),
            }
            for fill in order.fills
        ]
    return result


def _trade(order: SimOrder, fill: SimFill) -> dict[str, Any]:
    return {
        "symbol": order.symbol.replace("/", ""),
        "id": int(fill.trade_id),
        "orderId": int(order.venue_order_id),
        "orderListId": -1,
        "price": plain(fill.price),
        "qty": plain(fill.quantity),
        "quoteQty": plain(fill.quantity * fill.price),
        "commission": plain(fill.fee),
        "commissionAsset": fill.fee_currency,
        "time": fill.at_ms,
        "isBuyer": order.side is Side.BUY,
        "isMaker": fill.is_maker,
        "isBestMatch": True,
    }


def _symbol_info(market: Market) -> dict[str, Any]:
    instrument = market.instrument

    def limit(value: Any, default: str) -> str:
        return default if value is None else plain(value)

    step = limit(instrument.step_size, "0.00000001")
    lot = {"minQty": limit(instrument.min_quantity, step), "maxQty": limit(instrument.max_quantity, "9000"),
           "stepSize": step}  # fmt: skip
    return {
        "symbol": market_id(market),
        "status": "TRADING",
        "baseAsset": instrument.base,
        "baseAssetPrecision": 8,
        "quoteAsset": instrument.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": list(_TYPES),
        "icebergAllowed": True,
        "ocoAllowed": True,
        "quoteOrderQtyMarketAllowed": True,
        "cancelReplaceAllowed": True,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": limit(instrument.min_price, "0.01"),
             "maxPrice": limit(instrument.max_price, "1000000"), "tickSize": limit(instrument.tick_size, "0.01")},
            {"filterType": "LOT_SIZE", **lot},
            {"filterType": "MARKET_LOT_SIZE", **lot, "minQty": "0.00000000", "stepSize": "0.00000000"},
            {"filterType": "NOTIONAL", "minNotional": limit(instrument.min_notional, "0"),
             "applyMinToMarket": True, "maxNotional": "9000000", "applyMaxToMarket": False, "avgPriceMins": 5},
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": "NONE",
        "allowedSelfTradePreventionModes": ["NONE"],
    }  # fmt: skip
